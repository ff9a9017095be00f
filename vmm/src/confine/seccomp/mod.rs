//! System calls that each thread may make. Any other ends the process, by default.
//!
//! A guest, a peer or a client that has got hold of a thread can ask the kernel for what the
//! thread's kind needs, and for nothing else. Threads share memory, so it is the widest of them
//! that bounds what an intruder who gets that far can do in the end; the narrow ones are what he
//! gets hold of first. None may open a process's memory, trace, mount, load a module, or take a
//! descriptor by handle, and none may start a program: the launchers do, which began before.
//!
//! **Order.** A filter is inherited and can only be added to, so:
//!
//! 1. [`begin`] comes before the first thread. It installs the [`report`], and has threads narrow
//!    themselves from then on ([`wherry_threads`]).
//! 2. Threads that are started while the VM is put together get their filter from a process that
//!    has none yet.
//! 3. [`narrow_main`] comes when all is open, before anything of a guest is looked at. Threads of
//!    the machine, which is built again at each reboot, inherit that and narrow themselves further.
//!
//! **Three answers** to a call that is not in the [table]: `kill` says it and ends the process
//! (the module [`report`] says why by a signal handler), `log` has the kernel note it, and `off`
//! installs nothing.

pub mod allowed;
mod filter;
pub mod names;
pub mod report;
pub mod requests;
pub mod table;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::OnceLock;

use seccompiler::SeccompAction;
use serde::{Deserialize, Serialize};
use wherry_rootfs::sandbox::{Calls, SandboxError};

/// What becomes of a call that a thread's kind may not make.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// It is said, and ends the process by SIGSYS.
    #[default]
    Kill,
    /// It is made, and the kernel notes it.
    Log,
    /// It is made.
    Off,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "kill",
            Self::Log => "log",
            Self::Off => "off",
        })
    }
}

impl Mode {
    fn action(self) -> Option<SeccompAction> {
        match self {
            Self::Kill => Some(SeccompAction::Trap),
            Self::Log => Some(SeccompAction::Log),
            Self::Off => None,
        }
    }
}

/// What a call that is not in its thread's list meets, in each thread of this process.
static OTHER: OnceLock<SeccompAction> = OnceLock::new();

/// Before the first thread: those that are started from now on narrow themselves. What is said of a
/// call that is not allowed is an object of JSON of that VM, or for people.
///
/// # Errors
/// The kernel has no seccomp.
pub fn begin(mode: Mode, json: Option<&str>) -> Result<(), SandboxError> {
    let Some(other) = mode.action() else { return Ok(()) };
    report::install(json);
    // glibc starts a thread by clone3, whose flags no filter can see, unless there is none.
    Calls::default().allow(&[libc::SYS_clone3]).refuse(libc::ENOSYS)?;
    let _ = OTHER.set(other);
    wherry_threads::on_start(narrow);
    Ok(())
}

/// Narrows the main thread. Everything that is opened by name is open.
pub fn narrow_main() {
    narrow("main");
}

/// Narrows this thread, the first thing that it does.
fn narrow(kind: &str) {
    let Some(other) = OTHER.get() else { return };
    let narrowed = match allowed::kind(kind) {
        Some(kind) => filter::narrow(kind, other.clone()),
        None => Err(SandboxError::Seccomp("it is in no list".into())),
    };
    if let Err(e) = narrowed {
        // Better none than one that may do everything.
        tracing::error!("thread {kind} cannot be confined: {e}");
        std::process::abort();
    }
    #[cfg(debug_assertions)]
    make_a_forbidden_call(kind);
}

/// For tests: a thread of the kind that `WHERRY_FORBIDDEN_CALL` names makes a call that none may.
#[cfg(debug_assertions)]
fn make_a_forbidden_call(kind: &str) {
    if std::env::var_os("WHERRY_FORBIDDEN_CALL").is_some_and(|of| of == kind) {
        // SAFETY: it only asks which personality this process has.
        unsafe { libc::syscall(libc::SYS_personality, 0xffff_ffff_u64) };
    }
}
