//! The block device (virtio 1.3, section 5.2).

pub mod disks;
mod file;
mod hostile;
mod model;
mod pause;
mod requests;

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};
use wherry_devices::virtio::blk::{Disk, DiskOptions};

use crate::conformance::virtio::Driver;
use crate::conformance::{Bench, RAM};
use crate::driver::{Buf, inb, out};
use disks::{MemDisk, SECTORS};

/// Where tests put headers, data, and what is answered. No ring is there.
pub const HEADER: u64 = 0xC_0000;
pub const DATA: u64 = 0xD_0000;
pub const STATUS: u64 = 0xC_8000;
/// No answer.
pub const NONE: u8 = 0xee;

/// A machine whose driver is up.
pub struct Rig {
    pub bench: Bench,
    pub driver: Driver,
    pub disk: Arc<MemDisk>,
    next: u64,
}

impl Rig {
    pub fn new(options: &DiskOptions, disk: Arc<MemDisk>) -> Self {
        Self::on(options, disk.clone(), disk)
    }

    /// A disk around the one that is looked at.
    pub fn on(options: &DiskOptions, around: Arc<dyn Disk>, disk: Arc<MemDisk>) -> Self {
        let mut bench = Bench::with_disk(options, around, disk.clone(), &[0; RAM], None).unwrap();
        bench.devices.resume();
        let mut driver = Driver::default();
        driver.probe(&bench);
        bench.run();
        Self { bench, driver, disk, next: 0 }
    }

    /// The usual one, with numbered bytes on it.
    pub fn usual() -> Self {
        let content = (0..SECTORS * 512).map(|n| (n / 512 + n) as u8).collect();
        Self::new(&disks::options(), MemDisk::shared(content))
    }

    /// Writes a header. Returns it and a place for the answer.
    pub fn header(&mut self, kind: u32, sector: u64) -> (Buf, Buf) {
        let (at, status) = (HEADER + self.next * 64, STATUS + self.next);
        self.next = (self.next + 1) % 64;
        let header = [u64::from(kind), sector].map(u64::to_le_bytes).concat();
        self.bench.mem.write_slice(&header, GuestAddress(at)).unwrap();
        self.bench.mem.write_obj(NONE, GuestAddress(status)).unwrap();
        (out(at, 16), inb(status, 1))
    }

    /// Sends a request with this data. Returns where the answer will be.
    pub fn send(&mut self, kind: u32, sector: u64, data: &[Buf]) -> u64 {
        let (header, answer) = self.header(kind, sector);
        let bufs = [&[header], data, &[answer]].concat();
        self.driver.chain(&self.bench, 0, &bufs).unwrap();
        answer.0
    }

    pub fn status(&self, at: u64) -> u8 {
        self.bench.mem.read_obj(GuestAddress(at)).unwrap()
    }

    /// The answer to a request.
    pub fn ask(&mut self, kind: u32, sector: u64, data: &[Buf]) -> u8 {
        let at = self.send(kind, sector, data);
        self.bench.run();
        assert_eq!(self.driver.take_used(&self.bench).len(), 1);
        self.status(at)
    }

    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.bench.mem.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.bench.mem.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// Turns the event loop until there is nothing for it to do, whatever is in flight.
    pub fn turn(&mut self) {
        while self.bench.turn() {}
    }
}

/// A range as requests have it.
pub fn range(sector: u64, nr: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &nr.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn a_disk_that_is_not_as_described_is_refused_by_name() {
    let refused = |change: &dyn Fn(&mut DiskOptions), disk: MemDisk| {
        let mut options = disks::options();
        change(&mut options);
        let disk = Arc::new(disk);
        let built = Bench::with_disk(&options, disk.clone(), disk, &[0; RAM], None);
        let error = built.map(drop).unwrap_err();
        assert_eq!(error.to_string(), "cannot build `disk0` (virtio-blk)");
        std::error::Error::source(&error).unwrap().to_string()
    };
    let disk = || MemDisk::new(vec![0; SECTORS as usize * 512]);
    let only = MemDisk { read_only: true, ..disk() };
    let text = "the disk can only be read, the description says that it is written";
    assert_eq!(refused(&|_| {}, only), text);
    let text = "the disk has 64 sectors, the description says 72";
    assert_eq!(refused(&|o| o.sectors = 72, disk()), text);
    for sectors in [0, 1 << 55, u64::MAX] {
        let text = format!("a disk of {sectors} sectors is impossible");
        assert_eq!(refused(&|o| o.sectors = sectors, disk()), text);
    }
    for size in [0, 256, 513, 8192, u32::MAX] {
        let text = format!("its blocks cannot have {size} bytes");
        assert_eq!(refused(&|o| o.block_size = size, disk()), text);
    }
    let text = "its serial number has 21 bytes, and 20 at most";
    assert_eq!(refused(&|o| o.serial = "x".repeat(21), disk()), text);
    let direct = MemDisk { align: 4096, ..MemDisk::new(vec![0; 63 * 512]) };
    let text = "its size is no multiple of 4096 bytes, which direct access needs";
    assert_eq!(refused(&|o| o.sectors = 63, direct), text);
}
