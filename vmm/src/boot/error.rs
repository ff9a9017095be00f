//! Reading a kernel's file, and what is wrong with it in the words that both formats share. Each
//! follows the file's path.

use std::io::{Read, Seek, SeekFrom};

use anyhow::{Context, anyhow};

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

/// The `len` bytes at `offset`, or what the file has of them.
pub(super) fn read_part<F: Read + Seek>(
    file: &mut F,
    offset: u64,
    len: u64,
) -> anyhow::Result<Vec<u8>> {
    let mut part = Vec::new();
    file.seek(SeekFrom::Start(offset)).context(READ)?;
    file.take(len).read_to_end(&mut part).context(READ)?;
    Ok(part)
}
