//! A file that is open, or a part of one, as what is booted is read.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

/// A part of a file, read as if it were a file of its own. The file's position is of no account:
/// others may read it at the same time.
#[derive(Debug)]
pub struct Part {
    file: Arc<File>,
    start: u64,
    len: u64,
    /// Position in it.
    at: u64,
}

impl Part {
    /// The `len` bytes from `start` on; what the file has not reads as its end.
    pub(super) fn new(file: Arc<File>, start: u64, len: u64) -> Self {
        Self { file, start, len, at: 0 }
    }

    /// Its length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// A part of this part, which must have checked that it lies in it.
    pub(super) fn part(&self, (start, len): (u64, u64)) -> Self {
        Self::new(self.file.clone(), self.start.saturating_add(start), len)
    }

    /// Where the next bytes are in the file, and how many of `wanted` may be read there.
    fn next(&self, wanted: usize) -> (u64, usize) {
        let left = usize::try_from(self.len.saturating_sub(self.at)).unwrap_or(usize::MAX);
        (self.start.saturating_add(self.at), wanted.min(left))
    }
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (at, len) = self.next(buffer.len());
        let n = self.file.read_at(buffer.get_mut(..len).unwrap_or_default(), at)?;
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
        let failed = VolatileMemoryError::IOError;
        let (at, len) = self.next(buffer.len());
        let at =
            libc::off_t::try_from(at).map_err(|_| failed(io::ErrorKind::InvalidInput.into()))?;
        let memory = buffer.ptr_guard_mut();
        // SAFETY: `len` bytes at most of the slice, which is memory to be accessed as volatile; the
        // call keeps nothing of it.
        let got = unsafe { libc::pread(self.file.as_raw_fd(), memory.as_ptr().cast(), len, at) };
        let n = usize::try_from(got).map_err(|_| failed(io::Error::last_os_error()))?;
        buffer.bitmap().mark_dirty(0, n);
        self.at += n as u64;
        Ok(n)
    }
}
