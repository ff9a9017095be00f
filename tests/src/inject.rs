//! What a thread of another process may do, found out by doing it there: the thread is stopped
//! (ptrace(2)), makes one system call in the middle of what it does, and goes on as if nothing had
//! been. So nothing in the product is there for tests, and no thread is left out.

use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::Result;

/// Bytes below the stack that a function may use without moving its pointer (x86-64 psABI).
const RED_ZONE: u64 = 128;
/// How often a thread that is busy is looked at.
const TRIES: u32 = 1000;
/// A thread of the kernel's that is counted as one of the process's (linux/sched.h).
const PF_USER_WORKER: u32 = 0x4000;
/// `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// Whether this kernel has Landlock.
pub fn has_landlock() -> bool {
    const VERSION: libc::c_ulong = 1;
    let nothing = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag the call takes no pointer, makes nothing, and returns a number.
    unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0, VERSION) > 0 }
}

/// A thread of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thread {
    /// Its number.
    pub tid: i32,
    /// Its name.
    pub name: String,
}

/// All of them that run the process's own code: KVM has a worker of the kernel's beside them, which
/// nobody traces.
///
/// # Errors
/// The process is gone.
pub fn threads(pid: u32) -> Result<Vec<Thread>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = entry?.path();
        // One that has ended meanwhile is none.
        let Ok(stat) = std::fs::read_to_string(path.join("stat")) else { continue };
        // Its name is in brackets, and may have any of them in it (proc_pid_stat(5)).
        let (_, rest) = stat.rsplit_once(')').context("no name")?;
        let flags: u32 = rest.split_whitespace().nth(6).context("no flags")?.parse()?;
        if flags & PF_USER_WORKER != 0 {
            continue;
        }
        let tid = path.file_name().and_then(|name| name.to_str()).context("no thread")?.parse()?;
        let name = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')'));
        let name = name.map_or_else(String::new, |(name, _)| name.to_owned());
        all.push(Thread { tid, name });
    }
    Ok(all)
}

impl Thread {
    /// Whether it has ended, as those that serve a client do.
    pub fn is_gone(&self) -> bool {
        !std::path::Path::new(&format!("/proc/{}", self.tid)).exists()
    }

    /// What this thread is told when it opens this file to read: the number of an error, or `None`
    /// if it opens it.
    ///
    /// # Errors
    /// It cannot be stopped: only root traces a process that is not dumpable.
    pub fn opens(&self, path: &str) -> Result<Option<i32>> {
        let mut stopped = Stopped::new(self.tid)?;
        // Where it waits in a call, the instruction that made it can be used again.
        let mut tries = 0;
        while stopped.read(stopped.registers()?.rip - SYSCALL.len() as u64)? as u16
            != u16::from_ne_bytes(SYSCALL)
        {
            tries += 1;
            ensure!(tries < TRIES, "{self:?} does not wait for anything");
            drop(stopped);
            std::thread::sleep(Duration::from_millis(1));
            stopped = Stopped::new(self.tid)?;
        }
        let before = stopped.registers()?;
        let at = (before.rsp - RED_ZONE - 4096) & !15;
        let mut text = path.as_bytes().to_vec();
        text.resize((path.len() / 8 + 1) * 8, 0);
        for (word, at) in text.chunks_exact(8).zip((at..).step_by(8)) {
            stopped.write(at, u64::from_ne_bytes(word.try_into()?))?;
        }
        let call = libc::user_regs_struct {
            rip: before.rip - SYSCALL.len() as u64,
            rax: libc::SYS_open as u64,
            // Not in the middle of a call that would begin again.
            orig_rax: u64::MAX,
            rdi: at,
            rsi: (libc::O_RDONLY | libc::O_CLOEXEC) as u64,
            rdx: 0,
            ..before
        };
        stopped.set(&call)?;
        stopped.step()?;
        let done = stopped.registers()?.rax as i64;
        stopped.set(&before)?;
        Ok(i32::try_from(-done).ok().filter(|error| *error > 0))
    }
}

