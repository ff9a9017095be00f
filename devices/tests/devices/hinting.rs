//! H: free page hinting.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use wherry_devices::virtio::balloon::constants::*;
use wherry_devices::virtio::balloon::{BalloonConfig, HintError, HintRange};
use wherry_devices::virtio::mmio::regs::offset;

use crate::driver::*;

const BLOCK: u32 = 4 << 20;
const LEN: u64 = BLOCK as u64;

#[test]
fn h1_field_is_stop_at_first_and_ids_start_at_2() {
    let mut rig = Rig::default_up();
    assert_eq!(rig.config(CONFIG_CMD_ID), CMD_STOP);
    let (id, _) = rig.start_hinting();
    assert_eq!(id, 2);
    rig.balloon.hint_stop();
    assert_eq!(rig.config(CONFIG_CMD_ID), CMD_STOP);
    rig.balloon.hint_done();
    assert_eq!(rig.config(CONFIG_CMD_ID), CMD_DONE);
}

#[test]
fn h1_the_driver_cannot_announce_done() {
    let mut rig = Rig::default_up();
    let (_, sink) = rig.start_hinting();
    rig.command(CMD_DONE);
    rig.hint(FREE, BLOCK);
    assert!(sink.take().is_empty());
    assert_eq!(rig.balloon.telemetry().hints_malformed, 1);
}

/// A machine whose next id would be the one after `last_id`.
fn with_last_id(last_id: u32, stop_seen: bool) -> Rig {
    let rig = Rig::default_up();
    rig.balloon.set_paused(true);
    let mut state = rig.balloon.state();
    state.device.hinting.last_id = last_id;
    state.device.hinting.stop_seen = stop_seen;
    let mut rig = rig.move_to(&state).unwrap();
    rig.balloon.set_paused(false);
    rig.run();
    rig
}

#[test]
fn h2_ids_wrap_to_2_and_only_if_the_driver_has_sent_stop() {
    let mut rig = with_last_id(u32::MAX - 1, false);
    assert_eq!(rig.start_hinting().0, u32::MAX);
    assert_eq!(rig.balloon.hint_start(Sink::new()), Err(HintError::NoId));
    rig.command(CMD_STOP);
    assert_eq!(rig.start_hinting().0, 2);
    assert_eq!(with_last_id(u32::MAX, true).start_hinting().0, 2);
}

#[test]
fn h2_ids_are_not_reused_after_reset_or_done() {
    let mut rig = Rig::default_up();
    assert_eq!(rig.start_hinting().0, 2);
    rig.balloon.hint_done();
    assert_eq!(rig.start_hinting().0, 3);
    rig.probe(u64::MAX);
    assert_eq!(rig.start_hinting().0, 4);
}

#[test]
fn h3_pages_count_only_under_the_fields_current_id() {
    let mut rig = Rig::default_up();
    let sink = Sink::new();
    let id = rig.balloon.hint_start(sink.clone()).unwrap();
    rig.hint(FREE, BLOCK);
    rig.command(id + 1);
    rig.hint(FREE, BLOCK);
    assert!(sink.take().is_empty());
    assert_eq!(rig.balloon.telemetry().hints_stale, 2);
    assert_eq!(rig.balloon.telemetry().ids_stale, 1);
    rig.command(id);
    rig.hint(FREE, BLOCK);
    assert_eq!(sink.take(), vec![(FREE, LEN)]);
}

#[test]
fn h3_the_field_shows_the_active_id_while_hinting_runs() {
    let mut rig = Rig::default_up();
    let (id, sink) = rig.start_hinting();
    rig.balloon.set_target(5);
    assert_eq!(rig.config(CONFIG_CMD_ID), id, "another config interrupt must not end hinting");
    rig.hint(FREE, BLOCK);
    rig.command(CMD_STOP);
    assert_eq!(rig.config(CONFIG_CMD_ID), id);
    assert_eq!(sink.take().len(), 1);
}

#[test]
fn h3_an_id_announced_before_its_publication_does_not_count() {
    let mut rig = Rig::default_up();
    rig.command(2);
    let sink = Sink::new();
    assert_eq!(rig.balloon.hint_start(sink.clone()), Ok(2));
    rig.hint(FREE, BLOCK);
    assert!(sink.take().is_empty());
}

