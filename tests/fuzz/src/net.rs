//! A network device on its transport, driven by a guest that does anything in any order, with a
//! host whose frames have any header.
//!
//! Each byte chooses an operation, the ones after it are its operands. Whatever was done: a paused
//! device touches no frame; what is sent is a frame whose header makes sense; offloads are set that
//! go together; the device's own state is taken by a new device; and a migration that takes what is
//! marked has RAM as it is at the end.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use event_manager::{EventManager, SubscriberOps};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, MmapRegion};
use wherry_devices::device::{Build, Built, Devices, Saved, Spec, Subscriber};
use wherry_devices::host::{
    BalloonBackend, DiskFull, Frames, Host, HostFd, Offloads, PowerSink, Sockets,
};
use wherry_devices::virtio::blk::Disk;
use wherry_devices::virtio::mmio::regs::{offset, status};
use wherry_devices::virtio::net::constants::{ETHERNET, HEADER, MAX_FRAME};
use wherry_devices::virtio::net::{KIND, NetOptions};
use wherry_devices::{BusDevice, GuestMemory, InterruptLine};

use crate::balloon::REGISTERS;
use crate::bytes::Bytes;

const RAM: u64 = 256 << 10;
const PAGE: u64 = 4096;
/// Rings of the three queues.
const RINGS: u64 = 0x1_0000;
const RING: u64 = 0x4000;
const BUFFER: u64 = 0x2_0000;
/// Size of the rings.
const SIZE: u16 = 64;

/// Operations, for seeds.
mod op {
    pub const UP: u8 = 2;
    pub const CHAIN: u8 = 4;
    pub const FRAME: u8 = 5;
    pub const RUN: u8 = 6;
    pub const HARVEST: u8 = 7;
    pub const MOVE: u8 = 8;
    pub const ANNOUNCE: u8 = 9;
    pub const NR: u8 = 11;
}

/// Frames both ways, a command, and a move.
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let up = |without: u32| [&[op::UP][..], &without.to_le_bytes()].concat();
    // A chain of one buffer: queue, shape, place, bytes, length.
    let chain = |queue, shape, place, first: [u8; 12], len: u16| {
        [&[op::CHAIN, queue, shape, place][..], &first, &len.to_le_bytes()].concat()
    };
    let room = |place, len| chain(0, 4, place, [0; 12], len);
    let large = [1, 1, 54, 0, 180, 5, 34, 0, 16, 0, 0, 0];
    let frame = |first: [u8; 12], len: u16| [&[op::FRAME][..], &first, &len.to_le_bytes()].concat();
    let command = chain(2, 1 | 8, 29, [5, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0], 10);
    let all = [
        room(1, 200),
        frame([0; 12], 100),
        vec![op::RUN],
        chain(1, 0, 20, [0; 12], 100),
        chain(1, 0, 24, large, 0xf00),
        [command, vec![30, 1, 0]].concat(),
        vec![op::RUN, op::HARVEST],
        frame(large, 3000),
        room(2, 1000),
        room(3, 1500),
        vec![op::RUN],
        room(4, 1500),
        vec![op::RUN, op::MOVE, op::ANNOUNCE, op::RUN],
        frame([0; 12], 60),
        room(5, 80),
        vec![op::RUN],
    ]
    .concat();
    vec![
        ("all", [up(0), all.clone()].concat()),
        ("plain", [up(0xffff), all.clone()].concat()),
        ("one-chain", [up(1 << 15), all.clone(), up(0), all].concat()),
    ]
}

struct Line;
impl InterruptLine for Line {
    fn set(&self, _: bool) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Default)]
struct Seen {
    coming: VecDeque<Vec<u8>>,
    paused: bool,
}

/// The frames, and a descriptor that has news when there is one more.
#[derive(Clone)]
struct Wire(Arc<Mutex<Seen>>, Arc<UnixStream>);

impl Wire {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap()
    }
}

impl Frames for Wire {
    fn read(&mut self, frame: &mut [u8]) -> io::Result<usize> {
        let mut seen = self.seen();
        assert!(!seen.paused, "a paused device reads");
        let next = seen.coming.pop_front().ok_or(ErrorKind::WouldBlock)?;
        frame[..next.len()].copy_from_slice(&next);
        Ok(next.len())
    }
    fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        assert!(!self.seen().paused, "a paused device writes");
        assert!((HEADER + ETHERNET..=MAX_FRAME).contains(&frame.len()), "{}", frame.len());
        let (flags, gso) = (frame[0], frame[1]);
        assert!(matches!(gso, 0 | 1 | 4 | 0x81 | 0x84) && flags & !3 == 0, "{flags:#x}, {gso:#x}");
        assert!(gso == 0 || (flags & 1 != 0 && frame[4..6] != [0; 2]), "segments of what?");
        Ok(())
    }
    fn can_offload(&self) -> bool {
        true
    }
    fn set_offloads(&mut self, Offloads { csum, tso4, tso6, ecn }: Offloads) -> io::Result<()> {
        assert!((csum || !(tso4 || tso6)) && (tso4 || tso6 || !ecn));
        Ok(())
    }
    fn fd(&self) -> HostFd {
        self.1.clone()
    }
}

