//! A TCP connection at full speed whose content is checked.

use std::io::Read;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, anyhow, ensure};

use super::Debian;
use crate::hosts::Place;
use crate::{Result, SOON, grows_to};

/// A connection over which the guest sends numbers as fast as it can, 8 bytes each, that are
/// checked here.
pub struct Flow {
    relay: Child,
    checked: Arc<AtomicU64>,
    reader: JoinHandle<Result<()>>,
}

impl Flow {
    /// Begins it; returns at once.
    ///
    /// # Errors
    /// The client or the guest could not.
    pub fn begin(debian: &Debian) -> Result<Self> {
        const RELAY: &str = "use IO::Socket::INET; \
            $s = IO::Socket::INET->new(Listen => 1, LocalPort => 5000, ReuseAddr => 1) or die $!; \
            $c = $s->accept; while (sysread $c, $_, 65536) { syswrite STDOUT, $_ }";
        const SENDER: &str = "for ($i = 0;; $i += 8192) { \
            syswrite STDOUT, pack(q(Q>*), $i .. $i + 8191) or exit }";
        let mut relay = debian.hosts.tool(Place::Client, &["perl", "-e", RELAY]);
        let mut relay = relay.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut out = relay.stdout.take().context("no pipe")?;
        let client = Place::Client.address();
        debian.run(&format!(
            "cat > /root/flow.pl <<'END'\n{SENDER}\nEND\n\
             systemd-run -q --unit=flow bash -c 'exec perl /root/flow.pl > /dev/tcp/{client}/5000'"
        ))?;
        let checked = Arc::new(AtomicU64::new(0));
        let count = checked.clone();
        let reader = std::thread::spawn(move || {
            let (mut buffer, mut len) = (vec![0; 1 << 16], 0);
            loop {
                let read = out.read(&mut buffer[len..])?;
                if read == 0 {
                    return Ok(());
                }
                len += read;
                let whole = len / 8 * 8;
                for number in buffer[..whole].chunks_exact(8) {
                    let expected = count.load(Ordering::Relaxed) / 8;
                    ensure!(*number == expected.to_be_bytes(), "wrong after {expected} numbers");
                    count.fetch_add(8, Ordering::Relaxed);
                }
                buffer.copy_within(whole..len, 0);
                len -= whole;
            }
        });
        Ok(Self { relay, checked, reader })
    }

    /// Bytes that came and were right.
    pub fn checked(&self) -> u64 {
        self.checked.load(Ordering::Relaxed)
    }

    /// Waits until `bytes` have come and were right, for as long as any come.
    ///
    /// # Errors
    /// They stand still, or the connection broke; [`end`](Self::end) says how.
    pub fn wait_for(&self, bytes: u64) -> Result<()> {
        let count = || {
            ensure!(!self.reader.is_finished(), "the connection broke after {}", self.checked());
            Ok(self.checked())
        };
        grows_to(bytes, SOON, count).context("bytes of the connection")
    }

    /// Ends it.
    ///
    /// # Errors
    /// It broke before, or a number was wrong.
    pub fn end(mut self) -> Result<()> {
        let alive = !self.reader.is_finished();
        self.relay.kill()?;
        self.relay.wait()?;
        self.reader.join().map_err(|_| anyhow!("the reader panicked"))??;
        ensure!(alive, "the connection broke");
        Ok(())
    }
}
