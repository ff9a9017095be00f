//! The balloon on its transport, driven by a guest and a host that do anything in any order.
//!
//! Each byte chooses an operation, the ones after it are its operands, so any input means
//! something. Whatever was done, the device's own state is taken by a new device; only RAM is
//! discarded or hinted; and the set of ballooned pages is the same after a move.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vm_memory::{Bytes as _, GuestAddress};
use wherry_devices::host::BalloonBackend;
use wherry_devices::virtio::balloon::constants::*;
use wherry_devices::virtio::balloon::{Balloon, BalloonConfig, BalloonHandle, HintRange};
use wherry_devices::virtio::mmio::regs::{offset, status};
use wherry_devices::{BusDevice, GuestMemory};

use crate::bytes::Bytes;
use crate::guest::{Line, REGISTERS};

const LOW: u64 = 1 << 20;
const HIGH: u64 = 4 << 30;
const HIGH_LEN: u64 = 1 << 20;
const QUEUES: u8 = 5;
/// Rings of queue n: descriptors at `RINGS + n * RING`, then the available and the used ring.
const RINGS: u64 = 0x1_0000;
const RING: u64 = 0x4000;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
/// Page numbers, statistics and commands go here.
const BUFFER: u64 = 0x8_0000;
const NR_OPS: u8 = 14;

/// Operations, for seeds.
pub(crate) mod op {
    pub(crate) const REGISTER: u8 = 0;
    pub(crate) const UP: u8 = 2;
    pub(crate) const NUMBERS: u8 = 5;
    pub(crate) const STATS: u8 = 6;
    pub(crate) const COMMAND: u8 = 7;
    pub(crate) const RANGE: u8 = 8;
    pub(crate) const HOST: u8 = 9;
    pub(crate) const MOVE: u8 = 10;
    pub(crate) const RESET: u8 = 11;
}

fn assert_in_ram(gpa: u64, len: u64) {
    assert!(
        len > 0 && gpa.is_multiple_of(PAGE_SIZE) && len.is_multiple_of(PAGE_SIZE),
        "{len} bytes at {gpa:#x}"
    );
    let end = gpa + len;
    assert!(end <= LOW || (gpa >= HIGH && end <= HIGH + HIGH_LEN), "{len} bytes at {gpa:#x}");
}

/// Time passes with discards, half a millisecond each.
#[derive(Default)]
struct Host(Mutex<u64>);
static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
impl BalloonBackend for Host {
    fn discard(&self, gpa: u64, len: u64) -> io::Result<()> {
        assert_in_ram(gpa, len);
        *self.0.lock().unwrap() += 1;
        if gpa == 0 { Err(io::Error::other("refused")) } else { Ok(()) }
    }
    fn now(&self) -> Instant {
        *START + *self.0.lock().unwrap() as u32 * Duration::from_micros(500)
    }
}

struct Sink;
impl HintRange for Sink {
    fn range(&self, gpa: u64, len: u64) {
        assert_in_ram(gpa, len);
    }
}

struct Guest {
    cfg: BalloonConfig,
    mem: Arc<GuestMemory>,
    balloon: BalloonHandle,
    bus: Arc<Mutex<dyn BusDevice>>,
    /// Next entry of each available ring.
    avail: [u16; QUEUES as usize],
}

/// See the module's text.
pub fn balloon(data: &[u8]) {
    let mut input = Bytes(data);
    let mut guest = Guest::new(input.u8());
    while !input.is_empty() {
        guest.step(&mut input);
    }
    guest.move_on();
}

