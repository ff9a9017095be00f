//! The kernel reads and writes memory that is shared with a guest: the only unsafe code of this
//! crate. All of it is sound whatever is passed in; who writes guest memory through it also marks
//! it dirty ([`Dma`](crate::dma::Dma)).

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// Slices that the kernel takes at once (`UIO_MAXIOV`).
pub(crate) const MAX_SLICES: usize = 1024;

/// The same memory without its bitmap.
pub(crate) fn untracked<'a, B: BitmapSlice>(slice: &VolatileSlice<'a, B>) -> VolatileSlice<'a> {
    // SAFETY: The memory is that of `slice`, with its lifetime; it stays accessed as volatile.
    unsafe { VolatileSlice::new(slice.ptr_guard_mut().as_ptr(), slice.len()) }
}

fn iovecs(slices: &[VolatileSlice<'_>]) -> Vec<libc::iovec> {
    let iovec = |slice: &VolatileSlice<'_>| libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    };
    slices.iter().take(MAX_SLICES).map(iovec).collect()
}

fn offset(at: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(at).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// preadv(2), of the first [`MAX_SLICES`].
pub(crate) fn preadv(file: &File, at: u64, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let (iovecs, at) = (iovecs(into), offset(at)?);
    // SAFETY: Each iovec is a slice, which is memory to be accessed as volatile while `into` is
    // borrowed, and the call keeps none of them. There are at most MAX_SLICES.
    let got = unsafe { libc::preadv(file.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as i32, at) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// preadv2(2) with `RWF_NOWAIT`, of the first [`MAX_SLICES`]: what is in memory.
pub(crate) fn preadv_now(file: &File, at: u64, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let (iovecs, at) = (iovecs(into), offset(at)?);
    let (fd, number, flags) = (file.as_raw_fd(), iovecs.len() as i32, libc::RWF_NOWAIT);
    // SAFETY: As for preadv.
    let got = unsafe { libc::preadv2(fd, iovecs.as_ptr(), number, at, flags) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// pwritev(2), of the first [`MAX_SLICES`].
pub(crate) fn pwritev(file: &File, at: u64, from: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let (iovecs, at) = (iovecs(from), offset(at)?);
    // SAFETY: As for preadv; the memory is only read.
    let put = unsafe { libc::pwritev(file.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as i32, at) };
    usize::try_from(put).map_err(|_| io::Error::last_os_error())
}

/// What a block device does to a range (linux/fs.h).
#[derive(Debug, Clone, Copy)]
pub(crate) enum BlockOp {
    /// `BLKDISCARD`.
    Discard = 0x1277,
    /// `BLKZEROOUT`.
    Zero = 0x127f,
}

/// Does it to `len` bytes from `at` on.
pub(crate) fn block_op(device: &File, op: BlockOp, at: u64, len: u64) -> io::Result<()> {
    let range = [at, len];
    // SAFETY: Both take a pointer to two u64, which they only read. Of another file than a block
    // device they are refused.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), op as libc::Ioctl, range.as_ptr()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
