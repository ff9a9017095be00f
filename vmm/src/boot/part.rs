//! A file that is open, or a part of one, as what is booted is read.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::Context;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

use super::error::READ;

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
    pub(super) fn part(&self, (start, len): (u64, u64)) -> io::Result<Self> {
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

/// Opens a file for reading; `None` if it is not a regular file.
pub(super) fn open(path: &Path) -> anyhow::Result<Option<Part>> {
    let meta = std::fs::metadata(path).context(READ)?;
    if !meta.is_file() {
        return Ok(None);
    }
    let file = File::open(path).context(READ)?;
    let len = file.metadata().context(READ)?.len();
    Ok(Some(Part::new(file, 0, len)))
}
