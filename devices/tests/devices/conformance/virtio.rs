//! A driver for any virtio device: what it sends is noise, but the rings are in order.

use std::collections::BTreeMap;

use vm_memory::{Bytes, GuestAddress};
use wherry_devices::virtio::balloon::BalloonHandle;
use wherry_devices::virtio::blk::{self, request::kind};
use wherry_devices::virtio::mmio::regs::{offset, status};
use wherry_devices::virtio::vsock::{self, constants::EVENT};

use super::{Bench, Rng, Side};
use crate::blk::disks::SECTORS;
use crate::driver::{Buf, INDIRECT, NEXT, WRITE, inb, out, write_desc};

const RINGS: u64 = 0x1_0000;
const RING: u64 = 0x4000;
const BUFFERS: u64 = 0x8_0000;
/// Descriptors of one chain at most, each with a buffer of its own.
const CHAIN: u16 = 4;
const BUFFER: u64 = 64;
/// Data of requests to a disk, a KiB for each chain.
const DATA: u64 = 0xA_0000;
/// Buffers for events of sockets, and how many there are.
const EVENTS: u64 = 0xB_0000;
const EVENT_BUFFERS: usize = 3;
/// A piece that is none: a buffer that the device has until there is an event.
const LENT: u32 = u32::MAX;

#[derive(Clone, Default)]
struct Ring {
    size: u16,
    avail: u16,
    seen: u16,
    chains: u16,
}

#[derive(Clone, Default)]
pub struct Driver {
    /// Features that it does not want.
    pub refuse: u64,
    rings: Vec<Ring>,
    /// What is out, by queue and head.
    pub pieces: BTreeMap<(usize, u32), u32>,
}

pub fn desc(queue: usize) -> u64 {
    RINGS + queue as u64 * RING
}
fn avail(queue: usize) -> u64 {
    desc(queue) + 0x1000
}
fn used(queue: usize) -> u64 {
    desc(queue) + 0x2000
}

pub fn w32(bench: &Bench, at: u64, value: u32) {
    bench.write(at, &value.to_le_bytes());
}
pub fn r32(bench: &Bench, at: u64) -> u32 {
    bench.read(at, 4) as u32
}

