//! A disk on its transport, driven by a guest that does anything in any order, on a host that fails
//! now and then.
//!
//! Each byte chooses an operation, the ones after it are its operands, so any input means
//! something. Whatever was done: the disk is asked for what it has, and never to write if it cannot
//! be written; every request ends; the device's own state is taken by a new device; and a migration
//! that takes what is marked, while requests are on their way, has RAM as it is at the end.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberOps};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, MmapRegion, VolatileSlice};
use wherry_devices::device::{Build, Built, Devices, Saved, Spec, Subscriber};
use wherry_devices::host::{BalloonBackend, DiskFull, Frames, Host, PowerSink, Sockets};
use wherry_devices::virtio::blk::request::kind;
use wherry_devices::virtio::blk::{Disk, DiskError, DiskOptions, KIND, QUEUE_SIZE};
use wherry_devices::virtio::mmio::regs::{offset, status};
use wherry_devices::{BusDevice, GuestMemory, InterruptLine};

use crate::balloon::REGISTERS;
use crate::bytes::Bytes;

const RAM: u64 = 256 << 10;
const PAGE: u64 = 4096;
const SECTORS: u64 = 32;
/// Descriptors, and the rings behind them.
const RING: u64 = 0x1_0000;
const AVAIL: u64 = RING + 0x1000;
const USED: u64 = RING + 0x2000;
/// Headers, answers and data of requests.
const BUFFER: u64 = 0x2_0000;

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

struct Line;
impl InterruptLine for Line {
    fn set(&self, _: bool) -> io::Result<()> {
        Ok(())
    }
}

/// The disk, and who is told that there is no room.
struct Backend {
    bytes: Mutex<Vec<u8>>,
    read_only: bool,
    align: u64,
    faults: AtomicU8,
}

impl Backend {
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

impl Disk for Backend {
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

impl DiskFull for Backend {
    fn disk_full(&self, _: &str) -> bool {
        self.faults.load(Ordering::SeqCst) & DEAF == 0
    }
}

struct Machine<'a>(&'a Arc<GuestMemory>, &'a Arc<Backend>);
impl Host for Machine<'_> {
    fn memory(&self) -> Arc<GuestMemory> {
        self.0.clone()
    }
    fn console(&self) -> Box<dyn Write + Send> {
        unreachable!("a disk does not ask for it")
    }
    fn power(&self) -> Arc<dyn PowerSink> {
        unreachable!("a disk does not ask for it")
    }
    fn balloon(&self) -> Arc<dyn BalloonBackend> {
        unreachable!("a disk does not ask for it")
    }
    fn entropy(&self) -> io::Result<Box<dyn Read + Send>> {
        unreachable!("a disk does not ask for it")
    }
    fn net(&self, _: &str) -> io::Result<Box<dyn Frames>> {
        unreachable!("a disk does not ask for it")
    }
    fn vsock(&self, _: &str) -> io::Result<Box<dyn Sockets>> {
        unreachable!("a disk does not ask for it")
    }
    fn disk(&self, _: &str) -> io::Result<Arc<dyn Disk>> {
        Ok(self.1.clone())
    }
    fn disk_full(&self) -> Arc<dyn DiskFull> {
        self.1.clone()
    }
}

struct Guest {
    spec: Spec,
    disk: Arc<Backend>,
    mem: Arc<GuestMemory>,
    devices: Devices,
    bus: Arc<Mutex<dyn BusDevice>>,
    events: EventManager<Subscriber>,
    /// Next entry of the available ring, and next place for a request.
    avail: u16,
    next: u64,
    /// What a migration has.
    taken: Vec<u8>,
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
    guest.move_on();
    guest.end();
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
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
        let disk = Arc::new(Backend { bytes, read_only, align, faults: AtomicU8::new(0) });
        let ranges = [(GuestAddress(0), RAM as usize)];
        let mem = Arc::new(GuestMemory::from_ranges(&ranges).expect("memory"));
        let spec = Spec::new(&KIND, &options).expect("plain data");
        let (devices, bus, events) = build(&spec, None, &mem, &disk);
        devices.resume();
        let taken = vec![0; RAM as usize];
        Self { spec, disk, mem, devices, bus, events, avail: 0, next: 0, taken }
    }

