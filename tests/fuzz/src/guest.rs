//! A virtio device on its transport, and its guest: memory, registers and rings. Targets differ in
//! what the host is, and in what the guest asks for.

use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberOps};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, MmapRegion};
use wherry_devices::device::{Build, Built, Devices, Saved, Spec, Subscriber};
use wherry_devices::host::{BalloonBackend, DiskFull, Frames, Host, PowerSink, Sockets};
use wherry_devices::virtio::balloon::constants::{CONFIG_ACTUAL, CONFIG_POISON};
use wherry_devices::virtio::blk::Disk;
use wherry_devices::virtio::mmio::regs::{offset, status};
use wherry_devices::{BusDevice, GuestMemory, InterruptLine};

use crate::bytes::Bytes;

pub(crate) const RAM: u64 = 256 << 10;
const PAGE: u64 = 4096;
/// Rings of queue n: descriptors at `RINGS + n * RING`, then the available and the used ring.
pub(crate) const RINGS: u64 = 0x1_0000;
const RING: u64 = 0x4000;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
/// From here on there is room for what rings point to.
pub(crate) const BUFFER: u64 = 0x2_0000;

/// Flags of a descriptor.
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;

/// Registers that a driver may write; the last two are the balloon's.
const REGISTERS: [u64; 17] = [
    offset::STATUS,
    offset::QUEUE_SEL,
    offset::QUEUE_READY,
    offset::QUEUE_SIZE,
    offset::QUEUE_NOTIFY,
    offset::INTERRUPT_ACK,
    offset::DEVICE_FEATURES_SEL,
    offset::DRIVER_FEATURES_SEL,
    offset::DRIVER_FEATURES,
    offset::QUEUE_DESC_LOW,
    offset::QUEUE_DESC_HIGH,
    offset::QUEUE_DRIVER_LOW,
    offset::QUEUE_DRIVER_HIGH,
    offset::QUEUE_DEVICE_LOW,
    offset::QUEUE_DEVICE_HIGH,
    offset::CONFIG + CONFIG_ACTUAL,
    offset::CONFIG + CONFIG_POISON,
];

/// What the host has for the only device.
pub(crate) trait Backend {
    /// All of RAM. What a migration has of it is looked at up to [`RAM`].
    fn ram(&self) -> Vec<(GuestAddress, usize)> {
        vec![(GuestAddress(0), RAM as usize)]
    }
    fn balloon(&self) -> Arc<dyn BalloonBackend> {
        unreachable!("the device does not ask for it")
    }
    fn entropy(&self) -> Box<dyn Read + Send> {
        unreachable!("the device does not ask for it")
    }
    fn disk(&self) -> Arc<dyn Disk> {
        unreachable!("the device does not ask for it")
    }
    fn disk_full(&self) -> Arc<dyn DiskFull> {
        unreachable!("the device does not ask for it")
    }
    fn net(&self) -> Box<dyn Frames> {
        unreachable!("the device does not ask for it")
    }
    fn vsock(&self) -> Box<dyn Sockets> {
        unreachable!("the device does not ask for it")
    }
    /// The device has been paused, or is about to go on.
    fn paused(&self, _on: bool) {}
}

struct Machine<'a>(&'a Arc<GuestMemory>, &'a dyn Backend);
impl Host for Machine<'_> {
    fn memory(&self) -> Arc<GuestMemory> {
        self.0.clone()
    }
    fn console(&self) -> Box<dyn Write + Send> {
        unreachable!("no virtio device asks for it")
    }
    fn power(&self) -> Arc<dyn PowerSink> {
        unreachable!("no virtio device asks for it")
    }
    fn balloon(&self) -> Arc<dyn BalloonBackend> {
        self.1.balloon()
    }
    fn entropy(&self) -> io::Result<Box<dyn Read + Send>> {
        Ok(self.1.entropy())
    }
    fn disk(&self, _: &str) -> io::Result<Arc<dyn Disk>> {
        Ok(self.1.disk())
    }
    fn disk_full(&self) -> Arc<dyn DiskFull> {
        self.1.disk_full()
    }
    fn net(&self, _: &str) -> io::Result<Box<dyn Frames>> {
        Ok(self.1.net())
    }
    fn vsock(&self, _: &str) -> io::Result<Box<dyn Sockets>> {
        Ok(self.1.vsock())
    }
}

/// An interrupt line that leads nowhere.
pub(crate) struct Line;
impl InterruptLine for Line {
    fn set(&self, _: bool) -> io::Result<()> {
        Ok(())
    }
}