impl Guest {
    fn new(options: u8) -> Self {
        let on = |bit: u8| options & 1 << bit == 0;
        let cfg = BalloonConfig {
            target_pages: u32::from(options),
            must_tell_host: on(0),
            stats: on(1),
            hinting: on(2),
            poison: on(3),
            reporting: on(4),
            event_idx: on(5),
            indirect: on(6),
            ..BalloonConfig::default()
        };
        let ranges = [(GuestAddress(0), LOW as usize), (GuestAddress(HIGH), HIGH_LEN as usize)];
        let mem = Arc::new(GuestMemory::from_ranges(&ranges).expect("memory"));
        let host = Arc::new(Host::default());
        let balloon =
            Balloon::create(cfg.clone(), mem.clone(), Arc::new(Line), host).expect("a balloon");
        let bus = balloon.bus_device();
        Self { cfg, mem, balloon, bus, avail: [0; QUEUES as usize] }
    }

    fn step(&mut self, input: &mut Bytes<'_>) {
        match input.u8() % NR_OPS {
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
                let mut bus = self.bus.lock().unwrap();
                bus.write(at, &data);
                bus.read(at, &mut vec![0; len]);
            }
            op::UP => self.bring_up(input.u8()),
            3 => {
                let (queue, index) = (input.u8() % QUEUES, u64::from(input.u8() % 128));
                let at = RINGS + u64::from(queue) * RING + 16 * index;
                self.descriptor(at, input);
            }
            4 => {
                let (queue, head) = (input.u8() % QUEUES, u16::from(input.u8()));
                self.publish(queue, head);
                self.process(queue);
            }
            op::NUMBERS => {
                let (queue, nr) = (input.u8() % 2, 1 + u64::from(input.u8()));
                let (first, step) = (u64::from(input.u8()), u64::from(input.u8() % 4));
                let base = if input.u8() & 1 == 0 { 0 } else { HIGH / PAGE_SIZE };
                for n in 0..nr {
                    let number = (base + first + n * step) as u32;
                    self.put(BUFFER + 4 * n, &number.to_le_bytes());
                }
                self.chain(queue, BUFFER, 4 * nr as u32, 0);
            }
            op::STATS => {
                let nr = u32::from(input.u8());
                let entries = input.take(usize::from(nr as u8)).to_vec();
                self.put(BUFFER + 0x1000, &entries);
                self.chain(2, BUFFER + 0x1000, nr, 0);
            }
            op::COMMAND => {
                let id = match input.u8() {
                    255 => self.read(offset::CONFIG + CONFIG_CMD_ID),
                    small => u32::from(small),
                };
                self.put(BUFFER + 0x2000, &id.to_le_bytes());
                self.chain(3, BUFFER + 0x2000, 4, 0);
            }
            op::RANGE => {
                let (queue, address) = (3 + input.u8() % 2, self.address(input));
                let len = u32::from(input.u16()) << (input.u8() % 17);
                self.chain(queue, address, len, 2);
            }
            op::HOST => self.host(input),
            op::MOVE => self.move_on(),
            op::RESET => self.write(offset::STATUS, 0),
            12 => {
                let (at, bytes) = (u64::from(input.u32()) % LOW, input.array::<8>());
                self.put(at, &bytes);
            }
            _ => self.process(input.u8() % QUEUES),
        }
    }

    fn read(&self, at: u64) -> u32 {
        let mut data = [0; 4];
        self.bus.lock().unwrap().read(at, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, at: u64, value: u32) {
        self.bus.lock().unwrap().write(at, &value.to_le_bytes());
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        // What does not fit is left out.
        let _ = self.mem.write(bytes, GuestAddress(at));
    }

    fn address(&self, input: &mut Bytes<'_>) -> u64 {
        match input.u8() % 4 {
            0 => input.u64(),
            1 => HIGH + u64::from(input.u8()) * PAGE_SIZE,
            _ => u64::from(input.u16()) << 4,
        }
    }

    fn descriptor(&self, at: u64, input: &mut Bytes<'_>) {
        let address = self.address(input);
        self.put(at, &address.to_le_bytes());
        self.put(at + 8, &u32::from(input.u16()).to_le_bytes());
        self.put(at + 12, &u16::from(input.u8() % 8).to_le_bytes());
        self.put(at + 14, &u16::from(input.u8()).to_le_bytes());
    }

    fn publish(&mut self, queue: u8, head: u16) {
        let ring = RINGS + u64::from(queue) * RING + AVAIL;
        let next = &mut self.avail[usize::from(queue)];
        let slot = ring + 4 + 2 * u64::from(*next % QUEUE_SIZE);
        *next = next.wrapping_add(1);
        let next = *next;
        self.put(slot, &head.to_le_bytes());
        self.put(ring + 2, &next.to_le_bytes());
    }

    fn chain(&mut self, queue: u8, address: u64, len: u32, flags: u16) {
        let at = RINGS + u64::from(queue) * RING;
        self.put(at, &address.to_le_bytes());
        self.put(at + 8, &len.to_le_bytes());
        self.put(at + 12, &u32::from(flags).to_le_bytes());
        self.publish(queue, 0);
        self.process(queue);
    }

    /// A ring that rewrites itself may go on for ever.
    fn process(&self, queue: u8) {
        for _ in 0..64 {
            if !self.balloon.device().patient().process_queue(usize::from(queue)) {
                break;
            }
        }
    }

    /// As far as a driver comes that does everything in order.
    fn bring_up(&mut self, options: u8) {
        self.write(offset::STATUS, 0);
        self.write(offset::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        for half in [1, 0] {
            self.write(offset::DEVICE_FEATURES_SEL, half);
            self.write(offset::DRIVER_FEATURES_SEL, half);
            let offered = self.read(offset::DEVICE_FEATURES);
            let dropped = if half == 0 { u32::from(options & 0x3f) } else { 0 };
            self.write(offset::DRIVER_FEATURES, offered & !dropped);
        }
        let so_far = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        self.write(offset::STATUS, so_far);
        for queue in 0..QUEUES {
            self.write(offset::QUEUE_SEL, u32::from(queue));
            self.write(offset::QUEUE_SIZE, u32::from(QUEUE_SIZE));
            let ring = RINGS + u64::from(queue) * RING;
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
        self.avail = [0; QUEUES as usize];
        if options & 0x40 == 0 {
            self.write(offset::STATUS, so_far | status::DRIVER_OK);
        }
    }

    fn host(&mut self, input: &mut Bytes<'_>) {
        let b = &self.balloon;
        match input.u8() % 13 {
            0 => drop(b.set_target(u32::from(input.u8()))),
            1 => drop(b.request_stats()),
            2 => drop(b.hint_start(Arc::new(Sink))),
            3 => drop(b.hint_rest()),
            4 => b.hint_stop(),
            5 => b.hint_done(),
            6 => b.set_discard_allowed(input.u8() & 1 == 0),
            7 => b.ballooned().into_iter().for_each(|(gpa, len)| assert_in_ram(gpa, len)),
            8 => drop(b.figures()),
            9 => b.device().urgent().announce(),
            10 => b.set_paused(true),
            11 => b.set_paused(false),
            _ => drop((b.stats(), b.hint_rested(), b.hint_finished(), b.guest_free_bytes())),
        }
    }

    /// To a new device, with the same memory.
    fn move_on(&mut self) {
        self.balloon.set_paused(true);
        let state = self.balloon.state();
        let there = Balloon::restore(
            self.cfg.clone(),
            self.mem.clone(),
            Arc::new(Line),
            Arc::new(Host::default()),
            &state,
        );
        let there = there.unwrap_or_else(|e| panic!("its own state is refused: {e:?}"));
        assert_eq!(there.ballooned(), self.balloon.ballooned());
        assert_eq!(there.figures().ballooned_pages, self.balloon.figures().ballooned_pages);
        let again = there.state();
        assert_eq!((again.mmio.queues, again.mmio.status), (state.mmio.queues, state.mmio.status));
        assert_eq!(again.device.held_stats, state.device.held_stats);
        assert_eq!(again.device.ballooned, state.device.ballooned);
        there.set_paused(false);
        there.device().urgent().announce();
        self.bus = there.bus_device();
        self.balloon = there;
    }
}
