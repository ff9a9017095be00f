//! From the table to a filter of the calling thread.
//!
//! Some calls are allowed with some arguments only:
//!
//! | call | what is allowed |
//! |---|---|
//! | `clone` | a thread: no process, no namespace |
//! | `fcntl` | flags, copies, locks and seals of descriptors |
//! | `ioctl` | the requests of the kind |
//! | `mmap`, `mprotect` | memory that holds no code |
//! | `prctl` | a thread's name, no new privileges |
//! | `seccomp` | one more filter |
//! | `socket` | of Unix and IP |
//! | `tgkill` | a thread of this process |

use seccompiler::SeccompAction;
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use wherry_rootfs::sandbox::{Argument, Calls, SandboxError};

use super::allowed::Allowed;
use super::names;
use super::table::Kind;

const EXEC: u64 = libc::PROT_EXEC as u64;
/// Flags of `clone` that a thread has or must not have: the namespaces.
const THREAD: u64 = libc::CLONE_THREAD as u64;
const NAMESPACES: u64 = (libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS) as u64;

/// `F_OFD_SETLK` and the like are not signed the same way everywhere.
const FCNTL: [i32; 8] = [
    libc::F_ADD_SEALS,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_GETFL,
    libc::F_GET_SEALS,
    libc::F_OFD_SETLK,
    libc::F_SETFD,
    libc::F_SETFL,
];
const PRCTL: [i32; 3] = [libc::PR_GET_NAME, libc::PR_SET_NAME, libc::PR_SET_NO_NEW_PRIVS];
const FAMILIES: [i32; 3] = [libc::AF_INET, libc::AF_INET6, libc::AF_UNIX];

/// How a call is allowed.
enum How {
    /// With any arguments.
    Freely,
    /// With these of its arguments, each a way by itself.
    If(Vec<Vec<Argument>>),
}

/// One argument that may be one of these.
fn one_of(argument: u8, values: impl IntoIterator<Item = u32>) -> How {
    How::If(values.into_iter().map(|value| vec![(argument, Eq, value)]).collect())
}

fn how(call: &str, allowed: &Allowed) -> How {
    let words = |values: &[i32]| values.iter().map(|value| *value as u32).collect::<Vec<_>>();
    match call {
        "clone" => How::If(vec![vec![(0, MaskedEq(THREAD | NAMESPACES), THREAD as u32)]]),
        "fcntl" => one_of(1, words(&FCNTL)),
        "ioctl" => one_of(1, allowed.requests.iter().map(|request| request.number)),
        "mmap" | "mprotect" => How::If(vec![vec![(2, MaskedEq(EXEC), 0)]]),
        "prctl" => one_of(0, words(&PRCTL)),
        "seccomp" => one_of(0, [libc::SECCOMP_SET_MODE_FILTER]),
        "socket" => one_of(0, words(&FAMILIES)),
        "tgkill" => one_of(0, [std::process::id()]),
        _ => How::Freely,
    }
}

/// The filter of a kind.
///
/// # Errors
/// A name in the table is no call's.
pub fn calls(kind: &Kind) -> Result<Calls, SandboxError> {
    let allowed = kind.all();
    let mut calls = Calls::default();
    for name in allowed.calls.iter().copied().chain(["ioctl"]) {
        let number = names::number(name);
        let number = number.ok_or_else(|| SandboxError::Seccomp(format!("no call {name}")))?;
        calls = match how(name, &allowed) {
            How::Freely => calls.allow(&[number]),
            How::If(ways) => {
                ways.iter().try_fold(calls, |calls, way| calls.allow_if(number, way))?
            }
        };
    }
    Ok(calls)
}

/// Narrows the calling thread to what its kind may do.
///
/// # Errors
/// The kernel does not take the filter.
pub fn narrow(kind: &Kind, other: SeccompAction) -> Result<(), SandboxError> {
    calls(kind)?.enforce(other)
}
