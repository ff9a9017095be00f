//! Frames both ways.

use vm_memory::bitmap::Bitmap as _;
use vm_memory::{GuestAddress, GuestMemoryBackend, MmapRegion};

use super::*;
use crate::driver::PAGE;

#[test]
fn config_space_says_who_it_is_whatever_was_negotiated() {
    let wire = Wire::new();
    wire.seen().mtu = Some(1400);
    let bench = Bench::with_net(wire, &[0; RAM], None).unwrap();
    let config: Vec<u8> = (0..16).map(|at| bench.read(offset::CONFIG + at, 1) as u8).collect();
    let [m, n] = 1400u16.to_le_bytes();
    assert_eq!(config, [2, 0, 0, 0, 0, 9, 1, 0, 0, 0, m, n, 0, 0, 0, 0]);
    assert_eq!(bench.read(offset::CONFIG + u64::from(u32::MAX), 4), 0);
}

#[test]
fn a_frame_from_the_guest_is_sent_as_it_is() {
    let mut guest = Guest::up();
    let sent = frame(200, 1);
    guest.transmit(&sent);
    guest.put(FROM, &sent);
    let pieces = [out(FROM, 5), out(FROM + 5, 100), out(FROM + 105, 107), inb(FROM, 9)];
    let head = guest.add(TX, &pieces);
    assert_eq!(guest.used(), [(TX, head, 0)]);
    assert_eq!(guest.wire.take(), [sent.clone(), sent]);
}

#[test]
fn a_frame_to_the_guest_is_written_whole_and_marked_dirty() {
    let mut guest = Guest::up();
    let head = guest.add(RX, &[inb(FROM + PAGE - 20, 40), inb(FROM + 3 * PAGE, 2000)]);
    let mem = guest.bench.mem.clone();
    let bitmap = MmapRegion::bitmap(mem.find_region(GuestAddress(0)).unwrap());
    bitmap.reset();
    guest.wire.send(frame(100, 1));
    guest.bench.run();
    assert_eq!(guest.used(), [(RX, head, 112)]);
    let bytes = [guest.get(FROM + PAGE - 20, 40), guest.get(FROM + 3 * PAGE, 72)].concat();
    assert_eq!(bytes, got(frame(100, 1), 1));
    assert_eq!(guest.get(FROM + 3 * PAGE + 72, 1), [0]);
    let marked = (0..8).filter(|page| bitmap.dirty_at((FROM + page * PAGE) as usize));
    assert_eq!(marked.collect::<Vec<_>>(), [0, 1, 3]);
}

#[test]
fn a_frame_takes_as_many_chains_as_it_needs_and_the_driver_gets_them_together() {
    let mut guest = Guest::up();
    guest.wire.send(frame(250, 1));
    let first = guest.add(RX, &[inb(FROM, 11), inb(FROM + PAGE, 89)]);
    let second = guest.add(RX, &[inb(FROM + 2 * PAGE, 100)]);
    assert!(guest.used().is_empty() && !guest.bench.line.high(), "there is room for a part");
    assert!(guest.driver.is_awaited(&guest.bench, RX), "a driver kicks when it is wanted");
    assert_eq!(guest.wire.seen().reads, 1);
    let third = guest.add(RX, &[inb(FROM + 3 * PAGE, 100)]);
    let fourth = guest.add(RX, &[inb(FROM + 4 * PAGE, 100)]);
    // The driver wants to be told of the first of them.
    assert!(guest.bench.line.high());
    assert_eq!(guest.used(), [(RX, first, 100), (RX, second, 100), (RX, third, 62)]);
    let at = [(FROM, 11), (FROM + PAGE, 89), (FROM + 2 * PAGE, 100), (FROM + 3 * PAGE, 62)];
    let bytes = at.map(|(at, len)| guest.get(at, len)).concat();
    assert_eq!(bytes, got(frame(250, 1), 3));
    // The next one goes on behind it.
    guest.wire.send(frame(80, 2));
    guest.bench.run();
    assert_eq!(guest.used(), [(RX, fourth, 92)]);
    assert_eq!(guest.get(FROM + 4 * PAGE, 92), got(frame(80, 2), 1));
}

#[test]
fn the_longest_frame_fits_into_a_ring_of_pages() {
    let mut guest = Guest::up();
    let long = frame(MAX_FRAME - HEADER, 3);
    guest.wire.send(long.clone());
    for nth in 0..17 {
        guest.add(RX, &[inb(FROM + nth * PAGE, PAGE as u32)]);
    }
    assert_eq!(guest.used().len(), 17);
    assert!(guest.get(FROM, long.len()) == got(long, 17));
}

#[test]
fn without_room_nothing_is_read_and_a_kick_goes_on() {
    let mut guest = Guest::up();
    (1..=3).for_each(|nth| guest.wire.send(frame(60, nth)));
    guest.bench.run();
    assert_eq!(guest.wire.seen().reads, 0);
    for nth in 1..=3 {
        let head = guest.add(RX, &[inb(FROM, 100)]);
        assert_eq!(guest.used(), [(RX, head, 72)]);
        assert_eq!(guest.get(FROM, 72), got(frame(60, nth), 1));
        assert_eq!(guest.wire.seen().reads, u32::from(nth));
    }
    // Room first, then a frame.
    let head = guest.add(RX, &[inb(FROM, 100)]);
    assert!(guest.used().is_empty());
    guest.wire.send(frame(60, 4));
    guest.bench.run();
    assert_eq!(guest.used(), [(RX, head, 72)]);
}

#[test]
fn a_driver_that_wants_one_chain_for_a_frame_gets_no_frame_that_needs_more() {
    let mut guest = Guest::up_on(Wire::new(), !feature::MRG_RXBUF);
    let heads = [0, 1].map(|nth| guest.add(RX, &[inb(FROM + nth * PAGE, 100)]));
    guest.wire.send(frame(89, 1));
    guest.wire.send(frame(88, 2));
    guest.bench.run();
    assert_eq!(guest.used(), [(RX, heads[0], 100)]);
    assert_eq!(guest.get(FROM, 100), got(frame(88, 2), 1));
}

#[test]
fn a_paused_device_neither_reads_nor_writes() {
    let mut guest = Guest::up();
    let head = guest.add(RX, &[inb(FROM, 100)]);
    let reads = guest.wire.seen().reads;
    guest.pause();
    guest.wire.send(frame(60, 1));
    guest.put(FROM + PAGE, &frame(60, 2));
    guest.add(TX, &[out(FROM + PAGE, 72)]);
    assert_eq!((guest.wire.take().len(), guest.wire.seen().reads), (0, reads));
    // Where it arrives the other end is quiet until it runs.
    let there = Wire::new();
    there.send(frame(70, 3));
    let mut moved = guest.moved_to(there.clone());
    moved.bench.run();
    assert_eq!((there.take().len(), there.seen().reads), (0, 0));
    moved.resume();
    assert_eq!(there.take().last(), Some(&frame(60, 2)));
    assert_eq!(moved.used().iter().find(|used| used.0 == RX), Some(&(RX, head, 82)));
    assert_eq!((guest.wire.take().len(), guest.wire.seen().reads), (0, reads));
}
