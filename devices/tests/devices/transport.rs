//! The MMIO transport: negotiation, status, queues, interrupts.

use vm_memory::{Bytes, GuestAddress};
use wherry_devices::InterruptLine;
use wherry_devices::virtio::balloon::BalloonConfig;
use wherry_devices::virtio::mmio::regs::{
    F_EVENT_IDX, F_VERSION_1, INT_CONFIG, INT_VRING, offset, status,
};

use crate::driver::*;

fn cold() -> Rig {
    Rig::cold(BalloonConfig::default())
}

#[test]
fn features_ok_is_refused_without_version_1_or_with_bits_that_were_not_offered() {
    let rig = cold();
    assert!(!rig.negotiate(!F_VERSION_1));
    for features in [F_VERSION_1 | 1 << 6, F_VERSION_1 | 1 << 33, 0] {
        rig.w32(offset::STATUS, 0);
        rig.add_status(status::ACKNOWLEDGE);
        rig.add_status(status::DRIVER);
        rig.write_features(features);
        rig.add_status(status::FEATURES_OK);
        assert_eq!(rig.r32(offset::STATUS), status::ACKNOWLEDGE | status::DRIVER);
        rig.add_status(status::DRIVER_OK);
        assert_eq!(rig.r32(offset::STATUS) & status::DRIVER_OK, 0);
    }
    assert!(rig.negotiate(F_VERSION_1));
}

#[test]
fn status_bits_come_in_order_and_are_never_taken_back_singly() {
    let rig = cold();
    for early in
        [status::DRIVER, status::FEATURES_OK, status::DRIVER_OK, status::NEEDS_RESET, 1 << 20]
    {
        rig.w32(offset::STATUS, early);
        assert_eq!(rig.r32(offset::STATUS), 0, "{early}");
    }
    assert!(rig.negotiate(u64::MAX));
    rig.w32(offset::STATUS, status::ACKNOWLEDGE);
    assert_eq!(rig.r32(offset::STATUS), 11);
    rig.w32(offset::STATUS, 0);
    assert_eq!(rig.r32(offset::STATUS), 0);
}

#[test]
fn failed_ends_everything_until_reset() {
    let mut rig = Rig::default_up();
    rig.add_status(status::FAILED);
    assert!(!rig.balloon.live());
    let at = rig.buffer(&words(&[pfn(FREE)]));
    rig.add(Rig::INFLATE, &[out(at, 4)]);
    rig.kick(Rig::INFLATE);
    rig.run();
    assert!(rig.used(Rig::INFLATE).is_empty());
    rig.probe(u64::MAX);
    rig.inflate(&[pfn(FREE)]);
}

#[test]
fn registers_written_in_a_wrong_state_are_ignored() {
    let mut rig = Rig::default_up();
    let before = rig.balloon.state().mmio;
    rig.w32(offset::QUEUE_SEL, 0);
    rig.write_features(F_VERSION_1);
    rig.w32(offset::QUEUE_SIZE, 2);
    for at in (offset::QUEUE_DESC_LOW..=offset::QUEUE_DEVICE_HIGH).step_by(4) {
        rig.w32(at, 0);
    }
    rig.w32(offset::QUEUE_READY, 1);
    let mut after = rig.balloon.state().mmio;
    after.driver_features_sel = before.driver_features_sel;
    after.queue_sel = before.queue_sel;
    assert_eq!(after, before);
    rig.inflate(&[pfn(FREE)]);

    let rig = cold();
    let before = rig.balloon.state();
    rig.write_features(0);
    rig.w32(offset::QUEUE_SIZE, 2);
    rig.w32(offset::QUEUE_DESC_LOW, 0x1000);
    rig.w32(offset::QUEUE_READY, 1);
    assert_eq!(rig.balloon.state(), before);
}

