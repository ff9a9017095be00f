//! QEMU 10, which benchmarks measure beside Wherry: Debian's, fetched and verified, not installed.

use std::path::PathBuf;

use anyhow::{Context, Result};
use wherry_guest_kernel::kernels;
use wherry_guest_kernel::tools::QEMU;

use crate::lab::Job;
use crate::note::note;

/// Where an emulated lab has its folder, in memory.
const IN_LAB: &str = "/dev/shm/qemu";

/// The variable with the program's path.
pub const VARIABLE: &str = "WHERRY_QEMU";

/// Provides it, and says which: its folder, and what it says that it is.
///
/// # Errors
/// It cannot be had.
pub fn provide() -> Result<(PathBuf, String)> {
    let folder = QEMU.provide(&kernels::cache_dir(), &mut |line| note(line));
    let folder = folder.context("cannot provide QEMU")?;
    let version = QEMU.version(&folder)?;
    note(&version);
    Ok((folder, version))
}

/// Gives it to a job, `emulated` or on this machine; what it says that it is.
///
/// # Errors
/// As [`provide`].
pub fn give(job: &mut Job, emulated: bool) -> Result<String> {
    let (mut folder, version) = provide()?;
    if emulated {
        job.copies.push((folder, IN_LAB.into()));
        folder = IN_LAB.into();
    }
    job.env.push((VARIABLE.into(), QEMU.program(&folder).into()));
    Ok(version)
}
