//! Pauses, moves and resets with requests on their way.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use wherry_codec::{decode, encode};
use wherry_devices::device::Saved;
use wherry_devices::virtio::blk::request::{kind, status};
use wherry_devices::virtio::blk::{BlkStateV1, DEPTH, DiskError, KeptV1, Limits, Throttled};
use wherry_devices::virtio::mmio::VirtioStateV1;
use wherry_devices::virtio::mmio::regs::offset;

use super::disks::{Call, MemDisk, options};
use super::{DATA, NONE, Rig, range};
use crate::conformance::Bench;
use crate::conformance::virtio::w32;
use crate::driver::{inb, out};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Requests that a saved device has still to do.
fn kept(saved: &Saved) -> Vec<KeptV1> {
    decode::<VirtioStateV1<BlkStateV1>>(&saved.bytes).unwrap().device.kept
}

/// The same guest and the same disk elsewhere.
fn moved(rig: Rig, saved: &Saved, ram: &[u8]) -> Rig {
    let ram = &ram[..crate::conformance::RAM];
    let disk = rig.disk.clone();
    let bench = Bench::with_disk(&options(), disk.clone(), disk, ram, Some(saved)).unwrap();
    bench.devices.after_restore().unwrap();
    Rig { bench, ..rig }
}

#[test]
fn a_pause_waits_for_the_disk() {
    let mut rig = Rig::usual();
    rig.disk.hold(true);
    let answer = rig.send(kind::IN, 3, &[inb(DATA, 512)]);
    rig.turn();
    rig.disk.wait_held(1);
    std::thread::scope(|scope| {
        let disk = &rig.disk;
        scope.spawn(|| disk.hold(false));
        rig.bench.devices.pause(soon()).unwrap();
    });
    assert_eq!(rig.status(answer), status::OK);
    assert_eq!(rig.get(DATA, 512), rig.disk.bytes()[3 * 512..][..512]);
    assert_eq!(rig.driver.take_used(&rig.bench).len(), 1, "before the event loop");
    assert_eq!(kept(&rig.bench.save().0), []);
}

#[test]
fn a_pause_waits_for_one_piece_of_a_large_request_and_all_of_it_is_done_again() {
    let mut rig = Rig::usual();
    rig.disk.hold(true);
    rig.put(DATA, &[range(1, 1, 0), range(3, 1, 0)].concat());
    let answer = rig.send(kind::WRITE_ZEROES, 0, &[out(DATA, 32)]);
    rig.turn();
    rig.disk.wait_held(1);
    let before = rig.disk.hurries();
    std::thread::scope(|scope| {
        let disk = &rig.disk;
        scope.spawn(move || {
            while disk.hurries() == before {
                std::thread::yield_now();
            }
            disk.hold(false);
        });
        rig.bench.devices.pause(soon()).unwrap();
    });
    assert_eq!(kept(&rig.bench.save().0).len(), 1, "the pause waited for the second range");
    assert_eq!(rig.disk.calls().len(), 1);
    rig.bench.devices.resume();
    rig.bench.run();
    assert_eq!(rig.status(answer), status::OK);
    assert_eq!(rig.disk.calls().len(), 2, "both, from the beginning");
}

#[test]
fn a_disk_that_hangs_fails_the_pause_and_the_guest_goes_on() {
    let mut rig = Rig::usual();
    rig.disk.hold(true);
    // Four are with the disk, the fifth waits for one of them.
    let answers: Vec<_> = (0..5).map(|n| rig.send(kind::IN, n, &[inb(DATA, 512)])).collect();
    rig.turn();
    rig.disk.wait_held(4);
    let busy = rig.bench.devices.pause(Instant::now()).unwrap_err();
    assert_eq!(busy, "device `disk0`: 4 requests are still in flight");
    rig.disk.hold(false);
    rig.bench.run();
    assert_eq!(rig.driver.take_used(&rig.bench).len(), 5);
    assert!(answers.iter().all(|at| rig.status(*at) == status::OK));
}

