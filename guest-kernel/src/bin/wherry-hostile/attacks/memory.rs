//! Attacks with memory: taking back what was hinted, hinting and discarding what is in use.

use super::{Attacker, BLOCK};
use crate::balloon::{DEFLATE, HINT, INFLATE, NR_QUEUES, REPORT};
use crate::pages::{self, Kind};
use crate::phys::*;
use crate::second;
use crate::virtio::{SIZE, page_block, readable};

impl Attacker {
    /// A block of the pool, or a run of pages in one; or a block whose turn comes once in a
    /// migration, while an id is open. Never one that the second vCPU is writing.
    fn run_of_pool(&mut self, open: bool) -> (u64, u64) {
        loop {
            let (start, len) = self.any_run_of_pool(open);
            if !second::has(start, len) {
                return (start, len);
            }
        }
    }

    fn any_run_of_pool(&mut self, open: bool) -> (u64, u64) {
        let once = self.rng.within(0..(ONCE.end - ONCE.start) / BLOCK);
        if open && self.rng.one_in(4) && (self.taken_once >> once) & 1 == 0 {
            self.taken_once |= 1 << once;
            return (ONCE.start + once * BLOCK, BLOCK);
        }
        let block = POOL.start + BLOCK * self.rng.within(0..(POOL.end - POOL.start) / BLOCK);
        if self.rng.one_in(2) {
            return (block, BLOCK);
        }
        let first = self.rng.within(0..BLOCK / PAGE);
        let nr = self.rng.within(1..BLOCK / PAGE - first + 1).min(8);
        (block + first * PAGE, nr * PAGE)
    }

    fn free(&mut self, start: u64, len: u64) {
        (start..start + len).step_by(PAGE as usize).for_each(pages::release);
    }

    fn use_again(&mut self, start: u64, len: u64) {
        (start..start + len)
            .step_by(PAGE as usize)
            .for_each(|page| pages::write(page, Kind::Honest));
    }

    /// What Linux does: frees memory, hints it if it was asked to, and takes memory into use.
    pub(super) fn behave(&mut self, open: bool) {
        let (start, len) = self.run_of_pool(open);
        if open {
            self.free(start, len);
            let told = self.balloon.post(HINT, &[page_block(start, len as u32)]);
            self.recover_unless(told);
        } else if self.rng.one_in(16) {
            self.use_again(start, len);
        }
    }

    /// Frees memory, hints it, and writes it at once, in every order that the queue allows. The id
    /// was read before all of this, so the host has to notice the writes.
    pub(super) fn take_back(&mut self, open: bool) {
        let (start, len) = self.run_of_pool(open);
        if !open {
            return self.use_again(start, len);
        }
        let block = page_block(start, len as u32);
        self.free(start, len);
        if self.rng.one_in(2) {
            // As a kernel that clears what it allocates.
            zero(start, len);
        }
        let order = self.rng.within(0..5);
        if order == 0 {
            // In use again before the hint exists.
            self.use_again(start, len);
        }
        if !self.balloon.wait(HINT, 1) {
            self.recover_unless(false);
            return;
        }
        let head = self.balloon.queue(HINT).prepare(&[block]);
        if order == 1 {
            self.use_again(start, len);
        }
        self.balloon.hints += 1;
        self.balloon.queue(HINT).publish(head);
        if order == 2 {
            // The device was not told yet, but may be looking.
            self.use_again(start, len);
        }
        self.balloon.queue(HINT).kick();
        match order {
            3 => self.use_again(start, len),
            4 => {
                let turns = self.rng.within(0..20_000);
                (0..turns).for_each(|_| core::hint::spin_loop());
                self.use_again(start, len);
            }
            _ => {}
        }
    }

    /// Frees memory and hints it, while the second vCPU takes it into use.
    pub(super) fn hand_over(&mut self, open: bool) {
        let (start, len) = self.run_of_pool(open);
        if !open {
            return self.use_on_second(start, len);
        }
        self.free(start, len);
        if self.zeroes {
            zero(start, len);
            if !self.rng.one_in(5) {
                // Mostly the host gets to see zeros: else it stops looking for them.
                let told = self.balloon.post(HINT, &[page_block(start, len as u32)]);
                let seen = told && self.balloon.wait(HINT, SIZE);
                if self.recover_unless(seen) {
                    self.use_on_second(start, len);
                }
                return;
            }
        }
        if !self.balloon.wait(HINT, 1) {
            self.recover_unless(false);
            return;
        }
        let head = self.balloon.queue(HINT).prepare(&[page_block(start, len as u32)]);
        let when = self.rng.within(0..4);
        if when == 0 {
            self.use_on_second(start, len);
        }
        self.balloon.hints += 1;
        self.balloon.queue(HINT).publish(head);
        if when == 1 {
            self.use_on_second(start, len);
        }
        self.balloon.queue(HINT).kick();
        match when {
            2 => self.use_on_second(start, len),
            3 => {
                let turns = self.rng.within(0..5_000);
                (0..turns).for_each(|_| core::hint::spin_loop());
                self.use_on_second(start, len);
            }
            _ => {}
        }
    }

    /// On the second vCPU if it has time, else here. Nothing is expected of the pages until they
    /// are written.
    fn use_on_second(&mut self, start: u64, len: u64) {
        self.free(start, len);
        if !second::hand_over(start, len) {
            self.use_again(start, len);
        }
    }

