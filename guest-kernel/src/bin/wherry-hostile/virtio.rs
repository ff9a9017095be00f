//! virtio-mmio (virtio 1.3, section 4.2.2) and split virtqueues (2.7), with everything that a
//! driver must not do.

use crate::phys::*;

#[allow(missing_docs)]
pub mod reg {
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_SIZE: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC: u64 = 0x080;
    pub const QUEUE_DRIVER: u64 = 0x090;
    pub const QUEUE_DEVICE: u64 = 0x0a0;
    pub const CONFIG: u64 = 0x100;
}

/// Descriptors of each queue.
pub const SIZE: u16 = 128;
/// Descriptor flag: another one follows.
pub const NEXT: u16 = 1;
/// Descriptor flag: the device writes.
pub const WRITE: u16 = 2;
/// Descriptor flag: a table of descriptors.
pub const INDIRECT: u16 = 4;
/// Status of a device that works. Another bit is set when it gave up, none after a reset.
pub const LIVE: u32 = 15;
/// Feature bit 32.
pub const VERSION_1: u64 = 1 << 32;

/// Reads a register.
pub fn read(at: u64) -> u32 {
    mmio_read(at, 4) as u32
}

/// Writes a register.
pub fn write(at: u64, value: u32) {
    mmio_write(at, 4, u64::from(value));
}

/// One descriptor.
#[derive(Clone, Copy, Default)]
pub struct Desc {
    /// Guest-physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// The next one's index.
    pub next: u16,
}

/// A block that the device may write.
pub fn page_block(addr: u64, len: u32) -> Desc {
    Desc { addr, len, flags: WRITE, next: 0 }
}

/// Bytes for the device to read.
pub fn readable(addr: u64, len: u32) -> Desc {
    Desc { addr, len, flags: 0, next: 0 }
}

/// Writes a descriptor to a table.
pub fn put(table: u64, index: u64, desc: Desc) {
    let at = table + 16 * index;
    write64(at, desc.addr);
    write32(at + 8, desc.len);
    write16(at + 12, desc.flags);
    write16(at + 14, desc.next);
}

/// The driver's side of a queue.
#[derive(Clone, Copy)]
pub struct Queue {
    index: u32,
    next_desc: u16,
    avail: u16,
    /// Chains made available, and descriptors in them, since the queue was last seen empty.
    in_flight: u16,
}

impl Queue {
    /// Queue `index`, not set up.
    pub const fn new(index: u32) -> Self {
        Self { index, next_desc: 0, avail: 0, in_flight: 0 }
    }

    /// Where its rings are.
    pub fn base(&self) -> u64 {
        RINGS + u64::from(self.index) * 0x1_0000
    }

    /// Available ring.
    pub fn driver_ring(&self) -> u64 {
        self.base() + 0x4000
    }

    /// Used ring.
    pub fn device_ring(&self) -> u64 {
        self.base() + 0x8000
    }

    /// Tells the device where it is; between FEATURES_OK and DRIVER_OK.
    pub fn set_up(&mut self) {
        *self = Self::new(self.index);
        zero(self.base(), 0x1_0000);
        write(reg::QUEUE_SEL, self.index);
        write(reg::QUEUE_SIZE, u32::from(SIZE));
        let rings = [
            (reg::QUEUE_DESC, self.base()),
            (reg::QUEUE_DRIVER, self.driver_ring()),
            (reg::QUEUE_DEVICE, self.device_ring()),
        ];
        for (register, at) in rings {
            write(register, at as u32);
            write(register + 4, (at >> 32) as u32);
        }
        write(reg::QUEUE_READY, 1);
    }

    /// Whether everything has come back.
    pub fn idle(&self) -> bool {
        read16(self.device_ring() + 2) == self.avail
    }

    /// Chains that have not come back.
    pub fn nr_outstanding(&self) -> u16 {
        self.avail.wrapping_sub(read16(self.device_ring() + 2))
    }

    /// Room for so many descriptors; else wait until the queue is [`idle`](Self::idle).
    pub fn has_room(&mut self, nr: u16) -> bool {
        if self.idle() {
            self.in_flight = 0;
        }
        self.in_flight + nr <= SIZE
    }

    /// Writes a chain to the table; the device does not see it yet. Returns its head.
    pub fn prepare(&mut self, descs: &[Desc]) -> u16 {
        let head = self.next_desc;
        for (nth, desc) in (0u16..).zip(descs) {
            let index = (head + nth) % SIZE;
            let more = usize::from(nth) + 1 < descs.len();
            let linked = Desc { flags: desc.flags | NEXT, next: (index + 1) % SIZE, ..*desc };
            put(self.base(), u64::from(index), if more { linked } else { *desc });
        }
        self.next_desc = (head + descs.len() as u16) % SIZE;
        self.in_flight = self.in_flight.saturating_add(descs.len() as u16);
        head
    }

    /// The slot of the next descriptor, for links that lead astray.
    pub fn next_slot(&self) -> u16 {
        self.next_desc
    }

    /// Makes a head available.
    pub fn publish(&mut self, head: u16) {
        write16(self.driver_ring() + 4 + 2 * u64::from(self.avail % SIZE), head);
        barrier();
        self.avail = self.avail.wrapping_add(1);
        write16(self.driver_ring() + 2, self.avail);
        barrier();
    }

    /// An available index that was never earned; the device reads the ring past its end, or gives
    /// up.
    pub fn jump(&mut self, by: u16) {
        // Whatever the device finds, it must be nothing that the guest once meant.
        (0..u64::from(SIZE)).for_each(|index| put(self.base(), index, Desc::default()));
        barrier();
        self.avail = self.avail.wrapping_add(by);
        write16(self.driver_ring() + 2, self.avail);
    }

    /// Tells the device to look.
    pub fn kick(&self) {
        write(reg::QUEUE_NOTIFY, self.index);
    }
}
