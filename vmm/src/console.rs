//! The guest's serial console on the host side: one output, several listeners, one input.
//!
//! Output goes to the sink chosen with `--serial`, to every attached client, and into a small history that a client sees when it
//! attaches. Nobody who does not read may hold up a vCPU: the sink has a thread and a bounded queue of its own, and loses what does
//! not fit; a client is dropped.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::config::SerialSink;

/// Bytes of output kept for a client that attaches later.
const HISTORY: usize = 16 << 10;
/// Writes of the port that wait for a slow sink; mostly of one byte each.
const QUEUE: usize = 16 << 10;
/// How long the sink may take to show the last of them when the guest has ended.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Clients attached at a time.
const MAX_CLIENTS: usize = 8;

type Input = Arc<dyn Fn(&[u8]) + Send + Sync>;

#[derive(Default)]
struct Inner {
    sink: Option<(SyncSender<Vec<u8>>, JoinHandle<()>)>,
    clients: Vec<UnixStream>,
    history: VecDeque<u8>,
    /// Where typed bytes go: the serial port of the machine that runs now.
    input: Option<Input>,
}

/// Shared by the serial port (output), the control API (clients) and the terminal (input). Outlives a reboot.
#[derive(Clone, Default)]
pub struct Console(Arc<Mutex<Inner>>);

/// The end that the serial port writes to.
pub struct ConsoleOut(Console);

impl Console {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the sink. For a pty the returned path is its user's end.
    pub fn open(sink: &SerialSink) -> io::Result<(Self, Option<PathBuf>)> {
        let console = Self::default();
        let mut pty = None;
        match sink {
            SerialSink::None => {}
            SerialSink::Stdio => {
                console.show_on(io::stdout())?;
                console.pump(io::stdin());
            }
            SerialSink::File(path) => {
                console.show_on(OpenOptions::new().create(true).append(true).open(path)?)?;
            }
            SerialSink::Pty => {
                let (master, path) = open_pty()?;
                console.pump(master.try_clone()?);
                console.show_on(master)?;
                pty = Some(path);
            }
        }
        Ok((console, pty))
    }

    fn show_on(&self, mut sink: impl Write + Send + 'static) -> io::Result<()> {
        let (sender, bytes): (_, Receiver<Vec<u8>>) = sync_channel(QUEUE);
        let thread = std::thread::Builder::new().name("console-out".into()).spawn(move || {
            for chunk in bytes {
                // A failing sink (closed terminal, full disk) must not stop the guest.
                let _ = sink.write_all(&chunk).and_then(|()| sink.flush());
            }
        })?;
        self.lock().sink = Some((sender, thread));
        Ok(())
    }

    /// Lets the sink show what is left, for a second at most; what comes later is not shown there.
    pub fn finish(&self) {
        let Some((sender, thread)) = self.lock().sink.take() else { return };
        drop(sender);
        let end = Instant::now() + LAST_WORDS;
        while !thread.is_finished() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The output end for a serial port.
    pub fn output(&self) -> ConsoleOut {
        ConsoleOut(self.clone())
    }

    /// Sends typed bytes to `input` from now on (the serial port of a new machine).
    pub fn connect(&self, input: Input) {
        self.lock().input = Some(input);
    }

    /// Feeds bytes to the guest.
    pub fn type_in(&self, bytes: &[u8]) {
        // The port may call back for output: never hold our lock across it.
        let input = self.lock().input.clone();
        if let Some(input) = input {
            input(bytes);
        }
    }

    /// Attaches a client: it sees recent output, then all that follows; what it sends is typed into the guest.
    pub fn attach(&self, client: UnixStream) -> io::Result<()> {
        let reader = client.try_clone()?;
        client.set_nonblocking(false)?;
        let mut inner = self.lock();
        if inner.clients.len() >= MAX_CLIENTS {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "too many consoles are attached"));
        }
        let mut writer = client;
        let history: Vec<u8> = inner.history.iter().copied().collect();
        writer.set_write_timeout(Some(Duration::from_millis(1)))?;
        writer.write_all(&history)?;
        inner.clients.push(writer);
        drop(inner);
        self.pump(reader);
        Ok(())
    }

    /// Reads `from` on a thread of its own until it ends.
    fn pump(&self, mut from: impl Read + Send + 'static) {
        let console = self.clone();
        let _ = std::thread::Builder::new().name("console-in".into()).spawn(move || {
            let mut buf = [0; 1024];
            loop {
                match from.read(&mut buf) {
                    Ok(0) => return,
                    Ok(n) => console.type_in(buf.get(..n).unwrap_or_default()),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    // EIO: nobody has the pty's other end open yet.
                    Err(e)
                        if e.raw_os_error() == Some(libc::EIO) || e.kind() == io::ErrorKind::WouldBlock =>
                    {
                        std::thread::sleep(Duration::from_millis(50));
                    }
                    Err(_) => return,
                }
            }
        });
    }
}

impl Write for ConsoleOut {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut inner = self.0.lock();
        inner.history.extend(buf);
        let over = inner.history.len().saturating_sub(HISTORY);
        inner.history.drain(..over);
        if let Some((sink, _)) = &inner.sink {
            let _ = sink.try_send(buf.to_vec());
        }
        inner.clients.retain_mut(|c| c.write_all(buf).is_ok());
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn open_pty() -> io::Result<(File, PathBuf)> {
    // SAFETY: posix_openpt returns a new descriptor or -1.
    let fd = unsafe { libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is new and owned by nobody else.
    let master = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let mut name = [0u8; 128];
    // SAFETY: `fd` is a pty master; `name` is writable for the length given.
    let failed = unsafe {
        libc::grantpt(fd) != 0
            || libc::unlockpt(fd) != 0
            || libc::ptsname_r(fd, name.as_mut_ptr().cast(), name.len()) != 0
    };
    if failed {
        return Err(io::Error::last_os_error());
    }
    let text = std::ffi::CStr::from_bytes_until_nul(&name).map_err(io::Error::other)?;
    Ok((master, PathBuf::from(text.to_string_lossy().into_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_does_not_read_is_dropped_and_holds_up_nothing() {
        let (console, _) = Console::open(&SerialSink::None).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        console.attach(ours).unwrap();
        let mut out = console.output();
        for _ in 0..1000 {
            out.write_all(&[b'x'; 1024]).unwrap();
        }
        assert!(console.lock().clients.is_empty());
        drop(theirs);
    }

    #[test]
    fn a_late_client_sees_what_was_printed_and_can_type() {
        let (console, _) = Console::open(&SerialSink::None).unwrap();
        console.output().write_all(b"hello").unwrap();
        let typed = Arc::new(Mutex::new(Vec::new()));
        let copy = typed.clone();
        console.connect(Arc::new(move |b: &[u8]| copy.lock().unwrap().extend_from_slice(b)));
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        console.attach(ours).unwrap();
        let mut buf = [0; 5];
        theirs.read_exact(&mut buf).unwrap();
        assert_eq!(&buf, b"hello");
        theirs.write_all(b"ls\n").unwrap();
        for _ in 0..200 {
            if typed.lock().unwrap().len() == 3 {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("typed bytes did not arrive");
    }
}
