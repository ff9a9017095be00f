//! A guest that writes anything anywhere: no panic, no loop without end, and never a hint without
//! its id.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};
use wherry_devices::virtio::balloon::BalloonConfig;
use wherry_devices::virtio::balloon::constants::*;

use crate::driver::*;

/// Registers that exist, with values that mean something, more often than chance would have it.
fn access() -> impl Strategy<Value = (u64, Vec<u8>)> {
    let at = prop_oneof![
        4 => (0u64..0x48).prop_map(|n| n * 4),
        1 => 0u64..0x1000,
        2 => Just(0x70u64),
        1 => Just(0x50u64),
        1 => (0u64..20).prop_map(|n| 0x100 + n),
    ];
    let word = prop_oneof![
        3 => prop::sample::select(vec![0u32, 1, 2, 3, 4, 7, 8, 11, 15, 64, 128, 0x1000, 0x10_0000,
            u32::MAX]),
        1 => any::<u32>(),
    ]
    .prop_map(|w| w.to_le_bytes().to_vec());
    let data = prop_oneof![8 => word, 1 => prop::collection::vec(any::<u8>(), 0..16)];
    (at, data)
}

/// An address that is often good.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..RAM, 2 => (0..RAM).prop_map(|a| HIGH + a), 1 => any::<u64>()]
}

/// Index, address, length, flags, next.
fn descriptor() -> impl Strategy<Value = (u16, u64, u32, u16, u16)> {
    let len = prop_oneof![Just(4u32), Just(4096), Just(16 * 64), 0u32..8192, any::<u32>()];
    let flags = prop_oneof![4 => 0u16..8, 1 => any::<u16>()];
    (0u16..QUEUE_SIZE, address(), len, flags, prop_oneof![8 => 0u16..QUEUE_SIZE, 1 => any::<u16>()])
}