/// See the module's text.
pub(crate) struct Guest {
    spec: Spec,
    host: Arc<dyn Backend>,
    /// Size of every ring.
    size: u16,
    /// How long a pause may take.
    patience: Duration,
    pub(crate) mem: Arc<GuestMemory>,
    pub(crate) devices: Devices,
    bus: Arc<Mutex<dyn BusDevice>>,
    events: EventManager<Subscriber>,
    /// Next entry of each available ring.
    pub(crate) avail: Vec<u16>,
    /// What a migration has.
    taken: Vec<u8>,
}

type Parts = (Devices, Arc<Mutex<dyn BusDevice>>, EventManager<Subscriber>);

fn build(spec: &Spec, saved: Option<&Saved>, mem: &Arc<GuestMemory>, host: &dyn Backend) -> Parts {
    let build = Build { spec, saved, irq: Arc::new(Line), host: &Machine(mem, host) };
    let built = (spec.kind.build)(build);
    let Built { device, bus, subscriber, .. } =
        built.unwrap_or_else(|e| panic!("its own state is refused: {e:?}"));
    let mut devices = Devices::default();
    devices.push(spec.clone(), device);
    let mut events = EventManager::new().expect("an event loop");
    events.add_subscriber(subscriber.expect("it has queues"));
    (devices, bus, events)
}

impl Guest {
    /// With this many rings of this size.
    pub(crate) fn new(
        spec: Spec,
        host: Arc<dyn Backend>,
        (rings, size): (usize, u16),
        patience: Duration,
    ) -> Self {
        let mem = Arc::new(GuestMemory::from_ranges(&host.ram()).expect("memory"));
        let (devices, bus, events) = build(&spec, None, &mem, &*host);
        devices.resume();
        let (avail, taken) = (vec![0; rings], vec![0; RAM as usize]);
        Self { spec, host, size, patience, mem, devices, bus, events, avail, taken }
    }

    /// An access of any width: a write, and then a read.
    pub(crate) fn access(&self, at: u64, data: &[u8]) {
        self.bus.lock().unwrap().write(at, data);
        self.settle();
        self.bus.lock().unwrap().read(at, &mut vec![0; data.len()]);
    }

    pub(crate) fn write(&self, at: u64, value: u32) {
        self.bus.lock().unwrap().write(at, &value.to_le_bytes());
        self.settle();
    }

    pub(crate) fn read(&self, at: u64) -> u32 {
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

    pub(crate) fn put(&self, at: u64, bytes: &[u8]) {
        // What does not fit is left out.
        let _ = self.mem.write(bytes, GuestAddress(at));
    }

    /// So many bytes of RAM.
    pub(crate) fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem.read_slice(&mut bytes, GuestAddress(at)).expect("RAM");
        bytes
    }

    /// Writes descriptor `nth` of a queue. `flags` and `next` as they are in memory.
    pub(crate) fn descriptor(
        &self,
        (queue, nth): (usize, u16),
        (address, len): (u64, u32),
        flags: u16,
        next: u16,
    ) {
        let at = RINGS + queue as u64 * RING + 16 * u64::from(nth);
        self.put(at, &address.to_le_bytes());
        self.put(at + 8, &len.to_le_bytes());
        self.put(at + 12, &flags.to_le_bytes());
        self.put(at + 14, &next.to_le_bytes());
    }

    /// Descriptors from `first` on, as one chain: where each leads, its length, and whether the
    /// device may write there.
    pub(crate) fn chain(&mut self, queue: usize, first: u16, buffers: &[(u64, u32, bool)]) {
        for (nth, (at, len, write)) in (first..).zip(buffers) {
            let last = usize::from(nth - first) + 1 == buffers.len();
            let flags = if last { 0 } else { NEXT } | if *write { WRITE } else { 0 };
            self.descriptor((queue, nth), (*at, *len), flags, nth + 1);
        }
        self.publish(queue, first);
    }

    /// The chain that begins there is the device's.
    pub(crate) fn publish(&mut self, queue: usize, head: u16) {
        let ring = RINGS + queue as u64 * RING + AVAIL;
        let slot = ring + 4 + 2 * u64::from(self.avail[queue] % self.size);
        self.avail[queue] = self.avail[queue].wrapping_add(1);
        self.put(slot, &head.to_le_bytes());
        self.put(ring + 2, &self.avail[queue].to_le_bytes());
        self.write(offset::QUEUE_NOTIFY, queue as u32);
    }

    /// The index of the used ring.
    pub(crate) fn used(&self, queue: usize) -> u16 {
        let at = RINGS + queue as u64 * RING + USED + 2;
        self.mem.read_obj(GuestAddress(at)).expect("RAM")
    }

