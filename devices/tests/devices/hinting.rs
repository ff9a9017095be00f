//! H: free page hinting.

use std::sync::Arc;
use std::time::{Duration, Instant};

use wherry_devices::virtio::balloon::constants::*;
use wherry_devices::virtio::balloon::{BalloonConfig, HintError};
use wherry_devices::virtio::mmio::regs::{INT_CONFIG, offset};

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
fn h4_after_stop_hints_are_stale_and_the_sink_is_gone() {
    let mut rig = Rig::default_up();
    let (id, sink) = rig.start_hinting();
    let edges = rig.interrupts();
    rig.balloon.hint_stop();
    assert_eq!(rig.interrupts(), edges + 1);
    assert_eq!(Arc::strong_count(&sink), 1);
    rig.hint(FREE, BLOCK);
    rig.command(id);
    rig.hint(FREE, BLOCK);
    assert!(sink.take().is_empty());
    assert_eq!(rig.balloon.telemetry().hints_stale, 2);
    rig.used(Rig::HINT);
    let edges = rig.interrupts();
    rig.balloon.hint_stop();
    assert_eq!(rig.interrupts(), edges, "idempotent");
    assert_eq!(rig.config(CONFIG_CMD_ID), CMD_STOP);
}

#[test]
fn h4_a_resting_drivers_hints_count_until_its_stop_and_it_goes_on_under_a_new_id() {
    let mut rig = Rig::default_up();
    let (id, sink) = rig.start_hinting();
    rig.command(id);
    rig.balloon.hint_rest();
    assert_eq!(rig.config(CONFIG_CMD_ID), CMD_STOP);
    rig.hint(FREE, BLOCK);
    assert_eq!(sink.take().len(), 1, "on its way when the driver was asked to rest");
    assert!(!rig.balloon.hint_rested());
    rig.command(CMD_STOP);
    assert!(rig.balloon.hint_rested() && !rig.balloon.hint_finished());
    rig.hint(FREE, BLOCK);
    assert!(sink.take().is_empty(), "after its STOP nothing counts");

    let next = Sink::new();
    let id = rig.balloon.hint_start(next.clone()).unwrap();
    rig.command(id);
    rig.hint(FREE, BLOCK);
    assert_eq!(next.take().len(), 1);
    rig.command(CMD_STOP);
    assert!(rig.balloon.hint_finished());
    rig.balloon.hint_rest();
    assert_eq!(rig.config(CONFIG_CMD_ID), id, "a driver that is through has nothing to rest from");
}

#[test]
fn a_driver_that_reads_done_while_it_hints_has_stopped_when_it_says_so() {
    let mut rig = Rig::default_up();
    let id = rig.balloon.hint_start(Sink::new()).unwrap();
    rig.balloon.hint_done();
    assert!(rig.balloon.hint_rested(), "it never read the id");
    let (next, _sink) = rig.start_hinting();
    assert!(next > id && rig.config(CONFIG_CMD_ID) == next);
    rig.balloon.hint_done();
    assert_eq!(rig.config(CONFIG_CMD_ID), CMD_DONE);
    assert!(!rig.balloon.hint_rested(), "it read DONE between two blocks");
    rig.command(next);
    rig.hint(FREE, BLOCK);
    assert!(!rig.balloon.hint_rested());
    rig.command(CMD_STOP);
    assert!(rig.balloon.hint_rested());

    let (id, _sink) = rig.start_hinting();
    rig.command(id);
    rig.command(CMD_STOP);
    rig.balloon.hint_done();
    assert!(rig.balloon.hint_rested(), "it was through");
}

/// Linux reads the field when its work begins and again for the id to announce.
#[test]
fn a_driver_that_has_read_the_id_is_not_asked_to_rest_before_it_has_announced_it() {
    let mut rig = Rig::default_up();
    let sink = Sink::new();
    let id = rig.balloon.hint_start(sink.clone()).unwrap();
    assert!(!rig.balloon.hint_rest());
    assert_eq!(rig.config(CONFIG_CMD_ID), id);
    let told = rig.interrupts();
    assert!(!rig.balloon.hint_rest() && rig.interrupts() == told);
    // STOP would be its id now, and all that it has would be named under it.
    let announced = rig.config(CONFIG_CMD_ID);
    rig.command(announced);
    rig.hint(FREE, BLOCK);
    assert_eq!(sink.take().len(), 1);
    assert!(rig.balloon.hint_rest());
    assert_eq!(rig.config(CONFIG_CMD_ID), CMD_STOP);
}

