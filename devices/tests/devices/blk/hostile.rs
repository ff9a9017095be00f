//! Requests that nobody in their right mind sends.

use wherry_devices::virtio::blk::request::{kind, status};
use wherry_devices::virtio::blk::{MAX_DISCARD, MAX_ZEROES};
use wherry_devices::virtio::mmio::regs::{self, offset};

use super::disks::SECTORS;
use super::{DATA, NONE, Rig, STATUS, range};
use crate::conformance::RAM;
use crate::driver::{Buf, inb, out};

const END: u64 = RAM as u64;

/// The device is as well as ever, and the disk was not touched.
fn unharmed(mut rig: Rig) {
    assert!(rig.disk.calls().is_empty());
    assert_eq!(rig.ask(kind::IN, 1, &[inb(DATA, 512)]), status::OK);
    let status = rig.bench.read(offset::STATUS, 4) as u32;
    assert_eq!(status & regs::status::NEEDS_RESET, 0);
}

#[test]
fn what_is_unknown_is_unsupported_and_never_a_read() {
    let mut rig = Rig::usual();
    for kind in [2, 3, 5, 6, 7, 9, 10, 12, 14, 16, 24, 1 << 31, 1 << 16, u32::MAX] {
        assert_eq!(rig.ask(kind, 0, &[inb(DATA, 512)]), status::UNSUPP, "{kind}");
    }
    assert_eq!(rig.get(DATA, 512), [0; 512]);
    unharmed(rig);
}

#[test]
fn no_sector_outside_is_reached() {
    let mut rig = Rig::usual();
    let sectors = [SECTORS, SECTORS - 1, u64::MAX, u64::MAX / 512, (u64::MAX / 512) + 1, 1 << 55];
    for sector in sectors {
        assert_eq!(rig.ask(kind::IN, sector, &[inb(DATA, 1024)]), status::IOERR, "{sector:#x}");
        assert_eq!(rig.ask(kind::OUT, sector, &[out(DATA, 1024)]), status::IOERR, "{sector:#x}");
        for kind in [kind::DISCARD, kind::WRITE_ZEROES] {
            rig.put(DATA, &range(sector, 2, 0));
            assert_eq!(rig.ask(kind, 0, &[out(DATA, 16)]), status::IOERR, "{sector:#x}");
        }
    }
    unharmed(rig);
}

#[test]
fn parts_of_sectors_are_refused() {
    let mut rig = Rig::usual();
    for len in [1, 511, 513, 1023] {
        assert_eq!(rig.ask(kind::IN, 0, &[inb(DATA, len)]), status::IOERR);
        assert_eq!(rig.ask(kind::OUT, 0, &[out(DATA, len)]), status::IOERR);
    }
    unharmed(rig);
}

#[test]
fn ranges_are_bounded_in_number_length_and_flags() {
    let mut rig = Rig::usual();
    let cases = [
        (kind::DISCARD, range(0, 1, 1), status::UNSUPP),
        (kind::DISCARD, range(0, MAX_DISCARD + 1, 0), status::IOERR),
        (kind::DISCARD, range(0, u32::MAX, 0), status::IOERR),
        (kind::WRITE_ZEROES, range(0, 1, 2), status::UNSUPP),
        (kind::WRITE_ZEROES, range(0, 1, u32::MAX), status::UNSUPP),
        (kind::WRITE_ZEROES, range(0, MAX_ZEROES + 1, 1), status::IOERR),
        (kind::DISCARD, [range(0, 1, 0), range(SECTORS, 1, 0)].concat(), status::IOERR),
        (kind::DISCARD, range(0, 1, 0).repeat(17), status::IOERR),
        (kind::DISCARD, range(0, 1, 0)[..15].to_vec(), status::IOERR),
        (kind::DISCARD, Vec::new(), status::IOERR),
    ];
    for (nr, (kind, bytes, want)) in cases.into_iter().enumerate() {
        rig.put(DATA, &bytes);
        assert_eq!(rig.ask(kind, 0, &[out(DATA, bytes.len() as u32)]), want, "case {nr}");
    }
    // Lengths that the memory behind them does not have.
    assert_eq!(rig.ask(kind::DISCARD, 0, &[out(DATA, u32::MAX - 511)]), status::IOERR);
    // A chain of more than 4 GiB is none.
    let huge = [out(DATA, u32::MAX), out(DATA, u32::MAX)];
    assert_eq!(rig.ask(kind::DISCARD, 0, &huge), NONE);
    unharmed(rig);
}

#[test]
fn memory_that_is_not_there_is_not_touched() {
    let mut rig = Rig::usual();
    for at in [END, END - 511, u64::MAX - 511, u64::MAX, 1 << 40] {
        assert_eq!(rig.ask(kind::IN, 0, &[inb(at, 512)]), status::IOERR, "{at:#x}");
        assert_eq!(rig.ask(kind::OUT, 0, &[out(at, 512)]), status::IOERR, "{at:#x}");
        assert_eq!(rig.ask(kind::GET_ID, 0, &[inb(at, 512)]), status::IOERR, "{at:#x}");
        assert_eq!(rig.ask(kind::DISCARD, 0, &[out(at, 512)]), status::IOERR, "{at:#x}");
    }
    assert_eq!(rig.ask(kind::IN, 0, &[inb(DATA, u32::MAX - 511)]), status::IOERR);
    assert_eq!(rig.ask(kind::OUT, 0, &[out(DATA, u32::MAX - 511)]), status::IOERR);
    unharmed(rig);
}

#[test]
fn chains_without_a_header_or_a_place_for_the_answer_come_back() {
    let mut rig = Rig::usual();
    let (header, answer) = rig.header(kind::IN, 0);
    let used = |rig: &mut Rig, bufs: &[Buf]| {
        rig.driver.chain(&rig.bench, 0, bufs).unwrap();
        rig.bench.run();
        let used = rig.driver.take_used(&rig.bench);
        assert_eq!(used.len(), 1);
        used[0].2
    };
    assert_eq!(used(&mut rig, &[header]), 0);
    assert_eq!(used(&mut rig, &[header, inb(DATA, 0)]), 0);
    assert_eq!(used(&mut rig, &[header, inb(END, 1)]), 0);
    assert_eq!(used(&mut rig, &[header, inb(u64::MAX, 2)]), 0);
    assert_eq!(rig.status(answer.0), NONE);
    assert_eq!(used(&mut rig, &[answer]), 1);
    assert_eq!(rig.status(answer.0), status::IOERR);
    assert_eq!(used(&mut rig, &[out(header.0, 15), inb(STATUS, 1)]), 1);
    assert_eq!(rig.status(STATUS), status::IOERR);
    assert_eq!(used(&mut rig, &[out(END - 8, 16), answer]), 1);
    unharmed(rig);
}

#[test]
fn chains_that_loop_or_are_too_long_come_back() {
    let mut rig = Rig::usual();
    let (header, answer) = rig.header(kind::IN, 0);
    let long = [&[header][..], &vec![inb(DATA, 0); 255], &[answer]].concat();
    rig.driver.indirect(&rig.bench, DATA, &long).unwrap();
    rig.driver.loop_chain(&rig.bench, header);
    rig.bench.run();
    let used: Vec<_> = rig.driver.take_used(&rig.bench).iter().map(|used| used.2).collect();
    assert_eq!(used, [0, 0]);
    assert_eq!(rig.status(answer.0), NONE);
    // As many as there may be.
    rig.driver.indirect(&rig.bench, DATA, &long[1..]).unwrap();
    rig.bench.run();
    assert_eq!(rig.driver.take_used(&rig.bench)[0].2, 1);
    unharmed(rig);
}
