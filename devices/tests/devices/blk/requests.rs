//! What requests do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use vm_memory::bitmap::Bitmap as _;
use vm_memory::{GuestAddress, GuestMemoryBackend, MmapRegion};
use wherry_devices::virtio::blk::request::{kind, status};
use wherry_devices::virtio::blk::{DiskError, DiskOptions, feature};
use wherry_devices::virtio::mmio::regs::{self, offset};

use super::disks::{Call, MemDisk, SECTORS, options};
use super::{DATA, NONE, Rig, range};
use crate::conformance::virtio::{r32, w32};
use crate::driver::{Buf, PAGE, inb, out};

const BYTES: usize = SECTORS as usize * 512;

/// The workers are held up: who is answered was not with them.
#[test]
fn small_reads_of_what_is_in_memory_are_done_where_they_are_taken() {
    let content: Vec<u8> = (0..512 * 512).map(|n| (n / 512 + n) as u8).collect();
    let disk = Arc::new(MemDisk::new(content.clone()));
    disk.cached.store(400 * 512, Ordering::SeqCst);
    disk.hold(true);
    let mut rig = Rig::new(&DiskOptions { sectors: 512, ..options() }, disk.clone());
    let sent = |sector, pieces, to, rig: &mut Rig| {
        let answer = rig.send(kind::IN, sector, &vec![inb(to, 4096); pieces]);
        rig.turn();
        (rig.status(answer), rig.driver.take_used(&rig.bench).len())
    };
    assert_eq!(sent(392, 1, DATA, &mut rig), (status::OK, 1));
    assert!(rig.get(DATA, 4096) == content[392 * 512..400 * 512]);
    assert_eq!(sent(0, 32, DATA, &mut rig), (status::OK, 1));
    assert_eq!(disk.calls(), []);
    // One is too large, of one not all is in memory.
    assert_eq!(sent(0, 33, DATA, &mut rig), (NONE, 0));
    assert_eq!(sent(393, 1, DATA + PAGE, &mut rig), (NONE, 0));
    disk.wait_held(2);
    disk.hold(false);
    rig.bench.run();
    assert_eq!(rig.driver.take_used(&rig.bench).len(), 2);
    assert!(rig.get(DATA + PAGE, 4096) == content[393 * 512..401 * 512]);
}

/// The loop serves network and console, too: whatever a disk is asked for that hangs, it turns.
#[test]
fn the_event_loop_does_not_wait_for_a_disk() {
    // A loop that waits is let go: seen, not waited for.
    const PATIENCE: Duration = Duration::from_secs(30);
    let kinds = [kind::IN, kind::OUT, kind::FLUSH, kind::DISCARD, kind::WRITE_ZEROES];
    for first in kinds {
        let mut rig = Rig::usual();
        rig.disk.hold(true);
        let (disk, (turned, has_turned)) = (rig.disk.clone(), channel());
        let waited = std::thread::spawn(move || {
            let waited = has_turned.recv_timeout(PATIENCE).is_err();
            disk.hold(!waited);
            waited
        });
        rig.put(DATA, &range(1, 1, 0));
        let mut ask = |kind| match kind {
            kind::FLUSH => rig.send(kind, 0, &[]),
            kind::IN | kind::OUT => rig.send(kind, 3, &[Buf(DATA + PAGE, 512, kind == kind::IN)]),
            _ => rig.send(kind, 0, &[out(DATA, 16)]),
        };
        let answers: Vec<_> = [first].into_iter().chain(kinds).map(&mut ask).collect();
        rig.turn();
        let _ = turned.send(());
        assert!(!waited.join().unwrap(), "the loop waited for request {first}");
        rig.disk.wait_held(4);
        assert_eq!(rig.driver.take_used(&rig.bench), []);
        rig.disk.hold(false);
        rig.bench.run();
        assert_eq!(rig.driver.take_used(&rig.bench).len(), answers.len());
        assert!(answers.iter().all(|at| rig.status(*at) == status::OK));
    }
}

