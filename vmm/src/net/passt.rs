//! passt(1), and another one when it ends.
//!
//! It runs in the foreground, with one end of a socket pair as its standard input, and ends when
//! the other end is closed: however this process ends, none is left. A process of its own starts it
//! ([`wherry_rootfs::launcher`]), since this one may start none once it is confined.
//! Nothing of it is waited for but the first answer at the very start, when there is still somebody
//! to tell what is wrong; later a thread watches it, and has it killed if its stream is broken.
//!
//! The guest's addresses are the same on every host, so that it keeps them when it moves. It does
//! not reach what listens on this host's loopback: passt would let it, by the gateway's address.

use std::ffi::OsString;
use std::io::{self, ErrorKind, PipeReader, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::ioctl_fionbio;
use tracing::{info, warn};
use wherry_rootfs::launcher::{self, Job, Launcher};

use super::stream::{LONGEST, Stream};
use super::user::User;
use crate::config::{Forward, UserNet};
use crate::poll::look;

/// What a guest's addresses are: its own, the gateway's, and that of a resolver which asks the
/// host's.
const ADDRESSES: [&str; 8] =
    ["-a", "10.0.2.15", "-n", "24", "-g", "10.0.2.2", "--dns-forward", "10.0.2.3"];
/// So long it may take to answer for the first time.
const FIRST_ANSWER: Duration = Duration::from_secs(10);
/// From an end to another start, at first; twice as long each time after that.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// See [`FIRST_PAUSE`].
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Most bytes of its last words that are kept.
const LAST_WORDS: usize = 4096;
const ABSENT: &str = "there is no `passt` on this host; `apt-get install passt` installs it";

/// How it is started.
#[derive(Clone)]
pub struct Program {
    /// The command, first its program.
    command: Vec<OsString>,
    /// The first pause: see [`FIRST_PAUSE`].
    pause: Duration,
    /// See [`FIRST_ANSWER`].
    patience: Duration,
    /// By a process of its own, or, in tests, by a thread of this one.
    apart: bool,
}

impl Program {
    /// passt for this network.
    pub fn new(net: &UserNet) -> Self {
        let mut command: Vec<OsString> = ["passt", "-f", "-q", "-F", "0"].map(Into::into).into();
        command.extend(ADDRESSES.iter().map(Into::into));
        command.push("--no-map-gw".into());
        if let Some(mtu) = net.mtu {
            command.extend(["-m".into(), mtu.to_string().into()]);
        }
        for Forward { address, host, guest } in &net.forwards {
            command.extend(["-t".into(), format!("{address}/{host}:{guest}").into()]);
        }
        Self { command, pause: FIRST_PAUSE, patience: FIRST_ANSWER, apart: cfg!(not(test)) }
    }

    fn launcher(&self) -> io::Result<Launcher> {
        let Some((name, arguments)) = self.command.split_first() else {
            return Err(ErrorKind::InvalidInput.into());
        };
        let program = launcher::Program::plain(name.clone(), arguments.to_vec());
        if self.apart { Launcher::process(&program) } else { Launcher::thread(program) }
    }
}

/// Watches what it has started. Dropping it ends that.
pub struct Watch {
    quit: Arc<AtomicBool>,
    user: User,
    /// What is to be watched, until it is.
    started: Option<Started>,
    thread: Option<JoinHandle<()>>,
}

/// How it is started again, and what runs.
struct Started {
    program: Program,
    launcher: Launcher,
    running: Running,
}

impl Watch {
    /// Starts it, for a network whose link is up from then on. There is no thread yet.
    ///
    /// # Errors
    /// The text says why it does not run, and what to do about it.
    pub fn start(program: Program) -> io::Result<Self> {
        let (user, quit) = (User::new()?, Arc::new(AtomicBool::new(false)));
        let launcher = program.launcher()?;
        let (running, stream) = start(&program, &launcher, &user, &quit)?;
        user.connect(stream)?;
        let started = Some(Started { program, launcher, running });
        Ok(Self { quit, user, started, thread: None })
    }

    /// Begins to watch it, as that of the network `id`.
    ///
    /// # Errors
    /// There is no room for a thread.
    pub fn begin(&mut self, id: &str) -> io::Result<()> {
        let Some(started) = self.started.take() else { return Ok(()) };
        let thread = wherry_threads::of_kind("passt").named(format!("passt-{id}")).spawn({
            let (id, user, quit) = (id.to_owned(), self.user.clone(), self.quit.clone());
            move || watch(&id, started, &user, &quit)
        })?;
        self.thread = Some(thread);
        Ok(())
    }

    /// The guest's end.
    pub fn user(&self) -> &User {
        &self.user
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.quit.store(true, Ordering::Release);
        self.user.tell();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Until it is to quit: waits for the end of what runs, and starts it anew.
fn watch(id: &str, started: Started, user: &User, quit: &AtomicBool) {
    let Started { program, launcher, mut running } = started;
    let mut pause = program.pause;
    loop {
        let since = Instant::now();
        let ended = running.wait(user, quit);
        let found = user.disconnect();
        if quit.load(Ordering::Acquire) {
            return;
        }
        let why = found.map_or(ended, |e| format!("passt sent {e}"));
        down(id, &why);
        // What ends soon after its start is not started ever faster.
        if since.elapsed() > LONGEST_PAUSE {
            pause = program.pause;
        }
        running = loop {
            let until = Instant::now() + pause;
            // Looked at before each wait: what tells of it may have ended an earlier one.
            while !quit.load(Ordering::Acquire) && user.wait_told(&[], until) {}
            if quit.load(Ordering::Acquire) {
                return;
            }
            pause = LONGEST_PAUSE.min(pause * 2);
            let started = start(&program, &launcher, user, quit);
            if let Ok(next) = started.and_then(|(next, stream)| user.connect(stream).map(|()| next))
            {
                break next;
            }
        };
        info!(net = id, "network `{id}` is up again");
    }
}

/// A guest may bring its network down again and again.
fn down(id: &str, why: &str) {
    warn!(net = id, "network `{id}` is down: {why}; passt is started again");
}

/// Starts it, and waits until it answers.
fn start(
    program: &Program,
    launcher: &Launcher,
    user: &User,
    quit: &AtomicBool,
) -> io::Result<(Running, Stream)> {
    let (own, theirs) = UnixStream::pair()?;
    let mut running = Running::new(launcher, &theirs)?;
    drop(theirs);
    let mut stream = Stream::new(own)?;
    let until = Instant::now() + program.patience;
    // They fail if it is gone, which is found out below.
    let _ = stream.write(&question_4()).and_then(|()| stream.write(&question_6()));
    let mut answer = vec![0; LONGEST];
    loop {
        match stream.read(&mut answer) {
            Ok(_) => return Ok((running, stream)),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => return Err(io::Error::other(running.end())),
        }
        if quit.load(Ordering::Acquire) || !user.wait_told(&[stream.as_fd()], until) {
            running.end();
            return Err(io::Error::new(ErrorKind::TimedOut, "passt does not answer"));
        }
    }
}

/// An address of nobody's. passt takes the guest's own from any frame of the guest's.
const NOBODY: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Who has the gateway's address? An ARP request (RFC 826) as from a machine that has no address
/// yet; passt answers all of them.
fn question_4() -> Vec<u8> {
    let (to, operation) = ([0xff; 6], [0, 1, 8, 0, 6, 4, 0, 1]);
    [&to[..], &NOBODY, &[8, 6], &operation, &NOBODY, &[0; 4], &[0; 6], &[10, 0, 2, 2]].concat()
}

/// The same where there is IPv6 alone: a neighbour solicitation for fe80::2 (RFC 4861).
fn question_6() -> Vec<u8> {
    let (to, kind) = ([0x33, 0x33, 0xff, 0, 0, 2], [0x86, 0xdd]);
    let header = [0x60, 0, 0, 0, 0, 24, 58, 255];
    let source = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 1];
    let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 2];
    let question = [135, 0, 0x7e, 0xa1, 0, 0, 0, 0];
    let target = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    let ip = [&header[..], &source, &group, &question, &target].concat();
    [&to[..], &NOBODY, &kind, &ip].concat()
}

/// One that runs.
struct Running {
    job: Job,
    /// Standard error, until it is closed.
    words: Option<PipeReader>,
    said: Vec<u8>,
}

impl Running {
    fn new(launcher: &Launcher, network: &UnixStream) -> io::Result<Self> {
        let (words, theirs) = io::pipe()?;
        ioctl_fionbio(&words, true)?;
        let job = launcher.start([Some(network.as_fd()), None, Some(theirs.as_fd())]);
        let job = job.map_err(|e| match e.kind() {
            ErrorKind::NotFound => io::Error::new(e.kind(), ABSENT),
            _ => io::Error::new(e.kind(), format!("cannot start `passt`: {e}")),
        })?;
        Ok(Self { job, words: Some(words), said: Vec::new() })
    }

    /// Waits until it ends, or is to be ended, and ends it. Returns why it did.
    fn wait(&mut self, user: &User, quit: &AtomicBool) -> String {
        loop {
            self.hear();
            let over = look(&self.job, PollFlags::IN).is_ok_and(|now| !now.is_empty());
            if over || !user.is_connected() || quit.load(Ordering::Acquire) {
                return self.end();
            }
            let ended = self.job.as_fd();
            let fds = self.words.iter().map(|words| words.as_fd()).chain([ended]);
            user.wait_told(&fds.collect::<Vec<_>>(), Instant::now() + LONGEST_PAUSE);
        }
    }

    /// Keeps its last words.
    fn hear(&mut self) {
        let mut more = [0; LAST_WORDS];
        while let Some(words) = &mut self.words {
            match words.read(&mut more) {
                Ok(len @ 1..) => {
                    self.said.extend_from_slice(more.get(..len).unwrap_or_default());
                    self.said.drain(..self.said.len().saturating_sub(LAST_WORDS));
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                _ => self.words = None,
            }
        }
    }

    /// Ends it. Returns how it ended, and what it said last.
    fn end(&mut self) -> String {
        // One that has ended by itself takes no harm, and keeps its exit status.
        self.job.kill();
        let status = match self.job.wait(None) {
            Ok(Some(status)) => status.to_string(),
            Ok(None) => "it runs on".into(),
            Err(e) => e.to_string(),
        };
        self.hear();
        let said = String::from_utf8_lossy(&self.said);
        // Without a log daemon passt says of each line that it could not be logged.
        let mut lines = said.lines().rev().map(str::trim);
        let last = lines.find(|line| !line.is_empty() && !line.ends_with("to syslog"));
        match last {
            Some(last) => format!("passt ended ({status}): {}", last.escape_debug()),
            None => format!("passt ended ({status})"),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.job.kill();
        let _ = self.job.wait(None);
    }
}

#[cfg(test)]
#[path = "passt_tests.rs"]
mod tests;
