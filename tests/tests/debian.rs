//! A stock Debian on its own disk, on two hosts: programs work in it while it moves.
//!
//! Disks and tool box are those that `cargo xtask test` gives the lab.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use wherry_tests::debian::Debian;
use wherry_tests::hosts::{GUEST, Hosts, MAC, Place};
use wherry_tests::{Env, Result, Scratch, eventually};

/// A block device of the lab.
fn device(variable: &str) -> Result<PathBuf> {
    let path = std::env::var_os(variable);
    path.map(PathBuf::from)
        .with_context(|| format!("{variable} is not set: run this with `cargo xtask test`"))
}

fn start(scratch: &Scratch, disk: &str, args: &[&str]) -> Result<Debian> {
    let hosts = Hosts::build(&device("WHERRY_TOOLS")?, scratch.path())?;
    let env = Env::binary(scratch.path())?.on_fast_storage()?;
    let debian = Debian::start(hosts, &env, &device(disk)?, args)?;
    debian.wait_for_ssh()?;
    Ok(debian)
}

/// Writes and verifies a file again and again, trims what it deletes, until it is told that it is
/// enough. Each pass has a seed of its own.
const LOAD: &str = "\
    seed=1; while [ ! -e /run/enough ]; do \
        fio --name=load --filename=/root/load --size=8M --bs=4k --rw=randwrite --direct=1 \
            --fsync=32 --verify=crc32c --verify_fatal=1 --randseed=$seed --output=/root/load.log \
            || exit 1; \
        rm /root/load; fstrim / || exit 1; \
        echo $seed > /root/passes; seed=$((seed + 1)); \
    done";

fn begin_load(debian: &Debian) -> Result<()> {
    debian.run(&format!("systemd-run -q --unit=load sh -c '{LOAD}'")).map(drop)
}

/// Ends the load; how many passes it made.
fn end_load(debian: &Debian) -> Result<u32> {
    debian.run(
        "touch /run/enough; while systemctl -q is-active load; do sleep 0.5; done; \
         if systemctl -q is-failed load; then cat /root/load.log; exit 1; fi",
    )?;
    let passes = debian.run("cat /root/passes")?;
    passes.trim().parse().with_context(|| format!("passes: {passes}"))
}

/// A connection over which the guest sends numbers as fast as it can, 8 bytes each, that are
/// checked here.
struct Flow {
    relay: Child,
    checked: Arc<AtomicU64>,
    reader: JoinHandle<Result<()>>,
}

impl Flow {
    fn begin(debian: &Debian) -> Result<Self> {
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

    fn checked(&self) -> u64 {
        self.checked.load(Ordering::Relaxed)
    }

    /// Waits until `bytes` have come and were right.
    fn wait_for(&self, bytes: u64) -> Result<()> {
        let enough = || {
            let checked = self.checked();
            let over = checked >= bytes || self.reader.is_finished();
            Ok(if over { Ok(()) } else { Err(format!("{checked} of {bytes} bytes came")) })
        };
        eventually(Duration::from_secs(180), enough).map(drop)
    }

    fn end(mut self) -> Result<()> {
        let alive = !self.reader.is_finished();
        self.relay.kill()?;
        self.relay.wait()?;
        self.reader.join().map_err(|_| anyhow!("the reader panicked"))??;
        ensure!(alive, "the connection broke");
        Ok(())
    }
}

/// All frames that reach the client from now on: their first bytes in hexadecimal, a line each.
fn sniff(hosts: &Hosts) -> Result<Child> {
    const SNIFF: &str = "socket(S, 17, 3, unpack('S', pack('n', 3))) or die $!; \
        while (sysread S, $_, 2000) { syswrite STDOUT, unpack('H84', $_) . qq(\\n) }";
    let mut sniff = hosts.tool(Place::Client, &["perl", "-e", SNIFF]);
    sniff.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start perl")
}

/// Waits until the switch between the hosts knows the guest at `port`.
fn wait_for_port(hosts: &Hosts, port: &str) -> Result<()> {
    let there = || {
        let table = hosts.switch_table()?;
        let line = table.lines().find(|line| line.contains(MAC)).unwrap_or("nothing").to_owned();
        Ok(if line.contains(port) { Ok(()) } else { Err(format!("the switch knows {line}")) })
    };
    eventually(Duration::from_secs(30), there).map(drop)
}

#[test]
fn a_stock_debian_works_while_it_moves() -> Result<()> {
    let scratch = Scratch::new("debian")?;
    let mut debian = start(&scratch, "WHERRY_DEBIAN_BOOKWORM_CLOUD", &["--memory", "768MiB"])?;
    assert_eq!(debian.run("hostname")?.trim(), "deb");
    begin_load(&debian)?;

    // A connection at full speed, with large segments that the card cuts.
    let flow = Flow::begin(&debian)?;
    flow.wait_for(1)?;
    let before = flow.checked();
    debian.move_over(&["--verify"])?;
    let after = flow.checked();
    assert!(before < after, "it stood still: {before} bytes before, {after} after");
    flow.wait_for((100 << 20).max(after + 1))?;
    flow.end()?;
    wait_for_port(&debian.hosts, "up-b")?;

    // Now nobody asks it anything: the switch learns where it is from it and its host alone.
    let mut sniffer = sniff(&debian.hosts)?;
    debian.move_over(&[])?;
    wait_for_port(&debian.hosts, "up-a")?;
    std::thread::sleep(Duration::from_secs(2));
    sniffer.kill()?;
    sniffer.wait()?;
    let frames = BufReader::new(sniffer.stdout.take().context("no pipe")?);
    let frames: Vec<String> = frames.lines().map_while(|line| line.ok()).collect();
    let from_guest = |kind: &str| {
        let head = MAC.replace(':', "") + kind;
        let frames = frames.iter().filter(move |frame| frame[12..].starts_with(&head));
        frames.cloned().collect::<Vec<String>>()
    };
    assert!(from_guest("8035").len() >= 2, "the host repeats RARP: {frames:#?}");
    // Sender and target are the same address: it announces itself.
    let own = GUEST.split('.').map(|n| format!("{:02x}", n.parse::<u8>().unwrap()));
    let own: String = own.collect();
    let announced = |arp: &String| arp[28..].matches(&own).count() == 2;
    assert!(from_guest("0806").iter().any(announced), "no ARP of its own: {frames:#?}");

    assert!(end_load(&debian)? > 0);
    let errors = "journalctl -k --no-pager | grep -iE 'I/O error|EXT4-fs error' || true";
    assert_eq!(debian.run(errors)?, "");
    debian.shut_down()
}
