//! What the process of a VM gives up, once it has what it needs.
//!
//! A guest, a peer or a client that breaks into this process has what the process may do. So all
//! that it will need is opened first, then everything else is given up, and only then are there
//! threads, a control socket, a source that is listened to, and a guest. `docs/confinement.md` says
//! what is left, and why.
//!
//! 1. No new privileges: a program with the set-user-ID bit is one like others.
//! 2. Not dumpable: no process of the same user reads this one's memory, or traces it; nor does a
//!    core have the guest's memory in it.
//! 3. [`limits`]: the size of files and the number of descriptors.
//! 4. [`landlock`]: which files, ports and processes.
//! 5. [`seccomp`]: which system calls, for each thread by its kind, before it does anything else.
//!
//! Landlock confines the calling thread and those that it starts (older kernels know nothing else),
//! so there must be no other thread yet: [`enter`] refuses if there is one.

pub mod landlock;
pub mod limits;
pub mod seccomp;

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::set_no_new_privs;

use crate::folder;
use landlock::Folder;
pub use landlock::Use;

/// Why a process cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// There are threads that it would not be for.
    #[error("cannot confine this process: it has {0} threads already, a defect of Wherry")]
    Threads(usize),
    /// Something that every kernel has is refused.
    #[error("cannot confine this process: {0}")]
    Process(&'static str, #[source] io::Error),
    /// A limit cannot be set.
    #[error("cannot confine this process")]
    Limit(#[from] wherry_rootfs::sandbox::SandboxError),
    /// Landlock is there and refuses.
    #[error("cannot confine this process")]
    Landlock(#[from] ::landlock::RulesetError),
}

/// What a process keeps.
#[derive(Debug, Default)]
pub struct Needs {
    folders: Vec<Folder>,
    /// Bytes of the largest file that it writes, its guest's memory included. None: there is no
    /// limit.
    pub largest_file: Option<u64>,
}

impl Needs {
    /// An open folder is still needed.
    ///
    /// # Errors
    /// Too many descriptors are open.
    pub fn folder(&mut self, folder: impl AsFd, used: Use) -> io::Result<()> {
        let folder = folder.as_fd().try_clone_to_owned()?;
        self.folders.push(Folder { folder, used });
        Ok(())
    }

    /// The folder of this path, for something in it.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn beside(&mut self, path: &Path, used: Use) -> io::Result<()> {
        self.folders.push(Folder { folder: folder::around(path)?, used });
        Ok(())
    }
}

/// Set by [`enter`].
static ENTERED: AtomicBool = AtomicBool::new(false);

/// Whether this process has confined itself: what it would do with files of others is in vain.
pub fn has_entered() -> bool {
    ENTERED.load(Ordering::Relaxed)
}

/// Confines this process for good. Says whether Landlock takes part. The folders are closed: they
/// are opened by their paths, or the process has them open elsewhere.
///
/// # Errors
/// It is not confined, or not as far as this kernel can: go no further.
pub fn enter(needs: Needs) -> Result<bool, ConfineError> {
    // Where there is no /proc nobody can be asked.
    if let Ok(threads) = std::fs::read_dir("/proc/self/task").map(Iterator::count)
        && threads != 1
    {
        return Err(ConfineError::Threads(threads));
    }
    set_no_new_privs(true).map_err(|e| ConfineError::Process("no new privileges", e.into()))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|e| ConfineError::Process("not dumpable", e.into()))?;
    limits::set(needs.largest_file)?;
    ENTERED.store(true, Ordering::Relaxed);
    Ok(landlock::restrict(&needs.folders)?)
}
