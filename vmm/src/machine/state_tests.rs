//! Golden bytes of each record, and how descriptions and states are refused.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use kvm_bindings::{kvm_cpuid_entry2, kvm_msr_entry};
use serde::de::DeserializeOwned;
use wherry_codec::{decode, golden};
use wherry_devices::virtio::balloon::BalloonConfig;
use wherry_migration::wire::version::NEWEST;
use wherry_migration::wire::{MAX_PAGES, max_state};

use super::*;
use crate::config::devices;

fn check_golden(name: &str, bytes: &[u8]) {
    golden::check(env!("CARGO_MANIFEST_DIR"), name, bytes);
}

/// A structure of KVM's with a byte of its own in each place that counts.
fn filled<T: Default + Serialize + DeserializeOwned>(seed: u8) -> T {
    let mut bytes = encode(&T::default()).unwrap();
    // The first eight are the structure's length.
    for (at, byte) in bytes.iter_mut().enumerate().skip(8) {
        *byte = seed.wrapping_add(at as u8);
    }
    decode(&bytes).unwrap()
}

fn vm() -> VmStateV1 {
    VmStateV1 {
        clock_ns: 0x0102_0304_0506_0708,
        realtime_ns: 0x1112_1314_1516_1718,
        pic_master: filled(0x20),
        pic_slave: filled(0x40),
        ioapic: filled(0x60),
        pit: Some(filled(0x80)),
    }
}

fn vcpu(id: u32) -> VcpuStateV1 {
    VcpuStateV1 {
        id,
        tsc: 0x2122_2324_2526_2728,
        tsc_deadline: 0x3132_3334_3536_3738,
        regs: filled(0x10),
        sregs: filled(0x20),
        xcrs: filled(0x30),
        xsave: vec![1, 2, 3, 4, 5],
        debug_regs: filled(0x40),
        msrs: vec![kvm_msr_entry { index: 0x277, data: 6, ..Default::default() }],
        lapic: filled(0x50),
        mp_state: filled(0x60),
        events: filled(0x70),
    }
}

fn cpu() -> CpuDescriptionV1 {
    let entry = kvm_cpuid_entry2 { function: 1, ecx: 5, ..Default::default() };
    CpuDescriptionV1 {
        cpuid: vec![entry],
        arch_capabilities: 0x4142_4344_4546_4748,
        tsc_khz: 0x5152_5354,
    }
}

fn description() -> Description {
    let config = BalloonConfig { target_pages: 7, stats: false, ..BalloonConfig::default() };
    Description {
        ram_bytes: 1 << 30,
        nr_vcpus: 2,
        cpu: cpu(),
        kernel: Kernel {
            path: "/boot/vmlinuz".into(),
            initrd: Some("/boot/initrd".into()),
            cmdline: "quiet".into(),
        },
        reset: Reset::default(),
        devices: devices(Some(&config), true, &[], vec![]).unwrap(),
    }
}

fn state() -> MachineState {
    let saved = |(nr, Spec { id, kind, .. }): (usize, &Spec)| Saved {
        id: id.clone(),
        kind,
        version: kind.state_for(NEWEST),
        bytes: vec![nr as u8; 3],
    };
    MachineState {
        running: true,
        vm: vm(),
        vcpus: vec![vcpu(0), vcpu(1)],
        devices: description().devices.iter().enumerate().map(saved).collect(),
    }
}

#[test]
fn golden_bytes_of_every_record() {
    check_golden("description.bin", &description().encode(NEWEST).unwrap());
    check_golden("record-vm-1.bin", &encode(&vm()).unwrap());
    check_golden("record-vcpu-1.bin", &encode(&vcpu(3)).unwrap());
    check_golden("record-cpu-1.bin", &encode(&cpu()).unwrap());
    // Envelopes alone, those of version 2 of the protocol: the contents have files of their own.
    let short = Writer::new(&STATE, RUNNING);
    let list = [("vm", "vm"), ("vcpu-0", "vcpu")].into_iter().map(|(id, kind)| (id, kind, 1));
    let Description { devices, .. } = description();
    let list =
        list.chain(devices.iter().map(|d| (d.id.as_str(), d.kind.name, d.kind.state_for(2))));
    let list = list.fold(short, |mut out, (id, kind, version)| {
        out.push(Record { id, kind, version, bytes: &[version as u8] });
        out
    });
    check_golden("state-envelopes.bin", &list.finish());
}

