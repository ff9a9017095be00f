//! Inputs to begin with, made by the product's own encoders: `cargo run -p wherry-fuzz-targets
//! --example seeds` writes them.

use kvm_bindings::{kvm_cpuid_entry2, kvm_irqchip, kvm_msr_entry};
use serde::Serialize;
use serde_json::json;
use std::sync::Arc;
use vm_memory::{ByteValued, GuestAddress};
use wherry_devices::device::{Saved, Spec};
use wherry_devices::power::PowerStateV1;
use wherry_devices::serial::SerialStateV1;
use wherry_devices::virtio::balloon::{BalloonConfig, BalloonDeviceState, SavedPages};
use wherry_devices::virtio::mmio::{MmioStateV1, QueueStateV1, VirtioStateV1};
use wherry_migration::wire::digests::Digests;
use wherry_migration::wire::pages::{Run, encode_runs, pack_lz4, packed_room};
use wherry_migration::wire::version::{Agreed, Hello, NEWEST, VERSIONS, Welcome};
use wherry_migration::wire::{
    FEATURE_CRC32, FEATURE_LZ4, FEATURE_STREAMS, FEATURE_VERIFY, Header, Join, Kind, Machine,
    RoundStart, StateEnd, Streams, SyncPoint, VerifyChunk,
};
use wherry_vmm::boot::reset::Reset;
use wherry_vmm::config::devices;
use wherry_vmm::cpu::compat::CpuDescriptionV1;
use wherry_vmm::cpu::state::VcpuStateV1;
use wherry_vmm::cpu::vm_state::VmStateV1;
use wherry_vmm::machine::{Description, Kernel, MachineState};

use crate::balloon::op;
use crate::blk::op as disk;
use crate::frames::{CRC32, Record};
use crate::machine::RAM;
use crate::{Rng, TARGETS};

/// Names and content for a target.
pub fn of(target: &str) -> Vec<(String, Vec<u8>)> {
    let mut seeds = match target {
        "balloon" => balloon(),
        "blk" => blk(),
        "net" => crate::net::seeds(),
        "vsock" => crate::vsock::seeds(),
        "rng" => crate::rng::seeds(),
        "stream" => crate::stream::seeds(),
        "serial" => serial(),
        "power" => vec![("button", vec![0, 1, 2, 4, 1, 0, 0, 0])],
        "wire" => wire(),
        "destination" => destination(),
        "source" => source(),
        "machine" => machine(),
        "trace" => trace(),
        "kernel" => kernel(),
        "control" => control(),
        "config" => crate::config::seeds(),
        "rootfs" => crate::rootfs::seeds(),
        _ => Vec::new(),
    };
    seeds.push(("nothing", Vec::new()));
    let mut seeds: Vec<_> =
        seeds.into_iter().map(|(name, data)| (format!("seed-{name}"), data)).collect();
    // Targets that take any byte for an operation.
    let device = matches!(target, "balloon" | "blk" | "net" | "vsock" | "rng" | "serial" | "power");
    if device || target == "stream" {
        let mut rng = Rng::new(1);
        seeds.extend((0..8).map(|n| (format!("seed-random-{n}"), rng.bytes(40 << n))));
    }
    seeds
}

/// All of them.
pub fn all() -> impl Iterator<Item = (&'static str, String, Vec<u8>)> {
    let of =
        |t: &crate::Target| of(t.name).into_iter().map(|(n, d)| (t.name, n, d)).collect::<Vec<_>>();
    TARGETS.iter().flat_map(of)
}

