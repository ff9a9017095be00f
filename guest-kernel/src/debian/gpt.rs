//! A partition table (GPT, UEFI specification 2.10, section 5.3) with the root file system alone.

/// Where the partition begins, and how much is left free behind it, in bytes.
pub const MARGIN: u64 = 1 << 20;

const SECTOR: usize = 512;
/// Entries in a table, by custom, and the size of each.
const ENTRIES: usize = 128;
const ENTRY: usize = 128;
const TABLE: usize = ENTRIES * ENTRY;
const HEADER: usize = 92;

/// Type of a partition with the root file system of an x86-64 (Discoverable Partitions
/// Specification): systemd finds it without being told.
const ROOT: &str = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";

/// What comes at the beginning and at the end of a disk of so many bytes. `disk` and `partition`
/// are UUIDs.
pub fn both_ends(bytes: u64, disk: &str, partition: &str) -> (Vec<u8>, Vec<u8>) {
    let sectors = bytes / SECTOR as u64;
    let table_sectors = (TABLE / SECTOR) as u64;
    let (first, last) = (MARGIN / SECTOR as u64, (bytes - MARGIN) / SECTOR as u64 - 1);
    let usable = [2 + table_sectors, sectors - 2 - table_sectors];

    let mut table = [guid(ROOT), guid(partition)].concat();
    table.extend([first, last, 0].map(u64::to_le_bytes).concat());
    table.extend("root".encode_utf16().flat_map(u16::to_le_bytes));
    table.resize(TABLE, 0);

    let header = |own: u64, other: u64, table_at: u64| {
        let mut header = b"EFI PART\0\0\x01\0".to_vec();
        header.extend((HEADER as u32).to_le_bytes());
        header.extend([0; 8]);
        header.extend([own, other, usable[0], usable[1]].map(u64::to_le_bytes).concat());
        header.extend(guid(disk));
        header.extend(table_at.to_le_bytes());
        header.extend([ENTRIES as u32, ENTRY as u32, crc32(&table)].map(u32::to_le_bytes).concat());
        let crc = crc32(&header).to_le_bytes();
        header[16..20].copy_from_slice(&crc);
        header.resize(SECTOR, 0);
        header
    };
    let front = header(1, sectors - 1, 2);
    let back = header(sectors - 1, 1, sectors - 1 - table_sectors);
    ([mbr(sectors), front, table.clone()].concat(), [table, back].concat())
}

/// For programs that do not know GPT: one partition of an unknown type over all.
fn mbr(sectors: u64) -> Vec<u8> {
    let mut mbr = vec![0; SECTOR];
    let length = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
    mbr[446..454].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff]);
    mbr[454..458].copy_from_slice(&1u32.to_le_bytes());
    mbr[458..462].copy_from_slice(&length.to_le_bytes());
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    mbr
}

/// A UUID's 16 bytes as GPT has them: its first three fields the other way round.
fn guid(uuid: &str) -> Vec<u8> {
    let digits: String = uuid.chars().filter(|c| *c != '-').collect();
    let byte =
        |at: usize| digits.get(2 * at..2 * at + 2).and_then(|d| u8::from_str_radix(d, 16).ok());
    [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15]
        .map(|at| byte(at).unwrap_or_default())
        .to_vec()
}

/// The CRC of Ethernet, bit by bit: there is little to do.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: &str = "00112233-4455-8677-8899-aabbccddeeff";

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn sums_and_guids_are_those_of_the_specifications() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(
            guid(DISK),
            [
                0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x86, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd,
                0xee, 0xff
            ]
        );
    }

    #[test]
    fn each_header_finds_the_other_and_the_partition_stays_between() {
        let bytes = 1024 << 20;
        let (front, back) = both_ends(bytes, DISK, DISK);
        assert!(front.len() as u64 <= MARGIN && back.len() as u64 <= MARGIN);
        let sectors = bytes / 512;
        let headers = [&front[512..1024], &back[back.len() - 512..]];
        for (header, [own, other]) in headers.into_iter().zip([[1, sectors - 1], [sectors - 1, 1]])
        {
            assert_eq!([u64_at(header, 24), u64_at(header, 32)], [own, other]);
            let mut zeroed = header[..HEADER].to_vec();
            zeroed[16..20].fill(0);
            assert_eq!(header[16..20], crc32(&zeroed).to_le_bytes());
            assert_eq!(header[88..92], crc32(&front[1024..]).to_le_bytes());
        }
        assert_eq!(front[1024..], back[..back.len() - 512]);
        // The second table is where the second header says: at the beginning of what is at the end.
        assert_eq!(u64_at(headers[1], 72) * 512, bytes - back.len() as u64);
        let entry = &front[1024..];
        assert_eq!(u64_at(entry, 32) * 512, MARGIN);
        assert_eq!((u64_at(entry, 40) + 1) * 512, bytes - MARGIN);
        assert_eq!(front[510..512], [0x55, 0xaa]);
    }
}
