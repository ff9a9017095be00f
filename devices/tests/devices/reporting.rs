//! P and R: page poison and free page reporting.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress};
use wherry_devices::virtio::balloon::BalloonConfig;
use wherry_devices::virtio::balloon::constants::*;
use wherry_devices::virtio::mmio::regs::offset;

use crate::driver::*;

const BLOCK: u32 = 2 << 20;

/// A guest that writes `poison` where Linux does: between FEATURES_OK and DRIVER_OK.
fn poisoned(poison: u32) -> Rig {
    let mut rig = Rig::cold(BalloonConfig::default());
    rig.negotiate(u64::MAX);
    rig.w32(offset::CONFIG + CONFIG_POISON, poison);
    rig.probe_rest();
    rig
}

#[test]
fn p1_poison_is_accepted_only_before_driver_ok() {
    let rig = poisoned(5);
    rig.w32(offset::CONFIG + CONFIG_POISON, 6);
    assert_eq!(rig.config(CONFIG_POISON), 5);
    let rig = Rig::cold(BalloonConfig::default());
    rig.w32(offset::CONFIG + CONFIG_POISON, 6);
    assert_eq!(rig.config(CONFIG_POISON), 0, "before negotiation there is no such field");
    rig.negotiate(!F_PAGE_POISON);
    rig.w32(offset::CONFIG + CONFIG_POISON, 6);
    assert_eq!(rig.config(CONFIG_POISON), 0, "nor without the feature");
}

#[test]
fn p2_reset_clears_poison_and_migration_keeps_it() {
    let mut rig = poisoned(5);
    rig.balloon.set_paused(true);
    let mut there = rig.move_to(&rig.balloon.state()).unwrap();
    there.balloon.set_paused(false);
    there.run();
    assert_eq!(there.config(CONFIG_POISON), 5);
    there.send(Rig::REPORT, &[inb(FREE, BLOCK)]);
    assert!(there.host.take().is_empty());
    rig.w32(offset::STATUS, 0);
    rig.probe(u64::MAX);
    assert_eq!(rig.config(CONFIG_POISON), 0);
}

#[test]
fn r1_reported_pages_are_discarded_before_the_acknowledgement() {
    let mut rig = Rig::default_up();
    let (mem, used) = (rig.mem.clone(), rig.rings[&Rig::REPORT].used);
    *rig.host.watch.lock().unwrap() = Some(Box::new(move |_, _| {
        assert_eq!(mem.read_obj::<u16>(GuestAddress(used + 2)).unwrap(), 0);
    }));
    rig.send(Rig::REPORT, &[inb(FREE, BLOCK), inb(HIGH, BLOCK)]);
    assert_eq!(rig.host.take(), vec![(FREE, u64::from(BLOCK)), (HIGH, u64::from(BLOCK))]);
}

#[test]
fn r2_a_non_zero_poison_forbids_discarding_and_zero_allows_it() {
    let mut rig = poisoned(0xaaaa_aaaa);
    rig.send(Rig::REPORT, &[inb(FREE, BLOCK)]);
    assert!(rig.host.take().is_empty());
    let t = rig.balloon.telemetry();
    assert_eq!((t.reports, t.reported_bytes, t.withheld_bytes), (1, BLOCK.into(), BLOCK.into()));
    let mut rig = poisoned(0);
    rig.send(Rig::REPORT, &[inb(FREE, BLOCK)]);
    assert_eq!(rig.host.take(), vec![(FREE, BLOCK.into())]);
}

#[test]
fn r3_reports_are_acknowledged_with_length_0() {
    let mut rig = Rig::default_up();
    let bufs: Vec<Buf> = (0..32).map(|n| inb(FREE + n * 2 * PAGE, 4096)).collect();
    let head = rig.add_indirect(Rig::REPORT, &bufs);
    rig.kick(Rig::REPORT);
    rig.run();
    assert_eq!(rig.used(Rig::REPORT), vec![(u32::from(head), 0)]);
    assert_eq!(rig.host.take().len(), 32);
}

