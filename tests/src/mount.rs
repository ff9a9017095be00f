//! A file system of a test's own. Mounts, so the lab only.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;
use crate::hosts::output;

/// A mounted file system, which is unmounted in the end.
pub struct Mount(PathBuf);

impl Mount {
    /// Mounts with these options of mount(8), which begin with what is mounted, on the folder
    /// `dir`, which is made.
    ///
    /// # Errors
    /// mount(8) says why not.
    pub fn new(dir: &Path, options: &[&str]) -> Result<Self> {
        fs::create_dir_all(dir)?;
        output(Command::new("mount").args(options).arg(dir))?;
        Ok(Self(dir.to_owned()))
    }

    /// A new ext4 of this size in the file `DIR.ext4`, mounted on the folder `dir`.
    ///
    /// # Errors
    /// No room, or no e2fsprogs.
    pub fn ext4(dir: &Path, bytes: u64) -> Result<Self> {
        let file = dir.with_extension("ext4");
        File::create(&file)?.set_len(bytes)?;
        output(Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(&file))?;
        Self::new(dir, &["-o", "loop", &file.to_string_lossy()])
    }

    /// Whoever writes to it waits until what this returns is dropped: before any VM, whose process
    /// cannot end while it waits.
    ///
    /// # Errors
    /// fsfreeze(8) says why not.
    pub fn freeze(&self) -> Result<Frozen<'_>> {
        output(Command::new("fsfreeze").arg("--freeze").arg(&self.0))?;
        Ok(Frozen(&self.0))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).output();
    }
}

/// See [`Mount::freeze`].
#[must_use]
pub struct Frozen<'a>(&'a Path);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("--unfreeze").arg(self.0).output();
    }
}
