//! Reading an image in a confined process, and believing nothing of what it says.
//!
//! The process is this program again (`/proc/self/exe`, so it is of the same build even after an
//! upgrade), started with [`ARGUMENT`]: a fork of a process with threads could only call what is
//! safe in a signal handler. Who reads an image once has it started by a thread; a VM's process,
//! which will be confined, by a process ([`Reader::ahead`]). It gets three descriptors: the image
//! as standard input, a memory file as standard output, and `/dev/null`. It closes all others,
//! confines itself, reads, writes its answer, and ends.
//!
//! The parent waits for its end, with a deadline. Then nobody can write the file any more: it is
//! sealed, and only then looked at.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use seccompiler::SeccompAction;
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};

use crate::answer::{Answer, Listing, PAGE};
use crate::extract::extract;
use crate::launcher::{Job, Launcher, Program};
use crate::limits::Limits;
use crate::refusal::{Refusal, Why};
use crate::sandbox::{self, Calls, ProcessLimits, SandboxError};

/// First argument of a process that is to read an image.
pub const ARGUMENT: &str = "--read-boot-files";
/// Its name in lists of processes.
const NAME: &str = "wherry-boot-files";
/// How long a process that was killed may take to go: one that waits for a disk does not.
const LAST_STEPS: Duration = Duration::from_secs(1);

/// Why there is nothing to boot.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image is not booted from.
    #[error(transparent)]
    Refused(Refusal),
    /// The process that reads cannot be started.
    #[error("cannot start the process that reads it")]
    Start(#[source] io::Error),
    /// It took too long.
    #[error("reading it took more than {} seconds", .0.as_secs())]
    Deadline(Duration),
    /// It ended without an answer.
    #[error("the process that reads it {0}; the image is damaged or hostile")]
    Died(String),
    /// What it left makes no sense.
    #[error("the process that reads it was of no use: {0}; the image is damaged or hostile")]
    Answer(&'static str),
}

/// What an image would boot. The bytes are in a sealed memory file.
#[derive(Debug)]
pub struct BootFiles {
    /// What was found.
    pub listing: Listing,
    /// Whether Landlock confined the process that found it.
    pub landlock: bool,
    file: File,
}

/// Bytes of a file: where they begin, and how many they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Position of the first one.
    pub start: u64,
    /// How many.
    pub len: u64,
}

impl BootFiles {
    /// The file that holds the bytes.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where the kernel is in it.
    pub fn kernel(&self) -> Span {
        Span { start: self.listing.kernel_at(), len: self.listing.kernel.len }
    }

    /// Where the initrd is in it.
    pub fn initrd(&self) -> Option<Span> {
        let (initrd, start) = (self.listing.initrd.as_ref()?, self.listing.initrd_at()?);
        Some(Span { start, len: initrd.len })
    }
}

/// Starts processes that read images.
#[derive(Debug, Clone)]
pub struct Reader {
    program: Program,
    limits: Limits,
    /// Who starts them, if that has been seen to.
    launcher: Option<Launcher>,
}

impl Default for Reader {
    fn default() -> Self {
        Self::new("/proc/self/exe", &[ARGUMENT], Limits::default())
    }
}

impl Reader {
    /// By another program, which calls [`serve_if_asked`]; for tests, also with other arguments.
    pub fn new(program: impl Into<PathBuf>, arguments: &[&str], limits: Limits) -> Self {
        let Limits { kernel, initrd, memory, cpu_seconds, .. } = limits;
        let numbers = [kernel, initrd, memory, cpu_seconds].map(|number| number.to_string());
        let arguments = arguments.iter().map(OsString::from);
        let arguments = arguments.chain(numbers.into_iter().map(Into::into)).collect();
        let program = Program::bare(NAME, program.into().into_os_string(), arguments);
        Self { program, limits, launcher: None }
    }

    /// Has a process that will start them, for one that is about to lose the right to.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn ahead(mut self) -> Result<Self, Error> {
        self.launcher = Some(Launcher::process(&self.program).map_err(Error::Start)?);
        Ok(self)
    }

    /// Reads what `image` would boot. The image may be open for writing, too, and with `O_DIRECT`;
    /// its position is not kept.
    ///
    /// # Errors
    /// There is nothing to boot, or the image misled the process that read it.
    pub fn read(&self, image: &File) -> Result<BootFiles, Error> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create(NAME, flags).map_err(|e| Error::Start(e.into()))?);
        let job = self.start(image, &file).map_err(Error::Start)?;
        let status = wait(job, self.limits.deadline).map_err(Error::Start)?;
        let status = status.ok_or(Error::Deadline(self.limits.deadline))?;
        if !status.success() {
            return Err(Error::Died(how(status, &self.limits)));
        }
        let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        fcntl_add_seals(&file, seals).map_err(|_| Error::Answer("its file is still written"))?;
        let Answer { landlock, result } =
            Answer::read(&file, &self.limits).map_err(Error::Answer)?;
        let listing = result.map_err(Error::Refused)?;
        Ok(BootFiles { listing, landlock, file })
    }

    fn start(&self, image: &File, out: &File) -> io::Result<Job> {
        let launcher = match &self.launcher {
            Some(launcher) => launcher.clone(),
            None => Launcher::thread(self.program.clone())?,
        };
        launcher.start([Some(image.as_fd()), Some(out.as_fd()), None])
    }
}

