//! What a kernel is told at entry: the memory map, `boot_params` (64-bit entry) or `hvm_start_info`
//! (PVH entry).

use super::bzimage::SETUP_HEADER;
use super::layout::{
    ACPI_END, ACPI_RESET_PORT, ACPI_RESET_VALUE, ACPI_START, CMDLINE, EBDA_START,
    HIGH_MEMORY_START, HIGH_RAM_START, IOAPIC_BASE, PVH_MEMMAP, PVH_MODULES, PVH_START_INFO,
    RESET_VECTOR, ZERO_PAGE,
};
use anyhow::Context;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use wherry_devices::GuestMemory;

/// Usable RAM, in e820 and in PVH memory maps.
const MAP_RAM: u32 = 1;
/// Never to be used by the guest.
const MAP_RESERVED: u32 = 2;
/// ACPI tables: the guest may reuse them once it has read them.
const MAP_ACPI: u32 = 3;
/// `type_of_loader`: an unregistered loader (boot.rst).
const LOADER_UNDEFINED: u8 = 0xFF;
/// XEN_HVM_START_MAGIC_VALUE, xen/include/public/arch-x86/hvm/start_info.h
const PVH_MAGIC: u32 = 0x336E_C578;

/// Addresses of what the kernel has to find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Handover {
    /// Address and length of the initrd.
    pub(super) initrd: Option<(u64, u64)>,
    /// Address of the RSDP.
    pub(super) rsdp: u64,
}

/// End of RAM below the 32-bit hole.
pub(super) fn low_ram_end(mem: &GuestMemory) -> u64 {
    mem.iter().find(|r| r.start_addr().0 == 0).map_or(0, |r| r.len())
}

/// The memory map that goes with `mem`, ascending.
///
/// Below 1 MiB: conventional memory, then EBDA, video and BIOS area (reserved), with the ACPI
/// tables before the last 64 KiB, which have the SMBIOS tables and the reset vector. In the hole
/// only the interrupt controllers and KVM's own pages up to 4 GiB are listed; the rest, virtio-mmio
/// included, is left out of the map, which makes it free for devices and never RAM.
pub(super) fn memory_map(mem: &GuestMemory) -> Vec<boot_e820_entry> {
    let range = |addr: u64, end: u64, r#type| {
        let size = end.saturating_sub(addr);
        boot_e820_entry { addr, size, r#type }
    };
    let mut map = vec![
        range(0, EBDA_START, MAP_RAM),
        range(EBDA_START, ACPI_START, MAP_RESERVED),
        range(ACPI_START, ACPI_END, MAP_ACPI),
        range(ACPI_END, HIGH_MEMORY_START, MAP_RESERVED),
        range(HIGH_MEMORY_START, low_ram_end(mem), MAP_RAM),
        range(IOAPIC_BASE, HIGH_RAM_START, MAP_RESERVED),
    ];
    for region in mem.iter().filter(|r| r.start_addr().0 >= HIGH_RAM_START) {
        let start = region.start_addr().0;
        map.push(range(start, start + region.len(), MAP_RAM));
    }
    map.retain(|e| e.size > 0);
    map
}

/// Writes `boot_params`; `header` is a bzImage's setup header, absent for an ELF kernel. Returns
/// its address.
pub(super) fn write_zero_page(
    mem: &GuestMemory,
    header: Option<&[u8]>,
    handover: &Handover,
) -> anyhow::Result<u64> {
    let mut params = boot_params::default();
    match header {
        Some(bytes) => {
            // The caller's header ends before edd_mbr_sig_buffer (checked when parsed).
            params.as_mut_slice()[SETUP_HEADER..SETUP_HEADER + bytes.len()].copy_from_slice(bytes);
        }
        None => {
            // What the kernel proper (arch/x86/kernel/head64.c, setup.c) reads of the header.
            params.hdr.boot_flag = 0xAA55;
            params.hdr.header = 0x5372_6448;
            params.hdr.version = 0x020C;
            params.hdr.kernel_alignment = 0x0100_0000;
        }
    }
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = CMDLINE as u32;
    // The setup_data chain of a file makes no sense in memory.
    params.hdr.setup_data = 0;
    // Both are below 4 GiB: the initrd lies under low_ram_end. Without an initrd both stay zero.
    let (initrd_addr, initrd_len) = handover.initrd.unwrap_or_default();
    params.hdr.ramdisk_image = initrd_addr as u32;
    params.hdr.ramdisk_size = initrd_len as u32;
    params.acpi_rsdp_addr = handover.rsdp;

    let map = memory_map(mem);
    params.e820_table[..map.len()].copy_from_slice(&map);
    params.e820_entries = map.len() as u8;
    let write = mem.write_slice(params.as_slice(), GuestAddress(ZERO_PAGE));
    write.context("cannot write boot_params into guest memory")?;
    Ok(ZERO_PAGE)
}

/// Real-mode code at the reset vector: writes the ACPI reset register and halts.
///
/// Linux prefers EFI's reset service on a hardware-reduced machine (reboot_init,
/// arch/x86/kernel/reboot.c), and where there is no EFI it goes on to the BIOS, past the ACPI reset
/// register. So `reboot` in a stock guest without `reboot=` on its command line ends up here.
const RESET_CODE: [u8; 9] = [
    0xBA,
    ACPI_RESET_PORT.to_le_bytes()[0],
    ACPI_RESET_PORT.to_le_bytes()[1], // mov dx, ACPI_RESET_PORT
    0xB0,
    ACPI_RESET_VALUE, // mov al, ACPI_RESET_VALUE
    0xEE,             // out dx, al
    0xF4,             // hlt
    0xEB,
    0xFD, // jmp to hlt
];

/// Puts the code at the reset vector.
pub(super) fn write_reset_vector(mem: &GuestMemory) -> anyhow::Result<()> {
    let write = mem.write_slice(&RESET_CODE, GuestAddress(RESET_VECTOR));
    write.context("cannot write the reset vector into guest memory")
}

/// Writes PVH start info, module list and memory map (version 1 of the structure). Returns its
/// address.
pub(super) fn write_start_info(mem: &GuestMemory, handover: &Handover) -> anyhow::Result<u64> {
    const FAILED: &str = "cannot write the PVH start info into guest memory";
    let map = memory_map(mem);
    let mut info = hvm_start_info {
        magic: PVH_MAGIC,
        version: 1,
        cmdline_paddr: CMDLINE,
        rsdp_paddr: handover.rsdp,
        memmap_paddr: PVH_MEMMAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    if let Some((paddr, size)) = handover.initrd {
        let module = hvm_modlist_entry { paddr, size, ..Default::default() };
        mem.write_obj(module, GuestAddress(PVH_MODULES)).context(FAILED)?;
        info.nr_modules = 1;
        info.modlist_paddr = PVH_MODULES;
    }
    for (i, boot_e820_entry { addr, size, r#type }) in map.into_iter().enumerate() {
        let row = hvm_memmap_table_entry { addr, size, type_: r#type, reserved: 0 };
        let addr = PVH_MEMMAP + (i * size_of::<hvm_memmap_table_entry>()) as u64;
        mem.write_obj(row, GuestAddress(addr)).context(FAILED)?;
    }
    mem.write_obj(info, GuestAddress(PVH_START_INFO)).context(FAILED)?;
    Ok(PVH_START_INFO)
}
