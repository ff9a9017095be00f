//! ACPI tables of a hardware-reduced machine (ACPI 6.5).
//!
//! RSDP, XSDT, FADT, MADT and DSDT lie one after the other from [`ACPI_START`]. The FADT's
//! HW_REDUCED_ACPI flag tells Linux that there is no SCI, no PM timer and no 8259: it then installs
//! its null legacy PIC, allocates every interrupt dynamically from the IOAPIC, skips the PIT, and
//! ticks from the local APIC (TSC-deadline mode), with the TSC frequency from KVM's clock.
//! `iapc_boot_arch` says that there is neither i8042, CMOS clock nor VGA, so the kernel does not
//! probe for them.
//!
//! No interrupt source overrides are needed: with the null PIC there are no ISA interrupts to
//! override, and each device's `_CRS` says level, active high, in an extended descriptor, which
//! Linux takes as it is (COM1's GSI 4 too).

use super::dsdt;
use super::layout::{
    ACPI_END, ACPI_RESET_PORT, ACPI_RESET_VALUE, ACPI_SLEEP_CONTROL_PORT, ACPI_SLEEP_STATUS_PORT,
    ACPI_START, IOAPIC_BASE, LAPIC_BASE, MAX_VCPUS, Place, virtio_mmio,
};
use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use anyhow::{Context, ensure};
use vm_memory::{Bytes, GuestAddress};
use wherry_devices::GuestMemory;

const OEM_ID: [u8; 6] = *b"WHERRY";
const OEM_TABLE_ID: [u8; 8] = *b"WHERRYVM";
const OEM_REVISION: u32 = 1;
/// Bytes of the header that every table but the RSDP begins with.
const TABLE_HEADER: u32 = 36;
/// DSDT revision 2 or more: AML integers have 64 bits.
const DSDT_REVISION: u8 = 2;
/// MADT revision of ACPI 6.5.
const MADT_REVISION: u8 = 6;
/// iapc_boot_arch (ACPI 6.5, table 5.11): no VGA, no CMOS clock; bit 1 clear says no i8042.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;
/// Id of the IOAPIC: above every APIC id.
const IOAPIC_ID: u8 = 0xFF;
/// Tables begin on this boundary (the RSDP needs it).
const TABLE_ALIGN: u64 = 16;

/// Writes all tables into the ACPI area and returns the guest address of the RSDP. There are 1 to
/// [`MAX_VCPUS`] vCPUs, of which number n has APIC id n; `slots` are the virtio-mmio slots with a
/// device behind them.
pub fn write_tables(mem: &GuestMemory, vcpus: u32, slots: &[u32]) -> anyhow::Result<u64> {
    let image = build(vcpus, slots)?;
    let write = mem.write_slice(&image, GuestAddress(ACPI_START));
    write.context("cannot write the ACPI tables into guest memory")?;
    Ok(ACPI_START)
}

/// The bytes of the ACPI area, the RSDP first, for loading at [`ACPI_START`].
fn build(vcpus: u32, slots: &[u32]) -> anyhow::Result<Vec<u8>> {
    ensure!(
        (1..=MAX_VCPUS).contains(&vcpus),
        "{vcpus} vCPUs cannot be described; use 1 to {MAX_VCPUS}"
    );
    let slots = slots.iter().map(|&index| {
        let place = virtio_mmio(index);
        Ok((index, place.with_context(|| format!("there is no virtio-mmio slot {index}"))?))
    });
    let slots = slots.collect::<anyhow::Result<Vec<_>>>()?;

    let mut area = Area { bytes: vec![0; Rsdp::len()] };
    let dsdt_addr = area.push(&dsdt(vcpus, &slots));
    let fadt_addr = area.push(&fadt(dsdt_addr));
    let madt_addr = area.push(&madt(vcpus));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt_addr);
    xsdt.add_entry(madt_addr);
    let xsdt_addr = area.push(&bytes_of(&xsdt));
    let rsdp = bytes_of(&Rsdp::new(OEM_ID, xsdt_addr));
    area.bytes[..rsdp.len()].copy_from_slice(&rsdp);

    let (need, have) = (area.bytes.len() as u64, ACPI_END - ACPI_START);
    ensure!(need <= have, "the ACPI tables need {need} bytes, their area has {have}");
    Ok(area.bytes)
}

/// Tables laid out one after the other.
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// Appends a table and returns its guest address.
    fn push(&mut self, table: &[u8]) -> u64 {
        let start = self.bytes.len().next_multiple_of(TABLE_ALIGN as usize);
        self.bytes.resize(start, 0);
        self.bytes.extend_from_slice(table);
        ACPI_START + start as u64
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn dsdt(vcpus: u32, slots: &[(u32, Place)]) -> Vec<u8> {
    let mut table =
        Sdt::new(*b"DSDT", TABLE_HEADER, DSDT_REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&dsdt::body(vcpus, slots));
    table.as_slice().to_vec()
}

/// A byte-wide register in port space.
fn port(address: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(address))
}

fn fadt(dsdt_addr: u64) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt_addr)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // Both set: the buttons are not fixed hardware; the power button is a control method
        // device.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.reset_reg = port(ACPI_RESET_PORT);
    fadt.reset_value = ACPI_RESET_VALUE;
    fadt.sleep_control_reg = port(ACPI_SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(ACPI_SLEEP_STATUS_PORT);
    bytes_of(&fadt.finalize())
}