#[test]
fn a_queue_outside_ram_does_not_become_ready() {
    let rig = cold();
    rig.negotiate(u64::MAX);
    rig.w32(offset::QUEUE_SEL, 0);
    for (desc, avail, used, size, ready) in [
        (0x1000, 0x4000, 0x8000, 128, 1),
        (RAM - 16, 0x4000, 0x8000, 128, 0),
        (0x1000, RAM - 2, 0x8000, 128, 0),
        (0x1000, 0x4000, RAM, 128, 0),
        (!15, 0x4000, 0x8000, 128, 0),
        (RAM - 32, 0x4000, 0x8000, 2, 1),
    ] {
        rig.w32(offset::QUEUE_READY, 0);
        rig.w32(offset::QUEUE_SIZE, size);
        for (at, addr) in [(0x80, desc), (0x90, avail), (0xa0, used)] {
            rig.w32(at, addr as u32);
            rig.w32(at + 4, (addr >> 32) as u32);
        }
        rig.w32(offset::QUEUE_READY, 1);
        assert_eq!(rig.r32(offset::QUEUE_READY), ready, "{desc:#x} {avail:#x} {used:#x}");
    }
    rig.w32(offset::QUEUE_READY, 0);
    for bad in [0, 3, 256, 0x1_0002, u32::MAX] {
        rig.w32(offset::QUEUE_SIZE, bad);
        assert_eq!(rig.balloon.state().mmio.queues[0].size, 2);
    }
}

#[test]
fn an_impossible_ring_sets_needs_reset_with_a_config_interrupt() {
    // More chains than the queue has entries; a head beyond the table; such a head on the queue
    // whose chains are held.
    for (queue, jump) in [(Rig::HINT, true), (Rig::HINT, false), (Rig::STATS, false)] {
        let mut rig = Rig::default_up();
        let edges = rig.interrupts();
        if jump {
            let idx = GuestAddress(rig.rings[&queue].avail + 2);
            rig.mem.write_obj(1000u16, idx).unwrap();
        } else {
            rig.publish(queue, 128);
        }
        rig.kick(queue);
        rig.run();
        assert!(rig.needs_reset());
        assert_eq!(rig.r32(offset::INTERRUPT_STATUS) & INT_CONFIG, INT_CONFIG);
        assert_eq!(rig.interrupts(), edges + 1);
        assert!(!rig.balloon.hints_available());
        rig.probe(u64::MAX);
        assert!(!rig.needs_reset());
        rig.inflate(&[pfn(FREE)]);
    }
}

#[test]
fn interrupts_are_acknowledged_by_cause() {
    let mut rig = Rig::default_up();
    rig.inflate(&[pfn(FREE)]);
    rig.balloon.set_target(1);
    assert_eq!(rig.r32(offset::INTERRUPT_STATUS), INT_VRING | INT_CONFIG);
    rig.w32(offset::INTERRUPT_ACK, INT_CONFIG);
    assert_eq!(rig.r32(offset::INTERRUPT_STATUS), INT_VRING);
    rig.w32(offset::INTERRUPT_ACK, u32::MAX);
    assert_eq!(rig.r32(offset::INTERRUPT_STATUS), 0);
}

#[test]
fn event_idx_saves_interrupts_and_its_absence_obeys_the_flag() {
    let mut rig = Rig::default_up();
    let edges = rig.interrupts();
    let at = rig.buffer(&words(&[pfn(FREE)]));
    // used_event stays at 0 until the driver looks: one interrupt for three chains.
    for _ in 0..3 {
        rig.add(Rig::INFLATE, &[out(at, 4)]);
        rig.kick(Rig::INFLATE);
        rig.run();
    }
    assert_eq!(rig.interrupts(), edges + 1);
    assert_eq!(rig.used(Rig::INFLATE).len(), 3);

    let mut rig = cold();
    rig.probe(!F_EVENT_IDX);
    let edges = rig.interrupts();
    let flags = GuestAddress(rig.rings[&Rig::INFLATE].avail);
    rig.mem.write_obj(1u16, flags).unwrap();
    rig.inflate(&[pfn(FREE)]);
    assert_eq!(rig.interrupts(), edges);
    rig.mem.write_obj(0u16, flags).unwrap();
    rig.inflate(&[pfn(FREE)]);
    assert_eq!(rig.interrupts(), edges + 1);
}

