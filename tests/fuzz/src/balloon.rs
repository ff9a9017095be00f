//! The balloon on its transport, driven by a guest and a host that do anything in any order.
//!
//! Each byte chooses an operation, the ones after it are its operands, so any input means
//! something. Whatever was done, the device's own state is taken by a new device; only RAM is
//! discarded or hinted; the set of ballooned pages is the same after a move; and a migration that
//! takes what is marked has RAM as it is at the end.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vm_memory::GuestAddress;
use wherry_devices::device::Spec;
use wherry_devices::host::BalloonBackend;
use wherry_devices::virtio::balloon::constants::*;
use wherry_devices::virtio::balloon::{BalloonConfig, BalloonHandle, HintRange, KIND};
use wherry_devices::virtio::mmio::regs::offset;

use crate::bytes::Bytes;
use crate::guest::{self, Backend, RAM};

const HIGH: u64 = 4 << 30;
const HIGH_LEN: u64 = 1 << 20;
const QUEUES: u8 = 5;
/// Page numbers, statistics and commands go here, behind the last ring.
const BUFFER: u64 = guest::BUFFER + 0x8000;

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
    pub(super) const NR: u8 = 14;
}

fn assert_in_ram(gpa: u64, len: u64) {
    assert!(
        len > 0 && gpa.is_multiple_of(PAGE_SIZE) && len.is_multiple_of(PAGE_SIZE),
        "{len} bytes at {gpa:#x}"
    );
    let end = gpa + len;
    assert!(end <= RAM || (gpa >= HIGH && end <= HIGH + HIGH_LEN), "{len} bytes at {gpa:#x}");
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

struct Machine(Arc<Host>);
impl Backend for Machine {
    fn ram(&self) -> Vec<(GuestAddress, usize)> {
        vec![(GuestAddress(0), RAM as usize), (GuestAddress(HIGH), HIGH_LEN as usize)]
    }
    fn balloon(&self) -> Arc<dyn BalloonBackend> {
        self.0.clone()
    }
}

struct Sink;
impl HintRange for Sink {
    fn range(&self, gpa: u64, len: u64) {
        assert_in_ram(gpa, len);
    }
}

struct Guest(guest::Guest);

/// See the module's text.
pub fn balloon(data: &[u8]) {
    let mut input = Bytes(data);
    let mut guest = Guest::new(input.u8());
    while !input.is_empty() {
        guest.step(&mut input);
    }
    guest.move_on();
    guest.0.end();
}

impl Guest {
    fn new(options: u8) -> Self {
        let on = |bit: u8| options & 1 << bit == 0;
        let options = BalloonConfig {
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
        let spec = Spec::new(&KIND, &options).expect("plain data");
        let rings = (QUEUES.into(), QUEUE_SIZE);
        // Nothing is ever in flight.
        Self(guest::Guest::new(spec, Arc::new(Machine(Arc::default())), rings, Duration::ZERO))
    }

    fn handle(&self) -> BalloonHandle {
        BalloonHandle::new(self.0.devices.find().expect("a balloon"))
    }

    fn step(&mut self, input: &mut Bytes<'_>) {
        match input.u8() % op::NR {
            what @ (op::REGISTER | 1 | 12) => self.0.disorder(what, input),
            op::UP => {
                let options = input.u8();
                self.0.bring_up(!u32::from(options & 0x3f), options & 0x40 == 0);
            }
            3 => {
                let (queue, nth) = (input.u8() % QUEUES, u16::from(input.u8() % 128));
                let buffer = (address(input), u32::from(input.u16()));
                let (flags, next) = (u16::from(input.u8() % 8), input.u8().into());
                self.0.descriptor((queue.into(), nth), buffer, flags, next);
            }
            4 => {
                let (queue, head) = (input.u8() % QUEUES, u16::from(input.u8()));
                self.0.publish(queue.into(), head);
                self.0.turn();
            }
            op::NUMBERS => {
                let (queue, nr) = (input.u8() % 2, 1 + u64::from(input.u8()));
                let (first, step) = (u64::from(input.u8()), u64::from(input.u8() % 4));
                let base = if input.u8() & 1 == 0 { 0 } else { HIGH / PAGE_SIZE };
                let number = |n| ((base + first + n * step) as u32).to_le_bytes();
                self.0.put(BUFFER, &(0..nr).flat_map(number).collect::<Vec<u8>>());
                self.give(queue, BUFFER, 4 * nr as u32, false);
            }
            op::STATS => {
                let nr = input.u8();
                self.0.put(BUFFER + 0x1000, input.take(nr.into()));
                self.give(2, BUFFER + 0x1000, nr.into(), false);
            }
            op::COMMAND => {
                let id = match input.u8() {
                    255 => self.0.read(offset::CONFIG + CONFIG_CMD_ID),
                    small => u32::from(small),
                };
                self.0.put(BUFFER + 0x2000, &id.to_le_bytes());
                self.give(3, BUFFER + 0x2000, 4, false);
            }
            op::RANGE => {
                let (queue, address) = (3 + input.u8() % 2, address(input));
                let len = u32::from(input.u16()) << (input.u8() % 17);
                self.give(queue, address, len, true);
            }
            op::HOST => self.host(input),
            op::MOVE => self.move_on(),
            op::RESET => self.0.write(offset::STATUS, 0),
            _ => self.0.harvest(),
        }
    }

    /// A chain of one buffer, and time for the device.
    fn give(&mut self, queue: u8, address: u64, len: u32, write: bool) {
        self.0.chain(queue.into(), 0, &[(address, len, write)]);
        self.0.turn();
    }

    fn host(&mut self, input: &mut Bytes<'_>) {
        let b = self.handle();
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
            9 => self.0.devices.announce(),
            10 => self.0.pause(),
            11 => self.0.resume(),
            _ => drop((b.stats(), b.hint_rested(), b.hint_finished(), b.guest_free_bytes())),
        }
    }

    /// To a new device, which may show that hinting is over.
    fn move_on(&mut self) {
        let here = self.handle();
        self.0.arrives_alike();
        let there = self.handle();
        let (state, again) = (here.state(), there.state());
        assert_eq!(there.ballooned(), here.ballooned());
        assert_eq!(there.figures().ballooned_pages, here.figures().ballooned_pages);
        assert_eq!((again.mmio.queues, again.mmio.status), (state.mmio.queues, state.mmio.status));
        assert_eq!(again.device.held_stats, state.device.held_stats);
        assert_eq!(again.device.ballooned, state.device.ballooned);
        self.0.devices.announce();
    }
}

fn address(input: &mut Bytes<'_>) -> u64 {
    match input.u8() % 4 {
        0 => input.u64(),
        1 => HIGH + u64::from(input.u8()) * PAGE_SIZE,
        _ => u64::from(input.u16()) << 4,
    }
}
