//! What others learned from their bugs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use event_manager::{EventManager, SubscriberOps};
use wherry_devices::virtio::balloon::HintRange;
use wherry_devices::virtio::balloon::constants::*;

use crate::driver::*;

#[test]
fn done_never_sent_after_a_failed_migration() {
    let mut rig = Rig::default_up();
    let failing = |rig: &mut Rig| -> Result<(), &'static str> {
        let _guard = rig.balloon.done_guard();
        rig.start_hinting();
        rig.hint(FREE, 4096);
        Err("connection lost")
    };
    assert!(failing(&mut rig).is_err());
    assert_eq!(rig.config(CONFIG_CMD_ID), CMD_DONE);
    assert_eq!(rig.start_hinting().0, 3, "a second attempt works");
}

#[test]
fn hinting_restarted_by_replaying_an_id() {
    let mut rig = Rig::default_up();
    let (id, sink) = rig.start_hinting();
    rig.balloon.hint_done();
    for replay in [id, id + 1, CMD_DONE, CMD_STOP, id] {
        rig.command(replay);
        rig.hint(FREE, 4096);
    }
    assert!(sink.take().is_empty());
    assert_eq!(rig.config(CONFIG_CMD_ID), CMD_DONE);
}

#[test]
fn only_the_first_segment_of_a_hint_used() {
    let mut rig = Rig::default_up();
    let (_, sink) = rig.start_hinting();
    rig.send(Rig::HINT, &[inb(FREE, 4096), inb(FREE + 2 * PAGE, 4096), inb(HIGH, 4096)]);
    assert_eq!(sink.take().len(), 3);
}

#[test]
fn wrong_used_length() {
    let mut rig = Rig::default_up();
    let (id, _) = rig.start_hinting();
    let at = rig.buffer(&id.to_le_bytes());
    let pfns = rig.buffer(&words(&[pfn(FREE)]));
    // `send` asserts length 0.
    rig.send(Rig::HINT, &[out(at, 4), inb(FREE, 4 << 20)]);
    rig.send(Rig::REPORT, &[inb(FREE, 2 << 20)]);
    rig.send(Rig::INFLATE, &[out(pfns, 4)]);
    rig.send(Rig::DEFLATE, &[out(pfns, 4)]);
}

#[test]
fn segfault_without_an_io_thread() {
    // Everything before there is an event loop, a driver, or a queue.
    let rig = Rig::cold(Default::default());
    let balloon = &rig.balloon;
    balloon.hint_stop();
    balloon.hint_done();
    assert!(balloon.hint_start(Sink::new()).is_err());
    balloon.set_target(1);
    assert!(!balloon.request_stats());
    balloon.set_paused(true);
    balloon.set_paused(false);
    (0..8).for_each(|q| assert!(!balloon.device().patient().process_queue(q)));
    assert_eq!(rig.interrupts(), 0, "no interrupt without DRIVER_OK");
}

