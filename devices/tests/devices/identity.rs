//! F, C and Q: identity, features, config space, queues.

use wherry_devices::virtio::balloon::BalloonConfig;
use wherry_devices::virtio::balloon::constants::*;
use wherry_devices::virtio::mmio::regs::{self, offset};

use crate::driver::*;

#[test]
fn f1_device_id_is_5() {
    let rig = Rig::cold(BalloonConfig::default());
    assert_eq!(rig.r32(offset::MAGIC_VALUE), u32::from_le_bytes(*b"virt"));
    assert_eq!(rig.r32(offset::VERSION), 2);
    assert_eq!(rig.r32(offset::DEVICE_ID), 5);
}

#[test]
fn f2_feature_bits_are_the_specs_and_can_each_be_off() {
    assert_eq!(Rig::cold(BalloonConfig::default()).offered(), 0b11_1111 | ALL_TRANSPORT);
    type Off = fn(&mut BalloonConfig);
    let cases: [(u64, Off); 8] = [
        (1, |c| c.must_tell_host = false),
        (2, |c| c.stats = false),
        (4, |c| c.deflate_on_oom = false),
        (8, |c| c.hinting = false),
        (16, |c| c.poison = false),
        (32, |c| c.reporting = false),
        (regs::F_EVENT_IDX, |c| c.event_idx = false),
        (regs::F_INDIRECT_DESC, |c| c.indirect = false),
    ];
    for (bit, off) in cases {
        let mut cfg = BalloonConfig::default();
        off(&mut cfg);
        assert_eq!(Rig::cold(cfg).offered(), (0b11_1111 | ALL_TRANSPORT) & !bit);
    }
}

#[test]
fn f2_experimental_bits_are_off_by_default_and_never_shadow_known_ones() {
    let experimental_features = u64::MAX;
    let rig = Rig::cold(BalloonConfig {
        experimental_features,
        reporting: false,
        ..BalloonConfig::default()
    });
    assert_eq!(rig.offered() & 0xffff_ffff & !ALL_TRANSPORT, 0xff_ffdf);
}

#[test]
fn c1_config_is_little_endian_at_the_specs_offsets() {
    let mut rig =
        Rig::cold(BalloonConfig { target_pages: 0x0403_0201, ..BalloonConfig::default() });
    rig.negotiate(u64::MAX);
    rig.w32(offset::CONFIG + CONFIG_POISON, 0xaabb_ccdd);
    rig.probe_rest();
    rig.w32(offset::CONFIG + CONFIG_ACTUAL, 0x1413_1211);
    let (id, _sink) = rig.start_hinting();
    let mut bytes = [0; 16];
    rig.bus.lock().unwrap().read(offset::CONFIG, &mut bytes);
    let expected = [0x0403_0201, 0x1413_1211, id, 0xaabb_ccdd];
    assert_eq!(bytes.to_vec(), words(&expected));
    assert_eq!(rig.balloon.actual(), 0x1413_1211);
}

#[test]
fn c1_fields_without_their_feature_read_as_zero() {
    let cfg = BalloonConfig { hinting: false, poison: false, ..BalloonConfig::default() };
    let rig = Rig::new(cfg);
    rig.w32(offset::CONFIG + CONFIG_POISON, 7);
    assert_eq!((rig.config(CONFIG_CMD_ID), rig.config(CONFIG_POISON)), (0, 0));
}

#[test]
fn c2_reads_past_the_layout_and_writes_to_read_only_fields_do_no_harm() {
    let rig = Rig::new(BalloonConfig { target_pages: 77, ..BalloonConfig::default() });
    rig.w32(offset::CONFIG + CONFIG_NUM_PAGES, 1);
    rig.w32(offset::CONFIG + CONFIG_CMD_ID, 9);
    assert_eq!((rig.config(CONFIG_NUM_PAGES), rig.config(CONFIG_CMD_ID)), (77, CMD_STOP));
    let mut bus = rig.bus.lock().unwrap();
    for at in [13, 15, 16, 17, 0xeff, u64::MAX - offset::CONFIG - 4] {
        for len in [0, 1, 2, 3, 4, 8, 64] {
            let mut data = vec![0xee; len];
            bus.write(offset::CONFIG + at, &data);
            bus.read(offset::CONFIG + at, &mut data);
            assert!(data.iter().all(|b| *b == 0), "{at:#x} {len}");
        }
    }
}

#[test]
fn c2_fields_may_be_written_in_parts() {
    let rig = Rig::default_up();
    for (at, byte) in [1u8, 2, 3, 4].into_iter().enumerate() {
        rig.bus.lock().unwrap().write(offset::CONFIG + CONFIG_ACTUAL + at as u64, &[byte]);
    }
    assert_eq!(rig.balloon.actual(), 0x0403_0201);
}

#[test]
fn q0_with_all_features_the_specs_numbers_hold() {
    let mut rig = Rig::default_up();
    assert_eq!(rig.queue_count(), 5);
    rig.inflate(&[pfn(FREE)]);
    rig.deflate(&[pfn(FREE)]);
    let stats = rig.buffer(&stats_bytes(&[(4, 44)]));
    rig.add(2, &[out(stats, 10)]);
    rig.kick(2);
    rig.run();
    assert_eq!(rig.balloon.guest_free_bytes(), Some(44));
    let (_, sink) = rig.start_hinting();
    rig.send(3, &[inb(FREE, 4096)]);
    assert_eq!(sink.take(), vec![(FREE, PAGE)]);
    rig.send(4, &[inb(FREE + PAGE, 4096)]);
    assert_eq!(rig.balloon.telemetry().reports, 1);
}

#[test]
fn q1_otherwise_queues_are_compact_by_offered_features() {
    let mut rig = Rig::new(BalloonConfig { stats: false, ..BalloonConfig::default() });
    assert_eq!(rig.queue_count(), 4);
    let sink = Sink::new();
    let id = rig.balloon.hint_start(sink.clone()).unwrap();
    let at = rig.buffer(&id.to_le_bytes());
    rig.send(2, &[out(at, 4), inb(FREE, 4096)]);
    assert_eq!(sink.take(), vec![(FREE, PAGE)]);
    rig.send(3, &[inb(FREE, 4096)]);
    assert_eq!(rig.balloon.telemetry().reports, 1);

    let mut rig =
        Rig::new(BalloonConfig { stats: false, hinting: false, ..BalloonConfig::default() });
    assert_eq!(rig.queue_count(), 3);
    rig.send(2, &[inb(FREE, 4096)]);
    assert_eq!(rig.balloon.telemetry().reports, 1);
}

#[test]
fn q2_every_queue_has_128_entries() {
    let rig = Rig::cold(BalloonConfig::default());
    for index in 0..5 {
        rig.w32(offset::QUEUE_SEL, index);
        assert_eq!(rig.r32(offset::QUEUE_SIZE_MAX), 128);
    }
    rig.w32(offset::QUEUE_SEL, 5);
    assert_eq!(rig.r32(offset::QUEUE_SIZE_MAX), 0);
}
