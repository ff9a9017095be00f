//! I: inflate, deflate, out of memory.

use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress};
use wherry_devices::virtio::balloon::BalloonConfig;
use wherry_devices::virtio::balloon::constants::*;
use wherry_devices::virtio::mmio::regs::{INT_CONFIG, offset};

use crate::driver::*;

#[test]
fn i1_page_numbers_are_le32_in_units_of_4096_bytes() {
    let mut rig = Rig::default_up();
    rig.inflate(&[pfn(FREE), pfn(HIGH + PAGE)]);
    assert_eq!(rig.host.take(), vec![(FREE, PAGE), (HIGH + PAGE, PAGE)]);
    assert_eq!(rig.balloon.ballooned(), vec![(FREE, PAGE), (HIGH + PAGE, PAGE)]);
    rig.deflate(&[pfn(HIGH + PAGE)]);
    assert_eq!(rig.balloon.ballooned(), vec![(FREE, PAGE)]);
    assert!(rig.host.take().is_empty());
}

#[test]
fn i2_pages_are_discarded_before_the_buffer_is_acknowledged() {
    let mut rig = Rig::default_up();
    let (mem, used) = (rig.mem.clone(), rig.rings[&Rig::INFLATE].used);
    *rig.host.watch.lock().unwrap() = Some(Box::new(move |_, _| {
        assert_eq!(mem.read_obj::<u16>(GuestAddress(used + 2)).unwrap(), 0);
    }));
    rig.inflate(&[pfn(FREE), pfn(FREE + 2 * PAGE)]);
    assert_eq!(rig.host.take().len(), 2);
}

#[test]
fn i2_the_vmms_writes_to_the_ring_are_tracked() {
    use vm_memory::bitmap::Bitmap;
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
    let mut rig = Rig::default_up();
    let mem = rig.mem.clone();
    let region = mem.find_region(GuestAddress(0)).unwrap();
    let used = rig.rings[&Rig::INFLATE].used as usize;
    // Only the device writes between the reset of the log and the look at it.
    let at = rig.buffer(&words(&[pfn(FREE)]));
    rig.add(Rig::INFLATE, &[out(at, 4)]);
    rig.kick(Rig::INFLATE);
    region.get_mmap().bitmap().reset();
    rig.run();
    assert!(region.bitmap().dirty_at(used));
    assert!(!region.bitmap().dirty_at(FREE as usize));
}

#[test]
fn i3_buffers_are_acknowledged_with_used_length_0() {
    // `send` asserts it for every request in these tests; here also for one that is malformed.
    let mut rig = Rig::default_up();
    rig.send(Rig::INFLATE, &[inb(FREE, 4)]);
    rig.send(Rig::DEFLATE, &[inb(FREE, 4)]);
}

#[test]
fn i4_config_interrupt_whenever_the_target_changes() {
    let rig = Rig::default_up();
    let (edges, generation) = (rig.interrupts(), rig.r32(offset::CONFIG_GENERATION));
    rig.balloon.set_target(100);
    assert_eq!(rig.config(CONFIG_NUM_PAGES), 100);
    assert_eq!(rig.interrupts(), edges + 1);
    assert_eq!(rig.r32(offset::INTERRUPT_STATUS) & INT_CONFIG, INT_CONFIG);
    assert_ne!(rig.r32(offset::CONFIG_GENERATION), generation);
    rig.balloon.set_target(100);
    assert_eq!(rig.interrupts(), edges + 1);
}

#[test]
fn i4_actual_is_only_the_drivers_word() {
    let mut rig = Rig::default_up();
    rig.w32(offset::CONFIG + CONFIG_ACTUAL, u32::MAX);
    assert_eq!(rig.balloon.actual(), u32::MAX);
    assert!(rig.balloon.ballooned().is_empty());
    rig.inflate(&[pfn(FREE)]);
    rig.w32(offset::CONFIG + CONFIG_ACTUAL, 0);
    assert_eq!(rig.balloon.telemetry().ballooned_pages, 1);
}

