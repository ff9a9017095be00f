//! SMBIOS tables (DSP0134 3.3): which machine this is, and its [credentials](super::credential).
//!
//! A kernel without EFI looks for the entry point in steps of 16 bytes from 0xF_0000 up to 1 MiB
//! (drivers/firmware/dmi_scan.c); it is the first thing there, and the tables follow it. There is
//! the 64-bit entry point alone, which Linux knows since 3.19. The map of RAM has that area as
//! reserved, so nothing else comes to lie there.
//!
//! The tables are written when the machine boots and are guest memory from then on. They travel
//! with it, and nobody reads them back.

use anyhow::{Context, ensure};
use vm_memory::{Bytes, GuestAddress};
use wherry_devices::GuestMemory;

use super::credential::{self, Credential};
use super::layout::{SMBIOS_END, SMBIOS_START};

/// Bytes of the entry point.
const ENTRY_POINT: usize = 24;
/// The tables begin here, behind the entry point.
const TABLES: usize = 32;
/// Version that the tables follow.
const VERSION: (u8, u8) = (3, 3);
/// mm/dd/yyyy. Fixed, so that a guest sees no difference between releases; there must be one, since
/// kernels take a machine without for one of the last century.
const RELEASE_DATE: &str = "01/01/2026";

/// What a guest finds in its tables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Firmware {
    /// Identifies the machine; all zeros for none.
    pub uuid: [u8; 16],
    /// What its systemd is told.
    pub credentials: Vec<Credential>,
}

/// The identity of the machine that a host calls by this name: the same whenever it is started
/// there, another on every other host. (A guest whose image has no machine-id takes this, and two
/// guests of one id would share one DHCP lease.)
///
/// An FNV-1a hash as a UUID of version 8 (RFC 9562): nothing of it is a secret.
pub fn uuid(host: &[u8], name: &str) -> [u8; 16] {
    let bytes = host.iter().chain(&[0]).chain(name.as_bytes());
    let hash = bytes.fold(0x6C62_272E_07BB_0142_62B8_2175_6295_C58D, |hash: u128, byte| {
        (hash ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013B)
    });
    let mut uuid = hash.to_be_bytes();
    uuid[6] = uuid[6] & 0x0F | 0x80;
    uuid[8] = uuid[8] & 0x3F | 0x80;
    uuid
}

/// Writes entry point and tables into their area.
///
/// # Errors
/// There are more credentials than a guest can be given, or there is no memory.
pub fn write_tables(mem: &GuestMemory, firmware: &Firmware) -> anyhow::Result<()> {
    let write = mem.write_slice(&build(firmware)?, GuestAddress(SMBIOS_START));
    write.context("cannot write the SMBIOS tables into guest memory")
}

/// The bytes of the area.
fn build(firmware: &Firmware) -> anyhow::Result<Vec<u8>> {
    credential::check(&firmware.credentials)?;
    let strings: Vec<String> = firmware.credentials.iter().map(Credential::oem_string).collect();
    let mut tables = Tables::default();
    tables.push(0, &bios(), &["Wherry", "1", RELEASE_DATE]);
    tables.push(1, &system(&firmware.uuid), &["Wherry", "Wherry VM", "1"]);
    if !strings.is_empty() {
        // The number of strings, of which there are fewer than 256.
        tables.push(11, &[strings.len() as u8], &strings);
    }
    tables.push(127, &[], &[""; 0]);

    let mut image = entry_point(tables.bytes.len() as u32).to_vec();
    image.resize(TABLES, 0);
    image.extend(tables.bytes);
    let (need, have) = (image.len() as u64, SMBIOS_END - SMBIOS_START);
    ensure!(need <= have, "the SMBIOS tables need {need} bytes, their area has {have}");
    Ok(image)
}

/// Structures one after the other.
#[derive(Default)]
struct Tables {
    bytes: Vec<u8>,
    nr: u16,
}

impl Tables {
    /// Appends a structure: `body` is what follows its header. Strings are told by number, from 1.
    fn push(&mut self, kind: u8, body: &[u8], strings: &[impl AsRef<str>]) {
        self.bytes.extend([kind, 4 + body.len() as u8]);
        self.bytes.extend(self.nr.to_le_bytes());
        self.bytes.extend(body);
        for string in strings {
            self.bytes.extend(string.as_ref().bytes().chain([0]));
        }
        // A zero ends the strings, two where there are none.
        self.bytes.extend(if strings.is_empty() { &[0, 0][..] } else { &[0] });
        self.nr += 1;
    }
}

/// BIOS information (type 0).
fn bios() -> Vec<u8> {
    // Vendor, version; no segment; release date; 64 KiB.
    let mut body = vec![1, 2, 0, 0, 3, 0];
    // Characteristics: none are told, except that this is a virtual machine.
    body.extend((1u64 << 3).to_le_bytes());
    body.extend([0, 1 << 4]);
    // No release number, neither of this nor of a controller; no larger size.
    body.extend([0xFF, 0xFF, 0xFF, 0xFF, 0, 0]);
    body
}

/// System information (type 1).
fn system(uuid: &[u8; 16]) -> Vec<u8> {
    // Manufacturer, product, version; no serial number.
    let mut body = vec![1, 2, 3, 0];
    // The first three fields of a UUID are little-endian here.
    for field in [&uuid[..4], &uuid[4..6], &uuid[6..8]] {
        body.extend(field.iter().rev());
    }
    body.extend(&uuid[8..]);
    // Woken by its power switch; no SKU, no family.
    body.extend([6, 0, 0]);
    body
}

fn entry_point(len: u32) -> [u8; ENTRY_POINT] {
    let mut entry = [0; ENTRY_POINT];
    entry[..5].copy_from_slice(b"_SM3_");
    // Its length, the version without a revision of the document, its own revision.
    entry[6..11].copy_from_slice(&[ENTRY_POINT as u8, VERSION.0, VERSION.1, 0, 1]);
    entry[12..16].copy_from_slice(&len.to_le_bytes());
    entry[16..].copy_from_slice(&(SMBIOS_START + TABLES as u64).to_le_bytes());
    entry[5] = entry.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    entry
}

#[cfg(test)]
#[path = "smbios_tests.rs"]
mod tests;