/// MADT (ACPI 6.5, 5.2.12): local APICs, the IOAPIC, and the NMI line of every local APIC.
fn madt(vcpus: u32) -> Vec<u8> {
    let mut entries = Vec::new();
    entries.extend((LAPIC_BASE as u32).to_le_bytes());
    // Flags: PCAT_COMPAT clear, there is no dual 8259 for the OS to disable.
    entries.extend(0u32.to_le_bytes());
    for id in 0..vcpus as u8 {
        // Type 0, processor local APIC: _UID, APIC id, enabled. Ids up to 254 belong here, not in
        // x2APIC entries.
        entries.extend([0, 8, id, id, 1, 0, 0, 0]);
    }
    // Type 1, IOAPIC: id, address, first GSI 0.
    entries.extend([1, 12, IOAPIC_ID, 0]);
    entries.extend((IOAPIC_BASE as u32).to_le_bytes());
    entries.extend(0u32.to_le_bytes());
    // Type 4, local APIC NMI: all processors, flags as the bus says, LINT1.
    entries.extend([4, 6, 0xFF, 0, 0, 1]);

    let mut table =
        Sdt::new(*b"APIC", TABLE_HEADER, MADT_REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&entries);
    table.as_slice().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(vcpus: u32) -> anyhow::Result<Vec<u8>> {
        build(vcpus, &[0, 1, 2, 3, 4, 5, 6, 7])
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |acc, b| acc.wrapping_add(*b))
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    /// The table at a guest address, by its own length.
    fn table(image: &[u8], addr: u64) -> &[u8] {
        let start = (addr - ACPI_START) as usize;
        let len = u32::from_le_bytes(image[start + 4..start + 8].try_into().unwrap()) as usize;
        &image[start..start + len]
    }

    fn walk(image: &[u8]) -> Vec<&[u8]> {
        let xsdt = table(image, u64_at(image, 24));
        let mut tables = vec![xsdt];
        tables.extend((36..xsdt.len()).step_by(8).map(|i| table(image, u64_at(xsdt, i))));
        let fadt = tables[1];
        tables.push(table(image, u64_at(fadt, 140)));
        tables
    }

    #[test]
    fn tables_are_linked_and_sum_to_zero() {
        let image = full(4).unwrap();
        assert_eq!(&image[..8], b"RSD PTR ");
        assert_eq!(sum(&image[..20]), 0, "first RSDP checksum");
        assert_eq!(sum(&image[..36]), 0, "extended RSDP checksum");
        let tables = walk(&image);
        let names: Vec<_> = tables.iter().map(|t| &t[..4]).collect();
        assert_eq!(names, [b"XSDT", b"FACP", b"APIC", b"DSDT"]);
        for t in tables {
            assert_eq!(sum(t), 0, "{}", String::from_utf8_lossy(&t[..4]));
        }
    }

    #[test]
    fn fadt_has_the_power_registers() {
        let image = full(1).unwrap();
        let fadt = walk(&image)[1];
        assert_eq!((fadt.len(), fadt[8]), (276, 6));
        let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
        assert_eq!(flags & (1 << 20 | 1 << 10 | 1 << 4), 1 << 20 | 1 << 10 | 1 << 4);
        assert_eq!(fadt[116..128], [1, 8, 0, 1, 0x02, 0x06, 0, 0, 0, 0, 0, 0]);
        assert_eq!(fadt[128], 1);
        assert_eq!(fadt[244..256], [1, 8, 0, 1, 0x00, 0x06, 0, 0, 0, 0, 0, 0]);
        assert_eq!(fadt[256..268], [1, 8, 0, 1, 0x01, 0x06, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn madt_lists_every_vcpu() {
        let image = full(254).unwrap();
        let madt = walk(&image)[2];
        assert_eq!(madt.len(), 44 + 254 * 8 + 12 + 6);
        assert_eq!(madt[44 + 253 * 8..44 + 254 * 8], [0, 8, 253, 253, 1, 0, 0, 0]);
    }

    #[test]
    fn every_device_interrupt_is_level_triggered_and_active_high() {
        let image = full(1).unwrap();
        let dsdt = walk(&image)[3];
        // Extended interrupt descriptors (ACPI 6.5, 6.4.3.6) of one interrupt each.
        let found: Vec<(u8, u8)> = dsdt
            .windows(9)
            .filter(|w| w[..3] == [0x89, 6, 0] && w[4] == 1 && w[6..] == [0; 3])
            .map(|w| (w[5], w[3]))
            .collect();
        let gsis: Vec<u8> = [4].into_iter().chain(16..24).chain([9]).collect();
        assert_eq!(found, gsis.into_iter().map(|gsi| (gsi, 1)).collect::<Vec<_>>());
    }

    #[test]
    fn limits_are_refused() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        for (refused, why) in [
            (build(0, &[]).map(drop), "0 vCPUs cannot be described"),
            (build(255, &[]).map(drop), "255 vCPUs cannot be described"),
            (build(1, &[8]).map(drop), "no virtio-mmio slot 8"),
            (write_tables(&memory, 1, &[]).map(drop), "into guest memory"),
        ] {
            let text = refused.unwrap_err().to_string();
            assert!(text.contains(why), "{text}");
        }
    }

    /// Writes the tables to a directory named by `WHERRY_ACPI_DUMP`, for `iasl -d`; does nothing
    /// without it.
    #[test]
    fn dump_for_iasl() {
        let Some(dir) = std::env::var_os("WHERRY_ACPI_DUMP") else { return };
        let dir = std::path::PathBuf::from(dir);
        for vcpus in [1, 64] {
            for t in walk(&full(vcpus).unwrap()) {
                let name = format!("{}-{vcpus}.dat", String::from_utf8_lossy(&t[..4]));
                std::fs::write(dir.join(name), t).unwrap();
            }
        }
    }
}