/// Waits for a process; `None` if it had to be killed.
fn wait(mut job: Job, deadline: Duration) -> io::Result<Option<ExitStatus>> {
    let ended = job.wait(Some(deadline))?;
    if ended.is_none() {
        job.kill();
        job.wait(Some(LAST_STEPS))?;
    }
    Ok(ended)
}

/// How a process ended, for people.
fn how(status: ExitStatus, limits: &Limits) -> String {
    match status.signal() {
        Some(libc::SIGXCPU) => {
            format!("took more than {} seconds of CPU time", limits.cpu_seconds)
        }
        Some(libc::SIGABRT) => format!("had no use for {} MiB of memory", limits.memory >> 20),
        Some(libc::SIGSYS) => "made a system call that it may not make (signal 31)".into(),
        Some(signal) => format!("was ended by signal {signal}"),
        None => format!("ended with exit code {}", status.code().unwrap_or_default()),
    }
}

/// Does the work and ends the process, if it was started for that: the first thing in `main`.
pub fn serve_if_asked(arguments: &[OsString]) {
    let Some((first, numbers)) = arguments.get(1..).and_then(<[_]>::split_first) else { return };
    if first == ARGUMENT {
        std::process::exit(serve(numbers));
    }
}

/// The limits that [`Reader::start`] gave.
fn limits(numbers: &[OsString]) -> Option<Limits> {
    let mut numbers = numbers.iter().map(|text| text.to_str()?.parse::<u64>().ok());
    let mut next = || numbers.next().flatten();
    let (kernel, initrd, memory, cpu_seconds) = (next()?, next()?, next()?, next()?);
    Some(Limits { kernel, initrd, memory, cpu_seconds, ..Limits::default() })
}

fn serve(numbers: &[OsString]) -> i32 {
    let Some(limits) = limits(numbers) else { return 2 };
    // A panic has nobody to tell, and a backtrace would open files.
    std::panic::set_hook(Box::new(|_| {}));
    // SAFETY: the process was started with these two, and nothing else in it uses them.
    let (image, out) = unsafe { (OwnedFd::from_raw_fd(0), OwnedFd::from_raw_fd(1)) };
    let (image, out) = (File::from(image), File::from(out));
    let answer = match confine(&limits) {
        Ok(landlock) => {
            let read = || extract(image, &out, &limits);
            let result = catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
                Err(Refusal::new(Why::Damaged, "the reader of ext4 gave up on it"))
            });
            Answer { landlock, result }
        }
        Err(error) => {
            Answer { landlock: false, result: Err(Refusal::new(Why::Confine, error.to_string())) }
        }
    };
    i32::from(answer.write(&out).is_err())
}

/// Confines this process to what [`extract`] needs. Says whether Landlock took part.
///
/// # Errors
/// A layer that every supported kernel has cannot be set.
pub fn confine(limits: &Limits) -> Result<bool, SandboxError> {
    sandbox::close_all_but_standard()?;
    let landlock = sandbox::forbid_all_files()?;
    sandbox::limit(&ProcessLimits {
        memory: limits.memory,
        cpu_seconds: limits.cpu_seconds,
        file_size: limits.kernel.saturating_add(limits.initrd).saturating_add(3 * PAGE),
    })?;
    let own = std::process::id();
    let (out, error) = (io::stdout(), io::stderr());
    let number = |fd: &dyn AsFd| std::os::fd::AsRawFd::as_raw_fd(&fd.as_fd()) as u32;
    let anonymous = libc::MAP_ANONYMOUS as u64;
    let executable = libc::PROT_EXEC as u64;
    Calls::default()
        .allow(&[libc::SYS_pread64, libc::SYS_lseek, libc::SYS_close])
        // What the library asks before it closes.
        .allow_if(libc::SYS_fcntl, &[(1, Eq, libc::F_GETFD as u32)])?
        // The image may be open for writing.
        .allow_if(libc::SYS_pwrite64, &[(0, Eq, number(&out))])?
        // Memory that holds no code.
        .allow(&[libc::SYS_brk, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_madvise])
        .allow_if(
            libc::SYS_mmap,
            &[(2, MaskedEq(executable), 0), (3, MaskedEq(anonymous), anonymous as u32)],
        )?
        // The end, also that of a process that is out of memory.
        .allow(&[libc::SYS_exit_group, libc::SYS_sigaltstack, libc::SYS_futex])
        .allow(&[libc::SYS_rt_sigprocmask, libc::SYS_gettid, libc::SYS_getpid])
        .allow_if(libc::SYS_write, &[(0, Eq, number(&error))])?
        .allow_if(libc::SYS_tgkill, &[(0, Eq, own)])?
        .enforce(SeccompAction::KillProcess)?;
    Ok(landlock)
}
