//! QEMU 10, which benchmarks measure beside Wherry: Debian's, fetched and verified, not installed.

use std::path::PathBuf;

use anyhow::{Context, Result};
use wherry_guest_kernel::qemu::Qemu;
use wherry_guest_kernel::{kernels, qemu};

use crate::lab::Job;
use crate::note::note;

/// Where an emulated lab has its folder, in memory.
const IN_LAB: &str = "/dev/shm/qemu";

/// The variable with the program's path.
pub const VARIABLE: &str = "WHERRY_QEMU";

/// Provides it, and says which.
///
/// # Errors
/// It cannot be had.
pub fn provide() -> Result<Qemu> {
    let qemu = qemu::provide(&kernels::cache_dir(), &mut |line| note(line))
        .context("cannot provide QEMU")?;
    note(&qemu.version);
    Ok(qemu)
}

/// Gives it to a job, `emulated` or on this machine; what it says that it is.
///
/// # Errors
/// As [`provide`].
pub fn give(job: &mut Job, emulated: bool) -> Result<String> {
    let qemu = provide()?;
    let folder = if emulated {
        job.copies.push((qemu.folder, IN_LAB.into()));
        PathBuf::from(IN_LAB)
    } else {
        qemu.folder
    };
    job.env.push((VARIABLE.into(), Qemu::program(&folder).into()));
    Ok(qemu.version)
}