type Seeds = Vec<(&'static str, Vec<u8>)>;

/// A register of the balloon's, by its place in `REGISTERS`, and a small value.
fn register(nth: u8, value: u8) -> [u8; 3] {
    [op::REGISTER, nth, value]
}

fn balloon() -> Seeds {
    let up = [0, op::UP, 0];
    let stats = [op::STATS, 10, 4, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    let id = [op::HOST, 2, op::COMMAND, 255];
    let hint = [op::RANGE, 0, 2, 0, 0x30, 1, 0, 14];
    let report = [op::RANGE, 1, 2, 0, 0x30, 1, 0, 14];
    let inflate = [op::NUMBERS, 0, 200, 0, 2, 0];
    let deflate = [op::NUMBERS, 1, 20, 0, 2, 0];
    let stop_queue = |queue| [register(1, queue), register(2, 0)].concat();
    let all = [&up[..], &stats, &id, &hint, &report, &inflate, &deflate, &[op::MOVE]].concat();
    vec![
        // A statistics buffer that the device holds when its queue is stopped.
        ("held", [&up[..], &stats, &stop_queue(2), &[op::MOVE]].concat()),
        ("no-deflate", [&up[..], &inflate, &stop_queue(1), &[op::MOVE]].concat()),
        ("poison", [&[0, op::UP, 0x40][..], &register(16, 5), &register(0, 15), &report].concat()),
        ("reset", [&all[..], &[op::RESET, op::MOVE, op::UP, 0], &inflate].concat()),
        ("refused", [&up[..], &register(0, 128), &stats, &[op::MOVE]].concat()),
        ("all", all),
    ]
}

fn blk() -> Seeds {
    let up = [disk::UP, 0];
    let read = [disk::REQUEST, 0, 3, 2];
    // The last one's data reaches into a page that nobody else writes.
    let reads = [disk::REQUEST, 0, 3, 3].repeat(4);
    let write = [disk::REQUEST, 1, 5, 3];
    let [flush, id] = [[disk::REQUEST, 2, 0, 0, 0, 0], [disk::REQUEST, 3, 0, 1, 0, 0]];
    let [discard, zero] = [[disk::REQUEST, 4, 0, 8, 8, 0], [disk::REQUEST, 5, 0, 16, 8, 1]];
    let [full, well, fails, cached] = [2, 0, 1, 8].map(|faults| [disk::FAULT, faults]);
    let stop = [disk::REGISTER, 1, 0, disk::REGISTER, 2, 0];
    let turn = [6];
    let all = [&read[..], &write, &flush, &id, &discard, &zero].concat();
    let with = |options, rest: &[&[u8]]| [&[options], &up[..], &rest.concat()].concat();
    vec![
        ("all", with(0, &[&all, &turn, &[disk::HARVEST], &all, &[disk::MOVE], &all])),
        ("only-read", with(1, &[&all, &[disk::RUN], &all])),
        ("direct", with(16, &[&all, &all, &[disk::MOVE], &all])),
        ("full", with(0, &[&full, &all, &turn, &[disk::MOVE], &all, &well, &[disk::RUN]])),
        ("cached", with(0, &[&cached, &[disk::HARVEST], &reads, &[disk::RUN]])),
        ("half-cached", with(0, &[&cached, &read, &[disk::REQUEST, 0, 15, 2], &[disk::RUN]])),
        ("fails", with(0, &[&fails, &all, &[disk::RUN], &well, &all])),
        ("reset", with(0, &[&all, &turn, &up, &all, &turn, &stop, &[disk::MOVE]])),
        ("stopped", with(0, &[&full, &write, &turn, &stop, &[disk::MOVE], &up, &all])),
        ("twice", with(0, &[&full, &write, &[4, 0, 4, 0], &turn, &[disk::MOVE]])),
        ("through", [&[0, disk::UP, 1][..], &all, &all].concat()),
    ]
}

fn serial() -> Seeds {
    vec![
        ("typed", vec![3, 1, 3, 0, 200, 0, 1, 5, 0, 2, 1, 1, 2, 3, 4, 2]),
        ("flood", vec![3, 1, 1, 0, 7, 255, 255, 0, 7, 255, 255, 2, 5, 0, 5, 2, 2]),
        ("loopback", vec![3, 4, 16, 3, 0, 65, 3, 0, 66, 5, 0, 3, 4, 0, 2]),
        ("divisor", vec![3, 3, 128, 3, 0, 1, 3, 1, 0, 3, 3, 3, 2]),
    ]
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // As the wire's control payloads are.
    wherry_codec::encode(value).expect("plain data")
}

fn runs(runs: &[(u64, u32, bool)]) -> Vec<u8> {
    let runs: Vec<_> = runs.iter().map(|&(first, nr, zero)| Run { first, nr, zero }).collect();
    let mut out = Vec::new();
    encode_runs(&runs, &mut out);
    out
}

fn packed(first: u64, nr: u32) -> Vec<u8> {
    let content: Vec<u8> = (0..nr as usize * 4096).map(|n| (n / 100) as u8).collect();
    let mut room = vec![0; packed_room()];
    let content = pack_lz4(&content, &mut room).expect("it compresses");
    [&runs(&[(first, nr, false)])[..], content].concat()
}

/// What a destination of the tests answers for its 16 pages.
fn digests(nr: u32) -> Vec<u8> {
    let (mut digests, mut out) = (Digests::default(), Vec::new());
    digests.begin(0, nr);
    for page in (0..u64::from(nr)).filter(|page| page % 3 != 0) {
        digests.push(page, &[(page % 3) as u8; 4096]);
    }
    digests.encode(&mut out);
    out
}

fn wire() -> Seeds {
    let kind = Kind::Pages as u16;
    let header = Header { version: NEWEST, kind, seq: 3, len: 4, sum: 9 }.encode();
    vec![
        ("header", [&[0][..], &header].concat()),
        ("zero-pages", [&[1, 100, 0][..], &runs(&[(3, 2, true), (9, 1, true)])].concat()),
        ("pages", [&[1, 100, 0][..], &runs(&[(3, 1, false)]), &[5; 4096]].concat()),
        ("packed", [&[2, 100, 0][..], &packed(3, 4)].concat()),
        ("digests", [&[3, 0, 0, 16, 0][..], &digests(16)].concat()),
    ]
}

fn hello(features: u64) -> Vec<u8> {
    let hello = Hello::new(&VERSIONS, features);
    let machine = Machine { nr_pages: 100, description: b"guest".to_vec() };
    [
        Record::encode(0, Kind::Hello, &encode(&hello), None),
        Record::encode(0, Kind::Machine, &encode(&machine), None),
    ]
    .concat()
}

fn round(round: u32) -> Vec<u8> {
    Record::encode(0, Kind::Round, &encode(&RoundStart { round }), None)
}

fn sync(place: u8, round: u32) -> Vec<u8> {
    Record::encode(place, Kind::Sync, &encode(&SyncPoint { round }), None)
}

/// State and hand-off.
fn end() -> Vec<u8> {
    let state = b"state";
    let end = StateEnd { len: state.len() as u64, crc: crc(state) };
    [
        Record::encode(0, Kind::State, state, None),
        Record::encode(0, Kind::StateEnd, &encode(&end), None),
        Record::encode(0, Kind::HandOff, &[], None),
    ]
    .concat()
}

/// CRC32 (IEEE), bit by bit: seeds are small.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

fn destination() -> Seeds {
    let pages =
        |place, first| Record::encode(place, Kind::Pages, &runs(&[(first, 2, false)]), Some(2));
    let zero = Record::encode(0, Kind::Pages, &runs(&[(4, 96, true)]), None);
    let idle = Record::encode(0, Kind::Idle, &[], None);
    let packed = Record::encode(0, Kind::PagesLz4, &packed(7, 3), None);
    let verify = Record::encode(0, Kind::Verify, &encode(&VerifyChunk { first: 0, nr: 100 }), None);
    let plain = [hello(0), round(1), pages(0, 3), idle, round(2), zero, end()].concat();
    let streams = Record::encode(0, Kind::Streams, &encode(&Streams { nr: 2, token: 7 }), None);
    let join = |place, stream| {
        Record::encode(place, Kind::Join, &encode(&Join { stream, token: 7 }), None)
    };
    let over = [
        [hello(FEATURE_STREAMS), streams, join(1, 0), join(2, 1), round(1)].concat(),
        [pages(1, 3), pages(2, 9), sync(0, 1), sync(1, 1), sync(2, 1), end()].concat(),
    ];
    let raw: Vec<u8> = {
        let mut input = crate::bytes::Bytes(&plain);
        let mut number = 0;
        let mut out = vec![1];
        while !input.is_empty() {
            out.extend(Record::take(&mut input).frame(&mut number));
        }
        out
    };
    let mut summed = pages(0, 3);
    if let Some(flags) = summed.get_mut(2) {
        *flags |= CRC32;
    }
    let with = |parts: &[&[u8]]| [&[0][..], &parts.concat()].concat();
    vec![
        ("plain", with(&[&plain])),
        ("crc32", with(&[&hello(FEATURE_CRC32), &round(1), &summed, &end()])),
        ("packed", with(&[&hello(FEATURE_LZ4), &round(1), &packed, &end()])),
        ("verify", with(&[&hello(FEATURE_VERIFY), &round(1), &pages(0, 3), &verify, &end()])),
        ("streams", with(&[&over[0], &over[1]])),
        ("raw", raw),
    ]
}

fn source() -> Seeds {
    let answers = |options: u8, features: u64| {
        let welcome = Welcome::new(Agreed { version: NEWEST, features });
        let welcome = Record::encode(0, Kind::Welcome, &encode(&welcome), None);
        let ready = Record::encode(0, Kind::Ready, &[], None);
        let digests = match features & FEATURE_VERIFY {
            0 => Vec::new(),
            _ => Record::encode(2, Kind::Digests, &digests(16), None),
        };
        let loaded = Record::encode(3, Kind::Loaded, &[], None);
        let running = Record::encode(4, Kind::Running, &[], None);
        [vec![options], welcome, ready, digests, loaded, running].concat()
    };
    let mut lost = answers(0, 0);
    lost.truncate(lost.len() - 5);
    vec![
        ("plain", answers(0, 0)),
        ("hints", answers(2, 0)),
        ("verify", answers(4, FEATURE_VERIFY)),
        ("packed", answers(8, FEATURE_LZ4)),
        ("crc32", answers(16, FEATURE_CRC32)),
        ("no-answer", lost),
    ]
}

fn vcpu(id: u32) -> VcpuStateV1 {
    VcpuStateV1 {
        id,
        tsc: 1000,
        tsc_deadline: 0,
        regs: Default::default(),
        sregs: Default::default(),
        xcrs: Default::default(),
        xsave: vec![7; 4096],
        debug_regs: Default::default(),
        msrs: vec![kvm_msr_entry { index: 0x277, data: 6, ..Default::default() }],
        lapic: Default::default(),
        mp_state: Default::default(),
        events: Default::default(),
    }
}

/// A live balloon with everything in use.
fn live_balloon() -> BalloonDeviceState {
    use wherry_devices::host::BalloonBackend;
    use wherry_devices::virtio::balloon::Balloon;
    struct Nobody;
    impl wherry_devices::InterruptLine for Nobody {
        fn set(&self, _: bool) -> std::io::Result<()> {
            Ok(())
        }
    }
    impl BalloonBackend for Nobody {
        fn discard(&self, _: u64, _: u64) -> std::io::Result<()> {
            Ok(())
        }
    }
    let ranges = [(GuestAddress(0), RAM)];
    let mem = Arc::new(wherry_devices::GuestMemory::from_ranges(&ranges).expect("memory"));
    let balloon =
        Balloon::create(BalloonConfig::default(), mem, Arc::new(Nobody), Arc::new(Nobody));
    let mut state = balloon.expect("a balloon").state();
    state.mmio.status = 15;
    state.mmio.driver_features = state.mmio.device_features;
    state.mmio.queues = (0..5)
        .map(|n| QueueStateV1 {
            ready: true,
            event_idx: true,
            size: 128,
            desc_table: 0x1_0000 + n * 0x4000,
            avail_ring: 0x1_1000 + n * 0x4000,
            used_ring: 0x1_2000 + n * 0x4000,
            ..state.mmio.queues[0].clone()
        })
        .collect();
    state.device.ballooned = SavedPages::Runs(vec![(3, 5), (100, 20)]);
    state.device.held_stats = Some(4);
    state.device.hinting.last_id = 5;
    state.device.hinting.field = 5;
    state.device.hinting.issued = true;
    state
}

fn machine() -> Seeds {
    let cpuid = vec![kvm_cpuid_entry2 { function: 1, ecx: 5, ..Default::default() }];
    let cpu = CpuDescriptionV1 { cpuid, tsc_khz: 2_000_000, arch_capabilities: 0 };
    let kernel = Kernel { path: "/boot/vmlinuz".into(), initrd: None, cmdline: "quiet".into() };
    let devices = devices(Some(&BalloonConfig::default()), true, &[], vec![]).expect("plain data");
    let saved = |spec: &Spec, bytes| {
        let (id, kind) = (spec.id.clone(), spec.kind);
        Saved { id, kind, version: kind.state_for(NEWEST), bytes }
    };
    let reset = Reset::default();
    let description = Description { ram_bytes: 1 << 30, nr_vcpus: 2, cpu, kernel, reset, devices };
    let chip = |chip_id| kvm_irqchip { chip_id, ..Default::default() };
    let vm = VmStateV1 {
        clock_ns: 5,
        realtime_ns: 6,
        pic_master: chip(0),
        pic_slave: chip(1),
        ioapic: chip(2),
        pit: None,
    };
    let typed =
        SerialStateV1 { fifo: b"typed".to_vec(), backlog: vec![7; 100], ..Default::default() };
    let (power, balloon) = (PowerStateV1::default(), live_balloon());
    let mut torn = balloon.clone();
    torn.device.ballooned = SavedPages::Words(vec![(0, 0x55), (2, 1 << 63)]);
    let rng = MmioStateV1 { device_type: 4, ..balloon.mmio.clone() };
    let rng = VirtioStateV1 { mmio: rng, device: () };
    let vcpus = vec![vcpu(0), vcpu(1)];
    let parts = [encode(&typed), encode(&power), encode(&balloon), encode(&rng)];
    let devices = description.devices.iter().zip(parts).map(|(spec, bytes)| saved(spec, bytes));
    let state = MachineState { running: true, vm, vcpus, devices: devices.collect() };
    let with = |kind: u8, bytes: Result<Vec<u8>, wherry_codec::CodecError>| {
        [vec![kind], bytes.expect("it can be encoded")].concat()
    };
    vec![
        ("description", with(0, description.encode(NEWEST))),
        ("state", with(1, state.encode(NEWEST))),
        ("balloon", with(2, wherry_codec::encode(&balloon))),
        ("torn-balloon", with(2, wherry_codec::encode(&torn))),
        ("serial", with(3, wherry_codec::encode(&typed))),
        ("vcpu", with(4, wherry_codec::encode(&vcpu(1)))),
    ]
}

fn trace() -> Seeds {
    let start = json!({
        "t_us": 0, "event": "start", "format": "wherry-trace", "version": 1, "nr_pages": 1024,
        "downtime_limit_us": 300_000, "max_rounds": 30, "hints": "auto", "streams": 1,
    });
    let lines = [
        json!({"t_us": 10, "event": "round", "round": 1, "to_send": 900, "hole": 100,
        "ballooned": 24, "clean": 0}),
        json!({"t_us": 20, "event": "publish", "round": 1, "mode": "protected"}),
        json!({"t_us": 30, "event": "hints", "ranges": [[5, 10], [100, 3]], "dropped": 0}),
        json!({"t_us": 40, "event": "slice", "round": 1, "bytes": 4_000_000, "sent": 887,
        "zero": 0, "hinted": 13,
               "rate": 100_000_000, "held_us": 5, "reading_us": 3, "sending_us": 9}),
        json!({"t_us": 45, "event": "dirty", "round": 1, "pages": 10, "protected": 50}),
        json!({"t_us": 50, "event": "harvest", "round": 1, "dirty": 20, "overridden": 1}),
        json!({"t_us": 60, "event": "round", "round": 2, "to_send": 20, "hole": 0, "ballooned": 0,
        "clean": 1004}),
        json!({"t_us": 90, "event": "end", "report": {"round_one_bytes": 4_000_000,
        "total_bytes": 4_100_000,
               "total_ms": 1, "downtime": {"last_round_us": 20, "total_us": 30}}}),
    ];
    let text = |lines: &[serde_json::Value]| {
        [&start].into_iter().chain(lines).map(|l| format!("{l}\n")).collect::<String>().into_bytes()
    };
    let mut cut = text(&lines[..7]);
    cut.truncate(cut.len() - 9);
    vec![("whole", text(&lines)), ("cut", cut), ("start", text(&[]))]
}

fn kernel() -> Seeds {
    use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr};
    use linux_loader::loader::bootparam::boot_params;
    let mut params = boot_params::default();
    params.hdr.setup_sects = 1;
    params.hdr.syssize = 4096 / 16;
    params.hdr.boot_flag = 0xaa55;
    params.hdr.header = 0x5372_6448;
    params.hdr.version = 0x20f;
    params.hdr.jump = 0x6aeb;
    params.hdr.loadflags = 1;
    params.hdr.xloadflags = 0x7f;
    params.hdr.cmdline_size = 2047;
    params.hdr.initrd_addr_max = 0x7fff_ffff;
    params.hdr.kernel_alignment = 0x20_0000;
    params.hdr.relocatable_kernel = 1;
    params.hdr.pref_address = 16 << 20;
    params.hdr.init_size = 32 << 20;
    let bzimage = [&[1, 0][..], &params.as_slice()[..1024], &[0x90; 4096]].concat();
    let mut header = Elf64_Ehdr {
        e_type: 2,
        e_machine: 62,
        e_phoff: 64,
        e_phentsize: 56,
        e_phnum: 2,
        ..Default::default()
    };
    header.e_ident[..6].copy_from_slice(b"\x7fELF\x02\x01");
    header.e_entry = 16 << 20;
    let code = Elf64_Phdr {
        p_type: 1,
        p_offset: 0x400,
        p_paddr: 16 << 20,
        p_filesz: 0x100,
        p_memsz: 0x2000,
        ..Default::default()
    };
    let words = [4u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), (16 << 20) + 0x10];
    let note: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let notes = Elf64_Phdr {
        p_type: 4,
        p_offset: 0x200,
        p_filesz: note.len() as u64,
        ..Default::default()
    };
    let mut elf = [header.as_slice(), code.as_slice(), notes.as_slice()].concat();
    elf.resize(0x200, 0);
    elf.extend(note);
    elf.resize(0x400, 0);
    elf.extend([0x90; 0x100]);
    vec![("bzimage", bzimage), ("elf", [&[0, 0][..], &elf].concat())]
}

fn control() -> Seeds {
    let lines = |all: &[serde_json::Value]| {
        all.iter().map(|l| format!("{l}\n")).collect::<String>().into_bytes()
    };
    let plain = [
        "info",
        "pause",
        "resume",
        "stop",
        "balloon_stats",
        "migrate_status",
        "migrate_cancel",
        "kill",
    ];
    let plain: Vec<_> = plain.iter().map(|request| json!({ "request": request })).collect();
    vec![
        ("plain", lines(&plain)),
        (
            "migrate",
            lines(&[json!({"request": "migrate", "uri": "unix:/x", "hints": "on", "trace": true})]),
        ),
        (
            "balloon",
            lines(&[
                json!({"request": "balloon_set", "target_bytes": 4096}),
                json!({"request": 5}),
            ]),
        ),
        ("console", lines(&[json!({"request": "console"}), json!("raw bytes")])),
    ]
}
