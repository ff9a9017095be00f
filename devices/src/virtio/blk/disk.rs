//! What is behind the device: bytes that are read and written.

use std::io;
use std::sync::Arc;

use vm_memory::VolatileSlice;

/// Why a disk did not do it.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The host has no room left. Tried again when there is, it works.
    #[error("there is no room left")]
    Full,
    /// It has not begun, since somebody is in a [hurry](Disk::hurry).
    #[error("put off")]
    PutOff,
    /// It failed.
    #[error(transparent)]
    Failed(io::Error),
}

impl From<io::Error> for DiskError {
    fn from(e: io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            _ => Self::Failed(e),
        }
    }
}

/// A disk. Called from several threads at once; what they ask for at the same time may be done in
/// any order.
///
/// A slice is memory that a guest may change meanwhile, and that nobody tracks: who passes it
/// answers for its dirty marks.
pub trait Disk: Send + Sync {
    /// Its size in bytes. It does not change.
    fn size(&self) -> u64;

    /// Whether it cannot be written.
    fn read_only(&self) -> bool;

    /// Addresses, offsets and lengths must be multiples of this (`O_DIRECT`).
    fn alignment(&self) -> u64 {
        1
    }

    /// Fills all of `into`, in order, from byte `at` on.
    ///
    /// # Errors
    /// Part of it may have been written.
    fn read(&self, at: u64, into: &[VolatileSlice<'_>]) -> Result<(), DiskError>;

    /// As [`read`](Self::read), if nobody has to wait for it: all of it is in the host's memory.
    /// Returns whether it was read; if not, part of it may have been written.
    fn read_now(&self, _at: u64, _into: &[VolatileSlice<'_>]) -> bool {
        false
    }

    /// Writes all of `from`, in order, from byte `at` on.
    ///
    /// # Errors
    /// Part of it may have been written.
    fn write(&self, at: u64, from: &[VolatileSlice<'_>]) -> Result<(), DiskError>;

    /// Whatever was written before survives the host's end.
    ///
    /// # Errors
    /// It may not; and after the first error it never is said to.
    fn flush(&self) -> Result<(), DiskError>;

    /// The content of `len` bytes from `at` on does not matter any more.
    ///
    /// # Errors
    /// Part of it may be gone.
    fn discard(&self, at: u64, len: u64) -> Result<(), DiskError>;

    /// `len` bytes from `at` on read as zero. With `unmap` they need not stay allocated.
    ///
    /// # Errors
    /// Part of it may be zero.
    fn write_zeroes(&self, at: u64, len: u64, unmap: bool) -> Result<(), DiskError>;

    /// From now on, until it is told otherwise, whoever would wait for a turn returns
    /// [`DiskError::PutOff`] at once: somebody waits until nothing is in flight.
    fn hurry(&self, _on: bool) {}
}

impl<D: Disk + ?Sized> Disk for Arc<D> {
    fn size(&self) -> u64 {
        (**self).size()
    }
    fn read_only(&self) -> bool {
        (**self).read_only()
    }
    fn alignment(&self) -> u64 {
        (**self).alignment()
    }
    fn read(&self, at: u64, into: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        (**self).read(at, into)
    }
    fn read_now(&self, at: u64, into: &[VolatileSlice<'_>]) -> bool {
        (**self).read_now(at, into)
    }
    fn write(&self, at: u64, from: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        (**self).write(at, from)
    }
    fn flush(&self) -> Result<(), DiskError> {
        (**self).flush()
    }
    fn discard(&self, at: u64, len: u64) -> Result<(), DiskError> {
        (**self).discard(at, len)
    }
    fn write_zeroes(&self, at: u64, len: u64, unmap: bool) -> Result<(), DiskError> {
        (**self).write_zeroes(at, len, unmap)
    }
    fn hurry(&self, on: bool) {
        (**self).hurry(on);
    }
}

/// Bytes of all slices.
pub fn total(slices: &[VolatileSlice<'_>]) -> usize {
    slices.iter().map(VolatileSlice::len).sum()
}

/// At most `len` bytes of the slices, without the first `skip`.
pub fn cut<'a>(slices: &[VolatileSlice<'a>], skip: usize, len: usize) -> Vec<VolatileSlice<'a>> {
    let (mut skip, mut len) = (skip, len);
    let mut out = Vec::with_capacity(slices.len());
    for slice in slices {
        let from = skip.min(slice.len());
        let take = (slice.len() - from).min(len);
        (skip, len) = (skip - from, len - take);
        // In range by construction.
        out.extend(slice.subslice(from, take).ok().filter(|slice| !slice.is_empty()));
    }
    out
}