struct Machine<'a>(&'a Arc<GuestMemory>, &'a Wire);
impl Host for Machine<'_> {
    fn memory(&self) -> Arc<GuestMemory> {
        self.0.clone()
    }
    fn console(&self) -> Box<dyn Write + Send> {
        unreachable!("a network does not ask for it")
    }
    fn power(&self) -> Arc<dyn PowerSink> {
        unreachable!("a network does not ask for it")
    }
    fn balloon(&self) -> Arc<dyn BalloonBackend> {
        unreachable!("a network does not ask for it")
    }
    fn entropy(&self) -> io::Result<Box<dyn Read + Send>> {
        unreachable!("a network does not ask for it")
    }
    fn disk(&self, _: &str) -> io::Result<Arc<dyn Disk>> {
        unreachable!("a network does not ask for it")
    }
    fn disk_full(&self) -> Arc<dyn DiskFull> {
        unreachable!("a network does not ask for it")
    }
    fn net(&self, _: &str) -> io::Result<Box<dyn Frames>> {
        Ok(Box::new(self.1.clone()))
    }
    fn vsock(&self, _: &str) -> io::Result<Box<dyn Sockets>> {
        unreachable!("a network does not ask for it")
    }
}

struct Guest {
    spec: Spec,
    wire: Wire,
    news: UnixStream,
    mem: Arc<GuestMemory>,
    devices: Devices,
    bus: Arc<Mutex<dyn BusDevice>>,
    events: EventManager<Subscriber>,
    /// Next entry of each available ring.
    avail: [u16; 3],
    /// What a migration has.
    taken: Vec<u8>,
}

/// See the module's text.
pub fn net(data: &[u8]) {
    let mut input = Bytes(data);
    let mut guest = Guest::new();
    while !input.is_empty() {
        guest.step(&mut input);
    }
    guest.move_on();
    guest.end();
}

type Parts = (Devices, Arc<Mutex<dyn BusDevice>>, EventManager<Subscriber>);

fn build(spec: &Spec, saved: Option<&Saved>, mem: &Arc<GuestMemory>, wire: &Wire) -> Parts {
    let host = Machine(mem, wire);
    let build = Build { spec, saved, irq: Arc::new(Line), host: &host };
    let Built { device, bus, subscriber, .. } = (KIND.build)(build).expect("its own state");
    let (mut devices, mut events) = (Devices::default(), EventManager::new().expect("epoll"));
    devices.push(spec.clone(), device);
    if let Some(one) = subscriber {
        events.add_subscriber(one);
    }
    (devices, bus, events)
}

impl Guest {
    fn new() -> Self {
        let options = NetOptions { mac: [2, 0, 0, 0, 0, 1], mtu: Some(1500), offloads: true };
        let spec = Spec::new(&KIND, &options).expect("plain data");
        let (news, told) = UnixStream::pair().expect("sockets");
        news.set_nonblocking(true).expect("a socket");
        let wire = Wire(Arc::default(), Arc::new(told));
        let ranges = [(GuestAddress(0), RAM as usize)];
        let mem = Arc::new(GuestMemory::from_ranges(&ranges).expect("memory"));
        let (devices, bus, events) = build(&spec, None, &mem, &wire);
        devices.resume();
        let taken = vec![0; RAM as usize];
        Self { spec, wire, news, mem, devices, bus, events, avail: [0; 3], taken }
    }

    fn step(&mut self, input: &mut Bytes<'_>) {
        match input.u8() % op::NR {
            0 => {
                let (at, value) = (input.pick(&REGISTERS), u32::from(input.u8()));
                self.write(at, value);
            }
            1 => {
                let (at, len) = (u64::from(input.u16() % 0x1000), usize::from(input.u8() % 10));
                let data = input.take(len).to_vec();
                self.bus.lock().unwrap().write(at, &data);
                self.bus.lock().unwrap().read(at, &mut vec![0; len]);
            }
            op::UP => self.bring_up(!input.u32()),
            3 => {
                let (at, bytes) = (u64::from(input.u32()) % RAM, input.array::<8>());
                self.put(at, &bytes);
            }
            op::CHAIN => self.chain(input),
            op::FRAME => {
                let (head, len) = (input.array::<12>(), usize::from(input.u16()));
                let mut frame = head.to_vec();
                frame.resize(len.min(MAX_FRAME), 0x5a);
                self.wire.seen().coming.push_back(frame);
                // Full of news is as good.
                let _ = self.news.write(&[1]);
            }
            op::RUN => self.turn(),
            op::HARVEST => self.harvest(),
            op::MOVE => self.move_on(),
            op::ANNOUNCE => self.devices.announce(),
            _ => {
                self.pause();
                self.turn();
                self.resume();
            }
        }
    }