#[test]
fn h3_hints_that_are_under_way_when_the_round_changes_do_not_count_in_the_next() {
    for stop_between in [false, true] {
        let mut rig = Rig::default_up();
        let (_, first) = rig.start_hinting();
        rig.add(Rig::HINT, &[inb(FREE, BLOCK)]);
        rig.kick(Rig::HINT);
        if stop_between {
            rig.balloon.hint_stop();
        }
        let second = Sink::new();
        rig.balloon.hint_start(second.clone()).unwrap();
        rig.run();
        assert!(first.take().is_empty() && second.take().is_empty());
        assert_eq!(rig.balloon.telemetry().hints_stale, 1);
    }
}

#[test]
fn h8_command_and_pages_told_apart_by_direction() {
    let mut rig = Rig::default_up();
    let sink = Sink::new();
    let id = rig.balloon.hint_start(sink.clone()).unwrap();
    let at = rig.buffer(&id.to_le_bytes());
    // A device-writable buffer of 4 bytes is no command, whatever is in it.
    rig.hint(at, 4);
    rig.hint(FREE, BLOCK);
    assert!(sink.take().is_empty());
    // A device-readable buffer of any other length is no command either, and no pages.
    for len in [0, 1, 3, 5, 8, 4096] {
        rig.send(Rig::HINT, &[out(at, len)]);
    }
    rig.hint(FREE, BLOCK);
    assert!(sink.take().is_empty());
    assert_eq!(rig.balloon.telemetry().hints_malformed, 7);
    rig.send(Rig::HINT, &[out(at, 4)]);
    rig.hint(FREE, BLOCK);
    assert_eq!(sink.take(), vec![(FREE, LEN)]);
}

#[test]
fn h8_every_descriptor_of_a_chain_is_used() {
    let mut rig = Rig::default_up();
    let sink = Sink::new();
    let id = rig.balloon.hint_start(sink.clone()).unwrap();
    let (start, stop) = (rig.buffer(&id.to_le_bytes()), rig.buffer(&CMD_STOP.to_le_bytes()));
    let bufs = [out(start, 4), inb(FREE, 4096), inb(HIGH, 8192), out(stop, 4)];
    rig.send(Rig::HINT, &bufs);
    assert_eq!(sink.take(), vec![(FREE, PAGE), (HIGH, 2 * PAGE)]);
    assert!(rig.balloon.hint_finished());
}

#[test]
fn h10_any_number_of_segments_of_any_size_direct_or_indirect() {
    let mut rig = Rig::default_up();
    let (_, sink) = rig.start_hinting();
    let bufs: Vec<Buf> =
        (0..100u32).map(|n| inb(FREE + u64::from(n) * 8 * PAGE, (n % 4 + 1) * 4096)).collect();
    let expected: Vec<_> = bufs.iter().map(|b| (b.0, u64::from(b.1))).collect();
    rig.send(Rig::HINT, &bufs);
    assert_eq!(sink.take(), expected);
    rig.add_indirect(Rig::HINT, &bufs);
    rig.kick(Rig::HINT);
    rig.run();
    assert_eq!(sink.take(), expected);
    assert_eq!(rig.balloon.telemetry().hints_dropped, 0);
}

/// A sink that has enough after so many hints.
struct Enough(Sink, usize);
impl HintRange for Enough {
    fn range(&self, gpa: u64, len: u64) {
        self.0.range(gpa, len);
    }
    fn enough(&self) -> bool {
        self.0.0.lock().unwrap().len() >= self.1
    }
}

#[test]
fn h4_a_driver_of_which_no_more_is_wanted_is_asked_to_rest_at_once() {
    let mut rig = Rig::default_up();
    let sink = Arc::new(Enough(Sink::default(), 2));
    let id = rig.balloon.hint_start(sink.clone()).unwrap();
    rig.command(id);
    rig.hint(FREE, BLOCK);
    assert_eq!(rig.config(CONFIG_CMD_ID), id);
    let told = rig.interrupts();
    rig.hint(FREE + LEN, BLOCK);
    assert_eq!(rig.config(CONFIG_CMD_ID), CMD_STOP);
    // For the chain, and for config space.
    assert_eq!(rig.interrupts(), told + 2);
    // What it hints before it looks still counts, and it is told once.
    rig.hint(FREE + 2 * LEN, BLOCK);
    assert_eq!(rig.interrupts(), told + 3);
    assert_eq!(sink.0.take().len(), 3);
    assert!(!rig.balloon.hint_rested());
    rig.command(CMD_STOP);
    assert!(rig.balloon.hint_rested() && !rig.balloon.hint_finished());
}

