//! What a guest boots, as files that are open: kernel, initrd and command line by themselves, of a
//! unified kernel image, or of a disk.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

use super::error::READ;
use super::uki::{self, Uki};

/// What to boot, and to boot again at a reset. At a destination these are the source's paths, kept
/// for the next migration but never opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// bzImage, ELF kernel or unified kernel image. Empty: what is in the first disk boots.
    pub path: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Complete command line; a unified kernel image's own is before it.
    pub cmdline: String,
}

impl Kernel {
    /// Whether the first disk's own kernel boots.
    pub fn is_in_disk(&self) -> bool {
        self.path.as_os_str().is_empty()
    }
}

/// A part of a file, read as if it were a file of its own.
#[derive(Debug)]
pub struct Part {
    file: File,
    start: u64,
    len: u64,
    /// Position in it.
    at: u64,
}

impl Part {
    /// The `len` bytes from `start` on; what the file has not reads as its end.
    pub(super) fn new(file: File, start: u64, len: u64) -> Self {
        Self { file, start, len, at: 0 }
    }

    /// Its length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// A part of this part, which must have checked that it lies in it.
    fn part(&self, (start, len): (u64, u64)) -> io::Result<Self> {
        Ok(Self::new(self.file.try_clone()?, self.start.saturating_add(start), len))
    }

    /// Moves the file, whose position others may share, to ours; how much is left from there.
    fn go(&mut self) -> io::Result<u64> {
        self.file.seek(SeekFrom::Start(self.start.saturating_add(self.at)))?;
        Ok(self.len.saturating_sub(self.at))
    }
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.go()?;
        let n = (&self.file).take(left).read(buffer)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Seek for Part {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

impl ReadVolatile for Part {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buffer: &mut VolatileSlice<B>,
    ) -> Result<usize, VolatileMemoryError> {
        let left = usize::try_from(self.go().map_err(VolatileMemoryError::IOError)?);
        let len = buffer.len().min(left.unwrap_or(usize::MAX));
        let n = self.file.read_volatile(&mut buffer.subslice(0, len)?)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// A part with its name for people: `kernel /boot/vmlinuz`.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) part: Part,
}

/// What is loaded.
#[derive(Debug)]
pub struct Files {
    pub(super) kernel: Named,
    pub(super) initrd: Option<Named>,
    pub(super) cmdline: String,
}

impl Files {
    /// Opens what `source` names.
    ///
    /// # Errors
    /// A file cannot be opened, or is a damaged unified kernel image.
    pub fn open(source: &Kernel) -> anyhow::Result<Self> {
        let name = format!("kernel {}", source.path.display());
        let kernel = || -> anyhow::Result<(Part, Option<Uki>)> {
            let mut part = open(&source.path)?.context(
                "is not a regular file; give the path of a bzImage (vmlinuz) or an ELF vmlinux",
            )?;
            let len = part.len();
            let uki = uki::parse(&mut part, len)?;
            Ok((part, uki))
        };
        let (part, uki) = kernel().with_context(|| name.clone())?;
        let given = source.initrd.as_ref().map(|path| {
            let name = format!("initrd {}", path.display());
            let opened = open(path).and_then(|part| part.context("is not a regular file"));
            let part = opened.with_context(|| name.clone())?;
            anyhow::Ok(Named { name, part })
        });
        let initrd = given.transpose()?;
        let Some(uki) = uki else {
            let cmdline = source.cmdline.clone();
            return Ok(Self { kernel: Named { name, part }, initrd, cmdline });
        };
        let own = |span| part.part(span).context(READ);
        let initrd = match (initrd, uki.initrd) {
            (None, Some(span)) => {
                Some(Named { name: format!("initrd of {name}"), part: own(span)? })
            }
            (given, _) => given,
        };
        let cmdline = [uki.cmdline.as_str(), source.cmdline.as_str()].join(" ").trim().to_owned();
        let kernel = Named { part: own(uki.linux)?, name };
        Ok(Self { kernel, initrd, cmdline })
    }
}

/// Opens a file for reading; `None` if it is not a regular file.
fn open(path: &Path) -> anyhow::Result<Option<Part>> {
    let meta = std::fs::metadata(path).context(READ)?;
    if !meta.is_file() {
        return Ok(None);
    }
    let file = File::open(path).context(READ)?;
    let len = file.metadata().context(READ)?.len();
    Ok(Some(Part::new(file, 0, len)))
}
