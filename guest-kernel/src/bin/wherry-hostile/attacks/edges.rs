//! Attacks at the ends of RAM: below the hole for devices, above it, and where RAM ends.

use super::Attacker;
use crate::balloon::{DEFLATE, HINT, INFLATE, REPORT};
use crate::pages::{self, Kind};
use crate::phys::*;
use crate::virtio::{page_block, readable};

const HOLE_LEN: u64 = ABOVE_HOLE - HOLE;

impl Attacker {
    /// A page at one of the ends, if this guest has them.
    pub(super) fn edge_page(&mut self) -> Option<u64> {
        let zones = edges();
        if zones.is_empty() || !self.rng.one_in(4) {
            return None;
        }
        let zone = self.rng.pick(zones);
        Some(zone.start + PAGE * self.rng.within(0..EDGE / PAGE))
    }

    /// One of these attacks.
    pub(super) fn edges(&mut self, open: bool) {
        match self.rng.within(0..6) {
            0 | 1 => self.hint_across(open),
            2 => self.hint_past_end(open),
            3 | 4 => self.inflate_around(),
            _ => self.report_around(),
        }
    }

    /// Writes what lies in a range that is to be hinted: what is in use was written after the id
    /// was read.
    fn rewrite(&mut self, start: u64, end: u64) {
        (start..end).step_by(PAGE as usize).for_each(|page| pages::write(page, pages::kind(page)));
    }

    /// One hint from below the hole to above it, or with one end in it, or of parts of pages. The
    /// pages in it are in use.
    fn hint_across(&mut self, open: bool) {
        let (below, above) = (PAGE * self.rng.within(0..32), PAGE * self.rng.within(0..32));
        if open {
            self.rewrite(HOLE - below, HOLE);
            self.rewrite(ABOVE_HOLE, ABOVE_HOLE + above);
        }
        let (odd, past) = (self.rng.within(0..PAGE), self.rng.within(0..PAGE));
        let (start, end) = match self.rng.within(0..4) {
            0 => (HOLE - below, ABOVE_HOLE + above),
            // Parts of the pages beside those that were written: they do not count.
            1 => (HOLE - below - odd, ABOVE_HOLE + above + past),
            2 => (HOLE + self.rng.within(0..HOLE_LEN), ABOVE_HOLE + above + past),
            _ => (HOLE - below - odd, ABOVE_HOLE - self.rng.within(0..HOLE_LEN)),
        };
        let told = self.balloon.post(HINT, &[page_block(start, (end - start) as u32)]);
        self.recover_unless(told);
        if self.rng.one_in(2) {
            self.rewrite(ABOVE_HOLE, ABOVE_HOLE + above);
        }
    }

    /// A hint of the last pages of RAM, and of what would follow.
    fn hint_past_end(&mut self, open: bool) {
        let start = LARGE_RAM - PAGE * self.rng.within(0..32);
        if open {
            self.rewrite(start, LARGE_RAM);
        }
        let len = self.rng.pick(&[u32::MAX, 1 << 30, (LARGE_RAM - start) as u32 + 1]);
        let told = self.balloon.post(HINT, &[page_block(start, len)]);
        self.recover_unless(told);
    }

    /// Inflates and deflates pages at the ends that are lied about, pages of the hole, and pages
    /// past the end of RAM.
    fn inflate_around(&mut self) {
        let inflate = self.rng.one_in(2);
        let list = self.balloon.buffer(if inflate { &INFLATE_LISTS } else { &DEFLATE_LISTS });
        let nr = self.rng.within(1..200);
        for at in 0..nr {
            let random = self.rng.within(0..EDGE / PAGE);
            let near = self.rng.pick(&[0, 1, 2, 255, 256, random, random, random]);
            let edge = self.rng.pick(&EDGES).start + PAGE * self.rng.within(0..EDGE / PAGE);
            let page = match self.rng.within(0..8) {
                0 => HOLE / PAGE + near,
                1 => ABOVE_HOLE / PAGE - 1 - near,
                2 => LARGE_RAM / PAGE + near,
                3 => (HOLE + self.rng.within(0..HOLE_LEN)) / PAGE,
                4 => u64::from(u32::MAX) - near,
                // Deflating never touches memory.
                _ if pages::kind(edge) == Kind::Lie || !inflate => edge / PAGE,
                _ => u64::from(u32::MAX),
            };
            write32(list + at * 4, page as u32);
        }
        (0..4).for_each(|at| write32(list + (nr + at) * 4, u32::MAX));
        let queue = if inflate { INFLATE } else { DEFLATE };
        let told = self.balloon.post(queue, &[readable(list, nr as u32 * 4)]);
        self.use_lies();
        self.recover_unless(told);
    }

    /// Reports with the hole in them, and no whole page of RAM but those at its edges that are lied
    /// about.
    fn report_around(&mut self) {
        let whole = |page: u64| if pages::kind(page) == Kind::Lie { PAGE } else { 0 };
        let start = HOLE - whole(HOLE - PAGE) - self.rng.within(0..PAGE);
        let end = ABOVE_HOLE + whole(ABOVE_HOLE) + self.rng.within(0..PAGE);
        let last = LARGE_RAM - whole(LARGE_RAM - PAGE) - self.rng.within(0..PAGE);
        let ranges = [
            page_block(start, (end - start) as u32),
            page_block(start, HOLE_LEN as u32),
            page_block(ABOVE_HOLE - PAGE, (end - ABOVE_HOLE + PAGE) as u32),
            page_block(HOLE, HOLE_LEN as u32),
            page_block(last, u32::MAX),
        ];
        let nr = self.rng.within(1..ranges.len() as u64 + 1) as usize;
        let told = self.balloon.post(REPORT, &ranges[..nr]);
        self.use_lies();
        self.recover_unless(told);
    }

    /// Goes on using some of what it has called free.
    fn use_lies(&mut self) {
        for _ in 0..4 {
            let zone = self.rng.pick(&EDGES);
            let page = zone.start + PAGE * self.rng.within(0..EDGE / PAGE);
            if pages::kind(page) == Kind::Lie {
                pages::write(page, Kind::Lie);
            }
        }
    }
}