    fn step(&mut self, input: &mut Bytes<'_>) {
        match input.u8() % op::NR {
            op::REGISTER => {
                let at = input.pick(&REGISTERS);
                let value = match input.u8() {
                    small @ 0..=191 => u32::from(small),
                    _ => input.u32(),
                };
                self.write(at, value);
            }
            1 => {
                let (at, len) = (u64::from(input.u16() % 0x1000), usize::from(input.u8() % 10));
                let data = input.take(len).to_vec();
                self.bus.lock().unwrap().write(at, &data);
                self.settle();
                self.bus.lock().unwrap().read(at, &mut vec![0; len]);
            }
            op::UP => self.bring_up(input.u8()),
            3 => {
                let at = RING + 16 * u64::from(input.u8());
                let address = self.address(input);
                self.descriptor(
                    at,
                    address,
                    input.u16().into(),
                    u16::from(input.u8() % 8),
                    input.u8(),
                );
            }
            4 => self.publish(u16::from(input.u8())),
            op::REQUEST => self.request(input),
            6 => self.turn(),
            op::RUN => self.run(),
            op::HARVEST => self.harvest(),
            op::MOVE => self.move_on(),
            op::FAULT => self.disk.faults.store(input.u8(), Ordering::SeqCst),
            _ => {
                let (at, bytes) = (u64::from(input.u32()) % RAM, input.array::<8>());
                self.put(at, &bytes);
            }
        }
    }

    fn write(&self, at: u64, value: u32) {
        self.bus.lock().unwrap().write(at, &value.to_le_bytes());
        self.settle();
    }

    fn read(&self, at: u64) -> u32 {
        let mut data = [0; 4];
        self.bus.lock().unwrap().read(at, &mut data);
        u32::from_le_bytes(data)
    }

    /// The vCPU that wrote does not go on before.
    fn settle(&self) {
        while !self.bus.lock().unwrap().settled() {
            std::thread::yield_now();
        }
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        // What does not fit is left out.
        let _ = self.mem.write(bytes, GuestAddress(at));
    }

    fn address(&self, input: &mut Bytes<'_>) -> u64 {
        match input.u8() % 4 {
            0 => input.u64(),
            1 => BUFFER + u64::from(input.u16()),
            _ => u64::from(input.u16()) << 2,
        }
    }

    fn descriptor(&self, at: u64, address: u64, len: u32, flags: u16, next: u8) {
        self.put(at, &address.to_le_bytes());
        self.put(at + 8, &len.to_le_bytes());
        self.put(at + 12, &flags.to_le_bytes());
        self.put(at + 14, &u16::from(next).to_le_bytes());
    }

    fn publish(&mut self, head: u16) {
        let slot = AVAIL + 4 + 2 * u64::from(self.avail % QUEUE_SIZE);
        self.avail = self.avail.wrapping_add(1);
        self.put(slot, &head.to_le_bytes());
        self.put(AVAIL + 2, &self.avail.to_le_bytes());
        self.write(offset::QUEUE_NOTIFY, 0);
    }

    /// A header, some data, a place for the answer.
    fn request(&mut self, input: &mut Bytes<'_>) {
        let kinds =
            [kind::IN, kind::OUT, kind::FLUSH, kind::GET_ID, kind::DISCARD, kind::WRITE_ZEROES, 7];
        let (kind, sector) = (input.pick(&kinds), u64::from(input.u8() % 40));
        let at = BUFFER + self.next % 64 * 0x400;
        let first = (self.next % 64 * 4) as u8;
        self.next += 1;
        self.put(at, &[u64::from(kind), sector].map(u64::to_le_bytes).concat());
        self.descriptor(RING + 16 * u64::from(first), at, 16, 1, first + 1);
        let (len, flags) = match kind {
            kind::IN | kind::GET_ID => (512 * u32::from(input.u8() % 4), 2),
            kind::OUT => (512 * u32::from(input.u8() % 4), 0),
            _ => {
                let range =
                    [&input.array::<1>()[..], &[0; 7], &[input.u8() % 40, 0, 0, 0]].concat();
                self.put(at + 0x40, &range);
                self.put(at + 0x40 + 12, &u32::from(input.u8() % 2).to_le_bytes());
                (16, 0)
            }
        };
        self.descriptor(RING + 16 * u64::from(first + 1), at + 0x40, len, flags | 1, first + 2);
        self.descriptor(RING + 16 * u64::from(first + 2), at + 0x20, 1, 2, 0);
        self.publish(first.into());
    }

