//! What is wrong with a kernel's file, in the words that both formats share. Each follows the
//! file's path.

use anyhow::anyhow;

/// The file cannot be opened or read.
pub(super) const READ: &str = "cannot be read; check the path and its permissions";

/// The file ends early: the part `what` ends at `need`.
pub(super) fn truncated(what: &str, need: u64, have: u64) -> anyhow::Error {
    anyhow!("is truncated: {what} needs {need} bytes, the file has {have}; copy it again")
}

/// A header field makes no sense.
pub(super) fn corrupt(what: &str) -> anyhow::Error {
    anyhow!("has a corrupt header: {what}; copy it again")
}

/// A kernel for another machine.
pub(super) fn foreign(what: &str) -> anyhow::Error {
    anyhow!("is not an x86-64 kernel ({what}); give one built for x86-64")
}