/// Ranges of which one ends where the next begins are one.
fn joined(ranges: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let parts = ranges.chunk_by(|a, b| a.0 + a.1 == b.0);
    parts.map(|part| (part[0].0, part.iter().map(|(_, len)| len).sum())).collect()
}

/// Hints each of which takes a while.
struct Slow(Arc<Host>, Sink);
impl HintRange for Slow {
    fn range(&self, gpa: u64, len: u64) {
        self.0.clock.fetch_add(3, Ordering::SeqCst);
        self.1.range(gpa, len);
    }
}

#[test]
fn h10_a_chain_is_given_up_when_its_time_is_up_even_in_the_middle_of_a_hint() {
    let mut rig = Rig::default_up();
    let sink = Arc::new(Slow(rig.host.clone(), Sink::default()));
    let id = rig.balloon.hint_start(sink.clone()).unwrap();
    rig.command(id);
    // The registers of whoever waits for the lock come after two blocks, whatever was named.
    rig.send(Rig::HINT, &[inb(HIGH, 4 * BLOCK), inb(HIGH, BLOCK)]);
    assert_eq!(sink.1.take(), [(HIGH, LEN), (HIGH + LEN, LEN)]);
    let told = rig.balloon.telemetry();
    assert_eq!((told.hints_received, told.hinted_bytes, told.hints_dropped), (1, 2 * LEN, 2));
    rig.hint(FREE, BLOCK);
    assert_eq!(sink.1.take(), [(FREE, LEN)], "the next one has its own");
}

#[test]
fn h10_hints_are_clipped_to_ram_and_shrunk_to_whole_pages() {
    let mut rig = Rig::default_up();
    let (_, sink) = rig.start_hinting();
    for (gpa, len, expected) in [
        (FREE + 1, 3 * 4096, vec![(FREE + PAGE, 2 * PAGE)]),
        (FREE + 1, 4096, vec![]),
        (FREE, 4095, vec![]),
        (RAM - PAGE, 3 * 4096, vec![(RAM - PAGE, PAGE)]),
        (HIGH - PAGE, 2 * 4096, vec![(HIGH, PAGE)]),
        (RAM - PAGE, u32::MAX, vec![(RAM - PAGE, PAGE), (HIGH, RAM - 2 * PAGE)]),
        (u64::MAX - 4096, BLOCK, vec![]),
        (2 << 30, BLOCK, vec![]),
    ] {
        rig.hint(gpa, len);
        assert_eq!(joined(&sink.take()), expected, "{gpa:#x} {len:#x}");
    }
}

#[test]
fn h12_each_round_gets_a_new_id_and_a_config_interrupt() {
    let mut rig = Rig::default_up();
    for round in 0..5 {
        let (edges, generation) = (rig.interrupts(), rig.r32(offset::CONFIG_GENERATION));
        let (id, sink) = rig.start_hinting();
        assert_eq!(id, 2 + round);
        assert!(rig.interrupts() > edges);
        assert_ne!(rig.r32(offset::CONFIG_GENERATION), generation);
        rig.hint(FREE, BLOCK);
        assert_eq!(sink.take(), vec![(FREE, LEN)]);
        rig.balloon.hint_stop();
        rig.command(CMD_STOP);
    }
}

#[test]
fn h12_whether_the_driver_has_read_the_id_is_known() {
    let rig = Rig::default_up();
    rig.balloon.hint_start(Sink::new()).unwrap();
    assert!(!rig.balloon.hint_id_seen());
    assert!(!rig.balloon.wait_id_seen(Duration::from_millis(1)));
    rig.config(CONFIG_NUM_PAGES);
    rig.config(CONFIG_POISON);
    assert!(!rig.balloon.hint_id_seen());
    // Half the field is not the field.
    rig.bus.lock().unwrap().read(offset::CONFIG + CONFIG_CMD_ID, &mut [0; 2]);
    assert!(!rig.balloon.hint_id_seen());
    rig.bus.lock().unwrap().read(offset::CONFIG + CONFIG_CMD_ID + 2, &mut [0; 2]);
    assert!(rig.balloon.hint_id_seen());
    for publish in [|r: &Rig| r.balloon.hint_stop(), |r: &Rig| r.balloon.hint_done()] {
        publish(&rig);
        assert!(!rig.balloon.hint_id_seen());
        rig.config(CONFIG_CMD_ID);
        assert!(rig.balloon.wait_id_seen(Duration::ZERO));
    }
}