#[test]
fn reads_and_writes_are_where_they_should_be_and_nowhere_else() {
    let mut rig = Rig::usual();
    let mut want = rig.disk.bytes();
    let [a, b] = [inb(DATA, 700), inb(DATA + 2 * PAGE + 5, 836)];
    assert_eq!(rig.ask(kind::IN, 7, &[a, b]), status::OK);
    assert_eq!(rig.get(a.0, 700), want[7 * 512..][..700]);
    assert_eq!(rig.get(b.0, 836), want[7 * 512 + 700..][..836]);
    assert_eq!(rig.get(a.0 + 700, 100), [0; 100]);
    rig.put(DATA, &[0x77; 1024]);
    assert_eq!(rig.ask(kind::OUT, SECTORS - 2, &[out(DATA, 1), out(DATA + 1, 1023)]), status::OK);
    want[BYTES - 1024..].fill(0x77);
    assert!(rig.disk.bytes() == want);
    let calls = [(Call::Read, 7 * 512, 1536), (Call::Write, BYTES as u64 - 1024, 1024)];
    assert_eq!(rig.disk.calls(), calls);
}

#[test]
fn bytes_may_be_laid_out_in_any_way() {
    let mut rig = Rig::usual();
    let (Buf(header, ..), Buf(answer, ..)) = rig.header(kind::IN, 3);
    // The header in three parts, data and status in one.
    let bufs = [out(header, 1), out(header + 1, 0), out(header + 1, 15), inb(DATA, 513)];
    rig.driver.indirect(&rig.bench, DATA + PAGE, &bufs).unwrap();
    rig.bench.run();
    assert_eq!(rig.driver.take_used(&rig.bench)[0].2, 513);
    assert_eq!(rig.get(DATA, 512), rig.disk.bytes()[3 * 512..][..512]);
    assert_eq!((rig.status(DATA + 512), rig.status(answer)), (status::OK, super::NONE));
    // Header and data in one.
    let (header, answer) = rig.header(kind::OUT, 9);
    let whole = [rig.get(header.0, 16), vec![0xab; 512]].concat();
    rig.put(DATA, &whole);
    rig.driver.chain(&rig.bench, 0, &[out(DATA, 528), answer]).unwrap();
    rig.bench.run();
    assert_eq!(rig.status(answer.0), status::OK);
    assert_eq!(rig.disk.bytes()[9 * 512..][..512], [0xab; 512]);
}

#[test]
fn config_space_says_what_the_options_say() {
    let rig = Rig::usual();
    let config = |rig: &Rig, at: u64, len| rig.bench.read(offset::CONFIG + at, len);
    let fields = [(0, 8), (8, 4), (12, 4), (16, 4), (20, 4), (24, 1), (25, 1), (26, 2), (28, 4)];
    let got = fields.map(|(at, len)| config(&rig, at, len));
    assert_eq!(got, [SECTORS, 0, 254, 0, 512, 3, 0, 1, 0]);
    let fields = [(32, 1), (34, 2), (36, 4), (40, 4), (44, 4), (48, 4), (52, 4), (56, 1), (60, 8)];
    let got = fields.map(|(at, len)| config(&rig, at, len));
    assert_eq!(got, [0, 1, 2 << 20, 16, 8, 128 << 10, 16, 1, 0]);
    let only = DiskOptions { read_only: true, block_size: 4096, ..options() };
    let rig = Rig::new(&only, MemDisk::shared(Vec::new()));
    let got = fields.map(|(at, len)| config(&rig, at, len));
    assert_eq!((got, config(&rig, 24, 1)), ([0, 1, 0, 0, 0, 0, 0, 0, 0], 0));
}

#[test]
fn features_follow_from_the_options() {
    let offered = |options: &DiskOptions| {
        let rig = Rig::new(options, MemDisk::shared(Vec::new()));
        let half = |sel| {
            w32(&rig.bench, offset::DEVICE_FEATURES_SEL, sel);
            u64::from(r32(&rig.bench, offset::DEVICE_FEATURES))
        };
        half(1) << 32 | half(0)
    };
    let always = regs::F_VERSION_1
        | regs::F_EVENT_IDX
        | regs::F_INDIRECT_DESC
        | feature::SEG_MAX
        | feature::BLK_SIZE
        | feature::TOPOLOGY
        | feature::FLUSH;
    assert_eq!(offered(&options()), always | feature::DISCARD | feature::WRITE_ZEROES);
    let (discard, write_zeroes) = (false, false);
    assert_eq!(offered(&DiskOptions { discard, ..options() }), always | feature::WRITE_ZEROES);
    assert_eq!(offered(&DiskOptions { write_zeroes, ..options() }), always | feature::DISCARD);
    assert_eq!(offered(&DiskOptions { read_only: true, ..options() }), always | feature::RO);
}