struct Slow(AtomicU64);
impl HintRange for Slow {
    fn range(&self, _gpa: u64, _len: u64) {
        std::thread::sleep(Duration::from_millis(1));
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Hints are passed on without waiting for anybody else's lock, and while they flow, registers and
/// `hint_stop` wait for one short batch at most. After `hint_stop` not one more call reaches the
/// sink.
#[test]
fn hints_blocked_behind_the_senders_mutex() {
    // The hint under way and one begun between the two calls may go first. A busy machine may keep
    // the waiter from running, and with an ordinary lock it is seldom that lucky, so some attempts
    // of many have to be good.
    let mut attempts = Vec::new();
    let fair = |attempts: &[(u64, Duration)]| {
        attempts.iter().filter(|(calls, _)| *calls <= 2).count() >= 3
    };
    while !fair(&attempts) && attempts.len() < 30 {
        attempts.push(hints_before_a_waiter());
    }
    assert!(
        fair(&attempts),
        "hints that went before a waiter, and how long it waited: {attempts:?}"
    );
}

fn hints_before_a_waiter() -> (u64, Duration) {
    let mut rig = Rig::default_up();
    let sink = Arc::new(Slow(AtomicU64::new(0)));
    let id = rig.balloon.hint_start(sink.clone()).unwrap();
    rig.command(id);
    for n in 0..120u64 {
        rig.add(Rig::HINT, &[inb(FREE + n * PAGE, 4096)]);
    }
    let (balloon, stop) = (rig.balloon.clone(), Arc::new(AtomicBool::new(false)));
    let stopped = stop.clone();
    let event_loop = std::thread::spawn(move || {
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(balloon.subscriber());
        while !stopped.load(Ordering::SeqCst) {
            events.run_with_timeout(5).unwrap();
        }
    });
    rig.kick(Rig::HINT);
    while sink.0.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    let (started, before) = (Instant::now(), sink.0.load(Ordering::SeqCst));
    rig.config(CONFIG_NUM_PAGES);
    rig.balloon.hint_stop();
    let took = started.elapsed();
    let calls = sink.0.load(Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(sink.0.load(Ordering::SeqCst), calls, "a hint after the epoch was closed");
    stop.store(true, Ordering::SeqCst);
    event_loop.join().unwrap();
    (calls - before, took)
}

#[test]
fn command_told_from_pages_by_length_4() {
    let mut rig = Rig::default_up();
    let (id, sink) = rig.start_hinting();
    let at = rig.buffer(&CMD_STOP.to_le_bytes());
    rig.hint(at, 4);
    rig.hint(FREE, 4096);
    assert_eq!(sink.take(), vec![(FREE, PAGE)], "4 writable bytes holding 0 are not STOP");
    assert!(!rig.balloon.hint_finished());
    assert_eq!(rig.config(CONFIG_CMD_ID), id);
}

#[test]
fn pausing_vcpus_did_not_stop_the_balloon_loop() {
    let mut rig = Rig::default_up();
    let (_, sink) = rig.start_hinting();
    for n in 0..64 {
        rig.add(Rig::HINT, &[inb(FREE + n * PAGE, 4096)]);
        rig.add(Rig::REPORT, &[inb(HIGH + n * PAGE, 4096)]);
    }
    rig.kick(Rig::HINT);
    rig.kick(Rig::REPORT);
    rig.balloon.set_paused(true);
    let before = rig.balloon.state();
    rig.run();
    assert_eq!(rig.balloon.state(), before);
    assert!(
        sink.take().is_empty() && rig.host.take().is_empty(),
        "no holes are punched during a snapshot"
    );
    rig.balloon.set_paused(false);
    rig.run();
    assert_eq!((sink.take().len(), rig.host.take().len()), (64, 64));
}

#[test]
fn stats_crash_when_tags_grew() {
    let mut rig = Rig::default_up();
    let entries: Vec<(u16, u64)> = (0..100).map(|tag| (tag, 1)).collect();
    let at = rig.buffer(&stats_bytes(&entries));
    rig.add(Rig::STATS, &[out(at, 1000)]);
    rig.kick(Rig::STATS);
    rig.run();
    assert_eq!(rig.balloon.stats().values.len(), 16);
    assert_eq!(rig.balloon.telemetry().stats_malformed, 0);
}

#[test]
fn page_range_underflow_on_deflate() {
    let mut rig = Rig::default_up();
    rig.deflate(&[pfn(FREE), 0, u32::MAX]);
    rig.inflate(&[pfn(FREE), pfn(FREE)]);
    rig.deflate(&[pfn(FREE), pfn(FREE)]);
    let t = rig.balloon.telemetry();
    assert_eq!((t.ballooned_pages, t.inflated_pages, t.deflated_pages), (0, 1, 1));
}

#[test]
fn reported_range_not_clamped_to_its_region() {
    let mut rig = Rig::default_up();
    rig.send(Rig::REPORT, &[inb(RAM - 2 * PAGE, u32::MAX)]);
    rig.send(Rig::REPORT, &[inb(HIGH - PAGE, 4 * 4096)]);
    assert_eq!(rig.host.take(), vec![(RAM - 2 * PAGE, 2 * PAGE)]);
}
