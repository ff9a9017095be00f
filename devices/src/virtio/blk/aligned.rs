//! Any request on a disk that takes aligned ones only (`O_DIRECT`): through a buffer of its own,
//! and if need be around what is beside it in its blocks.
//!
//! A write that begins or ends within a block reads the block, and writes it back whole. No other
//! write may come in between, or it would be undone: such a write is alone, the others share.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

use super::disk::{Disk, DiskError, cut, total};

/// Bytes that the buffer has at most.
const BUFFER: u64 = 1 << 20;

/// See the module's text. The size of the disk is a multiple of its alignment, which is a power of
/// two and far less than [`BUFFER`].
pub(super) struct Aligned {
    disk: Arc<dyn Disk>,
    align: u64,
    shared: RwLock<()>,
}

/// A piece of a request: these bytes of it, in these blocks of the disk.
struct Piece {
    skip: usize,
    len: usize,
    start: u64,
    blocks: u64,
    /// Where the bytes are in the blocks.
    within: usize,
}

impl Piece {
    fn is_whole(&self) -> bool {
        self.len as u64 == self.blocks
    }
}

/// Memory that the kernel may be given for `O_DIRECT`: it begins on a page, and is zero.
fn buffer(len: u64) -> Result<MmapRegion<()>, DiskError> {
    MmapRegion::new(len as usize).map_err(|e| DiskError::Failed(io::Error::other(e)))
}

impl Aligned {
    pub(super) fn new(disk: Arc<dyn Disk>) -> Self {
        let align = disk.alignment();
        Self { disk, align, shared: RwLock::new(()) }
    }

    pub(super) fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    fn down(&self, at: u64) -> u64 {
        at - at % self.align
    }

    fn fits(&self, at: u64, slices: &[VolatileSlice<'_>]) -> bool {
        let whole = |n: u64| n.is_multiple_of(self.align);
        let slice = |s: &VolatileSlice<'_>| {
            whole(s.ptr_guard().as_ptr() as usize as u64) && whole(s.len() as u64)
        };
        self.align <= 1 || (whole(at) && slices.iter().all(slice))
    }

    fn pieces(&self, at: u64, len: usize) -> impl Iterator<Item = Piece> {
        let mut skip = 0;
        std::iter::from_fn(move || {
            if skip == len {
                return None;
            }
            let from = at + skip as u64;
            let start = self.down(from);
            let within = (from - start) as usize;
            let take = (len - skip).min(BUFFER as usize - within);
            let blocks = ((within + take) as u64).next_multiple_of(self.align);
            let piece = Piece { skip, len: take, start, blocks, within };
            skip += take;
            Some(piece)
        })
    }

    pub(super) fn read(&self, at: u64, into: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        if self.fits(at, into) {
            return self.disk.read(at, into);
        }
        for piece in self.pieces(at, total(into)) {
            let buffer = buffer(piece.blocks)?;
            let buffer = buffer.as_volatile_slice();
            self.disk.read(piece.start, &[buffer])?;
            let mut rest = cut(&[buffer], piece.within, piece.len);
            for slice in cut(into, piece.skip, piece.len) {
                rest.iter().for_each(|from| from.copy_to_volatile_slice(slice));
                rest = cut(&rest, slice.len(), piece.len);
            }
        }
        Ok(())
    }

    pub(super) fn read_now(&self, at: u64, into: &[VolatileSlice<'_>]) -> bool {
        self.fits(at, into) && self.disk.read_now(at, into)
    }

    pub(super) fn write(&self, at: u64, from: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        let whole = |n: u64| n.is_multiple_of(self.align);
        if self.align <= 1 || (whole(at) && whole(total(from) as u64)) {
            let _shared = self.shared.read().unwrap_or_else(PoisonError::into_inner);
            self.write_pieces(at, from)
        } else {
            let _alone = self.shared.write().unwrap_or_else(PoisonError::into_inner);
            self.write_pieces(at, from)
        }
    }

    fn write_pieces(&self, at: u64, from: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        if self.fits(at, from) {
            return self.disk.write(at, from);
        }
        for piece in self.pieces(at, total(from)) {
            let buffer = buffer(piece.blocks)?;
            let buffer = buffer.as_volatile_slice();
            if !piece.is_whole() {
                self.disk.read(piece.start, &[buffer])?;
            }
            let mut rest = cut(&[buffer], piece.within, piece.len);
            for slice in cut(from, piece.skip, piece.len) {
                rest.iter().for_each(|into| slice.copy_to_volatile_slice(*into));
                rest = cut(&rest, slice.len(), piece.len);
            }
            self.disk.write(piece.start, &[buffer])?;
        }
        Ok(())
    }

    /// Of blocks that are not meant as a whole nothing is discarded.
    pub(super) fn discard(&self, at: u64, len: u64) -> Result<(), DiskError> {
        let (start, end) = (at.next_multiple_of(self.align), self.down(at + len));
        if start < end { self.disk.discard(start, end - start) } else { Ok(()) }
    }

    pub(super) fn write_zeroes(&self, at: u64, len: u64, unmap: bool) -> Result<(), DiskError> {
        let end = at + len;
        let (first, last) = (at.next_multiple_of(self.align).min(end), self.down(end).max(at));
        if first >= last {
            return self.zeros(at, end);
        }
        self.zeros(at, first)?;
        {
            let _shared = self.shared.read().unwrap_or_else(PoisonError::into_inner);
            self.disk.write_zeroes(first, last - first, unmap)?;
        }
        self.zeros(last, end)
    }

    /// Writes zeros over less than two blocks.
    fn zeros(&self, from: u64, to: u64) -> Result<(), DiskError> {
        if from == to {
            return Ok(());
        }
        let zeros = buffer(to - from)?;
        self.write(from, &[zeros.as_volatile_slice()])
    }
}