#[test]
fn i5_the_guest_may_deflate_below_the_target_at_any_time() {
    let mut rig = Rig::default_up();
    rig.balloon.set_target(2);
    rig.inflate(&[pfn(FREE), pfn(FREE + PAGE)]);
    rig.deflate(&[pfn(FREE), pfn(FREE + PAGE)]);
    assert!(rig.balloon.ballooned().is_empty());
    assert_eq!(rig.balloon.figures().target_pages, 2);
}

#[test]
fn i6_malformed_requests_are_skipped_and_counted() {
    let mut rig = Rig::default_up();
    let good = rig.buffer(&words(&[pfn(FREE)]));
    let many = rig.buffer(&words(&vec![pfn(FREE); 257]));
    let outside = rig.buffer(&words(&[u32::MAX, pfn(RAM), pfn(FREE)]));
    for (bad, count) in [
        (out(good, 3), 1),
        (out(good, 0), 1),
        (out(many, 257 * 4), 1),
        (inb(good, 4), 1),
        (out(RAM - 2, 4), 1),
        (out(u64::MAX - 1, 4), 1),
        (out(outside, 12), 2),
    ] {
        let before = rig.balloon.telemetry().malformed_requests;
        // The good descriptor behind it counts all the same.
        rig.send(Rig::INFLATE, &[bad, out(good, 4)]);
        assert_eq!(rig.balloon.telemetry().malformed_requests, before + count, "{bad:?}");
        assert_eq!(rig.balloon.ballooned(), vec![(FREE, PAGE)]);
        rig.deflate(&[pfn(FREE)]);
        assert!(!rig.needs_reset());
    }
}

#[test]
fn i6_256_pages_in_a_request_and_every_descriptor_of_a_chain_count() {
    let mut rig = Rig::default_up();
    let pfns: Vec<u32> = (0..512).map(|n| pfn(FREE) + n).collect();
    let (a, b) = pfns.split_at(256);
    let (a, b) = (rig.buffer(&words(a)), rig.buffer(&words(b)));
    rig.send(Rig::INFLATE, &[out(b, 1024), out(a, 1024)]);
    assert_eq!(rig.balloon.ballooned(), vec![(FREE, 512 * PAGE)]);
    // Neighbours go to the host in one call.
    assert_eq!(rig.host.take(), vec![(FREE, 512 * PAGE)]);
}

#[test]
fn i6_a_deflate_that_cannot_be_read_makes_the_set_unknown() {
    let mut rig = Rig::default_up();
    rig.inflate(&[pfn(FREE), pfn(FREE + PAGE)]);
    rig.send(Rig::DEFLATE, &[out(FREE, 4 * 257)]);
    assert!(
        rig.balloon.ballooned().is_empty(),
        "pages that may be in use must not be left out of a migration"
    );
    assert_eq!(rig.balloon.telemetry().ballooned_pages, 2);
    rig.probe(u64::MAX);
    rig.inflate(&[pfn(FREE)]);
    assert_eq!(rig.balloon.ballooned(), vec![(FREE, PAGE)]);
}

#[test]
fn i7_compaction_in_either_order_ends_with_the_right_set() {
    let (old, new) = (pfn(FREE), pfn(FREE + 5 * PAGE));
    for inflate_first in [true, false] {
        let mut rig = Rig::default_up();
        rig.inflate(&[old]);
        let (i, d) = (rig.buffer(&words(&[new])), rig.buffer(&words(&[old])));
        let order = [(Rig::INFLATE, i), (Rig::DEFLATE, d)];
        for n in if inflate_first { [0, 1] } else { [1, 0] } {
            let (queue, at) = order[n];
            rig.send(queue, &[out(at, 4)]);
        }
        assert_eq!(rig.balloon.ballooned(), vec![(FREE + 5 * PAGE, PAGE)]);
        assert_eq!(rig.balloon.telemetry().ballooned_pages, 1);
    }
}

