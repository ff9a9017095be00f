//! Guest RAM: one memory file, mapped once, addressed three ways.
//!
//! * **guest-physical address** (gpa): what the guest and its devices use. Two regions, with a hole
//!   below 4 GiB for devices;
//! * **page number**: what migration uses. The regions one after another, no gaps (see
//!   [`wherry_migration::traits`]);
//! * **file offset** in it: page number × 4096, so migration needs no mapping arithmetic at
//!   all.
//!
//! Why a shared memory file and not private memory: its extents tell which pages were ever
//! populated (`SEEK_DATA`) without reading a page and without mistaking swapped pages for holes;
//! `pread` of a hole does not populate it, as a read through the mapping would (module `read`);
//! `pwrite` of whole pages at the destination neither faults nor zeroes first (unless the host's
//! kernel zeroes all that it allocates); and a hole punched in it gives memory back at once.

mod backing;
mod dirty;
mod read;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use anyhow::Context;
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use vm_memory::bitmap::{Bitmap as _, MS};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestRegionMmap, MmapRegion, VolatileSlice,
};
use wherry_devices::GuestMemory;
use wherry_devices::host::BalloonBackend;
use wherry_devices::written::Written;
use wherry_migration::bitmap::Bitmap;
use wherry_migration::traits::{GuestRam, Keep, PAGE_SIZE};

pub use backing::Backing;
pub use dirty::{DirtySource, DirtySources, KvmLog, clear_dirty_log};

use crate::boot::layout::ram_regions;

/// Page size as the unit of addresses.
pub const PAGE: u64 = PAGE_SIZE as u64;

/// Some bytes of guest RAM where it is mapped; writes to it are tracked.
pub type Piece<'a> = VolatileSlice<'a, MS<'a, GuestMemory>>;

/// One contiguous piece of guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First guest-physical address, in bytes.
    pub gpa: u64,
    /// Length in bytes, a multiple of the page size.
    pub len: u64,
    /// Number of its first page.
    pub first_page: u64,
}

/// Guest RAM of one machine. Cheap to share; the memory goes back to the host when the last
/// reference is dropped.
pub struct Ram {
    file: File,
    regions: Vec<Region>,
    mem: Arc<GuestMemory>,
    /// Taken for writing by who punches a hole, for reading by who needs that none appears.
    holes: RwLock<()>,
    /// Held by who writes through the file. The kernel lets one at a time do so anyway, and who
    /// waits for its lock spins, which with two connections took a fifth of the destination's CPU
    /// time; here one sleeps.
    writer: Mutex<()>,
}

impl Ram {
    /// Reserves `bytes` of guest RAM. Nothing is populated yet: untouched memory costs nothing.
    ///
    /// # Errors
    /// The host has no room for it, or cannot map it.
    pub fn new(bytes: u64, backing: &Backing) -> anyhow::Result<Self> {
        let mib = bytes >> 20;
        let reserve = || format!("cannot reserve {mib} MiB of guest memory");
        let file = backing.file(bytes).with_context(reserve)?;

        let mut regions = Vec::new();
        let mut mapped = Vec::new();
        let mut offset = 0;
        for (gpa, len) in ram_regions(bytes) {
            let copy = file.try_clone().with_context(reserve)?;
            mapped.push(map_region(copy, offset, gpa, len).with_context(|| {
                format!(
                    "the host cannot map {mib} MiB of guest memory: use a smaller --memory, or \
                     raise `ulimit -v`"
                )
            })?);
            regions.push(Region { gpa, len, first_page: offset / PAGE });
            offset += len;
        }
        let mem = GuestMemory::from_arc_regions(mapped);
        let mem = Arc::new(mem.context("guest memory layout is invalid")?);
        Ok(Self { file, regions, mem, holes: RwLock::default(), writer: Mutex::default() })
    }

