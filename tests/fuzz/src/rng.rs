//! An entropy device on its transport, driven by a guest that does anything in any order, with a
//! source that fails now and then.
//!
//! Each byte chooses an operation, the ones after it are its operands. Whatever was done: the
//! device's own state is taken by a new device, and a migration that takes what is marked has RAM
//! as it is at the end. As long as a guest keeps its rings in order, it gets random bytes where it
//! gave room, as many as it is told, and nothing else changes.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use wherry_devices::device::Spec;
use wherry_devices::virtio::rng::{KIND, MAX_REQUEST};

use crate::bytes::Bytes;
use crate::driver::{Driver, NOWHERE};
use crate::guest::{BUFFER, Backend};

/// Buffers overlap.
const PLACES: [(u64, u64); 1] = [(BUFFER, 0x1100)];
/// What is random here.
const RANDOM: u8 = 0xe7;

/// Operations.
mod op {
    pub(super) const UP: u8 = 2;
    pub(super) const CHAIN: u8 = 4;
    pub(super) const RUN: u8 = 5;
    pub(super) const MOVE: u8 = 6;
    pub(super) const SOURCE: u8 = 7;
    pub(super) const NR: u8 = 10;
}

/// Bytes that the source has left.
struct Source(AtomicUsize);

struct End(Arc<Source>);
impl Read for End {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        assert!(bytes.len() <= MAX_REQUEST, "{} bytes at once", bytes.len());
        let left = self.0.0.load(Ordering::Relaxed);
        let len = left.min(bytes.len());
        bytes[..len].fill(RANDOM);
        self.0.0.store(left - len, Ordering::Relaxed);
        Ok(len)
    }
}

struct Machine(Arc<Source>);
impl Backend for Machine {
    fn entropy(&self) -> Box<dyn Read + Send> {
        Box::new(End(self.0.clone()))
    }
}

/// Requests, a move, a source that ends.
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let up = [op::UP, 0, 0, 0, 0];
    // Shape, and length of each buffer.
    let chain = |shape, len: u16| [&[op::CHAIN, shape][..], &len.to_le_bytes().repeat(3)].concat();
    let all = [0, 1, 2, 3, 4, 8, 16, 32].map(|shape| chain(shape, 300)).concat();
    let (run, go) = ([op::RUN], [op::MOVE]);
    let ends = [op::SOURCE, 100, 0];
    vec![
        ("all", [&up[..], &all, &run, &go, &all, &go, &run].concat()),
        ("ends", [&up[..], &ends, &all, &run, &[op::SOURCE, 255, 255], &all, &run].concat()),
        ("long", [&up[..], &chain(2, 0xffff), &run, &chain(0, 0xffff), &run].concat()),
        ("again", [&up[..], &all, &up, &all, &run].concat()),
    ]
}

struct Guest {
    driver: Driver,
    source: Arc<Source>,
}

/// See the module's text.
pub fn rng(data: &[u8]) {
    let mut input = Bytes(data);
    let source = Arc::new(Source(AtomicUsize::new(usize::MAX)));
    let spec = Spec::new(&KIND, &()).expect("plain data");
    let driver = Driver::new(spec, Arc::new(Machine(source.clone())), &PLACES);
    let mut guest = Guest { driver, source };
    while !input.is_empty() {
        guest.step(&mut input);
    }
    guest.move_on();
    guest.begin_again();
    guest.driver.at.end();
}

impl Guest {
    fn step(&mut self, input: &mut Bytes<'_>) {
        match input.u8() % op::NR {
            what @ (0 | 1 | 3) => self.driver.disorder(what, input),
            op::UP => self.driver.bring_up(!input.u32()),
            op::CHAIN => self.chain(input),
            op::RUN => drop(self.run()),
            op::MOVE => self.move_on(),
            op::SOURCE => self.source.0.store(input.u16().into(), Ordering::Relaxed),
            8 => self.driver.at.harvest(),
            _ => self.driver.at.rest(),
        }
    }

    /// One to three buffers; each may be one to read, or nowhere.
    fn chain(&mut self, input: &mut Bytes<'_>) {
        let shape = input.u8();
        let lens = [input.u16(), input.u16(), input.u16()].map(u32::from);
        self.driver.give(0, |at| {
            let nr = 1 + usize::from(shape & 3).min(2);
            let buffer = |nth: usize| {
                let at = if shape & 0x20 << nth != 0 { NOWHERE } else { at + nth as u64 * 0x500 };
                (at, lens[nth], shape & 4 << nth == 0)
            };
            (0..nr).map(buffer).collect()
        });
    }

    /// Returns the bytes of each request that came back.
    fn run(&mut self) -> Vec<usize> {
        self.driver.at.turn();
        if !self.driver.orderly {
            return Vec::new();
        }
        let back = self.driver.back(0);
        for bytes in &back {
            assert!(bytes.len() <= MAX_REQUEST && bytes.iter().all(|byte| *byte == RANDOM));
        }
        self.driver.check();
        back.iter().map(Vec::len).collect()
    }

    fn move_on(&mut self) {
        self.run();
        self.driver.at.move_on();
    }

    /// A driver that begins again gets what it asks for.
    fn begin_again(&mut self) {
        self.source.0.store(usize::MAX, Ordering::Relaxed);
        self.driver.bring_up(u32::MAX);
        self.driver.give(0, |at| vec![(at, 100, true), (at + 0x200, 50, true)]);
        assert_eq!(self.run(), [150], "a driver in order");
    }
}