#[test]
fn flushes_reach_the_disk_and_their_errors_the_driver() {
    let mut rig = Rig::usual();
    assert_eq!(rig.ask(kind::FLUSH, 0, &[]), status::OK);
    assert_eq!(rig.disk.calls(), [(Call::Flush, 0, 0)]);
    for error in [|| DiskError::Failed(std::io::Error::other("no")), || DiskError::Full] {
        rig.bench.notes.pauses.store(true, Ordering::SeqCst);
        rig.disk.before(move |_| Err(error()));
        assert_eq!(rig.ask(kind::FLUSH, 0, &[]), status::IOERR);
    }
    assert_eq!(rig.bench.notes.told.load(Ordering::SeqCst), 0, "it would not help");
}

#[test]
fn a_driver_that_does_not_flush_has_every_write_flushed() {
    let mut rig = Rig::usual();
    rig.driver.refuse = feature::FLUSH;
    rig.driver.probe(&rig.bench);
    assert_eq!(rig.ask(kind::OUT, 1, &[out(DATA, 512)]), status::OK);
    assert_eq!(rig.disk.calls(), [(Call::Write, 512, 512), (Call::Flush, 0, 0)]);
    rig.disk.before(|call| match call {
        Call::Flush => Err(DiskError::Failed(std::io::Error::other("no"))),
        _ => Ok(()),
    });
    assert_eq!(rig.ask(kind::OUT, 1, &[out(DATA, 512)]), status::IOERR);
    assert_eq!(rig.ask(kind::IN, 1, &[inb(DATA, 512)]), status::OK);
}

#[test]
fn the_id_is_the_serial_number_with_zeros() {
    let mut rig = Rig::usual();
    rig.put(DATA, &[9; 40]);
    assert_eq!(rig.ask(kind::GET_ID, 0, &[inb(DATA, 3), inb(DATA + 3, 30)]), status::OK);
    let want = [&b"usual"[..], &[0; 15], &[9; 20]].concat();
    assert_eq!(rig.get(DATA, 40), want);
    assert_eq!(rig.ask(kind::GET_ID, 0, &[inb(DATA + 64, 2)]), status::OK);
    assert_eq!(rig.get(DATA + 64, 3), b"us\0");
    assert!(rig.disk.calls().is_empty());
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    let mut rig = Rig::usual();
    rig.put(DATA, &[range(1, 2, 0), range(60, 4, 0)].concat());
    assert_eq!(rig.ask(kind::DISCARD, 0, &[out(DATA, 20), out(DATA + 20, 12)]), status::OK);
    let discards = [(Call::Discard, 512, 1024), (Call::Discard, 60 * 512, 2048)];
    assert_eq!(rig.disk.calls(), discards);
    rig.put(DATA, &[range(8, 1, 1), range(9, 1, 0)].concat());
    assert_eq!(rig.ask(kind::WRITE_ZEROES, 0, &[out(DATA, 32)]), status::OK);
    let zeros = [(Call::Zero(true), 8 * 512, 512), (Call::Zero(false), 9 * 512, 512)];
    assert_eq!(rig.disk.calls(), zeros);
}

#[test]
fn nothing_writes_to_a_disk_that_can_only_be_read() {
    let only = MemDisk { read_only: true, ..MemDisk::new(vec![5; BYTES]) };
    let mut rig = Rig::new(&DiskOptions { read_only: true, ..options() }, Arc::new(only));
    rig.put(DATA, &range(0, 1, 0));
    for kind in [kind::OUT, kind::DISCARD, kind::WRITE_ZEROES] {
        assert_eq!(rig.ask(kind, 0, &[out(DATA, if kind == kind::OUT { 512 } else { 16 })]), 1);
    }
    assert!(rig.disk.calls().is_empty());
    assert_eq!(rig.ask(kind::IN, 0, &[inb(DATA, 512)]), status::OK);
    assert_eq!(rig.ask(kind::FLUSH, 0, &[]), status::OK);
}

