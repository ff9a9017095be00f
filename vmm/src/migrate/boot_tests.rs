//! Which files come over the wire, and which are this host's.

use std::io::Read;

use wherry_migration::traits::Digest;

use super::*;
use crate::boot::reset::Reset;
use crate::boot::smbios::Firmware;
use crate::cpu::compat::CpuDescriptionV1;
use crate::machine::Kernel;

fn id(bytes: &[u8]) -> FileId {
    let mut digest = Digest::default();
    digest.update(bytes);
    FileId { len: bytes.len() as u64, digest: digest.finish() }
}

fn description() -> Description {
    let firmware = Firmware { uuid: [7; 16], credentials: vec![] };
    Description {
        ram_bytes: 128 << 20,
        nr_vcpus: 1,
        cpu: CpuDescriptionV1 { cpuid: vec![], arch_capabilities: 0, tsc_khz: 0 },
        kernel: Kernel {
            path: "/source/k".into(),
            initrd: Some("/source/i".into()),
            cmdline: String::new(),
        },
        reset: Reset { firmware, ..Reset::default() },
        devices: vec![],
    }
}

/// What a source says of this machine.
fn said() -> Vec<u8> {
    description().encode_reset(ResetV1::Files).unwrap()
}

/// Another, as it is before anything is said.
fn arrived() -> Description {
    let bytes = description().encode(u16::MAX).unwrap();
    Description::decode(&bytes).unwrap()
}

#[test]
fn what_this_host_has_is_not_sent_and_what_is_sent_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (kernel, initrd) = (dir.path().join("k"), dir.path().join("i"));
    std::fs::write(&kernel, b"kernel").unwrap();
    std::fs::write(&initrd, b"other!").unwrap();
    let mut machine = arrived();
    let mut boot =
        BootFiles::new(Here::open(Some(kernel.as_os_str()), Some(initrd.as_os_str())), true);
    let mut sinks = boot.take(&mut machine, &said(), &[id(b"kernel"), id(b"initrd")]).unwrap();
    assert!(sinks[0].is_none() && boot.told && machine.reset.boots);
    assert_eq!((&machine.kernel.path, machine.reset.firmware.uuid), (&kernel, [7; 16]));
    sinks[1].as_mut().unwrap().write_all(b"initrd").unwrap();
    drop(sinks);
    boot.finish(&mut machine).unwrap();
    assert_eq!(machine.shown_kernel(), kernel.display().to_string());
    let Sources { kernel, initrd } = machine.reset.sources;
    assert!(!kernel.unwrap().came());
    let mut read = Vec::new();
    initrd.unwrap().part().unwrap().read_to_end(&mut read).unwrap();
    assert_eq!(read, b"initrd");
}

#[test]
fn nothing_is_wanted_where_a_reset_ends_the_guest() {
    let mut machine = arrived();
    let mut boot = BootFiles::new(Here::default(), false);
    let sinks = boot.take(&mut machine, &said(), &[id(b"k"), id(b"i")]).unwrap();
    assert!(sinks.iter().all(Option::is_none) && sinks.len() == 2);
    boot.finish(&mut machine).unwrap();
    assert!(!machine.reset.boots && machine.reset.sources.kernel.is_none());
    assert_eq!(machine.shown_kernel(), "/source/k of another host");
}

#[test]
fn people_see_where_a_kernel_came_from_and_no_more_of_a_peers_word_than_a_path() {
    let mut machine = arrived();
    let files = [id(b"k"), id(b"")];
    let mut boot = BootFiles::new(Here::default(), true);
    let mut sinks = boot.take(&mut machine, &said(), &files).unwrap();
    sinks[0].as_mut().unwrap().write_all(b"k").unwrap();
    boot.finish(&mut machine).unwrap();
    assert_eq!(machine.shown_kernel(), "/source/k of another host, came with the guest");
    machine.kernel.path = format!("/\x1b[2J{}", "k".repeat(1 << 20)).into();
    let shown = machine.shown_kernel();
    assert!(shown.starts_with("/\\u{1b}[2Jkk") && shown.len() < 5000, "{}", shown.len());
    machine.kernel.path = "".into();
    assert_eq!(machine.shown_kernel(), "its own, in its first disk");
}

#[test]
fn files_too_long_for_the_guest_are_refused_before_there_is_room_for_them() {
    let take = |kernel: u64, initrd: u64| {
        let files = [kernel, initrd].map(|len| FileId { len, digest: 0 });
        BootFiles::new(Here::default(), true).take(&mut arrived(), &said(), &files).map(drop)
    };
    take(MAX_KERNEL, 128 << 20).unwrap();
    let error = take(MAX_KERNEL + 1, 0).unwrap_err().to_string();
    assert!(error.contains("a kernel of 268435457 bytes"), "{error}");
    take(0, (128 << 20) + 1).unwrap_err();
}

#[test]
fn half_a_file_is_not_booted() {
    let mut machine = arrived();
    let mut boot = BootFiles::new(Here::default(), true);
    let mut sinks = boot.take(&mut machine, &said(), &[id(b"kernel"), id(b"")]).unwrap();
    sinks[0].as_mut().unwrap().write_all(b"kern").unwrap();
    boot.finish(&mut machine).unwrap_err();
}
