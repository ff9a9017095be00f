//! Attacks on the transport: descriptors, config space, resets, registers.

use core::fmt::Write;

use super::Attacker;
use crate::balloon::{HINT, STATS};
use crate::phys::*;
use crate::port;
use crate::serial::Serial;
use crate::virtio::*;

impl Attacker {
    /// Chains that loop, lead out of their table, nest, or lie about their length. Only on pages
    /// that are lied about.
    pub(super) fn chains(&mut self) {
        let number = self.rng.pick(&[0, 1, 3, 3, 3, 4]);
        if self.rng.one_in(256) {
            return self.bad_index(number);
        }
        let ready = self.balloon.wait(number, 4);
        if !self.recover_unless(ready) {
            return;
        }
        let table = self.balloon.buffer(&TABLES);
        let (lie, len) = self.lie();
        let pages = if number == HINT || number == 4 {
            page_block(lie, len as u32)
        } else {
            readable(NO_PAGES, 1024)
        };
        let queue = self.balloon.queue(number);
        let slot = queue.next_slot();
        let linked = |next| Desc { flags: pages.flags | NEXT, next, ..pages };
        let indirect = |addr, len| Desc { addr, len, flags: INDIRECT, next: 0 };
        let chain: &[Desc] = match self.rng.within(0..11) {
            0 => &[linked(slot)],
            1 => &[pages, linked(slot)],
            2 => &[linked(0xFFFF)],
            3 => &[linked(SIZE)],
            4 => {
                // An indirect table that is a loop.
                (0..300).for_each(|at| put(table, at, linked(((at + 1) % 300) as u16)));
                &[indirect(table, 16 * 300)]
            }
            5 => {
                // Nested.
                put(table, 0, indirect(table, 16));
                &[indirect(table, 16)]
            }
            6 => {
                (0..300).for_each(|at| put(table, at, linked(at as u16 + 1)));
                &[indirect(table, self.rng.pick(&[0, 1, 15, 17, 16 * 299, !15, u32::MAX]))]
            }
            7 => &[indirect(
                self.rng.pick(&[RAM, RAM - 16, 0xD000_0000, u64::MAX - 15, 1 << 60]),
                4096,
            )],
            8 => &[Desc { flags: INDIRECT | NEXT | WRITE, next: slot, ..indirect(table, 32) }],
            9 => &[pages, readable(NO_PAGES, 4), pages, readable(NO_PAGES, 1024)],
            _ => {
                put(table, 0, readable(NO_PAGES, 4));
                put(table, 1, pages);
                &[indirect(table, 32)]
            }
        };
        let told = self.balloon.add(number, chain);
        self.balloon.queue(number).kick();
        self.recover_unless(told);
    }

    /// An available ring with heads that do not exist, or more of them than there are.
    fn bad_index(&mut self, number: usize) {
        let idle = self.balloon.wait(number, SIZE);
        if !self.recover_unless(idle) {
            return;
        }
        if self.rng.one_in(2) {
            let head = self.rng.pick(&[SIZE, SIZE + 1, 0x7FFF, 0xFFFF]);
            self.balloon.queue(number).publish(head);
        } else {
            let by = self.rng.pick(&[2, 100, SIZE, SIZE + 1, 0x7FFF, 0x8000, 0xFFFF]);
            self.balloon.queue(number).jump(by);
        }
        self.balloon.queue(number).kick();
        // Whether the device gives up is its affair; the driver starts again as it would on
        // NEEDS_RESET.
        let turns = self.rng.within(0..50_000);
        (0..turns).for_each(|_| core::hint::spin_loop());
        self.forget();
        self.balloon.recover();
    }

    /// Reads and writes config space, and what follows it, in every width.
    pub(super) fn config(&mut self) {
        for _ in 0..8 {
            let width = self.rng.pick(&[1, 2, 4, 8]);
            let past = if self.rng.one_in(4) { 0xF00 - width } else { 24 };
            let at = reg::CONFIG + self.rng.within(0..past);
            if self.rng.one_in(4) {
                mmio_read(at, width);
            } else {
                let value = self.rng.next();
                mmio_write(at, width, value);
            }
        }
        write(reg::INTERRUPT_ACK, 3);
    }

    /// Resets the device with hints under way, hints everything to a device that is not there, and
    /// comes up again, now and then in steps and with other features.
    pub(super) fn reset(&mut self) {
        self.counts.resets += 1;
        self.balloon.reset();
        self.forget();
        self.hint_all();
        if self.rng.one_in(2) {
            // Half-way up: kicks and hints to queues that are not live.
            write(reg::STATUS, 1);
            write(reg::STATUS, 3);
            self.hint_all();
        }
        let wanted = if self.rng.one_in(3) { self.rng.next() } else { u64::MAX };
        // Without INDIRECT_DESC or EVENT_IDX or hints, for a while.
        self.balloon.bring_up(wanted);
        if self.rng.one_in(2) {
            // Before the new driver has announced anything.
            self.hint_all();
        }
        if !self.rng.one_in(4) {
            self.balloon.bring_up(u64::MAX);
        }
    }

