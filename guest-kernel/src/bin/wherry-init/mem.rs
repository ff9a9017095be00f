//! Anonymous memory by the page, and data that no compressor can shrink.

use std::io;
use std::ptr::NonNull;

use crate::sys;

/// The guest's page.
pub const PAGE: usize = 4096;
/// 64-bit words in a page.
pub const WORDS: usize = PAGE / 8;

/// A private anonymous mapping, given back when dropped.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u64>,
    pages: usize,
}

// SAFETY: a mapping is plain memory with one owner; access goes through `&self` or `&mut self` like
// a Vec's.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps `pages` zero pages.
    pub fn new(pages: usize) -> io::Result<Self> {
        let len = pages * PAGE;
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        );
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing of ours.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(base.cast())
            .map(|base| Self { base, pages })
            .ok_or(io::Error::other("mapped at address 0"))
    }

    /// Keeps the kernel from using huge pages here, so that each page is dirtied, moved and lost by
    /// itself.
    pub fn small_pages(&self) {
        // SAFETY: the range is exactly our mapping; the advice does not change its content.
        unsafe {
            libc::madvise(self.base.as_ptr().cast(), self.pages * PAGE, libc::MADV_NOHUGEPAGE)
        };
    }

    /// Number of pages.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Everything, as words.
    pub fn words(&mut self) -> &mut [u64] {
        // SAFETY: the mapping is readable, writable, page-aligned, of this length, and borrowed
        // exclusively through us.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.pages * WORDS) }
    }

    /// One page, as words.
    pub fn page(&mut self, index: usize) -> &mut [u64] {
        &mut self.words()[index * WORDS..(index + 1) * WORDS]
    }

    /// Asks for huge pages wherever they fit, at the price of compacting memory on a fault.
    pub fn huge_pages(&self) {
        // SAFETY: the range is exactly our mapping; the advice does not change its content.
        unsafe { libc::madvise(self.base.as_ptr().cast(), self.pages * PAGE, libc::MADV_HUGEPAGE) };
    }

    /// Gives one page back to the kernel; it reads as zero from now on.
    pub fn give_back(&mut self, index: usize) -> io::Result<()> {
        assert!(index < self.pages, "page {index} of {}", self.pages);
        // SAFETY: the page lies within our mapping (asserted), which is private and anonymous; no
        // reference into it is alive, for those borrow `self`.
        sys::check(unsafe {
            let page = self.base.as_ptr().byte_add(index * PAGE);
            libc::madvise(page.cast(), PAGE, libc::MADV_DONTNEED)
        })
        .map(|_| ())
    }

    /// Frame numbers of all pages now, from `/proc/self/pagemap`; 0 for a page that has none.
    pub fn frames(&self) -> io::Result<Vec<u64>> {
        use std::os::unix::fs::FileExt;
        let mut entries = vec![0; self.pages * 8];
        let at = self.base.as_ptr() as u64 / PAGE as u64 * 8;
        std::fs::File::open("/proc/self/pagemap")?.read_exact_at(&mut entries, at)?;
        let frame = |entry: &[u8]| {
            let entry = entry.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte));
            if entry >> 63 == 1 { entry & ((1 << 55) - 1) } else { 0 }
        };
        Ok(entries.chunks_exact(8).map(frame).collect())
    }

    /// Guest-physical address of a page now, from `/proc/self/pagemap`; `None` when it has none.
    pub fn physical(&self, index: usize) -> Option<u64> {
        use std::os::unix::fs::FileExt;
        let virtual_page = self.base.as_ptr() as u64 / PAGE as u64 + index as u64;
        let mut entry = [0; 8];
        std::fs::File::open("/proc/self/pagemap")
            .ok()?
            .read_exact_at(&mut entry, virtual_page * 8)
            .ok()?;
        let entry = u64::from_le_bytes(entry);
        (entry >> 63 == 1).then_some((entry & ((1 << 55) - 1)) * PAGE as u64)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly our mapping, and no reference into it can outlive `self`.
        let result = unsafe { libc::munmap(self.base.as_ptr().cast(), self.pages * PAGE) };
        debug_assert!(sys::check(result).is_ok());
    }
}

/// xorshift64*: fast, and random enough to be incompressible.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A generator; any seed will do.
    pub fn new(seed: u64) -> Self {
        // One round of splitmix64, so that neighbouring seeds give unrelated streams.
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((z ^ (z >> 31)) | 1)
    }

    /// Seeded from the clock.
    pub fn from_clock() -> Self {
        Self::new(sys::monotonic_ns())
    }

    /// The next word.
    pub fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Fills `bytes`, whose length is a multiple of 8.
    pub fn fill_bytes(&mut self, bytes: &mut [u8]) {
        bytes.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&self.word().to_le_bytes()));
    }

    /// Fills `words`.
    pub fn fill(&mut self, words: &mut [u64]) {
        words.iter_mut().for_each(|word| *word = self.word());
    }
}