impl Driver {
    pub fn probe(&mut self, bench: &Bench) {
        w32(bench, offset::STATUS, 0);
        while !bench.settled() {
            std::thread::yield_now();
        }
        assert_eq!(r32(bench, offset::STATUS), 0);
        w32(bench, offset::STATUS, status::ACKNOWLEDGE);
        w32(bench, offset::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        for half in [0, 1] {
            w32(bench, offset::DEVICE_FEATURES_SEL, half);
            w32(bench, offset::DRIVER_FEATURES_SEL, half);
            let refused = (self.refuse >> (32 * half)) as u32;
            let features = r32(bench, offset::DEVICE_FEATURES) & !refused;
            w32(bench, offset::DRIVER_FEATURES, features);
        }
        let ready = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
        w32(bench, offset::STATUS, ready);
        assert_eq!(r32(bench, offset::STATUS), ready);
        self.rings.clear();
        self.pieces.clear();
        for queue in 0.. {
            w32(bench, offset::QUEUE_SEL, queue as u32);
            let size = r32(bench, offset::QUEUE_SIZE_MAX) as u16;
            if size == 0 {
                break;
            }
            bench.mem.write_slice(&[0; RING as usize], GuestAddress(desc(queue))).unwrap();
            w32(bench, offset::QUEUE_SIZE, size.into());
            for (register, at) in [
                (offset::QUEUE_DESC_LOW, desc(queue)),
                (offset::QUEUE_DRIVER_LOW, avail(queue)),
                (offset::QUEUE_DEVICE_LOW, used(queue)),
            ] {
                w32(bench, register, at as u32);
            }
            w32(bench, offset::QUEUE_READY, 1);
            self.rings.push(Ring { size, ..Ring::default() });
        }
        w32(bench, offset::STATUS, ready | status::DRIVER_OK);
    }

    /// A head that is not out.
    pub fn free(&self, queue: usize) -> Option<u16> {
        let ring = &self.rings[queue];
        let nr = ring.size / CHAIN;
        let heads = (0..nr).map(|n| (ring.chains.wrapping_add(n) % nr) * CHAIN);
        heads.into_iter().find(|head| !self.pieces.contains_key(&(queue, (*head).into())))
    }

    /// Whether the device wants to be told of the next chain (avail_event, section 2.7.10).
    pub fn is_awaited(&self, bench: &Bench, queue: usize) -> bool {
        let ring = &self.rings[queue];
        let at = used(queue) + 4 + 8 * u64::from(ring.size);
        let event: u16 = bench.mem.read_obj(GuestAddress(at)).unwrap();
        event == ring.avail
    }

    /// The head that the next chain will have.
    pub fn next(&self, queue: usize) -> u32 {
        self.free(queue).unwrap().into()
    }

    /// Makes a chain of noise available, and kicks. `None`: there is no room.
    pub fn send(&mut self, bench: &Bench, queue: usize, rng: &mut Rng) -> Option<u32> {
        let head = self.free(queue)?;
        if bench.kind == &blk::KIND && rng.below(4) > 0 {
            return self.chain(bench, queue, &Self::request(bench, head, rng));
        }
        let nr = 1 + rng.below(CHAIN.into()) as u16;
        let readable = rng.below(u64::from(nr) + 1) as u16;
        let bufs: Vec<Buf> = (0..nr)
            .map(|nth| {
                let index = queue as u64 * 0x100 + u64::from(head + nth);
                let at = BUFFERS + index * BUFFER;
                // Page numbers, commands, lengths: small numbers mean something to many a device.
                let words: Vec<u8> =
                    (0..BUFFER / 4).flat_map(|_| (rng.below(1024) as u32).to_le_bytes()).collect();
                bench.mem.write_slice(&words, GuestAddress(at)).unwrap();
                Buf(at, 4 * (1 + rng.below(BUFFER / 4)) as u32, nth >= readable)
            })
            .collect();
        self.chain(bench, queue, &bufs)
    }

    /// A request to a disk, which can mostly be done.
    fn request(bench: &Bench, head: u16, rng: &mut Rng) -> Vec<Buf> {
        let (at, data) =
            (BUFFERS + u64::from(head) * BUFFER, DATA + u64::from(head / CHAIN) * 1024);
        let kinds =
            [kind::IN, kind::OUT, kind::FLUSH, kind::GET_ID, kind::DISCARD, kind::WRITE_ZEROES];
        let (kind, sector) = (kinds[rng.below(6) as usize], rng.below(SECTORS));
        let header = [u64::from(kind), sector].map(u64::to_le_bytes).concat();
        bench.mem.write_slice(&header, GuestAddress(at)).unwrap();
        let len = 512 * (1 + rng.below(2)) as u32;
        let noise: Vec<u8> = (0..len).map(|_| rng.below(256) as u8).collect();
        let bytes =
            if kind == kind::OUT { noise } else { [sector, 1].map(u64::to_le_bytes).concat() };
        bench.mem.write_slice(&bytes, GuestAddress(data)).unwrap();
        let data = match kind {
            kind::IN => Some(inb(data, len)),
            kind::OUT => Some(out(data, len)),
            kind::GET_ID => Some(inb(data, 20)),
            kind::FLUSH => None,
            _ => Some(out(data, 16)),
        };
        [Some(out(at, 16)), data, Some(inb(at + 32, 1))].into_iter().flatten().collect()
    }

    /// Makes this chain available in an indirect table at `table`, and kicks.
    pub fn indirect(&mut self, bench: &Bench, table: u64, bufs: &[Buf]) -> Option<u32> {
        for (nth, Buf(at, len, write)) in (0u16..).zip(bufs) {
            let more = if usize::from(nth) + 1 < bufs.len() { NEXT } else { 0 };
            let flags = more | if *write { WRITE } else { 0 };
            write_desc(&bench.mem, table + 16 * u64::from(nth), *at, *len, flags, nth + 1);
        }
        let head = self.free(0)?;
        let slot = desc(0) + 16 * u64::from(head);
        write_desc(&bench.mem, slot, table, 16 * bufs.len() as u32, INDIRECT, 0);
        self.publish(bench, 0, head);
        Some(head.into())
    }

    /// Makes a chain of one descriptor available, which comes after itself.
    pub fn loop_chain(&mut self, bench: &Bench, Buf(at, len, _): Buf) {
        let head = self.free(0).unwrap();
        write_desc(&bench.mem, desc(0) + 16 * u64::from(head), at, len, NEXT, head);
        self.publish(bench, 0, head);
    }

    /// Makes this chain available, and kicks. `None`: there is no room.
    pub fn chain(&mut self, bench: &Bench, queue: usize, bufs: &[Buf]) -> Option<u32> {
        let head = self.free(queue)?;
        for (index, (nth, Buf(at, len, write))) in (head..).zip(bufs.iter().enumerate()) {
            let more = if nth + 1 < bufs.len() { NEXT } else { 0 };
            let flags = more | if *write { WRITE } else { 0 };
            let slot = desc(queue) + 16 * u64::from(index);
            write_desc(&bench.mem, slot, *at, *len, flags, index + 1);
        }
        self.publish(bench, queue, head);
        Some(head.into())
    }

    /// Makes the chain with this head available, and kicks.
    pub fn publish(&mut self, bench: &Bench, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let slot = avail(queue) + 4 + 2 * u64::from(ring.avail % ring.size);
        (ring.avail, ring.chains) = (ring.avail.wrapping_add(1), ring.chains.wrapping_add(1));
        bench.mem.write_obj(head, GuestAddress(slot)).unwrap();
        bench.mem.write_obj(ring.avail, GuestAddress(avail(queue) + 2)).unwrap();
        w32(bench, offset::QUEUE_NOTIFY, queue as u32);
    }

    /// Chains that came back: (queue, head, length). Asks for an interrupt at the next.
    pub fn take_used(&mut self, bench: &Bench) -> Vec<(usize, u32, u32)> {
        let mut got = Vec::new();
        for (queue, ring) in self.rings.iter_mut().enumerate() {
            let index: u16 = bench.mem.read_obj(GuestAddress(used(queue) + 2)).unwrap();
            while ring.seen != index {
                let at = used(queue) + 4 + 8 * u64::from(ring.seen % ring.size);
                let head: u32 = bench.mem.read_obj(GuestAddress(at)).unwrap();
                let len: u32 = bench.mem.read_obj(GuestAddress(at + 4)).unwrap();
                got.push((queue, head, len));
                ring.seen = ring.seen.wrapping_add(1);
                let event = avail(queue) + 4 + 2 * u64::from(ring.size);
                bench.mem.write_obj(ring.seen, GuestAddress(event)).unwrap();
            }
        }
        got
    }

    fn acknowledge(bench: &Bench) -> u32 {
        let cause = r32(bench, offset::INTERRUPT_STATUS);
        w32(bench, offset::INTERRUPT_ACK, cause);
        cause
    }
}

/// Queues of whose chains all come back without further ado.
fn queues(bench: &Bench, all: usize) -> usize {
    if bench.kind == &vsock::KIND { EVENT } else { all }
}

impl Driver {
    /// Gives the device a buffer for an event.
    fn lend(&mut self, bench: &Bench) {
        let at = EVENTS + u64::from(self.next(EVENT));
        let head = self.chain(bench, EVENT, &[inb(at, 4)]).unwrap();
        self.pieces.insert((EVENT, head), LENT);
    }
}

impl Side for Driver {
    fn up(&mut self, bench: &mut Bench) {
        self.probe(bench);
        if bench.kind == &vsock::KIND {
            (0..EVENT_BUFFERS).for_each(|_| self.lend(bench));
        }
        bench.run();
    }

