//! A disk on its transport, driven by a guest that does anything in any order, on a host that fails
//! now and then.
//!
//! Each byte chooses an operation, the ones after it are its operands, so any input means
//! something. Whatever was done: the disk is asked for what it has, and never to write if it cannot
//! be written; every request ends; the device's own state is taken by a new device; and a migration
//! that takes what is marked, while requests are on their way, has RAM as it is at the end.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vm_memory::VolatileSlice;
use wherry_devices::device::Spec;
use wherry_devices::host::DiskFull;
use wherry_devices::virtio::blk::request::kind;
use wherry_devices::virtio::blk::{Disk, DiskError, DiskOptions, KIND, QUEUE_SIZE};

use crate::bytes::Bytes;
use crate::guest::{self, BUFFER, NEXT, WRITE};

const SECTORS: u64 = 32;

/// Operations, for seeds.
pub(crate) mod op {
    pub(crate) const REGISTER: u8 = 0;
    pub(crate) const UP: u8 = 2;
    pub(crate) const REQUEST: u8 = 5;
    pub(crate) const RUN: u8 = 7;
    pub(crate) const HARVEST: u8 = 8;
    pub(crate) const MOVE: u8 = 9;
    pub(crate) const FAULT: u8 = 10;
    pub(crate) const NR: u8 = 12;
}
/// What the host does wrong.
const FAILS: u8 = 1;
const FULL: u8 = 2;
const DEAF: u8 = 4;
/// The first half of the disk is in its memory.
const CACHED: u8 = 8;

/// The disk, and who is told that there is no room.
struct Store {
    bytes: Mutex<Vec<u8>>,
    read_only: bool,
    align: u64,
    faults: AtomicU8,
}

impl Store {
    fn call(
        &self,
        at: u64,
        len: u64,
        writes: bool,
        work: impl FnOnce(&mut [u8]),
    ) -> Result<(), DiskError> {
        assert!(!(writes && self.read_only), "a disk that can only be read is written");
        assert!(at.is_multiple_of(self.align) && len.is_multiple_of(self.align));
        let end = at.checked_add(len).filter(|end| *end <= SECTORS * 512);
        assert!(end.is_some(), "{len} bytes at {at:#x}");
        let faults = self.faults.load(Ordering::SeqCst);
        if writes && faults & FULL != 0 {
            return Err(DiskError::Full);
        }
        work(&mut self.bytes.lock().unwrap()[at as usize..][..len as usize]);
        // It was done, and nobody is told.
        let failed = || DiskError::Failed(io::ErrorKind::Other.into());
        if faults & FAILS != 0 { Err(failed()) } else { Ok(()) }
    }
}

