//! The entropy device (virtio 1.3, section 5.4).

use std::io::Read;

use vm_memory::bitmap::Bitmap as _;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, MmapRegion};
use wherry_devices::virtio::rng::{KIND, MAX_REQUEST, OsEntropy};

use crate::conformance::virtio::Driver;
use crate::conformance::{Bench, ENTROPY};
use crate::driver::{Buf, PAGE, inb, out};

/// Memory that no ring is in, to the end of RAM.
const FROM: u64 = 0xC_0000;
const END: u64 = 1 << 20;

fn up() -> (Bench, Driver) {
    let (mut bench, mut driver) = (Bench::new(&KIND), Driver::default());
    driver.probe(&bench);
    bench.run();
    (bench, driver)
}

/// Bytes that were said to be filled.
fn ask(bench: &mut Bench, driver: &mut Driver, bufs: &[Buf]) -> u32 {
    let head = driver.chain(bench, 0, bufs).unwrap();
    bench.run();
    let used = driver.take_used(bench);
    assert_eq!((used.len(), used[0].1), (1, head));
    used[0].2
}

fn filled(bench: &Bench, from: u64, len: usize) -> usize {
    let mut bytes = vec![0; len];
    bench.mem.read_slice(&mut bytes, GuestAddress(from)).unwrap();
    bytes.iter().filter(|byte| **byte == ENTROPY).count()
}

#[test]
fn what_the_device_may_write_is_filled_and_nothing_else() {
    let (mut bench, mut driver) = up();
    let bufs = [out(FROM, 64), inb(FROM + PAGE, 100), inb(FROM + 3 * PAGE - 10, 20)];
    assert_eq!(ask(&mut bench, &mut driver, &bufs), 120);
    assert_eq!(filled(&bench, FROM, (END - FROM) as usize), 120);
    assert_eq!(filled(&bench, FROM + PAGE, 100), 100);
    assert_eq!(filled(&bench, FROM + 3 * PAGE - 10, 20), 20);
}

#[test]
fn what_is_written_is_marked_dirty() {
    let (mut bench, mut driver) = up();
    let mem = bench.mem.clone();
    let region = mem.find_region(GuestAddress(0)).unwrap();
    MmapRegion::bitmap(region).reset();
    ask(&mut bench, &mut driver, &[inb(FROM + 3 * PAGE - 10, 20), inb(FROM + 9 * PAGE, 1)]);
    let marked = |page: u64| MmapRegion::bitmap(region).dirty_at((FROM + page * PAGE) as usize);
    assert_eq!((0..12).filter(|page| marked(*page)).collect::<Vec<_>>(), [2, 3, 9]);
}

#[test]
fn a_request_is_bounded_whatever_it_asks_for() {
    let (mut bench, mut driver) = up();
    let most = MAX_REQUEST as u32;
    assert_eq!(ask(&mut bench, &mut driver, &[inb(FROM, most + 1)]), most);
    assert_eq!(ask(&mut bench, &mut driver, &[inb(FROM, most - 5), inb(FROM, 90)]), most);
    assert_eq!(ask(&mut bench, &mut driver, &[inb(FROM, u32::MAX), inb(FROM, u32::MAX)]), most);
    assert_eq!(filled(&bench, FROM + u64::from(most), (END - FROM) as usize - MAX_REQUEST), 0);
}

#[test]
fn a_request_that_leaves_ram_ends_there() {
    let (mut bench, mut driver) = up();
    assert_eq!(ask(&mut bench, &mut driver, &[inb(FROM, 7), inb(END, 50), inb(FROM, 9)]), 7);
    assert_eq!(ask(&mut bench, &mut driver, &[inb(u64::MAX - 3, 50)]), 0);
    assert_eq!(ask(&mut bench, &mut driver, &[out(FROM, 50)]), 0);
    assert_eq!(ask(&mut bench, &mut driver, &[inb(FROM, 8)]), 8, "it goes on");
}

#[test]
fn the_host_gives_bytes_that_differ() {
    let mut source = OsEntropy;
    let mut bytes = [[0; 32]; 2];
    bytes.iter_mut().for_each(|b| source.read_exact(b).unwrap());
    assert_ne!(bytes[0], bytes[1]);
}
