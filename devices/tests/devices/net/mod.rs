//! The network device (virtio 1.3, section 5.1).

mod announce;
mod content;
mod frames;
mod hostile;
mod link;
mod offloads;

use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use wherry_devices::virtio::mmio::regs::offset;
use wherry_devices::virtio::net::constants::*;

use crate::conformance::virtio::Driver;
use crate::conformance::{Bench, RAM};
use crate::driver::{Buf, inb, out};
use crate::wire::Wire;

/// Memory that no ring is in, to the end of RAM.
const FROM: u64 = 0xC_0000;
const END: u64 = 1 << 20;

/// A machine and its driver.
struct Guest {
    bench: Bench,
    driver: Driver,
    wire: Wire,
}

impl Guest {
    /// With a driver that takes all features.
    fn up() -> Self {
        Self::up_on(Wire::new(), u64::MAX)
    }

    /// With a driver that takes these.
    fn up_on(wire: Wire, features: u64) -> Self {
        let bench = Bench::with_net(wire.clone(), &[0; RAM], None).unwrap();
        bench.devices.resume();
        let mut guest = Self { bench, driver: Driver::default(), wire };
        guest.probe_for(features);
        guest
    }

    /// Its driver comes up, and takes these features.
    fn probe_for(&mut self, features: u64) {
        self.driver.refuse = !features;
        self.driver.probe(&self.bench);
        self.bench.run();
    }

    /// Elsewhere, on this network; not running yet.
    fn moved_to(&self, wire: Wire) -> Self {
        let (saved, ram) = self.bench.save();
        let bench = Bench::with_net(wire.clone(), &ram[..RAM], Some(&saved)).unwrap();
        bench.devices.after_restore().unwrap();
        Self { bench, driver: self.driver.clone(), wire }
    }

    /// Makes a chain available. Returns its head.
    fn add(&mut self, queue: usize, bufs: &[Buf]) -> u32 {
        let head = self.driver.chain(&self.bench, queue, bufs).unwrap();
        self.bench.run();
        head
    }

    fn used(&mut self) -> Vec<(usize, u32, u32)> {
        self.driver.take_used(&self.bench)
    }

    /// A frame from the guest, in one piece. It must come back.
    fn transmit(&mut self, frame: &[u8]) {
        self.put(FROM, frame);
        let head = self.add(TX, &[out(FROM, frame.len() as u32)]);
        assert_eq!(self.used(), [(TX, head, 0)]);
    }

    /// What becomes of a command.
    fn command(&mut self, bytes: &[u8]) -> u8 {
        self.put(FROM, bytes);
        self.put(END - 1, &[0x77]);
        let head = self.add(CTRL, &[out(FROM, bytes.len() as u32), inb(END - 1, 1)]);
        assert_eq!(self.used(), [(CTRL, head, 1)]);
        self.get(END - 1, 1)[0]
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.bench.mem.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.bench.mem.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// Status in config space.
    fn status(&self) -> u16 {
        self.bench.read(offset::CONFIG + 6, 2) as u16
    }

    fn pause(&self) {
        self.bench.devices.pause(Instant::now() + Duration::from_secs(60)).unwrap();
    }

    fn resume(&mut self) {
        self.bench.devices.resume();
        self.bench.run();
    }

    /// Runs until it is so.
    fn run_until(&mut self, what: &str, so: impl Fn(&Self) -> bool) {
        let patience = Instant::now() + Duration::from_secs(60);
        while !so(self) {
            assert!(Instant::now() < patience, "{what}");
            std::thread::sleep(Duration::from_millis(1));
            self.bench.run();
        }
    }
}

/// A frame of `len` bytes behind its header, unlike others.
fn frame(len: usize, seed: u8) -> Vec<u8> {
    let mut frame = vec![0; HEADER];
    frame.extend((0..len).map(|nth| (nth as u8).wrapping_mul(31).wrapping_add(seed)));
    frame
}

/// As the driver gets it.
fn got(mut frame: Vec<u8>, chains: u16) -> Vec<u8> {
    frame[NUM_BUFFERS..HEADER].copy_from_slice(&chains.to_le_bytes());
    frame
}
