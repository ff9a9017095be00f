//! The bytes of every record that a device saves, and of what it has in the description.

use wherry_codec::{encode, golden};
use wherry_devices::kinds::KINDS;
use wherry_devices::power::PowerStateV1;
use wherry_devices::serial::SerialStateV1;
use wherry_devices::virtio::balloon::{
    BalloonConfig, BalloonDeviceState, BalloonState, HintStateV1, SavedPages,
};
use wherry_devices::virtio::blk::{BlkStateV1, DescV1, DiskOptions, KeptV1};
use wherry_devices::virtio::mmio::{MmioStateV1, QueueStateV1, VirtioStateV1};
use wherry_devices::virtio::net::{NetOptions, NetStateV1};
use wherry_devices::virtio::vsock::{EventBufferV1, VsockOptions, VsockStateV1};

fn mmio(device_type: u32) -> MmioStateV1 {
    MmioStateV1 {
        device_type,
        device_features: 0x0102_0304_0506_0708,
        driver_features: 0x1112_1314_1516_1718,
        device_features_sel: 0x21,
        driver_features_sel: 0x22,
        queue_sel: 0x23,
        status: 0x24,
        interrupt_status: 0x25,
        config_generation: 0x26,
        queues: vec![QueueStateV1 {
            max_size: 0x3132,
            size: 0x3334,
            ready: true,
            event_idx: false,
            next_avail: 0x3536,
            next_used: 0x3738,
            desc_table: 0x4142_4344_4546_4748,
            avail_ring: 0x5152_5354_5556_5758,
            used_ring: 0x6162_6364_6566_6768,
        }],
    }
}

fn serial() -> Vec<u8> {
    let state = SerialStateV1 {
        baud_divisor_low: 1,
        baud_divisor_high: 2,
        interrupt_enable: 3,
        interrupt_identification: 4,
        line_control: 5,
        line_status: 6,
        modem_control: 7,
        modem_status: 8,
        scratch: 9,
        fifo: vec![10, 11],
        backlog: vec![12, 13, 14],
        listening: true,
        polls: 15,
    };
    encode(&state).unwrap()
}

fn power() -> Vec<u8> {
    encode(&PowerStateV1 { sleep_control: 1, events: 0x0203_0405 }).unwrap()
}

fn balloon(version: u32) -> Vec<u8> {
    let with = |ballooned, held_stats| BalloonDeviceState {
        mmio: mmio(5),
        device: BalloonState {
            num_pages: 0x0102_0304,
            actual: 0x1112_1314,
            poison_val: 0x2122_2324,
            ram_pages: 0x3132_3334_3536_3738,
            ballooned,
            set_known: true,
            held_stats,
            hinting: HintStateV1 {
                field: 0x4142_4344,
                last_id: 0x5152_5354,
                issued: true,
                stop_seen: false,
            },
        },
    };
    let runs = with(SavedPages::Runs(vec![(7, 8)]), None);
    let bits = with(SavedPages::Bits(vec![9]), Some(0x6162));
    let words = with(SavedPages::Words(vec![(0x7172_7374, 9)]), None);
    let all = [&runs, &bits, &words].map(|state| encode(state).unwrap());
    all[..if version == 1 { 2 } else { 3 }].concat()
}

fn blk() -> Vec<u8> {
    let descs = vec![
        DescV1 { addr: 0x0102_0304_0506_0708, len: 0x1112_1314, write: false },
        DescV1 { addr: 0x2122_2324_2526_2728, len: 0x3132_3334, write: true },
    ];
    let kept = vec![KeptV1 { head: 0x4142, descs }, KeptV1 { head: 0x5152, descs: Vec::new() }];
    encode(&VirtioStateV1 { mmio: mmio(2), device: BlkStateV1 { kept } }).unwrap()
}

#[test]
fn golden_bytes_of_every_kind_of_state() {
    let all = KINDS.iter().flat_map(|kind| kind.states.iter().map(move |state| (kind, state.1)));
    for (kind, version) in all {
        let bytes = match (kind.name, version) {
            ("serial", 1) => serial(),
            ("power", 1) => power(),
            ("virtio-balloon", version) => balloon(version),
            ("virtio-rng", 1) => encode(&VirtioStateV1 { mmio: mmio(4), device: () }).unwrap(),
            ("virtio-blk", 1) => blk(),
            ("virtio-net", 1) => {
                let device = NetStateV1 { guest_offloads: 0x0102_0304_0506_0708, announce: true };
                encode(&VirtioStateV1 { mmio: mmio(1), device }).unwrap()
            }
            ("virtio-vsock", 1) => {
                let events = vec![EventBufferV1 { head: 0x2122, at: 0x3132_3334_3536_3738 }];
                let device =
                    VsockStateV1 { next_port: 0x0102_0304, resets_sent: 0x1112_1314, events };
                encode(&VirtioStateV1 { mmio: mmio(19), device }).unwrap()
            }
            (name, version) => panic!("no golden bytes for version {version} of {name}"),
        };
        let name = format!("state-{}-{}.bin", kind.name, version);
        golden::check(env!("CARGO_MANIFEST_DIR"), &name, &bytes);
    }
}

#[test]
fn golden_bytes_of_options() {
    let flag = |nth: usize| BalloonConfig {
        target_pages: 0x0102_0304,
        must_tell_host: nth == 0,
        deflate_on_oom: nth == 1,
        stats: nth == 2,
        hinting: nth == 3,
        poison: nth == 4,
        reporting: nth == 5,
        event_idx: nth == 6,
        indirect: nth == 7,
        experimental_features: 0x1112_1314_1516_1718,
    };
    let balloon: Vec<u8> = (0..8).flat_map(|nth| encode(&flag(nth)).unwrap()).collect();
    golden::check(env!("CARGO_MANIFEST_DIR"), "options-virtio-balloon-1.bin", &balloon);
    let flag = |nth: usize| DiskOptions {
        sectors: 0x0102_0304_0506_0708,
        read_only: nth == 0,
        serial: "abc".into(),
        block_size: 0x1112_1314,
        discard: nth == 1,
        write_zeroes: nth == 2,
    };
    let blk: Vec<u8> = (0..3).flat_map(|nth| encode(&flag(nth)).unwrap()).collect();
    golden::check(env!("CARGO_MANIFEST_DIR"), "options-virtio-blk-1.bin", &blk);
}

#[test]
fn golden_bytes_of_a_networks_options() {
    let of = |mtu, offloads| NetOptions { mac: [2, 3, 4, 5, 6, 7], mtu, offloads };
    let net = [encode(&of(None, true)).unwrap(), encode(&of(Some(0x0809), false)).unwrap()];
    golden::check(env!("CARGO_MANIFEST_DIR"), "options-virtio-net-1.bin", &net.concat());
}

#[test]
fn golden_bytes_of_a_socket_devices_options() {
    let bytes = encode(&VsockOptions { cid: 0x0102_0304 }).unwrap();
    golden::check(env!("CARGO_MANIFEST_DIR"), "options-virtio-vsock-1.bin", &bytes);
}