    /// The memory as devices and the loader see it; writes through it are tracked.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.mem
    }

    /// The regions, in ascending order.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|r| r.len).sum()
    }

    /// Host virtual address of a region, for the KVM memory slot.
    fn host_address(&self, region: &Region) -> io::Result<u64> {
        let p = self.mem.get_host_address(GuestAddress(region.gpa)).map_err(io::Error::other)?;
        Ok(p as u64)
    }

    /// What the VMM has written in a region.
    fn written(&self, region: &Region) -> Option<&Written> {
        // The mapping's own method: that of vm-memory's trait gives slices alone.
        Some(MmapRegion::bitmap(self.mem.find_region(GuestAddress(region.gpa))?))
    }

    /// Calls `f(first_page, nr_pages)` for the RAM parts of a guest-physical byte range, whole
    /// pages only (shrunk inward).
    pub fn for_pages(&self, gpa: u64, len: u64, mut f: impl FnMut(u64, u64)) {
        let end = gpa.saturating_add(len);
        for r in &self.regions {
            let from = gpa.max(r.gpa).div_ceil(PAGE);
            let to = end.min(r.gpa + r.len) / PAGE;
            if from < to {
                f(r.first_page + (from - r.gpa / PAGE), to - from);
            }
        }
    }

    /// Punches a hole: the pages read as zero and their memory is the host's again. The mapping
    /// stays valid: a later access sees fresh zero pages, which guest memory users (volatile
    /// accesses only) must expect anyway.
    fn punch(&self, first: u64, nr: u64) -> io::Result<()> {
        let _no_reader = self.holes.write().unwrap_or_else(PoisonError::into_inner);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(&self.file, flags, first * PAGE, nr * PAGE)?)
    }

    /// Next extent boundary, data or hole. `None`: no more data. Nobody depends on the file's
    /// position (pread and pwrite only).
    fn seek(&self, to: SeekFrom) -> io::Result<Option<u64>> {
        match seek(&self.file, to) {
            Ok(at) => Ok(Some(at)),
            Err(Errno::NXIO) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Bytes of guest RAM that are backed by host memory now.
    pub fn resident_bytes(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.file.metadata().map_or(0, |m| m.blocks() * 512)
    }
}

type MappedRegion = Arc<GuestRegionMmap<Written>>;

fn map_region(
    file: File,
    offset: u64,
    gpa: u64,
    len: u64,
) -> Result<MappedRegion, vm_memory::mmap::MmapRegionError> {
    use vm_memory::mmap::NewBitmap;
    let size = usize::try_from(len).unwrap_or(usize::MAX);
    let region: MmapRegion<Written> =
        MmapRegionBuilder::new_with_bitmap(size, Written::with_len(size))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::new(file, offset))
            .build()?;
    // SAFETY: advice on the mapping just made. Guest RAM must not land in the VMM's core dumps.
    unsafe { libc::madvise(region.as_ptr().cast(), size, libc::MADV_DONTDUMP) };
    GuestRegionMmap::new(region, GuestAddress(gpa))
        .map(Arc::new)
        .ok_or(vm_memory::mmap::MmapRegionError::InvalidPointer)
}

impl GuestRam for Ram {
    fn nr_pages(&self) -> u64 {
        self.bytes() / PAGE
    }

    fn read(&self, first: u64, buf: &mut [u8]) -> io::Result<()> {
        self.take(first, buf, &mut |_, _| true).map(|_| ())
    }

    fn take(&self, first: u64, buf: &mut [u8], keep: &mut Keep<'_>) -> io::Result<usize> {
        self.take_pages(first, buf, keep)
    }

    fn write(&self, first: u64, data: &[u8]) -> io::Result<()> {
        // A write past the end would grow the file instead of failing.
        let end = (first * PAGE).checked_add(data.len() as u64);
        if end.is_none_or(|end| end > self.bytes()) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        // Nothing is spoiled by a panic: it guards no data.
        let _alone = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        self.file.write_all_at(data, first * PAGE)
    }

    fn zero(&self, first: u64, nr: u64) -> io::Result<()> {
        self.punch(first, nr)
    }

    fn populated(&self, pages: Range<u64>, out: &mut Bitmap) -> io::Result<()> {
        let end = pages.end.saturating_mul(PAGE).min(self.bytes());
        let mut at = pages.start.saturating_mul(PAGE);
        while at < end {
            let data = self.seek(SeekFrom::Data(at))?;
            let Some(data) = data.filter(|&data| data < end) else { break };
            let hole = self.seek(SeekFrom::Hole(data))?.unwrap_or(end).min(end);
            let (first, last) = (data / PAGE, hole.div_ceil(PAGE));
            out.set_range(first, last - first);
            at = hole.max(data + PAGE);
        }
        Ok(())
    }

    fn data_from(&self, first: u64) -> io::Result<u64> {
        let data = self.seek(SeekFrom::Data(first.saturating_mul(PAGE)))?;
        Ok(data.map_or_else(|| self.nr_pages(), |at| at / PAGE))
    }

    fn address(&self, page: u64) -> u64 {
        let within = |r: &&Region| page >= r.first_page && page - r.first_page < r.len / PAGE;
        let region = self.regions.iter().find(within);
        region.map_or(u64::MAX, |r| r.gpa + (page - r.first_page) * PAGE)
    }
}

