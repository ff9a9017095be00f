//! An unpacked kernel put into the memory of a PC, and started there without a boot loader.
//!
//! For emulators that are slow, and begin with files in memory: a BIOS would read the kernel in
//! pieces, and the kernel would unpack itself at the emulator's speed. An option ROM starts it: the
//! BIOS calls what it finds of those once it has set up the machine, its ACPI tables too. It enters
//! the kernel as a hypervisor would (PVH): in protected mode without paging, with a page that says
//! what is where (Xen: public/arch-x86/hvm/start_info.h).

use std::path::Path;

use crate::elf::{self, PT_LOAD, PT_NOTE};
use crate::error::{Error, Result};

/// What the emulator begins with.
#[derive(Debug)]
pub struct Loaded {
    /// An option ROM, for [`ROM`].
    pub rom: Vec<u8>,
    /// What is in memory from [`START`] on.
    pub memory: Vec<u8>,
}

/// Where the option ROM belongs: above the screen's and below the BIOS.
pub const ROM: u32 = 0xd_0000;
/// The lowest address that a kernel is linked for.
pub const START: u64 = 16 << 20;

/// linux/elfnote.h, XEN_ELFNOTE_PHYS32_ENTRY: the address of the PVH entry.
const PHYS32_ENTRY: u64 = 18;
const PAGE: usize = 4096;
/// The ACPI tables of Bochs's BIOS, at the end of memory.
const ACPI_BYTES: u64 = 64 << 10;
/// Ranges of memory (address, bytes, kind), kinds as in the map that a BIOS gives: 1 is memory, 2
/// reserved, 3 ACPI tables.
const LOW: [(u64, u64, u32); 2] = [(0, 0x9_f000, 1), (0xe_8000, 0x1_8000, 2)];
/// Where what comes after the fields of the first page is in it.
const MODULES: usize = 0x40;
const MAP: usize = 0x80;
const COMMAND_LINE: usize = 0x200;

/// Loads the kernel (the bytes of an unpacked one), an initramfs and a command line into a PC with
/// so many bytes of memory, less than 3 GiB. `path` is the kernel's, for messages.
///
/// # Errors
/// The kernel cannot be started like this, or something does not fit.
pub fn load(
    (path, kernel): (&Path, &[u8]),
    initrd: &[u8],
    command_line: &str,
    bytes: u64,
) -> Result<Loaded> {
    let malformed = |what: &str| Error::Malformed { path: path.to_owned(), what: what.into() };
    let segments = elf::segments(kernel).ok_or_else(|| malformed("not an ELF file"))?;
    let entry = segments
        .iter()
        .filter(|segment| segment.kind == PT_NOTE)
        .find_map(|segment| elf::note(segment.content, b"Xen\0", PHYS32_ENTRY)?.first_chunk())
        .map(|entry| u32::from_le_bytes(*entry));
    let entry = entry.ok_or_else(|| malformed("no PVH entry"))?;
    let mut memory = Vec::new();
    for segment in segments.iter().filter(|segment| segment.kind == PT_LOAD) {
        let place = || {
            let start = usize::try_from(segment.address.checked_sub(START)?).ok()?;
            let end = start.checked_add(usize::try_from(segment.size).ok()?)?;
            (end < 1 << 30 && segment.content.len() <= end - start).then_some((start, end))
        };
        let (start, end) = place().ok_or_else(|| malformed("a segment out of bounds"))?;
        memory.resize(memory.len().max(end), 0);
        memory[start..start + segment.content.len()].copy_from_slice(segment.content);
    }
    memory.resize(memory.len().next_multiple_of(PAGE), 0);
    if command_line.len() >= PAGE - COMMAND_LINE {
        return Err(malformed("its command line is too long"));
    }
    let info = START + memory.len() as u64;
    memory.extend(start_info(info, initrd.len(), command_line, bytes));
    memory.extend(initrd);
    if START + memory.len() as u64 > bytes - ACPI_BYTES {
        return Err(malformed("the machine has too little memory for it and its initramfs"));
    }
    // Below 3 GiB, so below 4.
    Ok(Loaded { rom: rom(info as u32, entry), memory })
}

