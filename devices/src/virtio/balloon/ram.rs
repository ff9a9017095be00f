//! Which guest addresses are RAM, and how its pages are numbered.

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::constants::{PAGE_SHIFT, PAGE_SIZE};
use crate::GuestMemory;

/// One region: whole pages, numbered from `first` on in the flat numbering of all RAM.
#[derive(Debug, Clone, Copy)]
pub(super) struct Region {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) first: u64,
}

/// Layout of guest RAM. Pages are numbered one region after another, without gaps.
#[derive(Debug, Clone, Default)]
pub(super) struct Ram {
    regions: Vec<Region>,
    pages: u64,
}

impl Ram {
    pub(super) fn new(mem: &GuestMemory) -> Self {
        let mut ram = Self::default();
        for region in mem.iter() {
            let start = region.start_addr().raw_value();
            let (start, end) = whole_pages(start, start.saturating_add(region.len()));
            if start < end {
                ram.regions.push(Region { start, end, first: ram.pages });
                ram.pages += (end - start) >> PAGE_SHIFT;
            }
        }
        ram
    }

    /// Pages of RAM.
    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    /// The whole pages of RAM that lie entirely in `gpa..gpa + len`, as (address, bytes), at most
    /// one part a region.
    pub(super) fn clip(&self, gpa: u64, len: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let end = gpa.saturating_add(len);
        self.regions.iter().filter_map(move |r| {
            let (start, end) = whole_pages(gpa.max(r.start), end.min(r.end));
            (start < end).then(|| (start, end - start))
        })
    }

    /// As [`clip`](Self::clip), but only within the region that has `gpa`; `None` if nothing is
    /// left.
    pub(super) fn clip_to_region(&self, gpa: u64, len: u64) -> Option<(u64, u64)> {
        let region = self.regions.iter().find(|r| r.start <= gpa && gpa < r.end)?;
        self.clip(gpa, len.min(region.end - gpa)).next()
    }

    /// The regions, ascending.
    pub(super) fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Flat number of the page with this guest frame number.
    pub(super) fn index(&self, gfn: u64) -> Option<u64> {
        let gpa = gfn.checked_mul(PAGE_SIZE)?;
        let region = self.regions.iter().find(|r| r.start <= gpa && gpa < r.end)?;
        Some(region.first + ((gpa - region.start) >> PAGE_SHIFT))
    }
}

/// Most bytes that are dealt with between two looks at the time: as much as Linux hints or reports
/// in one range.
const PIECE: u64 = 4 << 20;

/// Cuts a range at multiples of [`PIECE`].
pub(super) fn pieces((gpa, len): (u64, u64)) -> impl Iterator<Item = (u64, u64)> {
    let end = gpa + len;
    let cut = move |at: &u64| at - at % PIECE + PIECE;
    let starts = std::iter::successors(Some(gpa), move |at| Some(cut(at)));
    starts.take_while(move |at| *at < end).map(move |at| (at, cut(&at).min(end) - at))
}

/// Shrinks to page boundaries. May return an empty or inverted range.
fn whole_pages(start: u64, end: u64) -> (u64, u64) {
    (start.checked_next_multiple_of(PAGE_SIZE).unwrap_or(u64::MAX), end & !(PAGE_SIZE - 1))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    pub const MIB: usize = 1 << 20;

    pub fn two_regions() -> Ram {
        let mem =
            GuestMemory::from_ranges(&[(GuestAddress(0), MIB), (GuestAddress(4 << 30), 2 * MIB)])
                .unwrap();
        Ram::new(&mem)
    }

    #[test]
    fn clip_shrinks_inward_and_spans_the_hole() {
        let ram = two_regions();
        let clip = |gpa, len| ram.clip(gpa, len).collect::<Vec<_>>();
        assert_eq!(clip(1, 4096 * 3), vec![(4096, 8192)]);
        assert_eq!(clip(1, 4096), vec![]);
        assert_eq!(clip(0, u64::MAX), vec![(0, MIB as u64), (4 << 30, 2 * MIB as u64)]);
        assert_eq!(
            clip(MIB as u64 - 4096, 1 << 33),
            vec![(MIB as u64 - 4096, 4096), (4 << 30, 2 * MIB as u64)]
        );
        assert_eq!(clip(u64::MAX, u64::MAX), vec![]);
        assert_eq!(clip(2 << 30, 4096), vec![]);
    }
}