    fn step(&mut self, bench: &mut Bench, rng: &mut Rng) -> Vec<u64> {
        match rng.below(24) {
            // Rarely, for a reset makes all alike.
            0 if rng.below(5) == 0 => {
                self.probe(bench);
                vec![]
            }
            1 | 2 => vec![Self::acknowledge(bench).into()],
            3 | 4 => {
                let register = [offset::STATUS, offset::CONFIG_GENERATION, offset::QUEUE_READY]
                    [rng.below(3) as usize];
                vec![r32(bench, register).into()]
            }
            0 | 5 | 6 => vec![bench.read(offset::CONFIG + rng.below(32), 4)],
            7..=9 => {
                let value = 1 + rng.below(1000) as u32;
                w32(bench, offset::CONFIG + 4 * rng.below(8), value);
                vec![]
            }
            10..=12 => {
                let used = self.take_used(bench);
                for (queue, head, _) in &used {
                    self.pieces.remove(&(*queue, *head));
                }
                used.into_iter().flat_map(|(a, b, c)| [a as u64, b.into(), c.into()]).collect()
            }
            _ => {
                let queue = rng.below(self.rings.len() as u64) as usize;
                let sent = self.send(bench, queue, rng);
                if let Some(head) = sent {
                    self.pieces.insert((queue, head), 0);
                }
                vec![sent.map_or(u64::MAX, u64::from)]
            }
        }
    }

    fn begin(&mut self, bench: &mut Bench, piece: u32, rng: &mut Rng) -> bool {
        let queue = rng.below(queues(bench, self.rings.len()) as u64) as usize;
        let sent = self.send(bench, queue, rng);
        sent.is_some_and(|head| self.pieces.insert((queue, head), piece).is_none())
    }

    fn collect(&mut self, bench: &mut Bench) -> Vec<u32> {
        let mut got = Vec::new();
        while bench.line.high() {
            assert_ne!(Self::acknowledge(bench), 0, "the line is high without a cause");
            for (queue, head, _) in self.take_used(bench) {
                match self.pieces.remove(&(queue, head)).expect("a chain that was not out") {
                    LENT => self.lend(bench),
                    piece => got.push(piece),
                }
            }
        }
        got
    }

    fn finish(&mut self, bench: &mut Bench) {
        if let Some(balloon) = bench.devices.find().map(BalloonHandle::new) {
            // It keeps a buffer until it wants statistics.
            let _ = balloon.request_stats();
        }
    }

    fn copy(&self) -> Box<dyn Side> {
        Box::new(self.clone())
    }
}