    /// A ring that rewrites itself may go on for ever.
    fn turn(&mut self) {
        for _ in 0..16 {
            if self.events.run_with_timeout(0).expect("an event loop") == 0 {
                break;
            }
        }
    }

    /// All that was taken comes back.
    fn run(&mut self) {
        self.turn();
        self.devices.pause(soon()).expect("it comes to rest");
        self.devices.resume();
        self.turn();
    }

    /// As far as a driver comes that does everything in order.
    fn bring_up(&mut self, options: u8) {
        self.write(offset::STATUS, 0);
        self.write(offset::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        for half in [1, 0] {
            self.write(offset::DEVICE_FEATURES_SEL, half);
            self.write(offset::DRIVER_FEATURES_SEL, half);
            let offered = self.read(offset::DEVICE_FEATURES);
            // Without FLUSH, EVENT_IDX, or both.
            let flush = if options & 1 != 0 { 1 << 9 } else { 0 };
            let event_idx = if options & 2 != 0 { 1 << 29 } else { 0 };
            let dropped = if half == 0 { flush | event_idx } else { 0 };
            self.write(offset::DRIVER_FEATURES, offered & !dropped);
        }
        let so_far = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.write(offset::STATUS, so_far);
        self.write(offset::QUEUE_SEL, 0);
        self.write(offset::QUEUE_SIZE, QUEUE_SIZE.into());
        for (low, at) in [
            (offset::QUEUE_DESC_LOW, RING),
            (offset::QUEUE_DRIVER_LOW, AVAIL),
            (offset::QUEUE_DEVICE_LOW, USED),
        ] {
            self.write(low, at as u32);
            self.write(low + 4, 0);
        }
        self.put(AVAIL, &[0; 4]);
        self.put(USED, &[0; 4]);
        self.write(offset::QUEUE_READY, 1);
        self.avail = 0;
        if options & 4 == 0 {
            self.write(offset::STATUS, so_far | status::DRIVER_OK);
        }
    }

    fn harvest(&mut self) {
        let region = self.mem.find_region(GuestAddress(0)).expect("RAM");
        let dirty = MmapRegion::bitmap(region).get_and_reset();
        for page in 0..RAM / PAGE {
            if dirty[page as usize / 64] & 1 << (page % 64) != 0 {
                let to = &mut self.taken[(page * PAGE) as usize..][..PAGE as usize];
                self.mem.read_slice(to, GuestAddress(page * PAGE)).expect("RAM");
            }
        }
    }

    /// To a new device, with the same memory and the same disk.
    fn move_on(&mut self) {
        self.devices.pause(soon()).expect("it comes to rest");
        let saved = self.devices.save(u16::MAX).expect("plain data");
        let there = build(&self.spec, saved.first(), &self.mem, &self.disk);
        (self.devices, self.bus, self.events) = there;
        assert!(self.devices.save(u16::MAX).expect("plain data") == saved, "on arrival");
        self.devices.after_restore().expect("a line");
        self.devices.resume();
    }

    fn end(&mut self) {
        self.devices.pause(soon()).expect("it comes to rest");
        self.harvest();
        let mut ram = vec![0; RAM as usize];
        self.mem.read_slice(&mut ram, GuestAddress(0)).expect("RAM");
        let at = (0..ram.len()).find(|at| ram[*at] != self.taken[*at]);
        assert_eq!(at, None, "the migration has something else");
    }
}

type Parts = (Devices, Arc<Mutex<dyn BusDevice>>, EventManager<Subscriber>);

fn build(spec: &Spec, saved: Option<&Saved>, mem: &Arc<GuestMemory>, disk: &Arc<Backend>) -> Parts {
    let build = Build { spec, saved, irq: Arc::new(Line), host: &Machine(mem, disk) };
    let built = (spec.kind.build)(build);
    let Built { device, bus, subscriber, .. } =
        built.unwrap_or_else(|e| panic!("its own state is refused: {e:?}"));
    let mut devices = Devices::default();
    devices.push(spec.clone(), device);
    let mut events = EventManager::new().expect("an event loop");
    events.add_subscriber(subscriber.expect("it has queues"));
    (devices, bus, events)
}