#[test]
fn descriptions_and_states_come_back_as_they_were() {
    let bytes = description().encode(NEWEST).unwrap();
    assert_eq!(Description::decode(&bytes).unwrap().encode(NEWEST).unwrap(), bytes);
    let bytes = state().encode(NEWEST).unwrap();
    let back = MachineState::decode(&bytes).unwrap();
    assert!(back.running && back.vcpus == state().vcpus && back.devices == state().devices);
    assert_eq!(back.encode(NEWEST).unwrap(), bytes);
    let paused = MachineState { running: false, ..state() }.encode(NEWEST).unwrap();
    assert!(!MachineState::decode(&paused).unwrap().running);
}

/// The list with one more record.
fn and(bytes: Vec<u8>, format: &Format, record: Record<'_>) -> Vec<u8> {
    let records = Records::read(format, &bytes).unwrap();
    let mut out = Writer::new(format, records.flags());
    records.take_rest().into_iter().for_each(|r| out.push(r));
    out.push(record);
    out.finish()
}

#[test]
fn what_is_unknown_is_refused_by_name() {
    let disk = Record { id: "blk0", kind: "virtio-disk", version: 1, bytes: b"?" };
    let newer = Record { id: "com2", kind: "serial", version: 9, bytes: b"?" };
    let refusals = |record| {
        let description = and(description().encode(NEWEST).unwrap(), &DESCRIPTION, record);
        let state = and(state().encode(NEWEST).unwrap(), &STATE, record);
        let description = Description::decode(&description).map(drop).unwrap_err().to_string();
        [description, MachineState::decode(&state).map(drop).unwrap_err().to_string()]
    };
    let unknown = "has `blk0` of kind `virtio-disk`, which this wherry does not know";
    let what = ["machine description", "machine state"];
    assert_eq!(refusals(disk), what.map(|what| format!("the {what} {unknown}")));
    let other = "has `com2` of kind `serial` in version 9, this wherry knows 1";
    assert_eq!(refusals(newer), what.map(|what| format!("the {what} {other}")));
}

#[test]
fn every_device_of_the_description_takes_its_state_once_and_nothing_is_left() {
    let take = |change: fn(&mut MachineState)| {
        let mut state = state();
        change(&mut state);
        let taken = description().devices.iter().try_for_each(|d| state.take_device(d).map(drop));
        taken.and_then(|()| state.no_device_left()).map_err(|e| e.to_string())
    };
    assert_eq!(take(|_| {}), Ok(()));
    let refused = |text: &str| Err(text.to_owned());
    assert_eq!(take(|s| drop(s.devices.remove(0))), refused("the machine state lacks `com1`"));
    let also =
        |s: &mut MachineState| s.devices.push(Saved { id: "x".into(), ..s.devices[0].clone() });
    assert_eq!(take(also), refused("the machine state has `x`, which belongs to nothing"));
    let other = |s: &mut MachineState| s.devices[0].kind = s.devices[1].kind;
    let text = "the machine state has `com1` of kind `power`, where it should have serial";
    assert_eq!(take(other), refused(text));
}

#[test]
fn devices_in_impossible_places_are_refused() {
    let with = |change: fn(&mut Description)| {
        let mut description = description();
        change(&mut description);
        Description::decode(&description.encode(NEWEST).unwrap()).map(drop)
    };
    with(|_| {}).unwrap();
    let spoils: [fn(&mut Description); 5] = [
        |d| d.devices[0].slot = Some(1),
        |d| d.devices[2].slot = None,
        |d| d.devices[2].slot = Some(8),
        |d| d.devices.push(Spec { id: "b2".into(), ..d.devices[2].clone() }),
        |d| d.devices.push(d.devices[0].clone()),
    ];
    for (nr, spoil) in spoils.into_iter().enumerate() {
        with(spoil).expect_err(&nr.to_string());
    }
}

#[test]
fn a_scattered_balloon_of_a_large_guest_fits() {
    // Every second page of 1 TiB.
    let nr_pages = (1u64 << 40) / 4096;
    let set = vec![0x5555_5555_5555_5555u64; (nr_pages / 64) as usize];
    assert!(encode(&set).unwrap().len() < max_state(nr_pages));
    assert!(max_state(MAX_PAGES) as u64 > (32 << 20) + MAX_PAGES / 8);
}

#[test]
fn a_kernel_whose_path_is_not_text_does_not_keep_its_guest_from_moving() {
    let mut description = description();
    let path = PathBuf::from(OsStr::from_bytes(b"/boot/\xff"));
    (description.kernel.path, description.kernel.initrd) = (path.clone(), Some(path));
    let there = Description::decode(&description.encode(NEWEST).unwrap()).unwrap().kernel;
    assert_eq!(there.path, PathBuf::from("/boot/\u{fffd}"));
    assert_eq!((there.initrd, there.cmdline), (Some(there.path), description.kernel.cmdline));
}