fn total(slices: &[VolatileSlice<'_>]) -> u64 {
    slices.iter().map(|slice| slice.len() as u64).sum()
}

impl Disk for Store {
    fn size(&self) -> u64 {
        SECTORS * 512
    }
    fn read_only(&self) -> bool {
        self.read_only
    }
    fn alignment(&self) -> u64 {
        self.align
    }
    fn read(&self, at: u64, into: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        self.call(at, total(into), false, |mut bytes| {
            for slice in into {
                let (piece, rest) = bytes.split_at_mut(slice.len());
                slice.copy_from(piece);
                bytes = rest;
            }
        })
    }
    fn read_now(&self, at: u64, into: &[VolatileSlice<'_>]) -> bool {
        let cached = self.faults.load(Ordering::SeqCst) & CACHED != 0;
        let end = if cached { SECTORS as usize * 256 } else { 0 };
        let bytes = self.bytes.lock().unwrap();
        let mut left = bytes.get(at as usize..end).unwrap_or_default();
        into.iter().all(|slice| {
            slice.copy_from(left);
            let all = left.len() >= slice.len();
            left = left.get(slice.len()..).unwrap_or_default();
            all
        })
    }
    fn write(&self, at: u64, from: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        self.call(at, total(from), true, |mut bytes| {
            for slice in from {
                let (piece, rest) = bytes.split_at_mut(slice.len());
                slice.copy_to(piece);
                bytes = rest;
            }
        })
    }
    fn flush(&self) -> Result<(), DiskError> {
        self.call(0, 0, false, |_| {})
    }
    fn discard(&self, at: u64, len: u64) -> Result<(), DiskError> {
        self.call(at, len, true, |bytes| bytes.fill(0xff))
    }
    fn write_zeroes(&self, at: u64, len: u64, _: bool) -> Result<(), DiskError> {
        self.call(at, len, true, |bytes| bytes.fill(0))
    }
}

impl DiskFull for Store {
    fn disk_full(&self, _: &str) -> bool {
        self.faults.load(Ordering::SeqCst) & DEAF == 0
    }
}

struct Machine(Arc<Store>);
impl guest::Backend for Machine {
    fn disk(&self) -> Arc<dyn Disk> {
        self.0.clone()
    }
    fn disk_full(&self) -> Arc<dyn DiskFull> {
        self.0.clone()
    }
}

struct Guest {
    at: guest::Guest,
    disk: Arc<Store>,
    /// Next place for a request.
    next: u64,
}

/// See the module's text.
pub fn blk(data: &[u8]) {
    let mut input = Bytes(data);
    let mut guest = Guest::new(input.u8());
    while !input.is_empty() {
        guest.step(&mut input);
    }
    guest.disk.faults.store(0, Ordering::SeqCst);
    guest.run();
    guest.at.move_on();
    guest.at.end();
}

impl Guest {
    fn new(options: u8) -> Self {
        let on = |bit: u8| options & 1 << bit != 0;
        let read_only = on(0);
        let options = DiskOptions {
            sectors: SECTORS,
            read_only,
            serial: "fuzz".into(),
            block_size: if on(1) { 4096 } else { 512 },
            discard: !on(2),
            write_zeroes: !on(3),
        };
        let align = if on(4) { 4096 } else { 1 };
        let bytes = Mutex::new((0..SECTORS * 512).map(|n| n as u8).collect());
        let disk = Arc::new(Store { bytes, read_only, align, faults: AtomicU8::new(0) });
        let spec = Spec::new(&KIND, &options).expect("plain data");
        let (host, patience) = (Arc::new(Machine(disk.clone())), Duration::from_secs(60));
        let at = guest::Guest::new(spec, host, (1, QUEUE_SIZE), patience);
        Self { at, disk, next: 0 }
    }

    fn step(&mut self, input: &mut Bytes<'_>) {
        match input.u8() % op::NR {
            what @ (op::REGISTER | 1 | 11) => self.at.disorder(what, input),
            op::UP => {
                // Without FLUSH, EVENT_IDX, or both; or not as far as it goes.
                let options = input.u8();
                let flush = if options & 1 != 0 { 1 << 9 } else { 0 };
                let event_idx = if options & 2 != 0 { 1 << 29 } else { 0 };
                self.at.bring_up(!(flush | event_idx), options & 4 == 0);
            }
            3 => {
                let (nth, at, len) = (input.u8(), self.address(input), input.u16());
                let (flags, next) = (input.u8() % 8, input.u8());
                self.descriptor(nth, (at, len.into()), flags.into(), next);
            }
            4 => self.at.publish(0, input.u8().into()),
            op::REQUEST => self.request(input),
            6 => self.at.turn(),
            op::RUN => self.run(),
            op::HARVEST => self.at.harvest(),
            op::MOVE => self.at.move_on(),
            _ => self.disk.faults.store(input.u8(), Ordering::SeqCst),
        }
    }

    fn address(&self, input: &mut Bytes<'_>) -> u64 {
        match input.u8() % 4 {
            0 => input.u64(),
            1 => BUFFER + u64::from(input.u16()),
            _ => u64::from(input.u16()) << 2,
        }
    }

    fn descriptor(&self, nth: u8, buffer: (u64, u32), flags: u16, next: u8) {
        self.at.descriptor((0, nth.into()), buffer, flags, next.into());
    }

    /// A header, some data, a place for the answer.
    fn request(&mut self, input: &mut Bytes<'_>) {
        let kinds =
            [kind::IN, kind::OUT, kind::FLUSH, kind::GET_ID, kind::DISCARD, kind::WRITE_ZEROES, 7];
        let (kind, sector) = (input.pick(&kinds), u64::from(input.u8() % 40));
        let at = BUFFER + self.next % 64 * 0x400;
        let first = (self.next % 64 * 4) as u8;
        self.next += 1;
        self.at.put(at, &[u64::from(kind), sector].map(u64::to_le_bytes).concat());
        self.descriptor(first, (at, 16), NEXT, first + 1);
        let (len, flags) = match kind {
            kind::IN | kind::GET_ID => (512 * u32::from(input.u8() % 4), WRITE),
            kind::OUT => (512 * u32::from(input.u8() % 4), 0),
            _ => {
                let range =
                    [&input.array::<1>()[..], &[0; 7], &[input.u8() % 40, 0, 0, 0]].concat();
                self.at.put(at + 0x40, &range);
                self.at.put(at + 0x40 + 12, &u32::from(input.u8() % 2).to_le_bytes());
                (16, 0)
            }
        };
        self.descriptor(first + 1, (at + 0x40, len), flags | NEXT, first + 2);
        self.descriptor(first + 2, (at + 0x20, 1), WRITE, 0);
        self.at.publish(0, first.into());
    }

    /// All that was taken comes back.
    fn run(&mut self) {
        self.at.turn();
        self.at.rest();
        self.at.turn();
    }
}
