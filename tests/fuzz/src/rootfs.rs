//! The reader of disk images on any image, without a process around it: a refusal, or files that
//! lie in what was written.
//!
//! An image is written down as its pieces ([`image`]), with a partition table around it if it asks
//! for one: libFuzzer would find no checksums. What is allowed is what the confined process may do:
//! the parser of ext4 is somebody else's and may panic or ask for more memory than there is, which
//! ends as a damaged file system there; code of ours may not.

use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::Command;
use std::sync::Once;

use wherry_rootfs::{Limits, extract};

use crate::bytes::Bytes;

const UNIT: usize = 1024;
const SECTOR: u64 = 512;
/// First sector of the only partition's place.
const FIRST: u64 = 64;
const ROOT: [u8; 16] = [
    0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d, 0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09,
];
/// Parts of one that a run has time for.
const LIMITS: fn() -> Limits = || Limits { kernel: 1 << 20, initrd: 1 << 20, ..Limits::default() };

thread_local! {
    /// Whether somebody else's code may panic.
    static ALLOWED: Cell<bool> = const { Cell::new(false) };
    /// Whether it has.
    static THEIRS: Cell<bool> = const { Cell::new(false) };
}

/// What the panic of an allocation that failed begins with.
pub const NO_MEMORY: &str = "no memory for ";

/// See the module's text.
pub fn rootfs(data: &[u8]) {
    boots(data);
}

/// Limits this process's memory as that of the confined one is, beside what the fuzzer needs.
pub fn limit_memory() {
    let most = Some(1 << 30);
    let limit = rustix::process::Rlimit { current: most, maximum: most };
    rustix::process::setrlimit(rustix::process::Resource::As, limit).expect("a lower limit");
}

/// The same, and whether there is something to boot.
pub fn boots(data: &[u8]) -> bool {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let place = info.location().is_some_and(|place| place.file().contains("ext4-view"));
            let memory = info.payload_as_str().is_some_and(|text| text.starts_with(NO_MEMORY));
            THEIRS.set(ALLOWED.get() && (place || memory));
            if !THEIRS.get() {
                before(info);
            }
        }));
    });
    let (limits, out) = (LIMITS(), tempfile::tempfile().expect("a file"));
    let image = image(data);
    ALLOWED.set(true);
    let found = catch_unwind(AssertUnwindSafe(|| extract(image, &out, &limits)));
    ALLOWED.set(false);
    let listing = match found {
        Ok(Ok(listing)) => listing,
        Err(panic) if !THEIRS.get() => resume_unwind(panic),
        _ => return false,
    };
    let end = out.metadata().expect("its length").len();
    let initrd = listing.initrd.as_ref().map(|file| (file, limits.initrd));
    for (file, most) in [(&listing.kernel, limits.kernel)].into_iter().chain(initrd) {
        assert!(file.path.starts_with('/') && (1..=most).contains(&file.len), "{listing:?}");
        assert!(file.len <= end, "{listing:?}");
    }
    assert!(!listing.cmdline().contains(char::is_control), "{}", listing.cmdline());
    true
}

/// Two bytes are its length in KiB, the highest bit asks for a partition table. Then each piece has
/// two bytes for its place in KiB, two for its length, and its bytes.
fn image(data: &[u8]) -> File {
    let mut input = Bytes(data);
    let head = usize::from(input.u16());
    let (table, units) = (head >> 15 == 1, (head & 0x7fff) as u64);
    let start = if table { FIRST * SECTOR } else { 0 };
    let file = tempfile::tempfile().expect("a file");
    let len = start + units * UNIT as u64;
    file.set_len(len).expect("its length");
    while !input.is_empty() {
        let (at, len) = (usize::from(input.u16()), usize::from(input.u16()));
        let piece = input.take(len % (8 * UNIT));
        if at as u64 + 8 < units {
            file.write_all_at(piece, start + (at * UNIT) as u64).expect("to write it");
        }
    }
    if table {
        partition(&file, len / SECTOR);
    }
    file
}

/// A table with one partition of the root's type to the end, as `sfdisk` would write it.
fn partition(file: &File, sectors: u64) {
    let mut table = [0; 128];
    table[..16].copy_from_slice(&ROOT);
    table[16] = 1;
    table[32..40].copy_from_slice(&FIRST.to_le_bytes());
    table[40..48].copy_from_slice(&sectors.saturating_sub(1).to_le_bytes());
    let mut header = b"EFI PART\0\0\x01\0".to_vec();
    header.extend(92u32.to_le_bytes());
    header.extend([0; 8]);
    header.extend([1, sectors, FIRST, sectors].into_iter().flat_map(u64::to_le_bytes));
    header.extend([7; 16]);
    header.extend(2u64.to_le_bytes());
    header.extend([1u32, 128, crc32(&table)].into_iter().flat_map(u32::to_le_bytes));
    let sum = crc32(&header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    file.write_all_at(&header, SECTOR).expect("to write it");
    file.write_all_at(&table, 2 * SECTOR).expect("to write it");
}

/// The checksum, by its definition.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

/// The pieces of an image that are not zero.
fn pieces(image: &[u8], table: bool) -> Vec<u8> {
    let units = image.len() / UNIT + 16;
    let mut all = (units as u16 | u16::from(table) << 15).to_le_bytes().to_vec();
    for (at, unit) in image.chunks(UNIT).enumerate() {
        let len = unit.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        if len > 0 {
            all.extend([at as u16, len as u16].into_iter().flat_map(u16::to_le_bytes));
            all.extend(&unit[..len]);
        }
    }
    all
}

/// Small file systems of every kind, where there is a `mke2fs`.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let kinds: [(&str, &[&str], &str, bool); 5] = [
        ("ext2", &["-t", "ext2", "-O", "^resize_inode"], "96", false),
        ("ext4", &["-t", "ext4", "-O", "^metadata_csum,^has_journal,^resize_inode"], "96", false),
        ("sums", &["-t", "ext4", "-O", "metadata_csum,64bit,^has_journal"], "96", false),
        ("table", &["-t", "ext4", "-O", "^metadata_csum,^has_journal"], "96", true),
        ("journal", &["-t", "ext4", "-O", "^metadata_csum"], "1200", false),
    ];
    let make = |(name, options, blocks, table): (_, &[&str], &str, bool)| {
        Some((name, pieces(&ext4(options, blocks)?, table)))
    };
    kinds.into_iter().filter_map(make).collect()
}

fn ext4(options: &[&str], blocks: &str) -> Option<Vec<u8>> {
    let folder = tempfile::tempdir().ok()?;
    let (root, image) = (folder.path().join("root"), folder.path().join("image"));
    std::fs::create_dir_all(root.join("boot")).ok()?;
    std::fs::write(root.join("boot/vmlinuz-1"), [1; 1500]).ok()?;
    std::fs::write(root.join("boot/initrd.img-1"), [2; 60]).ok()?;
    std::os::unix::fs::symlink("boot/vmlinuz-1", root.join("vmlinuz")).ok()?;
    std::os::unix::fs::symlink("boot/initrd.img-1", root.join("initrd.img")).ok()?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("mke2fs");
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).args(["-q", "-F", "-b", "1024"]);
    command.args(["-N", "16", "-m", "0", "-U", "0af33b4c-7d1e-4b8e-9d9a-5c3d2e1f0a9b"]);
    command.args(options).arg("-d").args([&root, &image]).arg(blocks);
    command.output().ok().filter(|made| made.status.success())?;
    std::fs::read(image).ok()
}
