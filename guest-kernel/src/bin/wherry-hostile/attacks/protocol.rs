//! Attacks on the hinting protocol: when, under which id, and of which shape.

use super::Attacker;
use crate::balloon::HINT;
use crate::phys::*;
use crate::virtio::{Desc, WRITE, page_block, readable};

/// Further ahead than ids get in any test.
const FAR: u32 = 1_000_000;

impl Attacker {
    /// Hints all there is. Only when no id is open: see the module's rules.
    pub(super) fn hint_all(&mut self) {
        assert!(self.announced.is_none());
        let page = MIXED.start + 2 * PAGE * self.rng.within(0..1024);
        let everything = [
            page_block(0, RAM as u32),
            page_block(page, PAGE as u32),
            page_block(POOL.start, (POOL.end - POOL.start) as u32),
            page_block(0, u32::MAX),
            page_block(IMAGE, (LIES.start - IMAGE) as u32),
        ];
        let nr = self.rng.within(1..everything.len() as u64 + 1) as usize;
        let told = self.balloon.post(HINT, &everything[..nr]);
        self.recover_unless(told);
    }

    /// Hints everything after the guest itself sent STOP, which is after DONE, too, and before any
    /// id.
    pub(super) fn hint_after_stop(&mut self) {
        self.stop();
        for _ in 0..self.rng.within(1..4) {
            self.hint_all();
        }
    }

    /// Announces ids that are old, replayed, or were never given out, and hints everything under
    /// each.
    pub(super) fn wrong_ids(&mut self) {
        let replay = self.rng.one_in(2).then_some(self.announced).flatten();
        if let Some(id) = replay {
            // Of this id the device has seen a wrong one, STOP, and now once more the right one.
            let wrong = FAR.wrapping_add(id);
            let told = self.balloon.command(wrong);
            self.recover_unless(told);
        }
        self.stop();
        let last = self.last_id;
        let id = match self.rng.within(0..7) {
            0 => self.rng.within(0..u64::from(last).max(1)) as u32,
            1 => 1,
            2 => u32::MAX,
            3 => last.wrapping_add(FAR + self.rng.within(0..1000) as u32),
            4 => 0x8000_0000,
            // The id that was just stopped.
            _ => replay.or(self.stopped).unwrap_or(0),
        };
        let at = self.balloon.command_buffer();
        write32(at, id);
        write32(at + 4, id);
        let all = page_block(0, RAM as u32);
        let told = match self.rng.within(0..5) {
            // A command of another length is none.
            0 => self.balloon.post(HINT, &[readable(at, self.rng.pick(&[0, 1, 3, 5, 8]))]),
            // Command and pages in one chain.
            1 => self.balloon.post(HINT, &[readable(at, 4), all]),
            2 => self.balloon.post(HINT, &[all, readable(at, 4), readable(at + 4, 4), all]),
            // Four bytes that the device may write are pages, not a command.
            3 => self.balloon.post(HINT, &[Desc { flags: WRITE, ..readable(at, 4) }]),
            _ => self.balloon.command(id),
        };
        if self.recover_unless(told) {
            self.hint_all();
            self.stop();
        }
    }

    /// Hints of every shape that hold no whole page but those that are lied about.
    pub(super) fn shapes(&mut self) {
        let honest = MIXED.start + 2 * PAGE * self.rng.within(0..2000);
        let (lie, len) = self.lie();
        let inside = self.rng.within(1..PAGE);
        let shapes = [
            // Both neighbours in part: they are honest.
            page_block(honest + inside, 2 * PAGE as u32),
            page_block(honest + 1, 3 * PAGE as u32 - 2),
            // Nearly two pages, and not one of them whole.
            page_block(honest + 1, 2 * PAGE as u32 - 2),
            page_block(honest, PAGE as u32 - 1),
            page_block(honest + 1, PAGE as u32 - 1),
            page_block(honest + inside, 0),
            page_block(0, 0),
            // To the end of RAM and past it.
            page_block(LIES.start, u32::MAX),
            page_block(lie.max(LIES.start) + inside, u32::MAX),
            page_block(RAM - PAGE, u32::MAX),
            page_block(RAM - 1, 2),
            // Nowhere.
            page_block(RAM, u32::MAX),
            page_block(0xD000_0000, 0x1000),
            page_block(0xFEE0_0000, u32::MAX),
            page_block(1 << 52, u32::MAX),
            page_block(u64::MAX, u32::MAX),
            page_block(u64::MAX - PAGE + 1, u32::MAX),
            page_block(self.rng.next() | 1 << 40, self.rng.next() as u32),
            page_block(lie, len as u32),
        ];
        let mut chain = [Desc::default(); 32];
        let nr = self.rng.within(1..chain.len() as u64 + 1) as usize;
        let overlap = self.rng.one_in(4);
        for (nth, desc) in chain.iter_mut().enumerate().take(nr) {
            *desc = match overlap {
                true => page_block(LIES.start + nth as u64 * 512, 1 << 20),
                false => self.rng.pick(&shapes),
            };
        }
        let told = self.balloon.post(HINT, &chain[..nr]);
        self.recover_unless(told);
    }
}