#[test]
fn a_driver_cannot_miss_done_when_it_has_looked_twice() {
    let mut rig = Rig::default_up();
    assert!(rig.balloon.hint_returned(), "nothing to return");
    rig.start_hinting();
    rig.command(CMD_STOP);
    rig.balloon.hint_done();
    let told = rig.interrupts();
    assert!(!rig.balloon.hint_returned() && rig.interrupts() == told, "it has not looked");
    assert_eq!(rig.config(CONFIG_CMD_ID), CMD_DONE);
    assert!(!rig.balloon.hint_returned());
    assert_eq!(rig.interrupts(), told + 1, "it is told to look again, once");
    assert!(!rig.balloon.hint_returned() && rig.interrupts() == told + 1);
    assert_eq!(rig.config(CONFIG_CMD_ID), CMD_DONE);
    assert!(rig.balloon.hint_returned() && rig.balloon.hint_returned());
    // The next time it begins anew.
    rig.start_hinting();
    rig.balloon.hint_done();
    rig.config(CONFIG_CMD_ID);
    assert!(!rig.balloon.hint_returned());
    rig.w32(offset::STATUS, 0);
    assert!(rig.balloon.hint_returned(), "a driver that is gone holds nothing");
}

#[test]
fn a_driver_that_hints_has_not_come_to_done_however_often_it_looks() {
    // It hints under the id, and stops; or it takes DONE itself for the id to hint under, and
    // stops when it has no more.
    for takes_done_for_an_id in [false, true] {
        let mut rig = Rig::default_up();
        let sink = Sink::new();
        let id = rig.balloon.hint_start(sink.clone()).unwrap();
        assert_eq!(rig.config(CONFIG_CMD_ID), id);
        if takes_done_for_an_id {
            rig.balloon.hint_done();
            let announced = rig.config(CONFIG_CMD_ID);
            assert!(!rig.balloon.hint_returned(), "one look says nothing");
            // In its queue before it looks between two blocks, and not yet taken from there.
            let at = rig.buffer(&announced.to_le_bytes());
            rig.add(Rig::HINT, &[out(at, 4)]);
        } else {
            rig.command(id);
            rig.balloon.hint_done();
        }
        for _ in 0..5 {
            assert_eq!(rig.config(CONFIG_CMD_ID), CMD_DONE);
            assert!(!rig.balloon.hint_returned(), "an id: {takes_done_for_an_id}");
            rig.used(Rig::HINT);
            rig.hint(FREE, BLOCK);
        }
        assert!(sink.take().is_empty());
        rig.command(CMD_STOP);
        let told = rig.interrupts();
        assert!(!rig.balloon.hint_returned(), "its look may have been before");
        assert_eq!(rig.interrupts(), told + 1);
        assert_eq!(rig.config(CONFIG_CMD_ID), CMD_DONE);
        assert!(rig.balloon.hint_returned());
    }
}

#[test]
fn h4_stop_closes_the_epoch_of_a_resting_driver_too() {
    let mut rig = Rig::default_up();
    let (id, sink) = rig.start_hinting();
    rig.command(id);
    rig.balloon.hint_rest();
    rig.balloon.hint_stop();
    assert_eq!(Arc::strong_count(&sink), 1);
    rig.hint(FREE, BLOCK);
    assert!(sink.take().is_empty());
}

#[test]
fn h7_done_comes_by_guard_even_through_a_panic() {
    let mut rig = Rig::default_up();
    {
        let _guard = rig.balloon.done_guard();
        rig.start_hinting();
    }
    assert_eq!(rig.config(CONFIG_CMD_ID), CMD_DONE);
    let balloon = rig.balloon.clone();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _guard = balloon.done_guard();
        balloon.hint_start(Sink::new()).unwrap();
        std::panic::resume_unwind(Box::new("the migration failed"));
    }));
    assert!(result.is_err());
    assert_eq!(rig.config(CONFIG_CMD_ID), CMD_DONE);
}

#[test]
fn h7_done_is_idempotent_works_after_stop_and_while_paused() {
    let mut rig = Rig::default_up();
    let edges = rig.interrupts();
    rig.balloon.hint_done();
    assert_eq!(
        (rig.interrupts(), rig.config(CONFIG_CMD_ID)),
        (edges, CMD_STOP),
        "no id, nothing owed"
    );
    rig.start_hinting();
    rig.balloon.hint_stop();
    rig.balloon.set_paused(true);
    let edges = rig.interrupts();
    rig.balloon.hint_done();
    rig.balloon.hint_done();
    assert_eq!(rig.interrupts(), edges + 1);
    assert_eq!(rig.balloon.state().device.hinting.field, CMD_DONE);
    assert_eq!(rig.r32(offset::INTERRUPT_STATUS) & INT_CONFIG, INT_CONFIG);
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
        assert_eq!(sink.take(), expected, "{gpa:#x} {len:#x}");
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
fn finished_means_stop_for_the_current_id() {
    let mut rig = Rig::default_up();
    rig.command(CMD_STOP);
    let (_, _sink) = rig.start_hinting();
    assert!(!rig.balloon.hint_finished());
    rig.command(CMD_STOP);
    assert!(rig.balloon.hint_finished());
    rig.balloon.hint_start(Sink::new()).unwrap();
    assert!(!rig.balloon.hint_finished());
    // The driver's STOP for the round before arrives late.
    rig.command(CMD_STOP);
    assert!(!rig.balloon.hint_finished());
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
