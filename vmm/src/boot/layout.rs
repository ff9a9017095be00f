//! The guest-physical address map: one place for every constant (`docs/machine.md` has it as a
//! table).
//!
//! All addresses are guest-physical, all lengths are bytes.

use wherry_devices::device::Kind;
use wherry_devices::virtio::mmio::regs::SLOT_LEN;
use wherry_devices::{power, serial};

/// One mebibyte in bytes.
pub const MIB: u64 = 1 << 20;
/// One gibibyte in bytes.
pub const GIB: u64 = 1 << 30;

/// RAM below the 32-bit hole ends here at the latest.
pub const LOW_RAM_MAX: u64 = 3 * GIB;
/// RAM that does not fit below the hole goes on here.
pub const HIGH_RAM_START: u64 = 4 * GIB;
/// Least RAM in bytes: what a stock distribution kernel with its initrd starts in.
pub const MIN_RAM_BYTES: u64 = 128 * MIB;
/// RAM sizes are a multiple of this (the page size).
pub const RAM_GRANULE: u64 = 4096;

/// Global descriptor table of the boot CPU.
pub const BOOT_GDT: u64 = 0x500;
/// Interrupt descriptor table of the boot CPU (empty: interrupts are off at entry).
pub const BOOT_IDT: u64 = 0x540;
/// PVH `hvm_start_info`, followed by its module list.
pub const PVH_START_INFO: u64 = 0x6000;
/// PVH module list (one entry: the initrd).
pub const PVH_MODULES: u64 = 0x6040;
/// PVH memory map.
pub const PVH_MEMMAP: u64 = 0x6100;
/// Linux `boot_params` (the "zero page").
pub const ZERO_PAGE: u64 = 0x7000;
/// Identity-mapping page tables: one PML4, one PDPT, four page directories of 2 MiB pages.
pub const BOOT_PAGE_TABLES: u64 = 0x9000;
/// Kernel command line, NUL-terminated.
pub const CMDLINE: u64 = 0x2_0000;
/// Room for the command line, its NUL included.
pub const CMDLINE_AREA: u64 = 0x1_0000;

/// Conventional memory ends here; the extended BIOS data area would begin.
pub const EBDA_START: u64 = 0x9_FC00;
/// ACPI tables: the RSDP is the first thing here, inside the BIOS area that an OS may search for
/// it.
pub const ACPI_START: u64 = 0xE_0000;
/// End (exclusive) of the ACPI area.
pub const ACPI_END: u64 = 0xF_0000;
/// SMBIOS: the entry point is the first thing here, where a kernel begins to look for it.
pub const SMBIOS_START: u64 = 0xF_0000;
/// End (exclusive) of the SMBIOS area. The last page of the BIOS area is not the tables': it has
/// the reset vector.
pub const SMBIOS_END: u64 = 0xF_F000;
/// Where a guest jumps to that reboots through the BIOS (F000:FFF0).
pub const RESET_VECTOR: u64 = 0xF_FFF0;
/// Extended memory begins here; nothing of a kernel may lie below.
pub const HIGH_MEMORY_START: u64 = MIB;

/// Where a device answers (ports or MMIO), and its interrupt line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// First port or address.
    pub base: u64,
    /// Ports or bytes.
    pub len: u64,
    /// GSI, level-triggered.
    pub gsi: u32,
}

/// virtio-mmio slots: the KVM IOAPIC has 24 pins, the last eight are theirs.
pub const VIRTIO_MMIO_SLOTS: u32 = 8;
/// Slot 0; the others follow without gaps, in addresses and lines.
const VIRTIO_MMIO: Place = Place { base: 0xD000_0000, len: SLOT_LEN, gsi: 16 };
/// COM1, in ports.
pub const COM1: Place = Place { base: 0x3F8, len: serial::SERIAL_PORTS, gsi: 4 };
/// ACPI power registers, in ports; the line is the generic event device's.
pub const POWER: Place = Place { base: 0x600, len: power::POWER_PORTS, gsi: 9 };