/// A flush cannot be cut into pieces, nor be put off once it has begun.
#[test]
fn a_flush_that_hangs_fails_the_pause_in_time_and_the_guest_goes_on() {
    let mut rig = Rig::usual();
    rig.disk.hold(true);
    let flush = rig.send(kind::FLUSH, 0, &[]);
    rig.turn();
    rig.disk.wait_held(1);
    let busy = rig.bench.devices.pause(Instant::now()).unwrap_err();
    assert!(busy.contains("still in flight"), "{busy}");
    // It is still held: the guest has its vCPUs and the rest of its queue.
    let read = rig.send(kind::IN, 0, &[inb(DATA, 512)]);
    rig.turn();
    rig.disk.wait_held(2);
    assert_eq!([rig.status(flush), rig.status(read)], [NONE; 2]);
    rig.disk.hold(false);
    rig.bench.run();
    assert_eq!([rig.status(flush), rig.status(read)], [status::OK; 2]);
    rig.bench.devices.pause(soon()).unwrap();
}

/// A pause gave up waiting, and what it put off comes back when nobody is in a hurry any more.
#[test]
fn what_is_put_off_too_late_is_done_all_the_same() {
    let mut rig = Rig::usual();
    rig.disk.hold(true);
    let answer = rig.send(kind::IN, 3, &[inb(DATA, 512)]);
    rig.turn();
    rig.disk.wait_held(1);
    rig.bench.devices.pause(Instant::now()).unwrap_err();
    let first = AtomicBool::new(true);
    rig.disk.before(move |_| match first.swap(false, Ordering::SeqCst) {
        true => Err(DiskError::PutOff),
        false => Ok(()),
    });
    rig.disk.hold(false);
    rig.bench.run();
    assert_eq!(rig.status(answer), status::OK);
    assert_eq!(rig.get(DATA, 512), rig.disk.bytes()[3 * 512..][..512]);
    assert_eq!(rig.driver.take_used(&rig.bench).len(), 1);
}

#[test]
fn what_has_not_begun_goes_along_and_is_done_once_where_it_arrives() {
    let mut rig = Rig::usual();
    rig.disk.hold(true);
    rig.put(DATA, &[0x66; 512]);
    let answers: Vec<_> = (0..6).map(|n| rig.send(kind::OUT, n, &[out(DATA, 512)])).collect();
    rig.turn();
    rig.disk.wait_held(4);
    rig.bench.devices.pause(Instant::now()).unwrap_err();
    let disk = rig.disk.clone();
    let hurries = disk.hurries();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The pause has put off what no worker has: only then may the workers go on.
            while disk.hurries() == hurries {
                std::thread::yield_now();
            }
            disk.hold(false);
        });
        rig.bench.devices.pause(soon()).unwrap();
    });
    let (saved, ram) = rig.bench.save();
    let undone: Vec<_> = kept(&saved).iter().map(|kept| kept.descs.len()).collect();
    assert_eq!(undone, [3, 3]);
    assert_eq!(answers.iter().filter(|at| rig.status(**at) == NONE).count(), 2);
    assert_eq!(disk.calls().len(), 4);
    let mut there = moved(rig, &saved, &ram);
    assert!(there.bench.save() == (saved, ram), "on arrival");
    there.bench.devices.resume();
    there.bench.run();
    assert_eq!(there.driver.take_used(&there.bench).len(), 6);
    assert!(answers.iter().all(|at| there.status(*at) == status::OK));
    assert_eq!(disk.calls().len(), 2);
    assert_eq!(disk.bytes()[..6 * 512], [0x66; 6 * 512]);
}

