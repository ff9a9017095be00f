//! What runs in the lab, and what every kind of lab has in common.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
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
    /// Where to keep all that the lab says: only of the one on an Intel CPU.
    pub log: Option<PathBuf>,
}

impl Job {
    /// The environment of the command in a lab that is a machine of its own: the caller's, and
    /// these.
    pub fn environment(&self, more: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        // What describes this session here is not true in the lab.
        let ours = ["WHERRY_LAB", "XDG_RUNTIME_DIR", "PWD", "OLDPWD"];
        let mut env: Vec<(OsString, OsString)> =
            std::env::vars_os().filter(|(key, _)| !ours.iter().any(|name| key == name)).collect();
        let theirs = [("WHERRY_LAB", "inside"), ("XDG_RUNTIME_DIR", "/run/user/0")];
        env.extend(theirs.iter().chain(more).map(|(k, v)| (k.into(), v.into())));
        env.extend(self.env.iter().cloned());
        env
    }
}

/// Exit code of a command that ran out of time, as timeout(1) has it.
pub const TIMED_OUT: u8 = 124;

/// Set for what runs in software emulation.
pub const EMULATED: &str = "WHERRY_LAB_EMULATED";

/// Whether this process runs in the emulated lab.
pub fn is_emulated() -> bool {
    std::env::var_os(EMULATED).is_some()
}

/// A temporary folder with a path short enough for Unix sockets.
pub fn scratch() -> Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.prefix("wherry-lab-");
    let parent = std::env::temp_dir();
    let short = parent.as_os_str().len() < 60;
    builder
        .tempdir_in(if short { &parent } else { Path::new("/tmp") })
        .context("cannot create a temporary folder")
}

/// Ends the machine with the thread that starts it.
pub fn dies_with_us(machine: &mut Command) {
    // SAFETY: between fork and exec only prctl is called, which is safe there: it allocates nothing
    // and takes no lock.
    unsafe {
        machine.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
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
