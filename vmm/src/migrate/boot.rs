//! Kernel and initrd of a guest that arrives: taken from this host where it has the same, else from
//! the source.
//!
//! The files that count are those the source boots. One of this host's only spares the sending, if
//! it has the same content; one that has another is named, and not used.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use tracing::warn;
use wherry_migration::traits::{FileId, Sink};
use wherry_migration::wire::boot::MAX_FILE;

use crate::boot::kept::{Arriving, MAX_KERNEL};
use crate::boot::source::{Source, Sources};
use crate::machine::Description;
use crate::machine::offer::ResetV1;

/// A file of this host's that a guest may boot.
#[derive(Debug)]
struct Given {
    what: &'static str,
    path: PathBuf,
    source: Source,
}

impl Given {
    /// `None`, and said, if it is of no use.
    fn open(what: &'static str, path: Option<&OsStr>) -> Option<Self> {
        let path = PathBuf::from(path?);
        match Source::open(&path) {
            Ok(source) => Some(Self { what, path, source }),
            Err(e) => {
                no_use(what, &path, &e);
                None
            }
        }
    }
}

fn no_use(what: &str, path: &Path, e: &anyhow::Error) {
    let path = path.display();
    warn!("{what} {path}: {e:#}; the source sends what its guest boots");
}

/// What a receiver was given for a guest to boot, open.
#[derive(Debug, Default)]
pub struct Here {
    kernel: Option<Given>,
    initrd: Option<Given>,
}

impl Here {
    /// Follows the paths.
    pub fn open(kernel: Option<&OsStr>, initrd: Option<&OsStr>) -> Self {
        let (kernel, initrd) = (Given::open("kernel", kernel), Given::open("initrd", initrd));
        Self { kernel, initrd }
    }
}

/// One of them, and what is in it.
struct Local {
    given: Given,
    id: FileId,
}

impl Local {
    /// `None`, and said, if it is of no use.
    fn new(given: Given, most: u64) -> Option<Self> {
        match given.source.id(most) {
            Ok(id) => Some(Self { given, id }),
            Err(e) => {
                no_use(given.what, &given.path, &e);
                None
            }
        }
    }

    /// Whether it is what the guest boots.
    fn is(&self, id: FileId) -> bool {
        let same = self.id == id;
        if !same {
            let Given { what, path, .. } = &self.given;
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
    pub fn new(here: Here, reboot: bool) -> Self {
        Self {
            kernel: here.kernel.and_then(|given| Local::new(given, MAX_KERNEL)),
            initrd: here.initrd.and_then(|given| Local::new(given, MAX_FILE)),
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
            if let Some(Local { given, .. }) = local.filter(|local| local.is(*id)) {
                let (path, source) = (given.path.clone(), Some(given.source.clone()));
                match nth {
                    0 => {
                        machine.kernel.path = path;
                        machine.reset.elsewhere = false;
                        machine.reset.sources.kernel = source;
                    }
                    _ => {
                        machine.kernel.initrd = Some(path);
                        machine.reset.sources.initrd = source;
                    }
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
        let Sources { kernel: boots, initrd: with } = &mut machine.reset.sources;
        for (arrived, source) in [(kernel, boots), (initrd, with)] {
            if let Some((file, id)) = arrived {
                *source = Some(Source::Came(file.seal(id)?));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "boot_tests.rs"]
mod tests;
