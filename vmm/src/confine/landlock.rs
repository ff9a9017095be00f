//! Which files a process may still open, make and remove: those in a few folders. What it has open
//! it keeps.
//!
//! Best effort: a kernel without Landlock confines nothing here, and an older one less: TCP ports
//! from Linux 6.7 on, signals and abstract sockets from 6.12 on. Connecting is not among it: a
//! guest may migrate to any port.

use std::os::fd::OwnedFd;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// What is forbidden unless a folder allows it: all that these versions know. The next one knows
/// of connecting to the sockets of others, which a migration and a guest's own sockets need.
const KNOWN: ABI = ABI::V8;

/// What a folder is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Sockets, and the files that are their locks, are made and removed.
    Sockets,
    /// Sockets and their locks are removed.
    Remove,
    /// Guest memory is made, in files without a name.
    Memory,
    /// Images or block devices in it are opened, to be written or not.
    Disk {
        /// Whether they are written.
        written: bool,
    },
}

impl Use {
    fn access(self) -> BitFlags<AccessFs> {
        match self {
            Self::Sockets => {
                AccessFs::MakeSock | AccessFs::MakeReg | AccessFs::WriteFile | AccessFs::RemoveFile
            }
            Self::Remove => AccessFs::RemoveFile.into(),
            Self::Memory => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate,
            Self::Disk { written: false } => AccessFs::ReadFile | AccessFs::IoctlDev,
            Self::Disk { written: true } => {
                AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev
            }
        }
    }
}

/// A folder that may still be used.
#[derive(Debug)]
pub(super) struct Folder {
    pub(super) folder: OwnedFd,
    pub(super) used: Use,
}

/// Forbids all but those. Whether it did.
pub(super) fn restrict(folders: &[Folder]) -> Result<bool, RulesetError> {
    let rules = folders.iter().map(|Folder { folder, used }| {
        Ok::<_, RulesetError>(PathBeneath::new(folder, used.access()))
    });
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(AccessNet::BindTcp)?
        .scope(Scope::from_all(KNOWN))?
        .create()?
        .add_rules(rules)?
        .restrict_self()?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

/// The version of Landlock that this kernel has, if it has it.
pub fn version() -> Option<u32> {
    const VERSION: libc::c_ulong = 1;
    let nothing = std::ptr::null::<libc::c_void>();
    // SAFETY: with this flag the call takes no pointer, makes nothing, and returns a number.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0, VERSION) };
    u32::try_from(version).ok().filter(|version| *version > 0)
}