fn write_garbage(rig: &mut Rig, descs: &[(u16, u64, u32, u16, u16)], heads: &[(usize, u16)]) {
    for queue in 0..5 {
        let table = rig.rings[&queue].desc;
        for (index, addr, len, flags, next) in descs {
            let at = table + 16 * u64::from(*index);
            write_desc(&rig.mem, at, *addr, *len, *flags, *next);
        }
    }
    for (queue, head) in heads {
        rig.publish(*queue, *head);
        rig.kick(*queue);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn random_register_accesses_never_panic(accesses in prop::collection::vec(access(), 1..300),
        up in any::<bool>()) {
        let mut rig = Rig::cold(BalloonConfig::default());
        if up {
            rig.probe(u64::MAX);
        }
        let sink = Sink::new();
        let _ = rig.balloon.hint_start(sink.clone());
        for (at, data) in accesses {
            rig.bus.lock().unwrap().write(at, &data);
            rig.bus.lock().unwrap().read(at, &mut vec![0; data.len()]);
            rig.run();
            rig.balloon.request_stats();
        }
        rig.balloon.set_paused(true);
        // Whatever it came to, it can be saved and restored.
        let state = rig.balloon.state();
        prop_assert!(rig.move_to(&state).is_ok());
        rig.balloon.hint_done();
        prop_assert!(sink.take().is_empty());
    }

    #[test]
    fn random_descriptors_never_panic_and_never_hint_without_an_id(
        descs in prop::collection::vec(descriptor(), 1..200),
        heads in prop::collection::vec((0usize..5, 0u16..QUEUE_SIZE + 2), 1..100),
    ) {
        let rig = Rig::default_up();
        let sink = Sink::new();
        // An id that a buffer of zeros or of addresses below 4 GiB does not spell by chance.
        rig.balloon.set_paused(true);
        let mut state = rig.balloon.state();
        state.device.hinting.last_id = 0xdead_beee;
        let mut rig = rig.move_to(&state).unwrap();
        rig.balloon.set_paused(false);
        rig.balloon.hint_start(sink.clone()).unwrap();
        write_garbage(&mut rig, &descs, &heads);
        rig.run();
        prop_assert!(sink.take().is_empty());
        for (gpa, len) in rig.host.take() {
            prop_assert!(gpa % PAGE == 0 && len % PAGE == 0 && len > 0);
            prop_assert!(gpa + len <= RAM || (gpa >= HIGH && gpa + len <= HIGH + RAM));
        }
        let _ = rig.balloon.ballooned();
        rig.probe(u64::MAX);
        rig.inflate(&[pfn(FREE)]);
    }

    #[test]
    fn random_descriptors_under_an_announced_id_stay_within_ram(
        descs in prop::collection::vec(descriptor(), 1..200),
        heads in prop::collection::vec(0u16..QUEUE_SIZE, 1..100),
    ) {
        let mut rig = Rig::default_up();
        let (_, sink) = rig.start_hinting();
        let heads: Vec<_> = heads.into_iter().map(|head| (Rig::HINT, head)).collect();
        write_garbage(&mut rig, &descs, &heads);
        rig.run();
        rig.balloon.hint_stop();
        for (gpa, len) in sink.take() {
            prop_assert!(gpa % PAGE == 0 && len % PAGE == 0 && len > 0);
            prop_assert!(gpa + len <= RAM || (gpa >= HIGH && gpa + len <= HIGH + RAM));
        }
    }

    #[test]
    fn random_page_numbers_keep_the_set_exact(
        ops in prop::collection::vec((any::<bool>(), prop::collection::vec(0u32..0x2000, 1..64)),
            1..30),
    ) {
        let mut rig = Rig::default_up();
        let mut model = std::collections::BTreeSet::new();
        for (inflate, pfns) in ops {
            let in_ram = pfns.iter().filter(|p| u64::from(**p) < RAM / PAGE).copied();
            if inflate {
                rig.inflate(&pfns);
                model.extend(in_ram);
            } else {
                rig.deflate(&pfns);
                in_ram.for_each(|p| { model.remove(&p); });
            }
        }
        let listed: Vec<u32> =
            rig.balloon.ballooned().into_iter().flat_map(|(gpa, len)| pfn(gpa)..pfn(gpa + len)).collect();
        prop_assert_eq!(listed, model.into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn looped_and_nested_chains_end() {
    let mut rig = Rig::default_up();
    let (_, sink) = rig.start_hinting();
    let desc = rig.rings[&Rig::HINT].desc;
    // A descriptor that is its own successor, an indirect table in an indirect table, one without
    // entries, one of odd length, one outside RAM, and one with 65535 entries that all point at
    // themselves.
    for (addr, len, flags, next) in [
        (FREE, 4096, WRITE | NEXT, 0),
        (desc, 128 * 16, INDIRECT, 0),
        (FREE, 0, INDIRECT, 0),
        (FREE, 17, INDIRECT, 0),
        (RAM, 4096, INDIRECT, 0),
        (FREE, 65535 * 16, INDIRECT, 0),
    ] {
        let next = if flags & NEXT != 0 { rig.next_head(Rig::HINT) } else { next };
        let head = rig.add_raw(Rig::HINT, addr, len, flags, next);
        rig.kick(Rig::HINT);
        rig.run();
        assert_eq!(rig.used(Rig::HINT), vec![(u32::from(head), 0)], "{flags}");
        assert!(sink.take().len() <= MAX_CHAIN);
    }
    assert!(!rig.needs_reset());
    assert!(rig.balloon.telemetry().hints_malformed >= 5);
}

#[test]
fn rings_on_top_of_each_other_do_no_harm() {
    let mut rig = Rig::cold(BalloonConfig::default());
    rig.negotiate(u64::MAX);
    for index in 0..5 {
        rig.w32(0x30, index);
        for at in [0x80, 0x90, 0xa0] {
            rig.w32(at, 0x10_0000);
            rig.w32(at + 4, 0);
        }
        rig.w32(0x44, 1);
    }
    rig.mem.write_slice(&[1; 4096], GuestAddress(0x10_0000)).unwrap();
    rig.add_status(4);
    (0..5).for_each(|q| rig.kick(q));
    // A ring that rewrites itself may keep the device busy, one bounded batch at a time.
    for _ in 0..1000 {
        for q in 0..5 {
            rig.balloon.device().patient().process_queue(q);
        }
    }
    rig.w32(0x70, 0);
}
