//! Starting a program, again and again, for a process that may start none itself.
//!
//! A VM's process is confined before its guest runs, and then can neither open a program nor
//! execute one. What it will need later is named before that: a process of its own, this program
//! again ([`Launcher::process`]), is told one command, and from then on starts that, with the
//! descriptors that it is sent, and nothing else. So whoever breaks into the VM's process gets a
//! process that reads an image, or a passt: nothing that the VM did not have anyway.
//!
//! They talk by packets over a pair of sockets. One command runs at a time; it is killed when it is
//! asked for, when the other end of the sockets is gone, or when the process is that was there: an
//! intruder could have handed its end of the sockets, and a disk's lock, to what it had started.

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, send, sendmsg,
    socketpair,
};
use rustix::process::{Pid, PidfdFlags, getppid, pidfd_open};

use crate::sandbox;

/// First argument of a process that is to start a program.
pub const ARGUMENT: &str = "--start-for-another";
/// Its name in lists of processes.
const NAME: &str = "wherry-launcher";
/// Second argument: the program's environment is empty, and it is in `/`.
const BARE: &str = "bare";
/// Second argument: its environment is this one.
const PLAIN: &str = "plain";

/// What is to be started.
#[derive(Debug, Clone)]
pub struct Program {
    /// Its name in lists of processes, the program, its arguments.
    command: Vec<OsString>,
    bare: bool,
}

impl Program {
    /// A program, which is called `name`, in an empty environment and in `/`.
    pub fn bare(name: &str, program: OsString, arguments: Vec<OsString>) -> Self {
        let command = [name.into(), program].into_iter().chain(arguments).collect();
        Self { command, bare: true }
    }

    /// A program of the user's, with the environment of this process.
    pub fn plain(program: OsString, arguments: Vec<OsString>) -> Self {
        let command = [program.clone(), program].into_iter().chain(arguments).collect();
        Self { command, bare: false }
    }

    /// The same in the arguments of a process.
    fn from_arguments(arguments: &[OsString]) -> Option<Self> {
        let (how, command) = arguments.split_first()?;
        (command.len() >= 2).then(|| Self { command: command.to_vec(), bare: how == BARE })
    }

    fn spawn(&self, stdio: [Option<OwnedFd>; 3]) -> io::Result<Child> {
        let [name, program, arguments @ ..] = &*self.command else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let mut command = Command::new(program);
        if self.bare {
            command.env_clear().current_dir("/");
        }
        let [stdin, stdout, stderr] = stdio.map(|fd| fd.map_or_else(Stdio::null, Stdio::from));
        command.arg0(name).args(arguments).stdin(stdin).stdout(stdout).stderr(stderr).spawn()
    }
}

/// What the launcher is told: what is to be done, for which command, and, for each of the first
/// three descriptors, whether one comes with it.
const ORDER: usize = 3;
const START: u8 = 0;
const KILL: u8 = 1;
/// What comes of an order some of whose descriptors were lost on the way.
const TORN: u8 = 2;

/// What it says: what has become of which command, and a number.
const ANSWER: usize = 6;
const STARTED: u8 = 0;
/// The number is an error's.
const FAILED: u8 = 1;
/// The number is a status of wait(2).
const ENDED: u8 = 2;

/// Starts one program. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Launcher(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    control: OwnedFd,
    /// Tells answers apart.
    next: AtomicU8,
    /// The process that starts it, if that is another one.
    process: Option<Child>,
}

/// A command that was started.
#[derive(Debug)]
pub struct Job {
    launcher: Launcher,
    number: u8,
    ended: Option<ExitStatus>,
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let kind = SocketType::SEQPACKET;
    Ok(socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?)
}

