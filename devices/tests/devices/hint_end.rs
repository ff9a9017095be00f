//! H: how free page hinting ends: STOP, a rest, DONE.

use std::sync::Arc;

use wherry_devices::virtio::balloon::constants::*;
use wherry_devices::virtio::mmio::regs::{INT_CONFIG, offset};

use crate::driver::*;

const BLOCK: u32 = 4 << 20;

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