    /// An entry of the used ring: the head of a chain, and the bytes that were written.
    pub(crate) fn used_entry(&self, queue: usize, nth: u16) -> (u32, u32) {
        let at = RINGS + queue as u64 * RING + USED + 4 + 8 * u64::from(nth % self.size);
        let read = |at| self.mem.read_obj(GuestAddress(at)).expect("RAM");
        (read(at), read(at + 4))
    }

    /// A ring that rewrites itself may go on for ever.
    pub(crate) fn turn(&mut self) {
        for _ in 0..16 {
            if self.events.run_with_timeout(0).expect("an event loop") == 0 {
                break;
            }
        }
    }

    /// Writes a register as nobody would (0), all of them in any width (1), or memory.
    pub(crate) fn disorder(&mut self, what: u8, input: &mut Bytes<'_>) {
        match what {
            0 => {
                let at = input.pick(&REGISTERS);
                let value = match input.u8() {
                    small @ 0..=191 => u32::from(small),
                    _ => input.u32(),
                };
                self.write(at, value);
            }
            1 => {
                let (at, len) = (u64::from(input.u16() % 0x1000), usize::from(input.u8() % 10));
                self.access(at, input.take(len));
            }
            _ => {
                let (at, bytes) = (u64::from(input.u32()) % RAM, input.array::<8>());
                self.put(at, &bytes);
            }
        }
    }

    /// As a driver that does everything in order, but takes only these of the device's features
    /// 0 to 31, and may stop before the device is live.
    pub(crate) fn bring_up(&mut self, wanted: u32, live: bool) {
        self.write(offset::STATUS, 0);
        self.write(offset::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        for half in [1, 0] {
            self.write(offset::DEVICE_FEATURES_SEL, half);
            self.write(offset::DRIVER_FEATURES_SEL, half);
            let mask = if half == 0 { wanted } else { u32::MAX };
            self.write(offset::DRIVER_FEATURES, self.read(offset::DEVICE_FEATURES) & mask);
        }
        let so_far = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.write(offset::STATUS, so_far);
        for queue in 0..self.avail.len() {
            let ring = RINGS + queue as u64 * RING;
            self.write(offset::QUEUE_SEL, queue as u32);
            self.write(offset::QUEUE_SIZE, self.size.into());
            for (low, at) in [
                (offset::QUEUE_DESC_LOW, ring),
                (offset::QUEUE_DRIVER_LOW, ring + AVAIL),
                (offset::QUEUE_DEVICE_LOW, ring + USED),
            ] {
                self.write(low, at as u32);
                self.write(low + 4, 0);
            }
            self.put(ring + AVAIL, &[0; 4]);
            self.put(ring + USED, &[0; 4]);
            self.write(offset::QUEUE_READY, 1);
        }
        self.avail.fill(0);
        if live {
            self.write(offset::STATUS, so_far | status::DRIVER_OK);
        }
    }

    pub(crate) fn pause(&self) {
        self.devices.pause(Instant::now() + self.patience).expect("it comes to rest");
        self.host.paused(true);
    }

    pub(crate) fn resume(&self) {
        self.host.paused(false);
        self.devices.resume();
    }

    /// For a moment. What comes meanwhile has to wait.
    pub(crate) fn rest(&mut self) {
        self.pause();
        self.turn();
        self.resume();
    }

    /// A migration takes what is marked.
    pub(crate) fn harvest(&mut self) {
        let region = self.mem.find_region(GuestAddress(0)).expect("RAM");
        MmapRegion::bitmap(region).take(|word, dirty| {
            for page in
                (0..64).filter(|bit| dirty >> bit & 1 == 1).map(|bit| word as u64 * 64 + bit)
            {
                let to = &mut self.taken[(page * PAGE) as usize..][..PAGE as usize];
                self.mem.read_slice(to, GuestAddress(page * PAGE)).expect("RAM");
            }
        });
    }

    /// To a new device, with the same memory and the same host.
    pub(crate) fn move_on(&mut self) {
        assert!(self.arrives_alike(), "on arrival");
    }

    /// The same for a device that may change when it arrives; whether it did not.
    pub(crate) fn arrives_alike(&mut self) -> bool {
        self.pause();
        let saved = self.devices.save(u16::MAX).expect("plain data");
        let there = build(&self.spec, saved.first(), &self.mem, &*self.host);
        (self.devices, self.bus, self.events) = there;
        let alike = self.devices.save(u16::MAX).expect("plain data") == saved;
        self.devices.after_restore().expect("a line");
        self.resume();
        alike
    }

    /// What the migration has is RAM as it is.
    pub(crate) fn end(&mut self) {
        self.pause();
        self.harvest();
        let ram = self.get(0, RAM as usize);
        let at = || (0..ram.len()).find(|at| ram[*at] != self.taken[*at]);
        assert!(ram == self.taken, "the migration has something else at {:#x?}", at());
    }
}