impl BalloonBackend for Ram {
    /// The hole first, the dirty mark after it: a harvest in between finds the mark next time, none
    /// ever misses the change.
    fn discard(&self, gpa: u64, len: u64) -> io::Result<()> {
        let mut result = Ok(());
        self.for_pages(gpa, len, |first, nr| {
            result = std::mem::replace(&mut result, Ok(())).and(self.punch(first, nr));
            for r in &self.regions {
                let (from, to) =
                    (first.max(r.first_page), (first + nr).min(r.first_page + r.len / PAGE));
                if from < to
                    && let Some(written) = self.written(r)
                {
                    written.mark_dirty(
                        ((from - r.first_page) * PAGE) as usize,
                        ((to - from) * PAGE) as usize,
                    );
                }
            }
        });
        result
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    fn pages(ram: &Ram) -> Vec<u64> {
        let mut b = Bitmap::new(ram.nr_pages());
        ram.populated(0..ram.nr_pages(), &mut b).unwrap();
        (0..ram.nr_pages()).filter(|&p| b.test(p)).collect()
    }

    #[test]
    fn reading_a_hole_does_not_populate_it() {
        let ram = Ram::new(128 << 20, &Backing::Memfd).unwrap();
        let mut buf = vec![1; 3 * PAGE_SIZE];
        ram.read(7, &mut buf).unwrap();
        assert!(buf.iter().all(|&b| b == 0));
        assert!(pages(&ram).is_empty());
        ram.write(9, &[5; PAGE_SIZE]).unwrap();
        assert_eq!(pages(&ram), [9]);
        ram.zero(9, 1).unwrap();
        assert!(pages(&ram).is_empty());
    }

    #[test]
    fn only_the_pages_asked_for_are_looked_at() {
        let ram = Ram::new(128 << 20, &Backing::Memfd).unwrap();
        ram.write(100, &[5; 300 * PAGE_SIZE]).unwrap();
        let within = |from, to| {
            let mut found = Bitmap::new(ram.nr_pages());
            ram.populated(from..to, &mut found).unwrap();
            found.runs().collect::<Vec<_>>()
        };
        assert_eq!(within(64, 128), [(100, 28)]);
        assert_eq!(within(192, 256), [(192, 64)]);
        assert_eq!(within(384, u64::MAX), [(384, 16)]);
        // The next page with anything in it is behind what was asked for.
        assert_eq!(within(0, 64), []);
        assert_eq!(within(448, 512), []);
    }

    #[test]
    fn pages_above_the_hole_follow_those_below() {
        let ram = Ram::new(4 << 30, &Backing::Memfd).unwrap();
        assert_eq!(ram.regions().len(), 2);
        let high = ram.regions()[1];
        assert_eq!(high.gpa, 4 << 30);
        ram.memory().write_obj(0x77u8, GuestAddress(high.gpa + 5)).unwrap();
        assert_eq!(pages(&ram), [high.first_page]);
        assert_eq!(ram.address(high.first_page), 4 << 30);
        assert_eq!(ram.address(high.first_page + 1), (4 << 30) + PAGE);
        assert_eq!(ram.address(ram.nr_pages()), u64::MAX);
        let mut got = vec![];
        // A range over the device hole: the end of low RAM and the start of high RAM, whole pages
        // only.
        ram.for_pages((3 << 30) - 8192 - 1, (1 << 30) + 3 * 8192, |f, n| got.push((f, n)));
        assert_eq!(got, [(high.first_page - 2, 2), (high.first_page, 3)]);
    }

    #[test]
    fn writes_past_the_end_are_refused() {
        let ram = Ram::new(128 << 20, &Backing::Memfd).unwrap();
        let last = ram.nr_pages();
        assert!(ram.write(last, &[0; PAGE_SIZE]).is_err());
        assert!(ram.read(last, &mut [0; PAGE_SIZE]).is_err());
        assert_eq!(ram.nr_pages(), last);
    }

    #[test]
    fn discard_marks_the_pages_dirty() {
        let ram = Ram::new(128 << 20, &Backing::Memfd).unwrap();
        ram.write(3, &[5; PAGE_SIZE]).unwrap();
        ram.discard(3 * PAGE, PAGE).unwrap();
        assert!(pages(&ram).is_empty());
        assert!(ram.written(&ram.regions()[0]).unwrap().dirty_at(3 * PAGE_SIZE));
    }
}