#[test]
fn a_request_that_waits_for_its_turn_does_not_hold_up_a_pause() {
    let disk = MemDisk::shared(vec![3; 64 * 512]);
    // The first goes at once, the next ones long after the pause has given up.
    let limits = Limits { bytes: NonZeroU64::new(1), ops: None };
    let throttled = Arc::new(Throttled::new(disk.clone(), limits));
    let mut rig = Rig::on(&options(), throttled, disk.clone());
    let answers: Vec<_> = (0..20).map(|n| rig.send(kind::IN, n, &[inb(DATA, 512)])).collect();
    rig.turn();
    rig.bench.devices.pause(soon()).unwrap();
    let (saved, ram) = rig.bench.save();
    let done = answers.iter().filter(|at| rig.status(**at) == status::OK).count();
    assert_eq!(kept(&saved).len() + done, 20, "none is lost");
    assert!(done < 20, "they did not wait");
    let mut there = moved(rig, &saved, &ram);
    there.bench.devices.resume();
    there.bench.run();
    assert_eq!(there.driver.take_used(&there.bench).len(), 20);
    assert!(answers.iter().all(|at| there.status(*at) == status::OK));
    assert_eq!(disk.calls().len(), 20, "each once");
}

/// A disk whose host has no room for writes, and a machine that is paused for it, or not.
fn full(pauses: bool) -> Rig {
    let rig = Rig::usual();
    rig.bench.notes.pauses.store(pauses, Ordering::SeqCst);
    rig.disk.before(|call| match call {
        Call::Write | Call::Zero(_) => Err(DiskError::Full),
        _ => Ok(()),
    });
    rig
}

#[test]
fn a_write_without_room_fails_if_nobody_pauses_the_machine() {
    let mut rig = full(false);
    assert_eq!(rig.ask(kind::OUT, 3, &[out(DATA, 512)]), status::IOERR);
    rig.put(DATA, &super::range(3, 1, 0));
    assert_eq!(rig.ask(kind::WRITE_ZEROES, 0, &[out(DATA, 16)]), status::IOERR);
    assert_eq!(rig.bench.notes.told.load(Ordering::SeqCst), 2);
}

#[test]
fn a_write_without_room_is_kept_until_there_is_and_moves_along() {
    let mut rig = full(true);
    rig.put(DATA, &[0x42; 512]);
    let answer = rig.send(kind::OUT, 3, &[out(DATA, 512)]);
    rig.bench.run();
    assert_eq!((rig.status(answer), rig.bench.notes.told.load(Ordering::SeqCst)), (NONE, 1));
    // What does not need room goes on.
    assert_eq!(rig.ask(kind::IN, 1, &[inb(DATA + 512, 512)]), status::OK);
    assert_eq!(rig.disk.calls().len(), 2, "nobody tries again before the machine has paused");
    // Resumed too early: it is paused again.
    rig.bench.devices.pause(soon()).unwrap();
    rig.bench.devices.resume();
    rig.bench.run();
    assert_eq!((rig.status(answer), rig.bench.notes.told.load(Ordering::SeqCst)), (NONE, 2));
    let (saved, ram) = rig.bench.save();
    assert_eq!(kept(&saved).len(), 1);
    let mut there = moved(rig, &saved, &ram);
    there.disk.no_hooks();
    there.bench.devices.resume();
    there.bench.run();
    assert_eq!((there.status(answer), there.driver.take_used(&there.bench).len()), (0, 1));
    assert_eq!(there.disk.bytes()[3 * 512..][..512], [0x42; 512]);
    assert_eq!(kept(&there.bench.save().0), []);
}

#[test]
fn no_more_is_kept_than_there_is_room_for() {
    let mut rig = full(true);
    for n in 0..40 {
        rig.send(kind::OUT, n, &[out(DATA, 512)]);
    }
    rig.bench.run();
    assert_eq!(kept(&rig.bench.save().0).len(), DEPTH);
    rig.disk.no_hooks();
    rig.bench.devices.resume();
    rig.bench.run();
    assert_eq!(rig.driver.take_used(&rig.bench).len(), 40);
}