#[test]
fn h12_waiting_for_the_read_ends_at_once_when_it_comes_or_the_driver_goes() {
    for driver_reads in [true, false] {
        let rig = Rig::default_up();
        rig.balloon.hint_start(Sink::new()).unwrap();
        let (balloon, bus) = (rig.balloon.clone(), rig.bus.clone());
        let waiter = std::thread::spawn(move || {
            let started = Instant::now();
            (balloon.wait_id_seen(Duration::from_secs(60)), started.elapsed())
        });
        std::thread::sleep(Duration::from_millis(20));
        if driver_reads {
            bus.lock().unwrap().read(offset::CONFIG + CONFIG_CMD_ID, &mut [0; 4]);
        } else {
            bus.lock().unwrap().write(offset::STATUS, &[0; 4]);
        }
        let (seen, took) = waiter.join().unwrap();
        assert_eq!(seen, driver_reads);
        assert!(took < Duration::from_secs(30));
    }
}

#[test]
fn h13_nothing_is_consumed_while_paused_and_no_kick_is_lost() {
    let mut rig = Rig::default_up();
    let (_, sink) = rig.start_hinting();
    rig.balloon.set_paused(true);
    assert!(!rig.balloon.hints_available(), "nobody waits for a driver that stands still");
    rig.add(Rig::HINT, &[inb(FREE, BLOCK)]);
    rig.kick(Rig::HINT);
    rig.run();
    let at = rig.buffer(&words(&[pfn(FREE)]));
    rig.add(Rig::INFLATE, &[out(at, 4)]);
    rig.kick(Rig::INFLATE);
    rig.run();
    assert!(sink.take().is_empty() && rig.host.take().is_empty());
    assert!(rig.used(Rig::HINT).is_empty());
    rig.balloon.set_paused(false);
    rig.run();
    assert_eq!(sink.take(), vec![(FREE, LEN)]);
    assert_eq!(rig.host.take(), vec![(FREE, PAGE)]);
}

#[test]
fn h14_device_reset_means_stop_and_drops_the_sink() {
    let mut rig = Rig::default_up();
    let (id, sink) = rig.start_hinting();
    rig.w32(offset::STATUS, 0);
    assert_eq!(Arc::strong_count(&sink), 1);
    assert_eq!(rig.config(CONFIG_CMD_ID), CMD_STOP);
    assert!(!rig.balloon.hints_available());
    assert_eq!(rig.balloon.hint_start(Sink::new()), Err(HintError::NotAvailable));
    rig.probe(u64::MAX);
    rig.command(id);
    rig.hint(FREE, BLOCK);
    assert!(sink.take().is_empty());
    rig.balloon.hint_done();
    assert_eq!(rig.config(CONFIG_CMD_ID), CMD_STOP, "the new driver owes nothing");
}

#[test]
fn h15_a_stale_or_replayed_id_does_not_restart_hinting() {
    let mut rig = Rig::default_up();
    let (first, _) = rig.start_hinting();
    rig.balloon.hint_stop();
    let (id, sink) = rig.start_hinting();
    rig.command(first);
    rig.hint(FREE, BLOCK);
    assert!(sink.take().is_empty());
    rig.command(id);
    rig.command(CMD_STOP);
    assert!(rig.balloon.hint_finished());
    rig.command(id);
    rig.hint(FREE, BLOCK);
    assert!(sink.take().is_empty());
    assert_eq!(rig.balloon.telemetry().ids_replayed, 1);
}

#[test]
fn h15_a_wrong_id_before_stop_does_not_let_the_right_one_be_replayed() {
    for resting in [false, true] {
        let mut rig = Rig::default_up();
        let (id, sink) = rig.start_hinting();
        if resting {
            rig.balloon.hint_rest();
        }
        rig.command(id + 1000);
        rig.hint(FREE, BLOCK);
        rig.command(CMD_STOP);
        rig.command(id);
        rig.hint(FREE, BLOCK);
        assert!(sink.take().is_empty(), "resting: {resting}");
        assert_eq!((rig.balloon.hint_finished(), rig.balloon.hint_rested()), (!resting, true));
    }
}

#[test]
fn hinting_needs_the_feature_and_a_driver() {
    let rig = Rig::new(BalloonConfig { hinting: false, ..BalloonConfig::default() });
    assert!(!rig.balloon.hints_available());
    assert_eq!(rig.balloon.hint_start(Sink::new()), Err(HintError::NotAvailable));
    let mut rig = Rig::cold(BalloonConfig::default());
    assert!(!rig.balloon.hints_available());
    rig.probe(!F_FREE_PAGE_HINT);
    assert!(!rig.balloon.hints_available());
}
