//! What runs in the lab, and what every kind of lab has in common.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

/// A command for the lab.
#[derive(Debug, Clone, Default)]
pub struct Job {
    /// Program and arguments.
    pub argv: Vec<OsString>,
    /// Variables added to the caller's environment.
    pub env: Vec<(OsString, OsString)>,
    /// Working directory.
    pub cwd: PathBuf,
    /// Folders whose changes reach this machine.
    pub writable: Vec<PathBuf>,
    /// What is copied into the lab's memory first.
    pub copies: Vec<(PathBuf, PathBuf)>,
    /// Images that are disks of the lab (`/dev/vda` and so on). What it writes to them is not kept.
    pub disks: Vec<PathBuf>,
    /// When to give up.
    pub timeout: Option<Duration>,
    /// Shows the lab's kernel messages.
    pub verbose: bool,
    /// Other labs run at the same time.
    pub beside_others: bool,
}

/// Exit code of a command that ran out of time, as timeout(1) has it.
pub const TIMED_OUT: u8 = 124;

/// Set for what runs in software emulation.
pub const EMULATED: &str = "WHERRY_LAB_EMULATED";

/// Whether this process runs in the emulated lab.
pub fn is_emulated() -> bool {
    std::env::var_os(EMULATED).is_some()
}

/// A number from the environment.
pub fn env_number(name: &str) -> Result<Option<u64>> {
    let Some(value) = std::env::var_os(name).filter(|v| v != OsStr::new("")) else {
        return Ok(None);
    };
    let number = value.to_str().and_then(|v| v.parse().ok());
    number
        .map(Some)
        .with_context(|| format!("{name}={}: should be a whole number", value.display()))
}