    /// As a kernel does that clears what it allocates: clears, hints, and writes a moment later.
    /// The host has to look at the memory after it has protected it.
    pub(super) fn take_zeroed(&mut self, open: bool) {
        let (start, len) = self.run_of_pool(open);
        if open {
            self.free(start, len);
            zero(start, len);
            let mut told = self.balloon.post(HINT, &[page_block(start, len as u32)]);
            if self.rng.one_in(5) {
                let turns = self.rng.pick(&[0, 100, 1000, 5000]) + self.rng.within(0..1000);
                (0..turns).for_each(|_| core::hint::spin_loop());
            } else {
                // Mostly the host gets to see zeros: else it finds that this guest does not zero,
                // and stops looking.
                told = told && self.balloon.wait(HINT, SIZE);
            }
            if !self.recover_unless(told) {
                return;
            }
        }
        self.use_again(start, len);
    }

    /// Zeroes what it hints until the host relies on it, then no more. The host has to begin anew,
    /// in the middle of the round, and forget no write that was made until then.
    pub(super) fn fickle(&mut self, open: bool) {
        if self.balloon.hints - self.hints_at_done < 150 {
            self.take_zeroed(open);
        } else {
            self.take_back(open);
        }
    }

    /// Memory that is lied about, so long as it is in use.
    pub(super) fn lie(&mut self) -> (u64, u64) {
        if self.rng.one_in(2) {
            return (
                MIXED.start
                    + PAGE
                    + 2 * PAGE * self.rng.within(0..(MIXED.end - MIXED.start) / PAGE / 2),
                PAGE,
            );
        }
        // The very last page stays unused: attacks on the transport have it for queues that end
        // past RAM.
        let start = LIES.start + PAGE * self.rng.within(0..(LIES.end - LIES.start) / PAGE - 1);
        (start, (PAGE << self.rng.within(0..9)).min(LIES.end - start))
    }

    /// Calls pages free that are in use, and goes on using them.
    pub(super) fn hint_in_use(&mut self, open: bool) {
        let (start, len) = self.lie();
        let when = self.rng.within(0..3);
        if when == 0 {
            pages::write(start, Kind::Lie);
        }
        let told = self.balloon.post(HINT, &[page_block(start, len as u32)]);
        if when == 1 {
            pages::write(start, Kind::Lie);
        }
        if self.recover_unless(told) && !open && self.rng.one_in(4) {
            self.hint_all();
        }
    }

    /// Hints the rings, the page tables, the program and its stack, each page of which was written
    /// after the id was read.
    pub(super) fn hint_tables(&mut self, open: bool) {
        if !open {
            return;
        }
        let (first, last) = match self.rng.within(0..4) {
            0 => (page_table(), page_table() + 7 * PAGE),
            1 => (RINGS, RINGS + NR_QUEUES as u64 * 0x1_0000),
            2 => (TABLES.start, LEDGER + 0x10_0000),
            _ => (IMAGE, image_pages().map(|page| page + PAGE).max().unwrap_or(IMAGE)),
        };
        (first..last).step_by(PAGE as usize).for_each(touch);
        let told = self.balloon.post(HINT, &[page_block(first, (last - first) as u32)]);
        self.recover_unless(told);
    }

    /// Reports and inflates pages that are in use, twice, out of RAM, in the wrong direction;
    /// deflates what it never inflated.
    pub(super) fn discards(&mut self) {
        let (start, len) = self.lie();
        let told = if self.rng.one_in(3) {
            let odd = self.rng.within(0..PAGE);
            let ranges = [
                page_block(start, len as u32),
                // Less than a page, wherever it is.
                page_block((self.rng.next() % RAM) | 1, (odd | 1) as u32),
                page_block(LIES.end - PAGE, u32::MAX),
                page_block(self.rng.next() | RAM, u32::MAX),
                readable(start, len as u32),
                page_block(start + odd, (len - odd.min(len)) as u32),
            ];
            let nr = self.rng.within(1..ranges.len() as u64 + 1) as usize;
            self.balloon.post(REPORT, &ranges[..nr])
        } else {
            let (queue, list, nr) = self.page_numbers(start, len);
            let odd = self.rng.pick(&[0, 0, 0, 1, 3]);
            self.balloon.post(queue, &[readable(list, nr * 4 + odd)])
        };
        if self.rng.one_in(2) {
            pages::write(start, Kind::Lie);
        }
        self.recover_unless(told);
    }

    /// A list of page numbers for one of the queues: where it is and how many there are.
    fn page_numbers(&mut self, start: u64, len: u64) -> (usize, u64, u32) {
        let inflate = self.rng.one_in(2);
        let nr = self.rng.within(1..300);
        let list = self.balloon.buffer(if inflate { &INFLATE_LISTS } else { &DEFLATE_LISTS });
        for at in 0..nr {
            let page = match self.rng.within(0..8) {
                0 => self.rng.pick(&[u64::from(u32::MAX), RAM / PAGE, 0xF_FFFF, 0xD_0000]),
                // Deflating never touches memory: any page will do.
                1 if !inflate => self.rng.within(0..RAM / PAGE),
                _ => (start + self.rng.within(0..len)) / PAGE,
            };
            write32(list + at * 4, page as u32);
        }
        // What may be read beyond the list is no page of RAM.
        (0..4).for_each(|at| write32(list + (nr + at) * 4, u32::MAX));
        (if inflate { INFLATE } else { DEFLATE }, list, nr as u32)
    }
}
