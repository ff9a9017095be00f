//! Kernel and initrd of a guest that arrives: taken from this host where it has the same, else from
//! the source.
//!
//! The files that count are those the source boots. One of this host's only spares the sending, if
//! it has the same content; one that has another is named, and not used.

use std::ffi::OsStr;
use std::path::PathBuf;

use anyhow::ensure;
use tracing::warn;
use wherry_migration::traits::{FileId, Sink};
use wherry_migration::wire::boot::MAX_FILE;

use crate::boot::kept::{Arriving, Carried, Kept, MAX_KERNEL, file_id};
use crate::machine::Description;
use crate::machine::offer::ResetV1;

/// A file of this host's that a guest may boot.
struct Local {
    what: &'static str,
    path: PathBuf,
    id: FileId,
}

impl Local {
    /// `None`, and said, if it is of no use.
    fn new(what: &'static str, path: Option<&OsStr>, most: u64) -> Option<Self> {
        let path = PathBuf::from(path?);
        match file_id(&path, most) {
            Ok(id) => Some(Self { what, path, id }),
            Err(e) => {
                let path = path.display();
                warn!("{what} {path}: {e:#}; the source sends what its guest boots");
                None
            }
        }
    }

    /// Whether it is what the guest boots.
    fn is(&self, id: FileId) -> bool {
        let same = self.id == id;
        if !same {
            let Self { what, path, .. } = self;
            let path = path.display();
            warn!("{what} {path} is not the guest's; the source sends that");
        }
        same
    }
}

/// What a guest that arrives boots.
pub struct BootFiles {
    kernel: Option<Local>,
    initrd: Option<Local>,
    /// Whether a reset here is to boot again.
    reboot: bool,
    arriving: [Option<(Arriving, FileId)>; 2],
    /// Whether the source has said what it is.
    pub told: bool,
}

impl BootFiles {
    /// As this host's own configuration has it. Reads its files.
    pub fn new(kernel: Option<&OsStr>, initrd: Option<&OsStr>, reboot: bool) -> Self {
        Self {
            kernel: Local::new("kernel", kernel, MAX_KERNEL),
            initrd: Local::new("initrd", initrd, MAX_FILE),
            reboot,
            arriving: [None, None],
            told: false,
        }
    }

    /// What the source says of `machine`, which learns it, too. Returns where each file goes.
    ///
    /// # Errors
    /// It lies, or a file is too long for any guest, or for this one.
    pub fn take(
        &mut self,
        machine: &mut Description,
        said: &[u8],
        files: &[FileId],
    ) -> anyhow::Result<Vec<Sink>> {
        let (reset, firmware) = machine.decode_reset(said, files.len())?;
        self.told = true;
        machine.reset.firmware = firmware;
        machine.reset.boots = self.reboot && reset != ResetV1::Ends;
        if !machine.reset.boots {
            return Ok(files.iter().map(|_| None).collect());
        }
        let room = MAX_FILE.min(machine.ram_bytes);
        let locals = [self.kernel.as_ref(), self.initrd.as_ref()];
        let parts = [("kernel", MAX_KERNEL), ("initrd", room)];
        let mut sinks = Vec::new();
        for (nth, ((id, local), (what, most))) in files.iter().zip(locals).zip(parts).enumerate() {
            let len = id.len;
            ensure!(len <= most, "a reset would boot a {what} of {len} bytes; {most} are the most");
            if let Some(local) = local.filter(|local| local.is(*id)) {
                match nth {
                    0 => {
                        machine.kernel.path.clone_from(&local.path);
                        machine.reset.elsewhere = false;
                    }
                    _ => machine.kernel.initrd = Some(local.path.clone()),
                }
                sinks.push(None);
                continue;
            }
            let arriving = Arriving::new()?;
            sinks.push(Some(arriving.sink()?));
            if let Some(place) = self.arriving.get_mut(nth) {
                *place = Some((arriving, *id));
            }
        }
        Ok(sinks)
    }

    /// All of it is here.
    ///
    /// # Errors
    /// It is not.
    pub fn finish(&mut self, machine: &mut Description) -> std::io::Result<()> {
        let [kernel, initrd] = std::mem::take(&mut self.arriving);
        let seal = |file: Option<(Arriving, FileId)>| -> std::io::Result<Option<Kept>> {
            file.map(|(file, id)| file.seal(id)).transpose()
        };
        machine.reset.carried = Carried { kernel: seal(kernel)?, initrd: seal(initrd)? };
        Ok(())
    }
}

#[cfg(test)]
#[path = "boot_tests.rs"]
mod tests;
