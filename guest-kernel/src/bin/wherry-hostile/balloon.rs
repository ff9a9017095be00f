//! The balloon's driver: as far up as an honest one goes, and what the attacks build on.

use crate::phys::*;
use crate::virtio::*;

/// Queue numbers when the device offers everything.
pub const INFLATE: usize = 0;
/// See [`INFLATE`].
pub const DEFLATE: usize = 1;
/// See [`INFLATE`].
pub const STATS: usize = 2;
/// See [`INFLATE`].
pub const HINT: usize = 3;
/// See [`INFLATE`].
pub const REPORT: usize = 4;
/// Number of queues.
pub const NR_QUEUES: usize = 5;

/// Hint command: do not hint.
pub const STOP: u32 = 0;
/// Hint command: hinting is over.
pub const DONE: u32 = 1;
/// First id that asks for hints.
pub const FIRST_ID: u32 = 2;
/// Config space: the hint command.
pub const CMD_ID: u64 = 8;

/// The driver.
pub struct Balloon {
    queues: [Queue; NR_QUEUES],
    commands: u64,
    buffers: u64,
    features: u64,
    /// DRIVER_OK was reached.
    live: bool,
    /// Chains posted to the hint queue.
    pub hints: u64,
    /// How often the device asked for a reset.
    pub broken: u64,
}

impl Balloon {
    /// A driver that has come up.
    pub fn new() -> Self {
        let queues = [0, 1, 2, 3, 4].map(Queue::new);
        let mut balloon =
            Self { queues, commands: 0, buffers: 0, features: 0, live: false, hints: 0, broken: 0 };
        (0..256).for_each(|at| write32(NO_PAGES + at * 4, u32::MAX - at as u32));
        balloon.bring_up(u64::MAX);
        balloon
    }

    /// What was negotiated.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Reset, features among `wanted`, queues, DRIVER_OK. Whatever was in the queues is forgotten.
    pub fn bring_up(&mut self, wanted: u64) {
        // The second vCPU may reset the device meanwhile, but not always.
        let up = (0..100).any(|_| self.try_bring_up(wanted));
        assert!(up, "the device does not come up: status {:#x}", read(reg::STATUS));
    }

    fn try_bring_up(&mut self, wanted: u64) -> bool {
        self.reset();
        write(reg::STATUS, 1);
        write(reg::STATUS, 3);
        write(reg::DEVICE_FEATURES_SEL, 1);
        let high = u64::from(read(reg::DEVICE_FEATURES));
        write(reg::DEVICE_FEATURES_SEL, 0);
        self.features = (high << 32 | u64::from(read(reg::DEVICE_FEATURES))) & (wanted | VERSION_1);
        write(reg::DRIVER_FEATURES_SEL, 1);
        write(reg::DRIVER_FEATURES, (self.features >> 32) as u32);
        write(reg::DRIVER_FEATURES_SEL, 0);
        write(reg::DRIVER_FEATURES, self.features as u32);
        write(reg::STATUS, 11);
        self.queues.iter_mut().for_each(Queue::set_up);
        write(reg::STATUS, LIVE);
        self.live = read(reg::STATUS) == LIVE;
        self.live
    }

    /// Device reset.
    pub fn reset(&mut self) {
        self.live = false;
        write(reg::STATUS, 0);
    }

    /// A queue.
    pub fn queue(&mut self, queue: usize) -> &mut Queue {
        &mut self.queues[queue]
    }

    /// The hint command that the device shows.
    pub fn shown(&self) -> u32 {
        read(reg::CONFIG + CMD_ID)
    }

    /// Waits until the queue has room, or is empty for `nr` = its size. False: the device gave up.
    pub fn wait(&mut self, queue: usize, nr: u16) -> bool {
        let mut turns = 0u32;
        while self.live && !self.queues[queue].has_room(nr) {
            turns += 1;
            // A register is an exit; the used ring is not.
            if turns.is_multiple_of(1 << 12) && read(reg::STATUS) != LIVE {
                return false;
            }
            core::hint::spin_loop();
        }
        true
    }

    /// Adds a chain and makes it available. No kick. False: the device gave up.
    pub fn add(&mut self, queue: usize, descs: &[Desc]) -> bool {
        if !self.wait(queue, descs.len() as u16) {
            return false;
        }
        self.hints += u64::from(queue == HINT);
        let queue = &mut self.queues[queue];
        let head = queue.prepare(descs);
        queue.publish(head);
        true
    }

    /// Adds a chain and kicks.
    pub fn post(&mut self, queue: usize, descs: &[Desc]) -> bool {
        let done = self.add(queue, descs);
        self.queues[queue].kick();
        done
    }

    /// Adds a chain and kicks, unless more than a few have not come back. For a queue whose buffers
    /// the device keeps.
    pub fn offer(&mut self, queue: usize, descs: &[Desc]) {
        let queue = &mut self.queues[queue];
        if self.live && queue.nr_outstanding() < 8 {
            let head = queue.prepare(descs);
            queue.publish(head);
            queue.kick();
        }
    }

    /// Announces a hint command.
    pub fn command(&mut self, id: u32) -> bool {
        let at = self.command_buffer();
        write32(at, id);
        self.post(HINT, &[readable(at, 4)])
    }

    /// 16 bytes for a command, untouched until the device has seen it: there are more of them than
    /// the queue takes.
    pub fn command_buffer(&mut self) -> u64 {
        self.commands += 1;
        COMMANDS + self.commands % 1024 * 16
    }

    /// 8 KiB for a list or a table. The device may see one kind of buffer overwritten by the next
    /// of that kind, never by another.
    pub fn buffer(&mut self, area: &Area) -> u64 {
        self.buffers += 1;
        area.start + self.buffers % (area.len / 0x2000) * 0x2000
    }

    /// A new start after the device gave up.
    pub fn recover(&mut self) {
        self.broken += 1;
        self.bring_up(u64::MAX);
    }
}