impl Launcher {
    /// In a process of its own, for one that is to be confined. It has its own process group, so
    /// that Ctrl-C at the terminal is not for it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn process(program: &Program) -> io::Result<Self> {
        let (control, theirs) = pair()?;
        let mut command = Command::new("/proc/self/exe");
        if program.bare {
            command.env_clear().current_dir("/");
        }
        let process = command
            .arg0(NAME)
            .args([ARGUMENT, if program.bare { BARE } else { PLAIN }])
            .args(&program.command)
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok(Self::at(control, Some(process)))
    }

    /// On a thread, for a process that is not confined.
    ///
    /// # Errors
    /// There is no room for one.
    pub fn thread(program: Program) -> io::Result<Self> {
        let (control, theirs) = pair()?;
        let thread = std::thread::Builder::new().name("launcher".into());
        let other = Other { control: theirs, process: None };
        thread.spawn(move || serve(&other, &program))?;
        Ok(Self::at(control, None))
    }

    fn at(control: OwnedFd, process: Option<Child>) -> Self {
        Self(Arc::new(Shared { control, next: AtomicU8::new(0), process }))
    }

    /// Starts the program with these descriptors; where there is none it gets `/dev/null`.
    ///
    /// # Errors
    /// It cannot be started, or another one still runs.
    pub fn start(&self, stdio: [Option<BorrowedFd<'_>>; 3]) -> io::Result<Job> {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        let which =
            stdio.iter().zip(0..).fold(0, |which, (fd, nr)| which | (u8::from(fd.is_some()) << nr));
        let order = [START, number, which];
        let fds: Vec<BorrowedFd<'_>> = stdio.into_iter().flatten().collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut with = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !with.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let order = [IoSlice::new(&order)];
        sendmsg(&self.0.control, &order, &mut with, SendFlags::NOSIGNAL)?;
        let job = Job { launcher: self.clone(), number, ended: None };
        loop {
            match job.answer()? {
                Some((STARTED, _)) => return Ok(job),
                Some((_, error)) => return Err(io::Error::from_raw_os_error(error)),
                None => {}
            }
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // It sees that we are gone, kills what it has started, and ends.
            let _ = rustix::net::shutdown(&self.control, rustix::net::Shutdown::Both);
            let _ = process.wait();
        }
    }
}

impl Job {
    /// Kills it, if it still runs.
    pub fn kill(&self) {
        // Without a launcher nobody can: what it started ends when its descriptors do.
        let order = [KILL, self.number, 0];
        let _ = send(&self.launcher.0.control, &order, SendFlags::NOSIGNAL);
    }