#[test]
fn more_chains_than_a_batch_are_all_handled_after_one_kick() {
    for features in [u64::MAX, !F_EVENT_IDX] {
        let mut rig = cold();
        rig.probe(features);
        let (_, sink) = rig.start_hinting();
        for n in 0..100 {
            rig.add(Rig::HINT, &[inb(FREE + n * PAGE, 4096)]);
        }
        rig.kick(Rig::HINT);
        assert!(rig.balloon.device().patient().process_queue(Rig::HINT));
        assert!(sink.take().len() <= 16, "one batch");
        rig.run();
        assert_eq!(rig.used(Rig::HINT).len(), 100);
    }
}

#[test]
fn a_kick_through_the_bus_signals_the_queues_eventfd() {
    let rig = Rig::default_up();
    let events = rig.balloon.queue_events();
    assert_eq!(events.len(), 5);
    rig.w32(offset::QUEUE_NOTIFY, 3);
    rig.w32(offset::QUEUE_NOTIFY, 5);
    rig.w32(offset::QUEUE_NOTIFY, u32::MAX);
    assert_eq!(events[3].read().unwrap(), 1);
    assert!([0, 1, 2, 4].iter().all(|q| events[*q].read().is_err()));
}

#[test]
fn odd_accesses_and_missing_shared_memory() {
    let rig = Rig::default_up();
    let mut bus = rig.bus.lock().unwrap();
    for (at, len) in [(1, 4), (0, 1), (0, 2), (0, 8), (2, 2), (0xfd, 4)] {
        let mut data = vec![0xee; len];
        bus.read(at, &mut data);
        assert!(data.iter().all(|b| *b == 0));
    }
    bus.write(offset::STATUS, &[0]);
    bus.write(offset::STATUS, &[0; 8]);
    drop(bus);
    assert!(rig.balloon.live());
    assert_eq!(rig.r32(offset::SHM_LEN_LOW), u32::MAX);
    assert_eq!(rig.r32(offset::SHM_LEN_HIGH), u32::MAX);
}

#[test]
fn the_line_is_high_while_a_cause_is_not_acknowledged_here_and_after_a_move() {
    let mut rig = Rig::default_up();
    rig.w32(offset::INTERRUPT_ACK, u32::MAX);
    assert!(!rig.line.high());
    rig.inflate(&[pfn(FREE)]);
    rig.balloon.set_target(1);
    assert!(rig.line.high());
    rig.balloon.set_paused(true);
    let there = rig.move_to(&rig.balloon.state()).unwrap();
    assert!(!there.line.high(), "the interrupt controller may not be restored yet");
    for rig in [rig, there] {
        rig.balloon.set_paused(false);
        assert!(rig.line.high());
        rig.w32(offset::INTERRUPT_ACK, INT_CONFIG);
        assert!(rig.line.high(), "there is another cause");
        rig.w32(offset::INTERRUPT_ACK, INT_VRING);
        assert!(!rig.line.high());
        rig.balloon.set_target(2);
        assert!(rig.line.high());
        rig.w32(offset::STATUS, 0);
        assert!(!rig.line.high(), "a reset takes the causes");
    }
}

/// Controllers that were saved while the line was high are told that it is low.
#[test]
fn a_move_lowers_a_line_without_a_cause() {
    let rig = Rig::default_up();
    rig.w32(offset::INTERRUPT_ACK, u32::MAX);
    rig.balloon.set_paused(true);
    let there = rig.move_to(&rig.balloon.state()).unwrap();
    there.line.set(true).unwrap();
    there.balloon.set_paused(false);
    assert!(!there.line.high());
}