/// ACPI sleep control register (FADT SLEEP_CONTROL_REG), one byte.
pub const ACPI_SLEEP_CONTROL_PORT: u16 = (POWER.base + power::SLEEP_CONTROL) as u16;
/// ACPI sleep status register (FADT SLEEP_STATUS_REG), one byte.
pub const ACPI_SLEEP_STATUS_PORT: u16 = (POWER.base + power::SLEEP_STATUS) as u16;
/// ACPI reset register: writing [`ACPI_RESET_VALUE`] resets the machine.
pub const ACPI_RESET_PORT: u16 = (POWER.base + power::RESET) as u16;
/// What the guest writes to the reset register.
pub const ACPI_RESET_VALUE: u8 = power::RESET_VALUE;
/// Event register of the generic event device: u32, reading clears it. Bit 0 is the power button.
pub const ACPI_EVENT_PORT: u16 = (POWER.base + power::EVENTS) as u16;
/// `SLP_TYP` of soft off, as in the DSDT's `_S5_`.
pub const ACPI_S5_SLEEP_TYPE: u8 = power::SLP_TYP_S5;

/// IOAPIC registers (in KVM).
pub const IOAPIC_BASE: u64 = 0xFEC0_0000;
/// Local APIC registers (in KVM).
pub const LAPIC_BASE: u64 = 0xFEE0_0000;
/// Three pages that KVM_SET_TSS_ADDR wants on Intel hosts, inside the hole.
pub const KVM_TSS_ADDR: u64 = 0xFFFB_D000;
/// The page that KVM_SET_IDENTITY_MAP_ADDR wants on Intel hosts; set it before creating vCPUs.
pub const KVM_IDENTITY_MAP_ADDR: u64 = 0xFFFB_C000;

/// Most vCPUs: their APIC ids are 8 bits wide without KVM's x2APIC API, and the highest is the
/// broadcast.
pub const MAX_VCPUS: u32 = 254;

/// Where `size_bytes` of RAM lie: `(guest address, length)`, ascending. At most 3 GiB low, the rest
/// from 4 GiB.
///
/// Sizes of zero give an empty vector.
pub fn ram_regions(size_bytes: u64) -> Vec<(u64, u64)> {
    let low = size_bytes.min(LOW_RAM_MAX);
    let high = size_bytes - low;
    [(0, low), (HIGH_RAM_START, high)].into_iter().filter(|&(_, len)| len > 0).collect()
}

/// Virtio-mmio slot `n`, or `None` for a slot that the machine does not have.
pub fn virtio_mmio(n: u32) -> Option<Place> {
    let Place { base, len, gsi } = VIRTIO_MMIO;
    (n < VIRTIO_MMIO_SLOTS).then(|| Place { base: base + u64::from(n) * len, len, gsi: gsi + n })
}

/// Ports of the kinds of devices that have a place of their own.
pub fn ports(kind: &Kind) -> Option<Place> {
    let places = [(&serial::KIND, COM1), (&power::KIND, POWER)];
    places.into_iter().find(|(own, _)| *own == kind).map(|(_, place)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_where_guests_have_always_found_them() {
        let ports = [ACPI_SLEEP_CONTROL_PORT, ACPI_SLEEP_STATUS_PORT, ACPI_RESET_PORT];
        assert_eq!((ports, ACPI_EVENT_PORT), ([0x600, 0x601, 0x602], 0x604));
    }

    #[test]
    fn ram_is_split_at_the_hole() {
        assert_eq!(ram_regions(0), []);
        assert_eq!(ram_regions(GIB), [(0, GIB)]);
        assert_eq!(ram_regions(3 * GIB), [(0, 3 * GIB)]);
        assert_eq!(ram_regions(3 * GIB + 4096), [(0, 3 * GIB), (4 * GIB, 4096)]);
        assert_eq!(ram_regions(128 * GIB), [(0, 3 * GIB), (4 * GIB, 125 * GIB)]);
    }

    #[test]
    fn slots_have_addresses_and_interrupts() {
        let last = virtio_mmio(7).unwrap();
        assert_eq!((last.base, last.len, last.gsi), (0xD000_7000, 0x1000, 23));
        assert_eq!(virtio_mmio(8), None);
    }
}