#[test]
fn ballooned_pages_are_not_named_unless_the_driver_tells_before_use() {
    let mut rig = Rig::cold(BalloonConfig::default());
    rig.probe(!F_MUST_TELL_HOST);
    rig.inflate(&[pfn(FREE)]);
    assert_eq!(rig.balloon.telemetry().ballooned_pages, 1);
    assert!(rig.balloon.ballooned().is_empty());
}

#[test]
fn figures_name_the_size_of_the_set_only_if_it_is_certain() {
    let mut rig = Rig::default_up();
    rig.balloon.set_target(3);
    rig.inflate(&[pfn(FREE), pfn(FREE + 5 * PAGE)]);
    rig.w32(offset::CONFIG + CONFIG_ACTUAL, 7);
    let figures = rig.balloon.figures();
    assert_eq!(
        (figures.target_pages, figures.actual_pages, figures.ballooned_pages),
        (3, 7, Some(2))
    );
    assert_eq!(figures.telemetry, rig.balloon.telemetry());
    assert_ne!(figures.features & F_MUST_TELL_HOST, 0);
    // A deflate request that cannot be read: the pages may be in use.
    rig.send(Rig::DEFLATE, &[out(FREE, 4 * 257)]);
    let figures = rig.balloon.figures();
    assert_eq!((figures.ballooned_pages, figures.telemetry.ballooned_pages), (None, 2));
    // Nor is it certain before a driver has promised to tell.
    assert_eq!(Rig::cold(BalloonConfig::default()).balloon.figures().ballooned_pages, None);
}

#[test]
fn a_discard_that_fails_is_counted_and_no_more() {
    let mut rig = Rig::default_up();
    rig.host.fail.store(true, Ordering::SeqCst);
    rig.inflate(&[pfn(FREE)]);
    let t = rig.balloon.telemetry();
    assert_eq!((t.discard_errors, t.discarded_bytes, t.inflated_pages), (1, 0, 1));
}

#[test]
fn reset_empties_the_balloon_but_keeps_the_target() {
    let mut rig = Rig::default_up();
    rig.balloon.set_target(9);
    rig.inflate(&[pfn(FREE)]);
    rig.w32(offset::STATUS, 0);
    rig.probe(u64::MAX);
    assert!(rig.balloon.ballooned().is_empty());
    assert_eq!((rig.config(CONFIG_NUM_PAGES), rig.config(CONFIG_ACTUAL)), (9, 0));
}

#[test]
fn a_chain_of_single_pages_gives_the_lock_up_and_goes_on() {
    let mut rig = Rig::default_up();
    rig.host.slow.store(1, Ordering::SeqCst);
    let pfns: Vec<u32> = (0..64).map(|n| pfn(FREE) + 2 * n).collect();
    let at = rig.buffer(&words(&pfns));
    let head = rig.add(Rig::INFLATE, &[out(at, 4 * 64)]);
    let mut given = Vec::new();
    while given.len() < 64 {
        assert!(rig.used(Rig::INFLATE).is_empty(), "not acknowledged before all is with the host");
        rig.balloon.device().patient().process_queue(Rig::INFLATE);
        let now = rig.host.take();
        assert!((1..=10).contains(&now.len()), "{now:?}: 1 ms each under one lock");
        given.extend(now);
        // It may move in between: the other device starts over, which does no harm.
        rig.balloon.set_paused(true);
        assert!(rig.move_to(&rig.balloon.state()).is_ok());
        rig.balloon.set_paused(false);
    }
    assert_eq!(rig.used(Rig::INFLATE), vec![(u32::from(head), 0)]);
    let expected: Vec<_> = pfns.iter().map(|pfn| (u64::from(*pfn) * PAGE, PAGE)).collect();
    assert_eq!(given, expected, "each once");
    let telemetry = rig.balloon.telemetry();
    assert_eq!((telemetry.inflated_pages, telemetry.discarded_bytes), (64, 64 * PAGE));
    assert_eq!(rig.balloon.ballooned().len(), 64);
    rig.deflate(&pfns);
    assert!(rig.balloon.ballooned().is_empty());
}
