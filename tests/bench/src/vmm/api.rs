//! A VMM to be measured, and what is asked of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use wherry_tests::Console;

use crate::case::Case;
use crate::entry::Figures;

/// Name of the file in which [`Machine::migrate`] leaves a trace of the migration, if it has one.
pub const TRACE: &str = "trace.jsonl";

/// The files of one run.
#[derive(Debug, Clone)]
pub struct Files {
    /// Guest kernel.
    pub kernel: PathBuf,
    /// Its initramfs.
    pub initrd: PathBuf,
    /// For sockets and logs; new and empty.
    pub dir: PathBuf,
}

impl Files {
    /// See [`TRACE`].
    pub fn trace(&self) -> PathBuf {
        self.dir.join(TRACE)
    }

    /// A log in the run's folder.
    pub fn log(&self, name: &str) -> Result<std::fs::File> {
        Ok(std::fs::File::create(self.dir.join(format!("{name}.log")))?)
    }
}

/// How to migrate.
#[derive(Debug, Clone, Copy)]
pub struct Migration<'a> {
    /// Port on the loopback at which the destination listens.
    pub port: u16,
    /// A rate in bytes a second that the VMM has to keep itself; `None` when it need not.
    pub bandwidth: Option<u64>,
    /// The case.
    pub case: &'a Case,
    /// When to give up.
    pub timeout: Duration,
}

/// A virtual machine monitor.
pub trait Vmm {
    /// Its version.
    fn version(&self) -> Result<String>;
    /// Starts a guest. `append` is the kernel's command line.
    fn run(&self, files: &Files, case: &Case, append: &str) -> Result<Box<dyn Machine>>;
    /// Starts a destination that waits at the port.
    fn receive(&self, files: &Files, case: &Case, port: u16) -> Result<Box<dyn Machine>>;
}

/// One process of a VMM with a guest in it, or about to be. Dropping it ends it.
pub trait Machine {
    /// The process.
    fn pid(&self) -> u32;
    /// The guest's serial console. The first call attaches it; it is the caller's from then on.
    fn console(&mut self) -> Result<Console>;
    /// Moves the guest to the destination. Returns what only the VMM knows; fails with [`TimedOut`]
    /// where that is why.
    fn migrate(&mut self, migration: Migration) -> Result<Figures>;
    /// Asks the guest to put `taken` of its `ram` bytes into the balloon.
    fn balloon(&mut self, taken: u64, ram: u64) -> Result<()>;
}

/// The migration took too long.
#[derive(Debug, thiserror::Error)]
#[error("the migration was not done after {0} s")]
pub struct TimedOut(pub u64);

/// A program on the `PATH`.
pub fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir: PathBuf| Path::new(&dir).join(program))
        .find(|p| p.is_file())
}