/// Which of these pages of data are marked since the last reset.
fn marked(rig: &Rig) -> Vec<u64> {
    let region = rig.bench.mem.find_region(GuestAddress(0)).unwrap();
    let bitmap = MmapRegion::bitmap(region);
    (0..16).filter(|page| bitmap.dirty_at((DATA + page * PAGE) as usize)).collect()
}

/// A migration takes what is marked in the moment when the disk has just written, or half of it:
/// whoever marked before has marked in vain.
#[test]
fn what_a_read_may_have_written_is_marked_after_it_was_whatever_came_of_it() {
    for half in [false, true] {
        let mut rig = Rig::usual();
        let (mem, harvests) = (rig.bench.mem.clone(), Arc::new(AtomicU64::new(0)));
        let harvested = harvests.clone();
        let harvest = move |call| {
            assert_eq!(call, Call::Read);
            let region = mem.find_region(GuestAddress(0)).unwrap();
            MmapRegion::bitmap(region).reset();
            harvested.fetch_add(1, Ordering::SeqCst);
            let failed = || DiskError::Failed(std::io::ErrorKind::UnexpectedEof.into());
            if half { Err(failed()) } else { Ok(()) }
        };
        rig.disk.after(harvest);
        let data = [inb(DATA + 3 * PAGE - 10, 20), inb(DATA + 9 * PAGE, 1004)];
        let answer = rig.ask(kind::IN, 2, &data);
        assert_eq!(answer, if half { status::IOERR } else { status::OK });
        assert_eq!((marked(&rig), harvests.load(Ordering::SeqCst)), (vec![2, 3, 9], 1));
    }
}

#[test]
fn what_is_written_out_is_not_marked() {
    let mut rig = Rig::usual();
    let region = rig.bench.mem.find_region(GuestAddress(0)).unwrap();
    MmapRegion::bitmap(region).reset();
    assert_eq!(rig.ask(kind::OUT, 2, &[out(DATA, 512), out(DATA + PAGE, 512)]), status::OK);
    assert!(marked(&rig).is_empty());
}

#[test]
fn requests_run_side_by_side_and_no_more_are_taken_than_there_is_room_for() {
    let mut rig = Rig::usual();
    rig.disk.hold(true);
    let answers: Vec<_> =
        (0..40).map(|n| rig.send(kind::IN, n, &[inb(DATA + n * 512, 512)])).collect();
    rig.turn();
    rig.disk.wait_held(4);
    assert!(rig.driver.take_used(&rig.bench).is_empty());
    rig.disk.hold(false);
    rig.bench.run();
    assert_eq!(rig.driver.take_used(&rig.bench).len(), 40);
    assert!(answers.iter().all(|at| rig.status(*at) == status::OK));
    assert_eq!(rig.get(DATA, 40 * 512), rig.disk.bytes()[..40 * 512]);
}

/// Two sectors of a block: each write reads the block and writes it back, and no other comes in
/// between.
#[test]
fn writes_within_a_block_do_not_undo_each_other() {
    let mut rig =
        Rig::new(&options(), Arc::new(MemDisk { align: 4096, ..MemDisk::new(vec![0; BYTES]) }));
    // Time for another to come in between.
    rig.disk.after(|_| {
        std::thread::sleep(std::time::Duration::from_millis(1));
        Ok(())
    });
    for sector in 0..8 {
        rig.put(DATA + sector * 512, &[1 + sector as u8; 512]);
        rig.send(kind::OUT, sector, &[out(DATA + sector * 512, 512)]);
    }
    rig.bench.run();
    assert_eq!(rig.disk.calls(), [(Call::Read, 0, 4096), (Call::Write, 0, 4096)].repeat(8));
    assert!(rig.disk.bytes()[..4096] == rig.get(DATA, 4096));
}