#[test]
fn a_driver_that_resets_or_stops_the_queue_has_its_memory_back() {
    for register in [offset::STATUS, offset::QUEUE_READY] {
        let mut rig = Rig::usual();
        rig.disk.hold(true);
        for n in 0..6 {
            rig.send(kind::IN, n, &[inb(DATA + n * 512, 512)]);
        }
        rig.turn();
        rig.disk.wait_held(4);
        w32(&rig.bench, offset::QUEUE_SEL, 0);
        w32(&rig.bench, register, 0);
        assert!(!rig.bench.settled());
        rig.disk.hold(false);
        while !rig.bench.settled() {
            std::thread::yield_now();
        }
        let was = rig.get(DATA, 6 * 512);
        rig.bench.run();
        // A pause and a resume do not bring back what the driver took back.
        assert_eq!(kept(&rig.bench.save().0), []);
        rig.bench.devices.resume();
        rig.bench.run();
        assert_eq!(rig.get(DATA, 6 * 512), was);
        assert_eq!(rig.disk.calls().len(), 4, "the others never began");
        rig.driver.probe(&rig.bench);
        assert_eq!(rig.ask(kind::IN, 1, &[inb(DATA, 512)]), status::OK);
    }
}

#[test]
fn a_driver_that_resets_takes_back_what_is_kept() {
    for register in [offset::STATUS, offset::QUEUE_READY] {
        let mut rig = full(true);
        rig.send(kind::OUT, 3, &[out(DATA, 512)]);
        rig.bench.run();
        w32(&rig.bench, offset::QUEUE_SEL, 0);
        w32(&rig.bench, register, 0);
        assert_eq!(kept(&rig.bench.save().0), []);
        rig.bench.devices.resume();
        rig.bench.run();
        assert_eq!(rig.disk.calls().len(), 1);
    }
}

#[test]
fn what_comes_back_undone_after_the_queue_was_stopped_is_not_kept() {
    let mut rig = full(true);
    rig.disk.hold(true);
    rig.send(kind::OUT, 3, &[out(DATA, 512)]);
    rig.turn();
    rig.disk.wait_held(1);
    w32(&rig.bench, offset::QUEUE_SEL, 0);
    w32(&rig.bench, offset::QUEUE_READY, 0);
    rig.disk.hold(false);
    let (saved, ram) = rig.bench.save();
    assert_eq!(kept(&saved), []);
    moved(rig, &saved, &ram);
}

#[test]
fn states_that_cannot_be_are_refused() {
    let mut rig = full(true);
    rig.send(kind::OUT, 3, &[out(DATA, 512)]);
    rig.bench.run();
    let (saved, ram) = rig.bench.save();
    type Spoil = fn(&mut VirtioStateV1<BlkStateV1>);
    let spoils: [Spoil; 6] = [
        |s| s.device.kept[0].head = 256,
        |s| s.device.kept[0].descs = vec![s.device.kept[0].descs[0]; 257],
        |s| s.device.kept = (0..33).map(|head| KeptV1 { head, descs: Vec::new() }).collect(),
        |s| s.mmio.queues[0].ready = false,
        |s| s.mmio.queues.clear(),
        |s| s.mmio.status &= !4,
    ];
    let restored = |state: &VirtioStateV1<BlkStateV1>| {
        let saved = Saved { bytes: encode(state).unwrap(), ..saved.clone() };
        let disk = rig.disk.clone();
        let ram = &ram[..crate::conformance::RAM];
        Bench::with_disk(&options(), disk.clone(), disk, ram, Some(&saved)).map(drop)
    };
    let state: VirtioStateV1<BlkStateV1> = decode(&saved.bytes).unwrap();
    restored(&state).unwrap();
    for (nr, spoil) in spoils.into_iter().enumerate() {
        let mut state = state.clone();
        spoil(&mut state);
        restored(&state).expect_err(&nr.to_string());
    }
    // A driver may make a chain available twice.
    let mut twice = state.clone();
    twice.device.kept.push(twice.device.kept[0].clone());
    restored(&twice).unwrap();
    // What makes no sense is answered as it is when it comes from the driver.
    let mut state = state;
    state.device.kept[0].descs.clear();
    restored(&state).unwrap();
}
