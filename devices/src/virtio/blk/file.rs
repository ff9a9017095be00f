//! A disk in a file or on a block device of the host, byte for byte.

use std::fs::File;
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Advice, AtFlags, FallocateFlags, OFlags, StatxFlags};
use vm_memory::{MmapRegion, VolatileMemory, VolatileSlice};

use super::disk::{Disk, DiskError, cut, total};
use crate::sys::{self, BlockOp};

/// Bytes of zeros that are written at once.
const ZEROS: usize = 256 << 10;

/// See the module's text.
pub struct FileDisk {
    file: File,
    block_device: bool,
    read_only: bool,
    size: u64,
    alignment: u64,
    /// The file system can read what is in memory, and only that. (tmpfs cannot.)
    at_once: AtomicBool,
    /// A flush failed: the kernel forgot what it could not write, and the next would succeed. Held
    /// while one is under way, since of two at the same time the kernel tells one.
    lost: Mutex<bool>,
}

impl FileDisk {
    /// A regular file or a block device, as it was opened: read-only or not, `O_DIRECT` or not.
    ///
    /// # Errors
    /// It is something else, or its size is not to be had.
    pub fn new(file: File) -> io::Result<Self> {
        let kind = file.metadata()?.file_type();
        let block_device = kind.is_block_device();
        if !block_device && !kind.is_file() {
            let text = "it is neither a regular file nor a block device";
            return Err(io::Error::new(ErrorKind::InvalidInput, text));
        }
        let flags = rustix::fs::fcntl_getfl(&file)?;
        let read_only = flags & OFlags::RWMODE == OFlags::RDONLY;
        let alignment = if flags.contains(OFlags::DIRECT) { direct_alignment(&file) } else { 1 };
        let size = (&file).seek(SeekFrom::End(0))?;
        // With O_DIRECT nothing is in memory.
        let at_once = AtomicBool::new(alignment == 1);
        let lost = Mutex::new(false);
        Ok(Self { file, block_device, read_only, size, alignment, at_once, lost })
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What this host keeps of its content is read anew: another host may have written. As far as
    /// that can be: what somebody here has mapped, or is about to write, stays.
    pub fn forget(&self) {
        let _ = rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed);
    }

    fn write_zeros(&self, at: u64, len: u64) -> Result<(), DiskError> {
        // Aligned for O_DIRECT, and zero.
        let zeros = MmapRegion::<()>::new(ZEROS).map_err(io::Error::other)?;
        let mut done = 0;
        while done < len {
            let piece =
                cut(&[zeros.as_volatile_slice()], 0, (len - done).min(ZEROS as u64) as usize);
            self.write(at + done, &piece)?;
            done += total(&piece) as u64;
        }
        Ok(())
    }

    fn fallocate(&self, how: FallocateFlags, at: u64, len: u64) -> io::Result<()> {
        let how = how | FallocateFlags::KEEP_SIZE;
        loop {
            match rustix::fs::fallocate(&self.file, how, at, len) {
                Err(rustix::io::Errno::INTR) => {}
                done => return Ok(done?),
            }
        }
    }
}

/// What `O_DIRECT` wants of this file. Kernels before 6.1 do not say; a page is enough for all.
fn direct_alignment(file: &File) -> u64 {
    let asked = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    let told = asked.ok().filter(|s| s.stx_mask & StatxFlags::DIOALIGN.bits() != 0);
    let most = told.map(|s| s.stx_dio_mem_align.max(s.stx_dio_offset_align));
    most.filter(|align| align.is_power_of_two()).map_or(4096, |align| align.max(512).into())
}

/// Calls `some` until all slices are through.
fn all(
    at: u64,
    slices: &[VolatileSlice<'_>],
    some: impl Fn(u64, &[VolatileSlice<'_>]) -> io::Result<usize>,
) -> Result<(), DiskError> {
    let whole = total(slices);
    let mut done = 0;
    while done < whole {
        let rest = cut(slices, done, whole - done);
        match some(at + done as u64, &rest) {
            Ok(0) => return Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
            Ok(more) => done += more,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Whether the file system or the device cannot do it, and another way may.
fn unable(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::Unsupported | ErrorKind::InvalidInput)
}

impl Disk for FileDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn alignment(&self) -> u64 {
        self.alignment
    }

    fn read(&self, at: u64, into: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        all(at, into, |at, into| sys::preadv(&self.file, at, into))
    }

    fn read_now(&self, at: u64, into: &[VolatileSlice<'_>]) -> bool {
        if !self.at_once.load(Ordering::Relaxed) {
            return false;
        }
        match sys::preadv_now(&self.file, at, into) {
            Ok(got) => got == total(into),
            Err(e) => {
                if e.kind() == ErrorKind::Unsupported {
                    self.at_once.store(false, Ordering::Relaxed);
                }
                false
            }
        }
    }

    fn write(&self, at: u64, from: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        all(at, from, |at, from| sys::pwritev(&self.file, at, from))
    }

    fn flush(&self) -> Result<(), DiskError> {
        if self.read_only {
            return Ok(());
        }
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if *lost {
            let text = "an earlier flush failed: what was written before it may be lost";
            return Err(DiskError::Failed(io::Error::other(text)));
        }
        let flushed = self.file.sync_data();
        *lost = flushed.is_err();
        flushed.map_err(DiskError::Failed)
    }

    fn discard(&self, at: u64, len: u64) -> Result<(), DiskError> {
        let done = if self.block_device {
            sys::block_op(&self.file, BlockOp::Discard, at, len)
        } else {
            self.fallocate(FallocateFlags::PUNCH_HOLE, at, len)
        };
        match done {
            // It is advice.
            Err(e) if unable(&e) => Ok(()),
            done => Ok(done?),
        }
    }

    fn write_zeroes(&self, at: u64, len: u64, unmap: bool) -> Result<(), DiskError> {
        let done = if self.block_device {
            sys::block_op(&self.file, BlockOp::Zero, at, len)
        } else if unmap {
            self.fallocate(FallocateFlags::PUNCH_HOLE, at, len)
        } else {
            self.fallocate(FallocateFlags::ZERO_RANGE, at, len)
        };
        match done {
            Err(e) if unable(&e) => self.write_zeros(at, len),
            done => Ok(done?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    /// A pipe cannot be flushed, which is how it fails here.
    #[test]
    fn a_flush_that_failed_makes_every_later_one_fail() {
        let (_other, pipe) = std::io::pipe().unwrap();
        let file = File::from(OwnedFd::from(pipe));
        let (lost, at_once) = (Mutex::new(false), AtomicBool::new(false));
        let (block_device, read_only, size, alignment) = (false, false, 0, 1);
        let mut disk = FileDisk { file, block_device, read_only, size, alignment, at_once, lost };
        disk.flush().unwrap_err();
        // What is flushed now could be.
        disk.file = tempfile::tempfile().unwrap();
        for _ in 0..2 {
            let text = "an earlier flush failed: what was written before it may be lost";
            assert_eq!(disk.flush().unwrap_err().to_string(), text);
        }
    }
}