    /// Waits for its end, at most for `limit` if there is one: `None` then.
    ///
    /// # Errors
    /// The launcher is gone.
    pub fn wait(&mut self, limit: Option<Duration>) -> io::Result<Option<ExitStatus>> {
        let end = limit.map(|limit| Instant::now() + limit);
        while self.ended.is_none() {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            let timeout = left.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
            let control = &self.launcher.0.control;
            match poll(&mut [PollFd::new(control, PollFlags::IN)], timeout.as_ref()) {
                Ok(0) => return Ok(None),
                Ok(_) => {
                    if let Some((ENDED, status)) = self.answer()? {
                        self.ended = Some(ExitStatus::from_raw(status));
                    }
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(self.ended)
    }

    /// The next answer, if it is about this one.
    fn answer(&self) -> io::Result<Option<(u8, i32)>> {
        let mut answer = [0; ANSWER];
        let len = retry(|| Ok(recv(&self.launcher.0.control, &mut answer, RecvFlags::empty())?.0))?;
        let [what, number, a, b, c, d] = answer;
        match len {
            ANSWER if number == self.number => Ok(Some((what, i32::from_ne_bytes([a, b, c, d])))),
            ANSWER => Ok(None),
            _ => Err(io::Error::other("the process that starts programs is gone")),
        }
    }
}

/// Becomes readable when it ends.
impl AsFd for Job {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.launcher.0.control.as_fd()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if self.ended.is_none() {
            self.kill();
        }
    }
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}

/// Does the work and ends the process, if it was started for that: the first thing in `main`.
pub fn serve_if_asked(arguments: &[OsString]) {
    let Some((first, rest)) = arguments.get(1..).and_then(<[_]>::split_first) else { return };
    if first != ARGUMENT {
        return;
    }
    let program = Program::from_arguments(rest);
    let closed = sandbox::close_all_but_standard();
    let (Some(program), Ok(())) = (program, closed) else { std::process::exit(2) };
    // SAFETY: the process was started with it, and nothing else in it uses it.
    let control = unsafe { OwnedFd::from_raw_fd(0) };
    let process = getppid().and_then(|parent| pidfd_open(parent, PidfdFlags::empty()).ok());
    // Where the parent had ended before, it is another's by now: init's, which ends with all else.
    // Then the other end of the sockets is gone, too.
    let Some(process) = process else { std::process::exit(2) };
    serve(&Other { control, process: Some(process) }, &program);
    std::process::exit(0);
}

/// Who has things started.
struct Other {
    control: OwnedFd,
    /// Its process, if that is another one.
    process: Option<OwnedFd>,
}

/// What happens next.
enum Event {
    Gone,
    Ended,
    Told,
}

impl Other {
    /// Waits until it says something, it is gone, or `running` has ended.
    fn wait(&self, running: Option<&OwnedFd>) -> Event {
        let gone = self.process.iter().map(|fd| (fd, Event::Gone));
        let ended = running.into_iter().map(|fd| (fd, Event::Ended));
        let all: Vec<_> = gone.chain(ended).chain([(&self.control, Event::Told)]).collect();
        let mut fds: Vec<_> = all.iter().map(|(fd, _)| PollFd::new(*fd, PollFlags::IN)).collect();
        if retry(|| poll(&mut fds, None)).is_err() {
            return Event::Gone;
        }
        let ready = fds.iter().position(|fd| !fd.revents().is_empty());
        drop(fds);
        ready.and_then(|nr| all.into_iter().nth(nr)).map_or(Event::Gone, |(_, event)| event)
    }
}

/// Until who has things started is gone.
fn serve(other: &Other, program: &Program) {
    let control = &other.control;
    while let Event::Told = other.wait(None)
        && let Some(Order { what, number, stdio }) = Order::next(control)
    {
        let started = match what {
            START => program.spawn(stdio),
            TORN => Err(io::Error::from_raw_os_error(libc::EBADF)),
            _ => continue,
        };
        match started {
            Ok(child) => {
                if !see_to(other, number, child) {
                    return;
                }
            }
            Err(e) => {
                let error = e.raw_os_error().unwrap_or(libc::EINVAL);
                if !say(control, FAILED, number, error) {
                    return;
                }
            }
        }
    }
}

/// Says that it was started, and waits for the end of what runs. False, and it is killed, if who
/// had it started is gone or does not listen.
fn see_to(other: &Other, number: u8, mut child: Child) -> bool {
    let told = until_its_end(other, number, &mut child);
    if !told {
        let _ = child.kill();
    }
    told
}

fn until_its_end(other: &Other, number: u8, child: &mut Child) -> bool {
    let control = &other.control;
    let Ok(pidfd) = pidfd_open(Pid::from_child(child), PidfdFlags::empty()) else { return false };
    let mut told = say(control, STARTED, number, 0);
    while told {
        let order = match other.wait(Some(&pidfd)) {
            Event::Ended => {
                let status = child.wait().map_or(libc::SIGKILL, ExitStatus::into_raw);
                return say(control, ENDED, number, status);
            }
            Event::Told => Order::next(control),
            Event::Gone => None,
        };
        match order {
            None => return false,
            Some(Order { what: START | TORN, number, .. }) => {
                told = say(control, FAILED, number, libc::EBUSY);
            }
            Some(order) if order.number == number => _ = child.kill(),
            Some(_) => {}
        }
    }
    false
}

/// False if it cannot be told, now or ever. Who does not listen is not waited for: it might be an
/// intruder, who had to let go of what runs.
#[must_use]
fn say(control: &OwnedFd, what: u8, number: u8, value: i32) -> bool {
    let [a, b, c, d] = value.to_ne_bytes();
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    retry(|| send(control, &[what, number, a, b, c, d], flags)).is_ok()
}

/// What the launcher is told.
struct Order {
    what: u8,
    number: u8,
    stdio: [Option<OwnedFd>; 3],
}

impl Order {
    /// `None` if there will be no more.
    fn next(control: &OwnedFd) -> Option<Self> {
        let mut order = [0; ORDER];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut with = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let len = retry(|| {
            let mut into = [IoSliceMut::new(&mut order)];
            Ok(recvmsg(control, &mut into, &mut with, flags)?.bytes)
        });
        if len != Ok(ORDER) {
            return None;
        }
        let came = with.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        let came: Vec<OwnedFd> = came.flatten().collect();
        let [what, number, which] = order;
        // As where this process has as many open as it may: none takes another's place.
        let whole = came.len() == which.count_ones() as usize;
        let (what, mut came) = (if whole { what } else { TORN }, came.into_iter());
        let stdio = [1, 2, 4].map(|bit| if which & bit != 0 { came.next() } else { None });
        Some(Self { what, number, stdio })
    }
}

#[cfg(test)]
mod tests;