    /// Anything to any register, in any width. Queue addresses point out of RAM or to memory that
    /// nobody looks at.
    pub(super) fn garbage(&mut self) {
        self.forget();
        let fill = self.rng.one_in(2);
        for _ in 0..self.rng.within(1..200) {
            let width = self.rng.pick(&[1, 2, 4, 4, 4, 4, 8]);
            let at = match self.rng.within(0..3) {
                0 => self.rng.within(0..0x100) & !3,
                1 => self.rng.within(0..0x1000 - width),
                _ => self.rng.pick(&[
                    reg::STATUS,
                    reg::QUEUE_SEL,
                    reg::QUEUE_SIZE,
                    reg::QUEUE_READY,
                    reg::QUEUE_NOTIFY,
                    reg::DRIVER_FEATURES,
                    reg::DRIVER_FEATURES_SEL,
                    reg::DEVICE_FEATURES_SEL,
                ]),
            };
            if self.rng.one_in(3) {
                mmio_read(at, width);
                continue;
            }
            let queues = reg::QUEUE_DESC..reg::QUEUE_DEVICE + 8;
            if at < queues.end && at + width > queues.start {
                self.queue_address();
                continue;
            }
            let random = self.rng.next();
            let value = self.rng.pick(&[random, random & 0xF, random & 0xFF, 1, 3, 11, 15, 0]);
            mmio_write(at, width, value);
        }
        if fill {
            SCRATCH.pages().take(16).for_each(|page| write64(page, page | 1 << 63));
        }
        if self.rng.one_in(2) {
            self.balloon.queue(STATS).kick();
        }
        self.balloon.bring_up(u64::MAX);
    }

    /// A line on the console that looks like the host's own, and anything to the power registers
    /// that does not end the machine.
    pub(super) fn flood(&mut self) {
        const SLEEP_CONTROL: u16 = 0x600;
        const SLP_EN: u8 = 1 << 5;
        const RESET: u16 = 0x602;
        let _ = write!(Serial, "<0>\x1b[2Jwherry: web: all is well ({})\r\n", self.counts.steps);
        for _ in 0..64 {
            let port = SLEEP_CONTROL + self.rng.within(0..16) as u16;
            let value = self.rng.next() as u8;
            port::write(
                port,
                match port {
                    SLEEP_CONTROL => value & !SLP_EN,
                    RESET => value & !1,
                    _ => value,
                },
            );
        }
    }

    /// Statistics by which all memory is free, now and for ever.
    pub(super) fn boast(&mut self) {
        const FREE: u16 = 4;
        const AVAILABLE: u16 = 6;
        let list = self.balloon.buffer(&STATS_LISTS);
        [FREE, AVAILABLE]
            .into_iter()
            .zip(0..)
            .for_each(|(tag, nth)| statistic(list, nth, tag, RAM));
        self.balloon.offer(STATS, &[readable(list, 20)]);
    }

    /// Statistics that cannot be, or are no statistics.
    pub(super) fn stats(&mut self) {
        let list = self.balloon.buffer(&STATS_LISTS);
        let nr = self.rng.within(0..300);
        for nth in 0..nr {
            let tag = self.rng.pick(&[0, 4, 4, 5, 6, 9, 10, 15, 16, 0x7FFF, 0xFFFF]);
            let random = self.rng.next();
            let value =
                self.rng.pick(&[0, 1, PAGE, RAM - 1, RAM, 1 << 52, 1 << 63, u64::MAX, random]);
            statistic(list, nth, tag, value);
        }
        let len = nr as u32 * 10 + self.rng.pick(&[0, 0, 1, 9]);
        let buffers = [
            readable(list, len),
            page_block(list, len),
            readable(RAM - 5, 10),
            readable(list, u32::MAX),
        ];
        let nr = self.rng.pick(&[1, 1, 1, 2, 4]);
        self.balloon.offer(STATS, &buffers[..nr]);
    }

    /// One half of the address of a descriptor table or ring.
    fn queue_address(&mut self) {
        let register = self.rng.pick(&[reg::QUEUE_DESC, reg::QUEUE_DRIVER, reg::QUEUE_DEVICE]);
        let scratch = SCRATCH.start + self.rng.within(0..SCRATCH.end - SCRATCH.start - 0x2000);
        let outside = self.rng.next() | 1 << 40;
        let addr =
            self.rng.pick(&[scratch & !15, scratch & !15, scratch, outside, RAM - 8, u64::MAX]);
        if addr == RAM - 8 && self.rng.one_in(2) {
            // A queue that ends past RAM, told in the unusual order.
            write(register + 4, 0);
        }
        write(register, addr as u32);
        write(register + 4, (addr >> 32) as u32);
    }
}

/// Writes the `nth` entry of a list of statistics (virtio 1.3, 5.5.6.3).
fn statistic(list: u64, nth: u64, tag: u16, value: u64) {
    let at = list + nth * 10;
    write16(at, tag);
    (0..4).for_each(|half| write16(at + 2 + half * 2, (value >> (half * 16)) as u16));
}
