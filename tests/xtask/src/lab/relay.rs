//! The caller's side of the lab's ports: one Unix socket per port, binary-clean.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use wherry_guest_kernel::labconf::{PORTS, Port};

/// Time between two nudges.
const NUDGE_PERIOD: Duration = Duration::from_millis(20);

/// What the lab's init says on its control port.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The command runs.
    Running,
    /// The command ended: its exit code, and the bytes it wrote to output and error output.
    Exit(u8, [u64; 2]),
    /// The lab could not run the command.
    Failed(String),
    /// The lab is gone.
    Closed,
    /// Nothing yet.
    Quiet,
}

/// The sockets that QEMU connects to.
#[derive(Debug)]
pub struct Listeners(Vec<UnixListener>);

/// The path of a port's socket.
pub fn socket_path(dir: &Path, port: usize) -> PathBuf {
    dir.join(format!("port{port}"))
}

impl Listeners {
    /// Listens in `dir`, for QEMU to connect when it starts.
    pub fn new(dir: &Path) -> Result<Self> {
        let bind = |port| {
            let path = socket_path(dir, port);
            UnixListener::bind(&path)
                .with_context(|| format!("cannot listen on {}", path.display()))
        };
        Ok(Self((0..PORTS.len()).map(bind).collect::<Result<_>>()?))
    }

    /// Accepts QEMU's connections and starts moving bytes. `None` when QEMU ends before that.
    pub fn accept(self, mut alive: impl FnMut() -> bool) -> Result<Option<Relay>> {
        let mut streams = Vec::new();
        for listener in &self.0 {
            listener.set_nonblocking(true)?;
            let stream = loop {
                match listener.accept() {
                    Ok((stream, _)) => break stream,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock && alive() => {
                        thread::sleep(Duration::from_millis(5));
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                    Err(e) => return Err(e.into()),
                }
            };
            stream.set_nonblocking(false)?;
            streams.push(stream);
        }
        let stream = |port: Port| streams[port as usize].try_clone();
        let relay = Relay::start(Streams {
            input: Some(stream(Port::In)?),
            out: stream(Port::Out)?,
            err: stream(Port::Err)?,
            control: stream(Port::Control)?,
            nudge: Some(stream(Port::Nudge)?),
        });
        relay.map(Some)
    }
}

/// The lab's ports.
#[derive(Debug)]
pub struct Streams {
    /// To the command's standard input, where there is a way.
    pub input: Option<UnixStream>,
    /// Its standard output.
    pub out: UnixStream,
    /// Its standard error.
    pub err: UnixStream,
    /// What the lab's init says.
    pub control: UnixStream,
    /// For a lab that must be kept awake.
    pub nudge: Option<UnixStream>,
}

/// Bytes on their way between the caller and the command.
#[derive(Debug)]
pub struct Relay {
    control: BufReader<UnixStream>,
    line: String,
    counts: [Arc<AtomicU64>; 2],
    nudges_unanswered: Arc<AtomicU32>,
    /// A socket closed on both sides loses what QEMU has not read yet, so all stay open.
    _streams: Vec<UnixStream>,
}

impl Relay {
    /// Starts moving bytes between these and our own standard streams.
    pub fn start(streams: Streams) -> Result<Self> {
        let mut open = Vec::new();
        if let Some(mut input) = streams.input {
            open.push(input.try_clone()?);
            thread::spawn(move || {
                // The first byte only tells the lab that the port is connected.
                if input.write_all(b"\n").is_ok()
                    && io::copy(&mut io::stdin().lock(), &mut input).is_ok()
                {
                    let _ = input.shutdown(Shutdown::Write);
                }
            });
        }
        open.extend([streams.out.try_clone()?, streams.err.try_clone()?]);
        let counts: [Arc<AtomicU64>; 2] = Default::default();
        move_bytes(streams.out, io::stdout(), Arc::clone(&counts[0]));
        move_bytes(streams.err, io::stderr(), Arc::clone(&counts[1]));
        streams.control.set_read_timeout(Some(Duration::from_millis(100)))?;
        let nudges_unanswered = streams.nudge.map(nudge).transpose()?.unwrap_or_default();
        let control = BufReader::new(streams.control);
        Ok(Self { control, line: String::new(), counts, nudges_unanswered, _streams: open })
    }

    /// For how long the lab has not answered.
    pub fn silence(&self) -> Duration {
        NUDGE_PERIOD * self.nudges_unanswered.load(Ordering::Relaxed)
    }

    /// What the lab says next; waits a little.
    pub fn event(&mut self) -> Event {
        match self.control.read_line(&mut self.line) {
            Ok(0) => Event::Closed,
            Ok(_) => parse(std::mem::take(&mut self.line).trim_end()),
            Err(e) if is_timeout(&e) => Event::Quiet,
            Err(_) => Event::Closed,
        }
    }

    /// Waits until all that the command wrote has been passed on.
    pub fn drain(&self, expected: [u64; 2]) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let done =
            || self.counts.iter().zip(expected).all(|(count, n)| count.load(Ordering::SeqCst) >= n);
        while !done() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(2));
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn parse(line: &str) -> Event {
    let words: Vec<&str> = line.split(' ').collect();
    match words.as_slice() {
        ["running"] => Event::Running,
        ["exit", code, out, err] => match (code.parse::<i32>(), out.parse(), err.parse()) {
            (Ok(code), Ok(out), Ok(err)) => Event::Exit((code & 0xff) as u8, [out, err]),
            _ => Event::Failed(format!("malformed report: {line}")),
        },
        ["failed", ..] => Event::Failed(line["failed".len()..].trim().to_owned()),
        _ => Event::Failed(format!("malformed report: {line}")),
    }
}

/// Keeps the lab awake (`wherry-init/nudge.rs` says why); returns how many nudges were sent since
/// the last answer. Counted and not timed, so that a caller that was itself stopped does not take
/// the lab for frozen.
fn nudge(mut port: UnixStream) -> Result<Arc<AtomicU32>> {
    port.set_write_timeout(Some(NUDGE_PERIOD))?;
    let unanswered = Arc::new(AtomicU32::new(0));
    let (mut answers, answered) = (port.try_clone()?, Arc::clone(&unanswered));
    thread::spawn(move || {
        while let Ok(1..) = answers.read(&mut [0; 16]) {
            answered.store(0, Ordering::Relaxed);
        }
    });
    let sent = Arc::clone(&unanswered);
    thread::spawn(move || {
        loop {
            match port.write(&[0]) {
                Ok(_) => thread::sleep(NUDGE_PERIOD),
                // A frozen lab takes nothing, and the attempt took as long as the sleep.
                Err(e) if is_timeout(&e) => {}
                Err(_) => break,
            }
            sent.fetch_add(1, Ordering::Relaxed);
        }
    });
    Ok(unanswered)
}

fn move_bytes(mut from: UnixStream, mut to: impl Write + Send + 'static, count: Arc<AtomicU64>) {
    thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(len @ 1..) = from.read(&mut buffer) {
            // A caller that no longer listens must not block the lab.
            let _ = to.write_all(&buffer[..len]).and_then(|()| to.flush());
            count.fetch_add(len as u64, Ordering::SeqCst);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_lines() {
        assert_eq!(parse("running"), Event::Running);
        assert_eq!(parse("exit 3 10 0"), Event::Exit(3, [10, 0]));
        assert_eq!(
            parse("failed mount the overlay: no"),
            Event::Failed("mount the overlay: no".into())
        );
        assert!(matches!(parse("exit x"), Event::Failed(_)));
    }
}
