//! Images for the tests, made by `mke2fs -d` and a partition table written here.

#![allow(dead_code, reason = "each test uses its part of it")]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;
use wherry_tests::needs::MKE2FS;

pub const UUID: &str = "0af33b4c-7d1e-4b8e-9d9a-5c3d2e1f0a9b";
pub const ROOT: &str = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";
pub const LINUX: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";
pub const ESP: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
/// GUID of the first partition of [`gpt`].
pub const FIRST: &str = "00000001-0002-0003-0405-060708090a0b";

/// Whether there is a `mke2fs`. If not, the test is not run and says so.
pub fn mke2fs_is_here() -> bool {
    MKE2FS.or_not_run(mke2fs().arg("-V").output()).is_some()
}

fn mke2fs() -> Command {
    tool("mke2fs")
}

fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

/// Files to be put into a file system.
pub struct Tree(TempDir);

impl Tree {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// As Debian has it: a kernel, its initrd, and links to both.
    pub fn debian() -> Self {
        let version = "6.1.0-40-cloud-amd64";
        Self::new()
            .file(&format!("boot/vmlinuz-{version}"), &kernel())
            .file(&format!("boot/initrd.img-{version}"), &initrd())
            .link("vmlinuz", &format!("boot/vmlinuz-{version}"))
            .link("initrd.img", &format!("boot/initrd.img-{version}"))
    }

    fn place(&self, path: &str) -> std::path::PathBuf {
        let place = self.0.path().join(path);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        place
    }

    pub fn file(self, path: &str, bytes: &[u8]) -> Self {
        fs::write(self.place(path), bytes).unwrap();
        self
    }

    pub fn link(self, path: &str, target: &str) -> Self {
        let place = self.place(path);
        let _ = fs::remove_file(&place);
        symlink(target, place).unwrap();
        self
    }

    pub fn folder(self, path: &str) -> Self {
        fs::create_dir_all(self.place(path)).unwrap();
        self
    }

    pub fn without(self, path: &str) -> Self {
        fs::remove_file(self.place(path)).unwrap();
        self
    }

    /// The file system of 8 MiB, as its bytes.
    pub fn ext4(&self) -> Vec<u8> {
        self.ext4_with(&["-t", "ext4"], "8M")
    }

    pub fn ext4_with(&self, options: &[&str], size: &str) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let made = mke2fs()
            .args(["-q", "-F", "-U", UUID])
            .args(options)
            .arg("-d")
            .args([self.0.path(), Path::new(&image)])
            .arg(size)
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        fs::read(image).unwrap()
    }
}

/// Writes a new block `number` of a file into the journal alone, and returns it.
pub fn with_journal(image: &[u8], path: &str, number: u32) -> (Vec<u8>, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let (disk, new) = (dir.path().join("disk"), dir.path().join("new"));
    fs::write(&disk, image).unwrap();
    let block = noise(4096, 3);
    fs::write(&new, &block).unwrap();
    let debugfs = |commands: &str| {
        let script = dir.path().join("script");
        fs::write(&script, commands).unwrap();
        let done = tool("debugfs").arg("-wf").args([&script, &disk]).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        String::from_utf8(done.stdout).unwrap()
    };
    let said = debugfs(&format!("bmap {path} {number}\n"));
    let at = said.split_whitespace().last().unwrap();
    debugfs(&format!("jo -c\njw -b {at} {}\njc\n", new.display()));
    (fs::read(disk).unwrap(), block)
}

/// Bytes that are not the same twice.
fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let step = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(step).collect()
}

pub fn kernel() -> Vec<u8> {
    noise(300_007, 1)
}

pub fn initrd() -> Vec<u8> {
    noise(700_001, 2)
}

/// A file with these bytes.
pub fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// A GUID as it stands on a disk.
fn guid(text: &str) -> [u8; 16] {
    let digits = u128::from_str_radix(&text.replace('-', ""), 16).unwrap();
    let mut bytes = digits.to_be_bytes();
    bytes[0..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

const SECTOR: usize = 512;
/// Sectors of a table of 128 entries.
const TABLE: usize = 32;
const ALIGNED: usize = 2048;

/// A disk with these partitions (type, content), one after the other, and both tables.
pub fn gpt(partitions: &[(&str, &[u8])]) -> Vec<u8> {
    let mut disk = vec![0; ALIGNED * SECTOR];
    let mut table = vec![0; TABLE * SECTOR];
    for (i, (kind, content)) in partitions.iter().enumerate() {
        let first = disk.len() / SECTOR;
        disk.extend_from_slice(content);
        disk.resize(disk.len().next_multiple_of(ALIGNED * SECTOR), 0);
        let last = first + content.len().div_ceil(SECTOR) - 1;
        let entry = &mut table[i * 128..][..128];
        entry[..16].copy_from_slice(&guid(kind));
        entry[16..32].copy_from_slice(&guid(FIRST));
        entry[16] += i as u8;
        entry[32..40].copy_from_slice(&(first as u64).to_le_bytes());
        entry[40..48].copy_from_slice(&(last as u64).to_le_bytes());
    }
    let end = disk.len() / SECTOR;
    disk.extend_from_slice(&table);
    disk.resize(disk.len() + SECTOR, 0);
    let last = disk.len() / SECTOR - 1;
    for (own, other, at) in [(1, last, 2), (last, 1, end)] {
        let header = header(own, other, at, last, &table);
        disk[own * SECTOR..][..92].copy_from_slice(&header);
    }
    disk[2 * SECTOR..][..table.len()].copy_from_slice(&table);
    // The protective MBR.
    disk[450] = 0xEE;
    disk[454] = 1;
    disk[458..462].copy_from_slice(&(last as u32).to_le_bytes());
    disk[510..512].copy_from_slice(&[0x55, 0xAA]);
    disk
}

fn header(own: usize, other: usize, at: usize, last: usize, table: &[u8]) -> Vec<u8> {
    let mut header = b"EFI PART\0\0\x01\0".to_vec();
    header.extend(92u32.to_le_bytes());
    header.extend([0; 8]);
    for number in [own, other, 34, last - TABLE - 1] {
        header.extend((number as u64).to_le_bytes());
    }
    header.extend([7; 16]);
    header.extend((at as u64).to_le_bytes());
    header.extend(128u32.to_le_bytes());
    header.extend(128u32.to_le_bytes());
    header.extend(crc32(table).to_le_bytes());
    let sum = crc32(&header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    header
}

/// The checksum, by its definition.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}
