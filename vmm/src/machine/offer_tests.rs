//! What a destination is told of resets, and how lies are refused.

use wherry_codec::{encode, golden};
use wherry_devices::device::Spec;
use wherry_devices::virtio::blk::DiskOptions;

use super::*;
use crate::boot::reset::Reset;
use crate::config::devices;
use crate::cpu::compat::CpuDescriptionV1;
use crate::machine::Kernel;

fn description(kernel: &str, initrd: Option<&str>) -> Description {
    let disk = DiskOptions {
        sectors: 8,
        read_only: false,
        serial: String::new(),
        block_size: 512,
        discard: false,
        write_zeroes: false,
    };
    let disk = Spec::new(&wherry_devices::virtio::blk::KIND, &disk).unwrap().named("root");
    let credentials =
        [("a", &b"b"[..]), ("binary", b"\0\xff")].map(|(name, value)| Credential::new(name, value));
    Description {
        ram_bytes: 1 << 30,
        nr_vcpus: 1,
        cpu: CpuDescriptionV1 { cpuid: vec![], arch_capabilities: 0, tsc_khz: 0 },
        kernel: Kernel {
            path: kernel.into(),
            initrd: initrd.map(Into::into),
            cmdline: "quiet".into(),
        },
        reset: Reset {
            boots: true,
            firmware: Firmware {
                uuid: std::array::from_fn(|at| at as u8),
                credentials: credentials.map(Result::unwrap).into(),
            },
            ..Reset::default()
        },
        devices: devices(None, false, &[], vec![disk]).unwrap(),
    }
}

#[test]
fn golden_bytes_of_what_a_destination_is_told() {
    let bytes = description("k", None).encode_reset(ResetV1::Files).unwrap();
    golden::check(env!("CARGO_MANIFEST_DIR"), "reset.bin", &bytes);
    for (reset, bytes) in [(ResetV1::Ends, 0u32), (ResetV1::Disk, 1), (ResetV1::Files, 2)] {
        assert_eq!(encode(&reset).unwrap(), bytes.to_le_bytes());
    }
}

#[test]
fn a_destination_learns_who_the_machine_is() {
    let there = description("", None);
    let bytes = there.encode_reset(ResetV1::Disk).unwrap();
    let (reset, firmware) = there.decode_reset(&bytes, 0).unwrap();
    assert_eq!((reset, firmware), (ResetV1::Disk, there.reset.firmware));
}

#[test]
fn what_contradicts_the_machine_or_no_guest_can_have_is_refused() {
    let (in_disk, kernel) = (description("", None), description("k", None));
    let both = description("k", Some("i"));
    let told = |machine: &Description, reset, files| {
        let bytes = machine.encode_reset(reset).unwrap();
        machine.decode_reset(&bytes, files).map(drop)
    };
    for (machine, reset, files) in [
        (&in_disk, ResetV1::Disk, 0),
        (&in_disk, ResetV1::Ends, 0),
        (&kernel, ResetV1::Ends, 0),
        (&kernel, ResetV1::Files, 1),
        (&both, ResetV1::Files, 2),
    ] {
        told(machine, reset, files).unwrap();
    }
    let mut diskless = in_disk.clone();
    diskless.devices.pop();
    for (machine, reset, files) in [
        (&in_disk, ResetV1::Disk, 1),
        (&in_disk, ResetV1::Files, 1),
        (&diskless, ResetV1::Disk, 0),
        (&kernel, ResetV1::Disk, 0),
        (&kernel, ResetV1::Ends, 1),
        (&kernel, ResetV1::Files, 0),
        (&kernel, ResetV1::Files, 2),
        (&both, ResetV1::Files, 1),
        (&both, ResetV1::Files, 3),
    ] {
        told(machine, reset, files).expect_err(&format!("{reset:?} {files}"));
    }
    let with = |name: &str, value: &[u8]| {
        let credentials = vec![(name.to_owned(), value.to_vec())];
        let mut out = Writer::new(&RESET, 0);
        push(&mut out, "reset", "reset", 1, &ResetV1::Disk).unwrap();
        let firmware = FirmwareV1 { uuid: [0; 16], credentials };
        push(&mut out, "firmware", "firmware", 1, &firmware).unwrap();
        in_disk.decode_reset(&out.finish(), 0)
    };
    with("fine", b"x").unwrap();
    with("a/b", b"x").unwrap_err();
    with("large", &vec![b'x'; 60 << 10]).unwrap_err();
    in_disk.decode_reset(b"WHRYBOOT", 0).unwrap_err();
}

#[test]
fn a_destination_gets_what_a_reset_here_would_boot() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("k"), b"kernel").unwrap();
    std::fs::write(path("i"), b"").unwrap();
    let mut machine = description(&path("k"), Some(&path("i")));
    machine.reset.sources = Sources::open(&machine.kernel).unwrap();
    // More than is carried: the machine can move, and a reset there ends it.
    let initrd = std::fs::File::options().write(true).open(path("i")).unwrap();
    initrd.set_len(MAX_FILE + 1).unwrap();
    let offer = machine.offer(&CancelToken::new());
    assert_eq!((offer.reset, offer.files.len()), (ResetV1::Ends, 0));
    assert!(offer.ends.unwrap().contains(&path("i")));
    std::fs::write(path("i"), b"initrd").unwrap();
    let lens = |offer: &Offer| offer.files.iter().map(|kept| kept.id().len).collect::<Vec<_>>();
    let offer = machine.offer(&CancelToken::new());
    assert_eq!((offer.reset, lens(&offer), &offer.ends), (ResetV1::Files, vec![6, 6], &None));
    // What came with it goes on, whatever is there now.
    machine.reset.sources.initrd = offer.files.last().cloned().map(Source::Came);
    std::fs::write(path("k"), b"new kernel").unwrap();
    std::fs::remove_file(path("i")).unwrap();
    assert_eq!(lens(&machine.offer(&CancelToken::new())), [10, 6]);
    machine.reset.boots = false;
    assert_eq!(
        (machine.offer(&CancelToken::new()).reset, lens(&machine.offer(&CancelToken::new()))),
        (ResetV1::Ends, vec![])
    );
    let offer = description("", None).offer(&CancelToken::new());
    assert_eq!((offer.reset, lens(&offer), offer.ends), (ResetV1::Disk, vec![], None));
}