/// The page at `info` that tells the kernel what is where. The initramfs follows it.
fn start_info(info: u64, initrd: usize, command_line: &str, bytes: u64) -> [u8; PAGE] {
    let end = bytes - ACPI_BYTES;
    let high = [(0x10_0000, end - 0x10_0000, 1), (end, ACPI_BYTES, 3), (0xfffc_0000, 0x4_0000, 2)];
    let map: Vec<_> = LOW.into_iter().chain(high).collect();
    let mut page = [0; PAGE];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    // struct hvm_start_info: magic, version, flags, nr_modules (32 bits each), then modlist_paddr,
    // cmdline_paddr, rsdp_paddr (which the kernel looks for), memmap_paddr (64), memmap_entries.
    for (index, word) in [0x336e_c578_u32, 1, 0, 1].into_iter().enumerate() {
        put(index * 4, &word.to_le_bytes());
    }
    let at = |offset: usize| info + offset as u64;
    for (index, word) in [at(MODULES), at(COMMAND_LINE), 0, at(MAP)].into_iter().enumerate() {
        put(16 + index * 8, &word.to_le_bytes());
    }
    put(48, &(map.len() as u32).to_le_bytes());
    // struct hvm_modlist_entry: address, bytes, and no command line.
    put(MODULES, &at(PAGE).to_le_bytes());
    put(MODULES + 8, &(initrd as u64).to_le_bytes());
    for (index, (address, size, kind)) in map.into_iter().enumerate() {
        // struct hvm_memmap_table_entry: address, bytes, kind (32), reserved.
        let entry = MAP + index * 24;
        put(entry, &address.to_le_bytes());
        put(entry + 8, &size.to_le_bytes());
        put(entry + 16, &kind.to_le_bytes());
    }
    put(COMMAND_LINE, command_line.as_bytes());
    page
}