    fn write(&self, at: u64, value: u32) {
        self.bus.lock().unwrap().write(at, &value.to_le_bytes());
    }

    fn read(&self, at: u64) -> u32 {
        let mut data = [0; 4];
        self.bus.lock().unwrap().read(at, &mut data);
        u32::from_le_bytes(data)
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        // What does not fit is left out.
        let _ = self.mem.write(bytes, GuestAddress(at));
    }

    /// A chain of up to three buffers, whose first holds bytes of the input.
    fn chain(&mut self, input: &mut Bytes<'_>) {
        let queue = usize::from(input.u8() % 3);
        let ring = RINGS + queue as u64 * RING;
        let (shape, first) = (input.u8(), self.avail[queue] % (SIZE / 4) * 4);
        let nr = 1 + u16::from((shape & 3).min(2));
        for nth in 0..nr {
            let at = match input.u8() {
                0 => input.u64(),
                page => BUFFER + u64::from(page) * 0x300,
            };
            if nth == 0 {
                let bytes = input.array::<12>();
                self.put(at, &bytes);
            }
            let write = shape & 1 << (2 + nth) != 0;
            let flags = u16::from(nth + 1 < nr) | if write { 2 } else { 0 };
            let desc = ring + 16 * u64::from(first + nth);
            self.put(desc, &at.to_le_bytes());
            self.put(desc + 8, &u32::from(input.u16()).to_le_bytes());
            self.put(desc + 12, &flags.to_le_bytes());
            self.put(desc + 14, &(first + nth + 1).to_le_bytes());
        }
        let slot = ring + 0x1000 + 4 + 2 * u64::from(self.avail[queue] % SIZE);
        self.avail[queue] = self.avail[queue].wrapping_add(1);
        self.put(slot, &first.to_le_bytes());
        self.put(ring + 0x1002, &self.avail[queue].to_le_bytes());
        self.write(offset::QUEUE_NOTIFY, queue as u32);
    }

    /// A ring that rewrites itself may go on for ever.
    fn turn(&mut self) {
        for _ in 0..16 {
            if self.events.run_with_timeout(0).expect("an event loop") == 0 {
                break;
            }
        }
    }

    fn bring_up(&mut self, wanted: u32) {
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
        for queue in 0..3 {
            let ring = RINGS + u64::from(queue) * RING;
            self.write(offset::QUEUE_SEL, queue);
            self.write(offset::QUEUE_SIZE, SIZE.into());
            for (low, at) in [
                (offset::QUEUE_DESC_LOW, ring),
                (offset::QUEUE_DRIVER_LOW, ring + 0x1000),
                (offset::QUEUE_DEVICE_LOW, ring + 0x2000),
            ] {
                self.write(low, at as u32);
                self.write(low + 4, 0);
            }
            self.put(ring + 0x1000, &[0; 4]);
            self.put(ring + 0x2000, &[0; 4]);
            self.write(offset::QUEUE_READY, 1);
        }
        self.avail = [0; 3];
        self.write(offset::STATUS, so_far | status::DRIVER_OK);
    }

    fn pause(&self) {
        self.devices.pause(Instant::now()).expect("nothing is ever in flight");
        self.wire.seen().paused = true;
    }

    fn resume(&self) {
        self.wire.seen().paused = false;
        self.devices.resume();
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

    /// To a new device, with the same memory and the same network.
    fn move_on(&mut self) {
        self.pause();
        let saved = self.devices.save(u16::MAX).expect("plain data");
        let there = build(&self.spec, saved.first(), &self.mem, &self.wire);
        (self.devices, self.bus, self.events) = there;
        assert!(self.devices.save(u16::MAX).expect("plain data") == saved, "on arrival");
        self.devices.after_restore().expect("a line");
        self.resume();
        self.turn();
    }

    fn end(&mut self) {
        self.pause();
        self.harvest();
        let mut ram = vec![0; RAM as usize];
        self.mem.read_slice(&mut ram, GuestAddress(0)).expect("RAM");
        let at = (0..ram.len()).find(|at| ram[*at] != self.taken[*at]);
        assert_eq!(at, None, "the migration has something else");
    }
}
