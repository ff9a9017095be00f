//! Disks on a block device: a loop device, where whoever runs the tests may make one. Elsewhere
//! they are not run, and say so.
//!
//! What is written to its file behind its back is what another host writes: the device keeps its
//! own copy of what was read.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::process::Command;

use tempfile::NamedTempFile;
use vm_memory::VolatileSlice;

use super::tests::{disks, image};
use super::*;

const SECTORS: u64 = 2048;

struct Loop {
    device: String,
    file: NamedTempFile,
}

impl Loop {
    fn new() -> Option<Self> {
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(&vec![0xaa; (SECTORS * SECTOR) as usize]).unwrap();
        let made = Command::new("losetup").args(["--find", "--show"]).arg(file.path()).output();
        let said = match made {
            Ok(out) if out.status.success() => {
                let device = String::from_utf8(out.stdout).unwrap().trim().to_owned();
                return Some(Self { device, file });
            }
            Ok(out) => String::from_utf8_lossy(&out.stderr).into_owned(),
            Err(e) => e.to_string(),
        };
        let test = std::thread::current();
        let test = test.name().unwrap_or("a test").to_owned();
        // Not `eprintln`, whose words nobody sees of a test that passes.
        let _ = writeln!(std::io::stderr(), "{test}: not run, no loop device: {said}");
        None
    }

    fn config(&self) -> DiskConfig {
        let dir = tempfile::tempdir().unwrap();
        DiskConfig { path: self.device.clone().into(), ..image(dir.path(), "a", 8) }
    }

    /// What is in its file.
    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.as_file().read_exact_at(&mut bytes, at).unwrap();
        bytes
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
    }
}

fn read(disk: &dyn Disk, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    disk.read(at, &[VolatileSlice::from(&mut bytes[..])]).unwrap();
    bytes
}

#[test]
fn a_device_is_a_disk_and_what_is_discarded_or_zeroed_is_so_on_it() {
    let Some(device) = Loop::new() else { return };
    let vm = disks(&device.config());
    vm.describe().unwrap();
    let error = disks(&device.config()).describe().unwrap_err().to_string();
    assert!(error.contains("is in use"), "{error}");
    let disk = vm.get("disk0").unwrap();
    assert_eq!(disk.size(), SECTORS * SECTOR);
    let mut bytes = vec![0x55; 4096];
    disk.write(4096, &[VolatileSlice::from(&mut bytes[..])]).unwrap();
    disk.flush().unwrap();
    assert_eq!(device.bytes(4096, 4096), bytes);
    // Each beside content that stays.
    disk.discard(64 << 10, 64 << 10).unwrap();
    disk.write_zeroes(256 << 10, 64 << 10, false).unwrap();
    disk.write_zeroes(512 << 10, 64 << 10, true).unwrap();
    disk.flush().unwrap();
    for at in [64 << 10, 256 << 10, 512 << 10] {
        for (at, byte) in
            [(at - 4096, 0xaa), (at, 0), (at + (60 << 10), 0), (at + (64 << 10), 0xaa)]
        {
            assert_eq!(read(&*disk, at, 4096), [byte; 4096], "read at {at}");
            assert_eq!(device.bytes(at, 4096), [byte; 4096], "at {at}");
        }
    }
}

/// Somebody has the device open all the time, or the kernel would forget by itself.
#[test]
fn what_another_host_wrote_is_read_when_a_guest_arrives_and_when_it_stays_after_all() {
    let Some(device) = Loop::new() else { return };
    let keeps = OpenOptions::new().read(true).open(&device.device).unwrap();
    let other_host_writes = |byte: u8| {
        let mut kept = [0; 4096];
        keeps.read_exact_at(&mut kept, 0).unwrap();
        device.file.as_file().write_all_at(&[byte; 4096], 0).unwrap();
        keeps.read_exact_at(&mut kept, 0).unwrap();
        assert_ne!(kept[0], byte, "this host keeps nothing: the test shows nothing");
    };
    for config in [device.config(), DiskConfig { lock: false, ..device.config() }] {
        let vm = disks(&config);
        other_host_writes(0xbb);
        let disk = vm.get("disk0").unwrap();
        assert_eq!(read(&*disk, 0, 4096), [0xbb; 4096]);
        if config.lock {
            vm.let_go().unwrap();
            other_host_writes(0xcc);
            assert!(vm.take_back(Locks::Needed));
            assert_eq!(read(&*disk, 0, 4096), [0xcc; 4096]);
        }
    }
}