/// The option ROM that enters the kernel at `entry` with `ebx` = `info`.
fn rom(info: u32, entry: u32) -> Vec<u8> {
    /// Flat segments of 4 GiB for code and data, after the null descriptor.
    const GDT: [u64; 3] = [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    const GDT_AT: usize = 0x40;
    const GDT_POINTER_AT: usize = 0x60;
    /// Where the code of 32 bits begins.
    const PROTECTED_AT: usize = 0x20;
    let pointer = (GDT_POINTER_AT as u16).to_le_bytes();
    let protected = (ROM + PROTECTED_AT as u32).to_le_bytes();
    let real_mode: [&[u8]; 7] = [
        // Signature, and size in units of 512 bytes; the BIOS calls what follows.
        &[0x55, 0xaa, 1],
        // cli; lgdt cs:[GDT_POINTER_AT]
        &[0xfa, 0x2e, 0x0f, 0x01, 0x16],
        &pointer,
        // mov eax, cr0; or al, 1; mov cr0, eax
        &[0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0],
        // jmp dword 8:protected
        &[0x66, 0xea],
        &protected,
        &8_u16.to_le_bytes(),
    ];
    let (info, entry) = (info.to_le_bytes(), entry.to_le_bytes());
    let protected_mode: [&[u8]; 7] = [
        // mov ax, 16; mov ds, ax; mov es, ax; mov ss, ax
        &[0x66, 0xb8, 0x10, 0x00],
        &[0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0],
        // mov ebx, info
        &[0xbb],
        &info,
        // mov eax, entry; jmp eax
        &[0xb8],
        &entry,
        &[0xff, 0xe0],
    ];
    let mut rom = real_mode.concat();
    rom.resize(PROTECTED_AT, 0);
    rom.extend(protected_mode.concat());
    rom.resize(GDT_AT, 0);
    rom.extend(GDT.into_iter().flat_map(u64::to_le_bytes));
    rom.resize(GDT_POINTER_AT, 0);
    rom.extend((size_of_val(&GDT) as u16 - 1).to_le_bytes());
    rom.extend((ROM + GDT_AT as u32).to_le_bytes());
    rom.resize(511, 0);
    // All bytes of an option ROM add up to 0.
    rom.push(0_u8.wrapping_sub(rom.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))));
    rom
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF file with a segment of four bytes, of which eight are in memory, and a PVH entry.
    fn kernel() -> Vec<u8> {
        let mut file = vec![0u8; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        for (at, value) in [(32, 64_u64), (54, 56), (56, 2)] {
            file[at..at + 2].copy_from_slice(&value.to_le_bytes()[..2]);
        }
        let data = 64 + 2 * 56;
        for (kind, offset, address, size, in_memory) in
            [(PT_LOAD, data, START + 0x2000, 4, 8), (PT_NOTE, data + 4, 0, 20, 20)]
        {
            let mut header = [0; 56];
            for (at, value) in [(0, kind), (8, offset), (24, address), (32, size), (40, in_memory)]
            {
                header[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
            file.extend(header);
        }
        file.extend(b"code");
        for word in [4_u32, 4, PHYS32_ENTRY as u32] {
            file.extend(word.to_le_bytes());
        }
        file.extend(b"Xen\0");
        file.extend(0x123_4567_u32.to_le_bytes());
        file
    }

    const MIB: u64 = 64;

    fn loaded(kernel: &[u8]) -> Result<Loaded> {
        load((Path::new("vmlinux"), kernel), b"initrd", "quiet", MIB << 20)
    }

    #[test]
    fn everything_is_where_the_kernel_is_told() {
        let Loaded { rom, memory } = loaded(&kernel()).unwrap();
        assert_eq!(&memory[0x2000..0x2008], b"code\0\0\0\0");
        let info = &memory[0x3000..0x4000];
        let at = |offset: usize| {
            let bytes = info[offset..offset + 8].try_into().unwrap();
            usize::try_from(u64::from_le_bytes(bytes) - START).unwrap()
        };
        assert_eq!(info[..4], 0x336e_c578_u32.to_le_bytes());
        let modules = at(16) - 0x3000;
        assert_eq!(&memory[at(modules)..], b"initrd");
        assert!(memory[at(24)..].starts_with(b"quiet\0"));
        // The map ends where the tables begin.
        let last = at(40) - 0x3000 + 2 * 24;
        let [start, size] =
            [last, last + 8].map(|at| u64::from_le_bytes(info[at..at + 8].try_into().unwrap()));
        assert_eq!(start + size, (MIB << 20) - ACPI_BYTES);
        assert_eq!(rom.len(), 512);
        assert_eq!(rom.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)), 0);
        let protected = [0x66, 0xea, 0x20, 0x00, 0x0d, 0x00, 0x08, 0x00];
        let at = rom.windows(8).position(|window| window == protected).unwrap();
        assert!(at + 8 <= 0x20);
        assert_eq!(rom[0x20..0x24], [0x66, 0xb8, 0x10, 0x00]);
        assert_eq!(rom[0x2a..0x2f], [0xbb, 0x00, 0x30, 0x00, 0x01]);
        assert_eq!(rom[0x2f..0x36], [0xb8, 0x67, 0x45, 0x23, 0x01, 0xff, 0xe0]);
    }

    #[test]
    fn what_cannot_be_loaded_is_refused() {
        let whole = kernel();
        for len in 0..whole.len() {
            loaded(&whole[..len]).unwrap_err();
        }
        let with = |bytes| load((Path::new("vmlinux"), &whole), &[0; 1 << 20], "quiet", bytes);
        with(18 << 20).unwrap();
        with(17 << 20).unwrap_err();
        let long = "x".repeat(PAGE);
        load((Path::new("vmlinux"), &whole), b"", &long, MIB << 20).unwrap_err();
    }
}
