//! Confinement of a process that looks at what others wrote.
//!
//! Each layer stands by itself: no new privileges; Landlock, which allows no path, no port and no
//! other process; limits on memory, CPU time, the size of files and the number of descriptors; and
//! a filter that kills the process at the first system call which is not in its list. What the
//! process has open it keeps, so it must have opened what it needs, and closed the rest
//! ([`close_all_but_standard`]).
//!
//! A process enters before it has a second thread: Landlock confines the calling thread alone on
//! kernels that most hosts have.

use std::collections::BTreeMap;
use std::io;

use landlock::{
    ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetError, RulesetStatus, Scope,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// Why a process cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A limit cannot be set.
    #[error("limit {0}: {1}")]
    Limit(&'static str, #[source] io::Error),
    /// Descriptors cannot be closed.
    #[error("descriptors cannot be closed: {0}")]
    Close(#[source] io::Error),
    /// Landlock is there and refuses.
    #[error("Landlock: {0}")]
    Landlock(#[from] RulesetError),
    /// The filter cannot be made or set.
    #[error("seccomp: {0}")]
    Seccomp(String),
}

/// Limits of a process; both the soft and the hard one.
#[derive(Debug, Clone, Copy)]
pub struct ProcessLimits {
    /// Bytes of address space.
    pub memory: u64,
    /// Seconds of CPU time.
    pub cpu_seconds: u64,
    /// Bytes that any file may be made to have.
    pub file_size: u64,
}

/// Closes all descriptors but the first three: what the parent had open is not ours.
///
/// # Errors
/// The kernel has no `close_range`.
pub fn close_all_but_standard() -> Result<(), SandboxError> {
    // SAFETY: no descriptor above 2 is owned by anything in a process that has just begun, which is
    // what callers promise by its text.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    if done < 0 { Err(SandboxError::Close(io::Error::last_os_error())) } else { Ok(()) }
}

/// Sets limits. No core is written: it would be full of what others wrote.
///
/// # Errors
/// A limit is above what this process may have.
pub fn limit(limits: &ProcessLimits) -> Result<(), SandboxError> {
    lower(Resource::As, "on memory", limits.memory)?;
    lower(Resource::Cpu, "on CPU time", limits.cpu_seconds)?;
    lower(Resource::Fsize, "on the size of files", limits.file_size)?;
    lower(Resource::Nofile, "on descriptors", 0)?;
    lower(Resource::Core, "on cores", 0)
}

/// Sets one limit, hard and soft. One that is already lower stays. `name` is for the error.
///
/// # Errors
/// The kernel refuses.
pub fn lower(resource: Resource, name: &'static str, value: u64) -> Result<(), SandboxError> {
    let hard = getrlimit(resource).maximum;
    let lower = |value: u64| Some(hard.map_or(value, |hard| hard.min(value)));
    // A second before the hard limit on CPU time, which only kills, SIGXCPU says why.
    let grace = u64::from(resource == Resource::Cpu);
    let limit = Rlimit { current: lower(value), maximum: lower(value.saturating_add(grace)) };
    setrlimit(resource, limit).map_err(|e| SandboxError::Limit(name, e.into()))
}

/// Forbids all that Landlock knows of here, and new privileges. Whether it did: a kernel may have
/// no Landlock, and an older one knows less of it.
///
/// # Errors
/// Landlock is there and refuses.
pub fn forbid_all_files() -> Result<bool, SandboxError> {
    let abi = ABI::V8;
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        .restrict_self()?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

/// System calls that a process may make.
#[derive(Debug, Default)]
pub struct Calls(BTreeMap<i64, Vec<SeccompRule>>);

/// What an argument of a call must be: its number, and a comparison of its lower 32 bits.
pub type Argument = (u8, SeccompCmpOp, u32);

impl Calls {
    /// Allows calls with any arguments.
    #[must_use]
    pub fn allow(mut self, calls: &[libc::c_long]) -> Self {
        self.0.extend(calls.iter().map(|call| (*call, Vec::new())));
        self
    }

    /// Allows a call if all these arguments are right.
    ///
    /// # Errors
    /// A number that no argument has.
    pub fn allow_if(
        mut self,
        call: libc::c_long,
        arguments: &[Argument],
    ) -> Result<Self, SandboxError> {
        let condition = |(number, operation, value): &Argument| {
            let (length, value) = (SeccompCmpArgLen::Dword, u64::from(*value));
            SeccompCondition::new(*number, length, operation.clone(), value)
        };
        let conditions: Result<Vec<_>, _> = arguments.iter().map(condition).collect();
        let rule = conditions.and_then(SeccompRule::new).map_err(seccomp)?;
        self.0.entry(call).or_default().push(rule);
        Ok(self)
    }

    /// From now on this thread, and those that it starts, meet `other` with any other call.
    ///
    /// # Errors
    /// The kernel has no seccomp, or this thread has too many filters.
    pub fn enforce(self, other: SeccompAction) -> Result<(), SandboxError> {
        apply(self.0, other, SeccompAction::Allow)
    }

    /// From now on these calls fail with this error, as where the kernel does not have them.
    ///
    /// # Errors
    /// As for [`enforce`](Self::enforce).
    pub fn refuse(self, error: i32) -> Result<(), SandboxError> {
        apply(self.0, SeccompAction::Allow, SeccompAction::Errno(error as u32))
    }
}

fn apply(
    calls: BTreeMap<i64, Vec<SeccompRule>>,
    other: SeccompAction,
    listed: SeccompAction,
) -> Result<(), SandboxError> {
    let filter = SeccompFilter::new(calls, other, listed, TargetArch::x86_64);
    let program = filter.and_then(BpfProgram::try_from).map_err(seccomp)?;
    seccompiler::apply_filter(&program).map_err(seccomp)
}

fn seccomp(error: impl std::fmt::Display) -> SandboxError {
    SandboxError::Seccomp(error.to_string())
}