#[test]
fn r4_unaligned_or_overrunning_ranges_are_clamped_or_ignored() {
    let mut rig = Rig::default_up();
    type Case = (Buf, &'static [(u64, u64)], u64);
    let cases: [Case; 8] = [
        (inb(FREE + 1, 2 * 4096), &[(FREE + PAGE, PAGE)], 0),
        (inb(FREE + 1, 4096), &[], 1),
        (inb(FREE, 4095), &[], 1),
        (inb(FREE, 0), &[], 1),
        (inb(RAM, 4096), &[], 1),
        (inb(u64::MAX - 100, u32::MAX), &[], 1),
        (inb(RAM - PAGE, u32::MAX), &[(RAM - PAGE, PAGE)], 0),
        (out(FREE, 4096), &[], 1),
    ];
    for (buf, discards, malformed) in cases {
        let before = rig.balloon.telemetry().malformed_reports;
        rig.send(Rig::REPORT, &[buf]);
        assert_eq!(rig.host.take(), discards, "{buf:?}");
        assert_eq!(rig.balloon.telemetry().malformed_reports, before + malformed, "{buf:?}");
    }
}

#[test]
fn r5_nothing_is_discarded_while_it_is_forbidden() {
    let mut rig = Rig::default_up();
    rig.balloon.set_discard_allowed(false);
    rig.send(Rig::REPORT, &[inb(FREE, BLOCK)]);
    rig.inflate(&[pfn(HIGH)]);
    assert!(rig.host.take().is_empty());
    assert_eq!(rig.balloon.ballooned(), vec![(HIGH, PAGE)]);
    assert_eq!(rig.balloon.telemetry().withheld_bytes, u64::from(BLOCK) + PAGE);
    rig.balloon.set_discard_allowed(true);
    rig.send(Rig::REPORT, &[inb(FREE, BLOCK)]);
    assert_eq!(rig.host.take().len(), 1);
}

#[test]
fn a_long_report_gives_the_lock_up_and_goes_on() {
    let mut rig = Rig::default_up();
    rig.host.slow.store(2, Ordering::SeqCst);
    let bufs: Vec<Buf> = (0..32).map(|n| inb(FREE + n % 6 * u64::from(BLOCK), BLOCK)).collect();
    let head = rig.add(Rig::REPORT, &bufs);
    let queue = |rig: &Rig| rig.balloon.device().patient().process_queue(Rig::REPORT);
    let mut given = 0;
    for turn in 1.. {
        assert!(turn <= 32, "it starts over, and gets nowhere");
        let more = queue(&rig);
        let now = rig.host.take().len();
        assert!((1..=5).contains(&now), "{now} discards of 2 ms each under one lock");
        given += now;
        if given == 32 {
            assert!(turn > 6);
            break;
        }
        assert!(
            more && rig.used(Rig::REPORT).is_empty(),
            "not acknowledged before all is given back"
        );
        // It may move in between: the other device starts over, which does no harm.
        rig.balloon.set_paused(true);
        assert!(rig.move_to(&rig.balloon.state()).is_ok());
        rig.balloon.set_paused(false);
    }
    assert_eq!(rig.used(Rig::REPORT), vec![(u32::from(head), 0)]);
    assert!(!queue(&rig));
    let telemetry = rig.balloon.telemetry();
    assert_eq!((telemetry.reports, telemetry.reported_bytes), (32, 32 * u64::from(BLOCK)));
    assert_eq!(telemetry.discarded_bytes, telemetry.reported_bytes);
}

#[test]
fn one_range_of_a_report_is_discarded_in_pieces() {
    let mut rig = Rig::default_up();
    rig.send(Rig::REPORT, &[inb(PAGE, RAM as u32)]);
    let given = rig.host.take();
    assert!(given.iter().all(|(_, len)| *len <= 4 << 20), "{given:?}");
    assert_eq!(
        (given[0], given.iter().map(|(_, len)| len).sum()),
        ((PAGE, (4 << 20) - PAGE), RAM - PAGE)
    );
}