/// A thread that stands still while this lives.
struct Stopped(i32);

fn failed(what: &str) -> anyhow::Error {
    anyhow::Error::from(io::Error::last_os_error()).context(format!("ptrace: {what}"))
}

impl Stopped {
    fn new(tid: i32) -> Result<Self> {
        // SAFETY: these requests take no pointer.
        ensure!(unsafe { libc::ptrace(libc::PTRACE_SEIZE, tid, 0, 0) } == 0, failed("seize"));
        let stopped = Self(tid);
        // SAFETY: as above.
        ensure!(unsafe { libc::ptrace(libc::PTRACE_INTERRUPT, tid, 0, 0) } == 0, failed("stop"));
        stopped.wait()?;
        Ok(stopped)
    }

    fn wait(&self) -> Result<()> {
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        let waited = unsafe { libc::waitpid(self.0, &mut status, libc::__WALL) };
        ensure!(waited == self.0 && libc::WIFSTOPPED(status), "it has ended: {status:x}");
        Ok(())
    }

    fn registers(&self) -> Result<libc::user_regs_struct> {
        let mut registers = MaybeUninit::<libc::user_regs_struct>::uninit();
        // SAFETY: it has room for them.
        let got = unsafe { libc::ptrace(libc::PTRACE_GETREGS, self.0, 0, registers.as_mut_ptr()) };
        ensure!(got == 0, failed("registers"));
        // SAFETY: the call has filled it.
        Ok(unsafe { registers.assume_init() })
    }

    fn set(&self, registers: &libc::user_regs_struct) -> Result<()> {
        // SAFETY: it is only read.
        let set = unsafe { libc::ptrace(libc::PTRACE_SETREGS, self.0, 0, registers) };
        ensure!(set == 0, failed("registers"));
        Ok(())
    }

    fn read(&self, at: u64) -> Result<u64> {
        // SAFETY: the address is another process's; glibc returns the word, and says by errno alone
        // whether there is one.
        let (word, errno) = unsafe {
            *libc::__errno_location() = 0;
            let word = libc::ptrace(libc::PTRACE_PEEKDATA, self.0, at, 0);
            (word, *libc::__errno_location())
        };
        ensure!(errno == 0, failed("read"));
        Ok(word as u64)
    }

    fn write(&self, at: u64, word: u64) -> Result<()> {
        // SAFETY: the address is another process's.
        let written = unsafe { libc::ptrace(libc::PTRACE_POKEDATA, self.0, at, word) };
        ensure!(written == 0, failed("write"));
        Ok(())
    }

    fn step(&self) -> Result<()> {
        // SAFETY: the request takes no pointer.
        let stepped = unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, self.0, 0, 0) };
        ensure!(stepped == 0, failed("step"));
        self.wait()
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // SAFETY: the request takes no pointer. If it fails the thread is gone.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, 0, 0) };
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    /// Ends with the test.
    struct Sleeps(Child);

    impl Drop for Sleeps {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_thread_that_is_not_confined_opens_what_is_there_and_goes_on() {
        let mut sleeps = Sleeps(Command::new("sleep").arg("1000").spawn().unwrap());
        let pid = sleeps.0.id();
        while std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap() != "sleep\n" {
            std::thread::sleep(Duration::from_millis(1));
        }
        // It has begun to sleep.
        std::thread::sleep(Duration::from_millis(100));
        for _ in 0..3 {
            let [thread] = &threads(pid).unwrap()[..] else { panic!("it has one thread") };
            assert_eq!(thread.name, "sleep");
            match thread.opens("/etc/passwd") {
                Ok(said) => assert_eq!(said, None),
                // Somebody traces this test, or it may not trace.
                Err(e) => return eprintln!("not run: {e:#}"),
            }
            assert_eq!(thread.opens("/no/such/file").unwrap(), Some(libc::ENOENT));
        }
        assert!(sleeps.0.try_wait().unwrap().is_none());
    }
}
