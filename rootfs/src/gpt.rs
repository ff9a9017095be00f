//! GUID partition tables (UEFI specification, 5.3), with sectors of 512 bytes.

use std::io;

use crate::image::Window;
use crate::refusal::{Refusal, Why};

const SECTOR: u64 = 512;
const MAGIC: &[u8; 8] = b"EFI PART";
/// Most bytes of a table: 16 KiB is usual.
const MAX_TABLE: u64 = 1 << 20;
/// Shortest entry that the specification allows.
const ENTRY: u32 = 128;

/// Root of an x86-64 system (Discoverable Partitions Specification).
pub(crate) const ROOT: [u8; 16] = guid(0x4F68_BCE3, 0xE8CD, 0x4DB1, 0x96E7_FBCA_F984_B709);
/// A Linux file system.
pub(crate) const LINUX: [u8; 16] = guid(0x0FC6_3DAF, 0x8483, 0x4772, 0x8E79_3D69_D847_7DE4);

/// As it stands on a disk: the first three parts little-endian, the rest as it is written.
const fn guid(a: u32, b: u16, c: u16, d: u64) -> [u8; 16] {
    let (a, b, c, d) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes(), d.to_be_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]]
}

/// A partition.
pub(crate) struct Entry {
    /// Its number, from 1.
    pub number: u32,
    /// Its type.
    pub kind: [u8; 16],
    /// Its own GUID, as it stands on the disk.
    pub uuid: [u8; 16],
    /// Where it is; `None` if the disk ends before it does.
    pub window: Option<Window>,
}

/// The partitions of a disk; `None` if it has no partition table.
pub(crate) fn read(disk: &Window) -> Result<Option<Vec<Entry>>, Refusal> {
    let io = |e: io::Error| Refusal::io("its partition table", &e);
    let last = (disk.len() / SECTOR).saturating_sub(1);
    let mut begun = false;
    // The second one is for when the first is damaged.
    for sector in [1, last] {
        let Some(header) = disk.bytes::<92>(sector * SECTOR).map_err(io)? else { continue };
        if header[..8] == *MAGIC {
            begun = true;
            if let Some(entries) = table(disk, sector, &header).map_err(io)? {
                return Ok(Some(entries));
            }
        }
    }
    if begun {
        let detail = "both of its copies are damaged; repair it with gdisk or sfdisk";
        return Err(Refusal::new(Why::Table, detail));
    }
    Ok(None)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

fn guid_at(bytes: &[u8], at: usize) -> [u8; 16] {
    bytes.get(at..at + 16).and_then(|b| b.try_into().ok()).unwrap_or_default()
}

/// The entries that a header in `sector` names, if its checksums are right.
fn table(disk: &Window, sector: u64, header: &[u8; 92]) -> io::Result<Option<Vec<Entry>>> {
    let mut plain = *header;
    plain[16..20].fill(0);
    let (count, size) = (u32_at(header, 80), u32_at(header, 84));
    let bytes = u64::from(count) * u64::from(size);
    let right = u32_at(header, 12) == 92
        && crc32fast::hash(&plain) == u32_at(header, 16)
        && u64_at(header, 24) == sector
        && size >= ENTRY
        && size.is_power_of_two()
        && bytes <= MAX_TABLE;
    let start = u64_at(header, 72).checked_mul(SECTOR);
    let Some(table) = start.filter(|_| right).and_then(|start| disk.part(start, bytes)) else {
        return Ok(None);
    };
    let mut entries = vec![0; bytes as usize];
    table.read(0, &mut entries)?;
    if crc32fast::hash(&entries) != u32_at(header, 88) {
        return Ok(None);
    }
    let used = (1..).zip(entries.chunks(size as usize)).filter(|(_, e)| guid_at(e, 0) != [0; 16]);
    Ok(Some(used.map(|(number, entry)| parse(disk, number, entry)).collect()))
}

fn parse(disk: &Window, number: u32, entry: &[u8]) -> Entry {
    let (first, last) = (u64_at(entry, 32), u64_at(entry, 40));
    let sectors = last.checked_sub(first).and_then(|n| n.checked_add(1));
    let window = sectors
        .and_then(|sectors| disk.part(first.checked_mul(SECTOR)?, sectors.checked_mul(SECTOR)?));
    Entry { number, kind: guid_at(entry, 0), uuid: guid_at(entry, 16), window }
}

/// Whether a disk begins with a table of the older kind that has partitions in it.
pub(crate) fn has_mbr(disk: &Window) -> io::Result<bool> {
    let Some(sector) = disk.bytes::<512>(0)? else { return Ok(false) };
    let used = sector[446..510].chunks(16).any(|entry| entry[4] != 0 && u32_at(entry, 12) != 0);
    Ok(sector[510..] == [0x55, 0xAA] && used)
}
