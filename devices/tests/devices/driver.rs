//! A driver that does what Linux's does, on real rings, plus the host's side of a machine.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberOps};
use vm_memory::{Bytes, GuestAddress};
use wherry_devices::host::BalloonBackend;
use wherry_devices::virtio::balloon::constants::*;
use wherry_devices::virtio::balloon::{
    Balloon, BalloonConfig, BalloonDeviceState, BalloonHandle, HintRange,
};
use wherry_devices::virtio::mmio::regs::{
    F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, offset, status,
};
use wherry_devices::virtio::mmio::{MmioError, Subscriber};
use wherry_devices::{BusDevice, GuestMemory, InterruptLine};

pub const RAM: u64 = 16 << 20;
pub const HIGH: u64 = 4 << 30;
pub const PAGE: u64 = 4096;
/// Memory that tests hint, report and inflate; rings and buffers are below.
pub const FREE: u64 = 4 << 20;
const RINGS: u64 = 1 << 20;
const BUFFERS: u64 = 2 << 20;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// A line's level, and how often it rose.
#[derive(Default)]
pub struct Line {
    rises: AtomicU64,
    high: AtomicBool,
}
impl Line {
    pub fn edges(&self) -> u64 {
        self.rises.load(Ordering::SeqCst)
    }
    pub fn high(&self) -> bool {
        self.high.load(Ordering::SeqCst)
    }
}
impl InterruptLine for Line {
    fn set(&self, high: bool) -> io::Result<()> {
        if !self.high.swap(high, Ordering::SeqCst) && high {
            self.rises.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

type Watch = Box<dyn Fn(u64, u64) + Send>;

/// Records discards.
#[derive(Default)]
pub struct Host {
    pub discards: Mutex<Vec<(u64, u64)>>,
    pub fail: AtomicBool,
    /// Milliseconds that a discard takes, and those that went by.
    pub slow: AtomicU64,
    pub clock: AtomicU64,
    pub watch: Mutex<Option<Watch>>,
}
impl Host {
    pub fn take(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.discards.lock().unwrap())
    }
}
impl BalloonBackend for Host {
    fn discard(&self, gpa: u64, len: u64) -> io::Result<()> {
        if let Some(watch) = &*self.watch.lock().unwrap() {
            watch(gpa, len);
        }
        if self.fail.load(Ordering::SeqCst) {
            return Err(io::Error::other("no"));
        }
        self.discards.lock().unwrap().push((gpa, len));
        self.clock.fetch_add(self.slow.load(Ordering::SeqCst), Ordering::SeqCst);
        Ok(())
    }
    /// A clock that only discards move, whatever the machine does.
    fn now(&self) -> Instant {
        *START + Duration::from_millis(self.clock.load(Ordering::SeqCst))
    }
}

/// Records hints.
#[derive(Default)]
pub struct Sink(pub Mutex<Vec<(u64, u64)>>);
impl Sink {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }
    pub fn take(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}
impl HintRange for Sink {
    fn range(&self, gpa: u64, len: u64) {
        self.0.lock().unwrap().push((gpa, len));
    }
}

pub fn memory() -> Arc<GuestMemory> {
    let ranges = [(GuestAddress(0), RAM as usize), (GuestAddress(HIGH), RAM as usize)];
    Arc::new(GuestMemory::from_ranges(&ranges).unwrap())
}

/// One descriptor: address, length, device-writable.
#[derive(Debug, Clone, Copy)]
pub struct Buf(pub u64, pub u32, pub bool);
pub fn out(addr: u64, len: u32) -> Buf {
    Buf(addr, len, false)
}
pub fn inb(addr: u64, len: u32) -> Buf {
    Buf(addr, len, true)
}

/// Writes a descriptor at `at`.
pub fn write_desc(mem: &GuestMemory, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
    mem.write_obj(addr, GuestAddress(at)).unwrap();
    mem.write_obj(len, GuestAddress(at + 8)).unwrap();
    mem.write_obj(flags, GuestAddress(at + 12)).unwrap();
    mem.write_obj(next, GuestAddress(at + 14)).unwrap();
}

/// The driver's side of one ring.
#[derive(Debug, Clone, Default)]
pub struct Ring {
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    next_desc: u16,
    avail_idx: u16,
    used_seen: u16,
}

/// Guest and host in one.
pub struct Rig {
    pub cfg: BalloonConfig,
    pub mem: Arc<GuestMemory>,
    pub line: Arc<Line>,
    pub host: Arc<Host>,
    pub balloon: BalloonHandle,
    pub bus: Arc<Mutex<dyn BusDevice>>,
    pub rings: BTreeMap<usize, Ring>,
    events: EventManager<Subscriber<Balloon>>,
    next_buffer: u64,
}

impl Rig {
    /// A machine whose guest has not started.
    pub fn cold(cfg: BalloonConfig) -> Self {
        let (mem, line, host) = (memory(), Arc::<Line>::default(), Arc::<Host>::default());
        let balloon =
            Balloon::create(cfg.clone(), mem.clone(), line.clone(), host.clone()).unwrap();
        Self::around(cfg, mem, line, host, balloon)
    }

    fn around(
        cfg: BalloonConfig,
        mem: Arc<GuestMemory>,
        line: Arc<Line>,
        host: Arc<Host>,
        balloon: BalloonHandle,
    ) -> Self {
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(balloon.subscriber());
        let bus = balloon.bus_device();
        Self {
            cfg,
            mem,
            line,
            host,
            balloon,
            bus,
            rings: BTreeMap::new(),
            events,
            next_buffer: BUFFERS,
        }
    }

    /// A machine whose driver has come up with every feature that is offered.
    pub fn new(cfg: BalloonConfig) -> Self {
        let mut rig = Self::cold(cfg);
        rig.probe(u64::MAX);
        rig
    }

    pub fn default_up() -> Self {
        Self::new(BalloonConfig::default())
    }

    /// A destination with the same memory: the guest's rings go on where they were.
    pub fn move_to(&self, state: &BalloonDeviceState) -> Result<Self, MmioError> {
        let (line, host) = (Arc::<Line>::default(), Arc::<Host>::default());
        let balloon = Balloon::restore(
            self.cfg.clone(),
            self.mem.clone(),
            line.clone(),
            host.clone(),
            state,
        )?;
        let mut rig = Self::around(self.cfg.clone(), self.mem.clone(), line, host, balloon);
        rig.rings = self.rings.clone();
        rig.next_buffer = self.next_buffer;
        Ok(rig)
    }

    /// Causes of interrupts so far; the line rises only for the first that is not acknowledged.
    pub fn interrupts(&self) -> u64 {
        self.balloon.device().urgent().interrupts()
    }

    pub fn r32(&self, at: u64) -> u32 {
        let mut data = [0; 4];
        self.bus.lock().unwrap().read(at, &mut data);
        u32::from_le_bytes(data)
    }
    pub fn w32(&self, at: u64, value: u32) {
        self.bus.lock().unwrap().write(at, &value.to_le_bytes());
    }
    pub fn config(&self, at: u64) -> u32 {
        self.r32(offset::CONFIG + at)
    }
    pub fn add_status(&self, bits: u32) {
        self.w32(offset::STATUS, self.r32(offset::STATUS) | bits);
    }
    pub fn offered(&self) -> u64 {
        self.w32(offset::DEVICE_FEATURES_SEL, 1);
        let high = u64::from(self.r32(offset::DEVICE_FEATURES));
        self.w32(offset::DEVICE_FEATURES_SEL, 0);
        high << 32 | u64::from(self.r32(offset::DEVICE_FEATURES))
    }

    /// Linux's order: reset, ACKNOWLEDGE, DRIVER, features, FEATURES_OK.
    pub fn negotiate(&self, wanted: u64) -> bool {
        self.w32(offset::STATUS, 0);
        self.add_status(status::ACKNOWLEDGE);
        self.add_status(status::DRIVER);
        let features = self.offered() & wanted;
        self.write_features(features);
        self.add_status(status::FEATURES_OK);
        self.r32(offset::STATUS) & status::FEATURES_OK != 0
    }
    pub fn write_features(&self, features: u64) {
        self.w32(offset::DRIVER_FEATURES_SEL, 1);
        self.w32(offset::DRIVER_FEATURES, (features >> 32) as u32);
        self.w32(offset::DRIVER_FEATURES_SEL, 0);
        self.w32(offset::DRIVER_FEATURES, features as u32);
    }

    pub fn setup_queue(&mut self, index: usize) {
        let base = RINGS + index as u64 * 0x1_0000;
        let ring =
            Ring { desc: base, avail: base + 0x4000, used: base + 0x8000, ..Ring::default() };
        for at in (base..base + 0x1_0000).step_by(8) {
            self.mem.write_obj(0u64, GuestAddress(at)).unwrap();
        }
        self.w32(offset::QUEUE_SEL, index as u32);
        assert_eq!(self.r32(offset::QUEUE_READY), 0);
        self.w32(offset::QUEUE_SIZE, self.r32(offset::QUEUE_SIZE_MAX));
        for (low, addr) in [
            (offset::QUEUE_DESC_LOW, ring.desc),
            (offset::QUEUE_DRIVER_LOW, ring.avail),
            (offset::QUEUE_DEVICE_LOW, ring.used),
        ] {
            self.w32(low, addr as u32);
            self.w32(low + 4, (addr >> 32) as u32);
        }
        self.w32(offset::QUEUE_READY, 1);
        self.rings.insert(index, ring);
    }

    pub fn queue_count(&self) -> usize {
        let sizes = (0..16u32).map(|index| {
            self.w32(offset::QUEUE_SEL, index);
            self.r32(offset::QUEUE_SIZE_MAX)
        });
        sizes.take_while(|size| *size != 0).count()
    }

    /// The whole way up to DRIVER_OK.
    pub fn probe(&mut self, wanted: u64) {
        assert!(self.negotiate(wanted));
        self.probe_rest();
    }

    /// From FEATURES_OK to DRIVER_OK.
    pub fn probe_rest(&mut self) {
        for index in 0..self.queue_count() {
            self.setup_queue(index);
        }
        self.add_status(status::DRIVER_OK);
        assert_ne!(self.r32(offset::STATUS) & status::DRIVER_OK, 0);
        self.run();
    }

    // Queue numbers of the default layout.
    pub const INFLATE: usize = 0;
    pub const DEFLATE: usize = 1;
    pub const STATS: usize = 2;
    pub const HINT: usize = 3;
    pub const REPORT: usize = 4;

    /// Puts bytes somewhere in guest memory.
    pub fn buffer(&mut self, bytes: &[u8]) -> u64 {
        let at = self.next_buffer;
        self.next_buffer += (bytes.len() as u64).next_multiple_of(16);
        if self.next_buffer > FREE - 0x1_0000 {
            self.next_buffer = BUFFERS;
        }
        self.mem.write_slice(bytes, GuestAddress(at)).unwrap();
        at
    }

    /// Makes a chain available without a kick. Returns its head.
    pub fn add(&mut self, queue: usize, bufs: &[Buf]) -> u16 {
        let ring = self.rings[&queue].clone();
        let head = ring.next_desc;
        for (nth, Buf(addr, len, write)) in bufs.iter().enumerate() {
            let index = (head + nth as u16) % QUEUE_SIZE;
            let more = if nth + 1 < bufs.len() { NEXT } else { 0 };
            let flags = more | if *write { WRITE } else { 0 };
            write_desc(
                &self.mem,
                ring.desc + 16 * u64::from(index),
                *addr,
                *len,
                flags,
                (index + 1) % QUEUE_SIZE,
            );
        }
        self.rings.get_mut(&queue).unwrap().next_desc = (head + bufs.len() as u16) % QUEUE_SIZE;
        self.publish(queue, head);
        head
    }

    /// The same chain in an indirect table.
    pub fn add_indirect(&mut self, queue: usize, bufs: &[Buf]) -> u16 {
        let table = self.buffer(&vec![0; bufs.len() * 16]);
        for (nth, Buf(addr, len, write)) in bufs.iter().enumerate() {
            let more = if nth + 1 < bufs.len() { NEXT } else { 0 };
            let flags = more | if *write { WRITE } else { 0 };
            write_desc(&self.mem, table + 16 * nth as u64, *addr, *len, flags, nth as u16 + 1);
        }
        self.add_raw(queue, table, bufs.len() as u32 * 16, INDIRECT, 0)
    }

    /// A single descriptor with any flags.
    pub fn add_raw(&mut self, queue: usize, addr: u64, len: u32, flags: u16, next: u16) -> u16 {
        let ring = self.rings.get_mut(&queue).unwrap();
        let head = ring.next_desc;
        ring.next_desc = (head + 1) % QUEUE_SIZE;
        let at = ring.desc + 16 * u64::from(head);
        write_desc(&self.mem, at, addr, len, flags, next);
        self.publish(queue, head);
        head
    }

    /// The head that the next chain will get.
    pub fn next_head(&self, queue: usize) -> u16 {
        self.rings[&queue].next_desc
    }

    /// Puts a head into the available ring.
    pub fn publish(&mut self, queue: usize, head: u16) {
        let ring = self.rings.get_mut(&queue).unwrap();
        let slot = ring.avail + 4 + 2 * u64::from(ring.avail_idx % QUEUE_SIZE);
        ring.avail_idx = ring.avail_idx.wrapping_add(1);
        self.mem.write_obj(head, GuestAddress(slot)).unwrap();
        self.mem.write_obj(ring.avail_idx, GuestAddress(ring.avail + 2)).unwrap();
    }

    pub fn kick(&mut self, queue: usize) {
        self.w32(offset::QUEUE_NOTIFY, queue as u32);
    }

    /// Runs the event loop until there is nothing to do.
    pub fn run(&mut self) {
        while self.events.run_with_timeout(0).unwrap() > 0 {}
    }

    /// Chains that came back since the last call: (head, length).
    pub fn used(&mut self, queue: usize) -> Vec<(u32, u32)> {
        let ring = self.rings.get_mut(&queue).unwrap();
        let idx: u16 = self.mem.read_obj(GuestAddress(ring.used + 2)).unwrap();
        let mut out = Vec::new();
        while ring.used_seen != idx {
            let at = ring.used + 4 + 8 * u64::from(ring.used_seen % QUEUE_SIZE);
            let id: u32 = self.mem.read_obj(GuestAddress(at)).unwrap();
            let len: u32 = self.mem.read_obj(GuestAddress(at + 4)).unwrap();
            out.push((id, len));
            ring.used_seen = ring.used_seen.wrapping_add(1);
            // Ask for an interrupt at the next one, as Linux's virtqueue_enable_cb does.
            let used_event = ring.avail + 4 + 2 * u64::from(QUEUE_SIZE);
            self.mem.write_obj(ring.used_seen, GuestAddress(used_event)).unwrap();
        }
        out
    }

    /// Add, kick, run; the chain must come back with length 0.
    pub fn send(&mut self, queue: usize, bufs: &[Buf]) {
        let head = self.add(queue, bufs);
        self.kick(queue);
        self.run();
        assert_eq!(self.used(queue), vec![(u32::from(head), 0)]);
    }

    pub fn send_bytes(&mut self, queue: usize, bytes: &[u8]) {
        let at = self.buffer(bytes);
        self.send(queue, &[out(at, bytes.len() as u32)]);
    }

    pub fn inflate(&mut self, pfns: &[u32]) {
        self.send_bytes(Self::INFLATE, &words(pfns));
    }
    pub fn deflate(&mut self, pfns: &[u32]) {
        self.send_bytes(Self::DEFLATE, &words(pfns));
    }
    pub fn command(&mut self, id: u32) {
        self.send_bytes(Self::HINT, &id.to_le_bytes());
    }
    pub fn hint(&mut self, gpa: u64, len: u32) {
        self.send(Self::HINT, &[inb(gpa, len)]);
    }

    /// Starts hinting, and lets the driver read and announce the id.
    pub fn start_hinting(&mut self) -> (u32, Arc<Sink>) {
        let sink = Sink::new();
        let id = self.balloon.hint_start(sink.clone()).unwrap();
        assert_eq!(self.config(CONFIG_CMD_ID), id);
        self.command(id);
        (id, sink)
    }

    pub fn needs_reset(&self) -> bool {
        self.r32(offset::STATUS) & status::NEEDS_RESET != 0
    }
}

pub fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

pub fn pfn(gpa: u64) -> u32 {
    (gpa / PAGE) as u32
}

/// Statistics as the guest sends them.
pub fn stats_bytes(entries: &[(u16, u64)]) -> Vec<u8> {
    entries
        .iter()
        .flat_map(|(tag, v)| [tag.to_le_bytes().to_vec(), v.to_le_bytes().to_vec()].concat())
        .collect()
}

pub const ALL_TRANSPORT: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC;
