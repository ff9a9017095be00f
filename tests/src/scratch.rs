//! A scratch folder of a test's own.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;

use crate::{Env, Result};

/// A folder below `WHERRY_SCRATCH` (a file system with sockets), removed when dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new, empty folder.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(name: &str) -> Result<Self> {
        let base =
            std::env::var_os("WHERRY_SCRATCH").map_or_else(std::env::temp_dir, PathBuf::from);
        // Tests of one process run side by side, and two may use one name.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = base.join(format!("wherry-{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// An environment for guests with this stock kernel (for example `CLOUD_6_1`), its files on
    /// fast storage.
    ///
    /// # Errors
    /// Not started by `cargo xtask test`.
    pub fn env(&self, kernel: &str) -> Result<Env> {
        Env::from_vars(kernel, &self.0)?.on_fast_storage()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
