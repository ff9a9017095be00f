//! Tests of the loader on made-up kernels: what must be refused, where things go, and that damage
//! never panics.

use super::super::layout::{GIB, MIB, ram_regions};
use super::super::params::memory_map;
use super::*;
use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr};
use linux_loader::loader::bootparam::boot_params;
use linux_loader::start_info::{hvm_modlist_entry, hvm_start_info};
use proptest::prelude::*;
use std::io::{Cursor, Write};
use std::path::Path;
use vm_memory::ByteValued;

const RSDP: u64 = 0xE_0000;

fn memory(size: u64) -> GuestMemory {
    let ranges: Vec<_> =
        ram_regions(size).iter().map(|&(a, l)| (GuestAddress(a), l as usize)).collect();
    GuestMemory::from_ranges(&ranges).unwrap()
}

fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let mut f = tempfile::NamedTempFile::new().unwrap();
    f.write_all(bytes).unwrap();
    f
}

/// A bzImage with one setup sector and 4 KiB of "code", preferred at 16 MiB, `init_size` 32 MiB.
fn bzimage() -> Vec<u8> {
    let mut params = boot_params::default();
    params.hdr.setup_sects = 1;
    params.hdr.syssize = 4096 / 16;
    params.hdr.boot_flag = 0xAA55;
    params.hdr.header = 0x5372_6448;
    params.hdr.version = 0x20F;
    params.hdr.jump = 0x6AEB;
    params.hdr.loadflags = 1;
    params.hdr.xloadflags = 0x7F;
    params.hdr.cmdline_size = 2047;
    params.hdr.initrd_addr_max = 0x7FFF_FFFF;
    params.hdr.kernel_alignment = 0x20_0000;
    params.hdr.relocatable_kernel = 1;
    params.hdr.pref_address = 16 * MIB;
    params.hdr.init_size = 32 << 20;
    let mut image = params.as_slice()[..1024].to_vec();
    image.extend((0..4096u32).map(|i| i as u8));
    image
}

fn note(kind: u32, name: &[u8], desc: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for word in [name.len() as u32, desc.len() as u32, kind] {
        out.extend(word.to_le_bytes());
    }
    for part in [name, desc] {
        out.extend(part);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

/// An ELF kernel with one segment at 16 MiB and, if asked for, a PVH note.
fn elf(pvh: bool) -> Vec<u8> {
    let mut notes = note(1, b"GNU\0", b"abcde");
    if pvh {
        notes.extend(note(18, b"Xen\0", &(16 * MIB + 0x10).to_le_bytes()));
    }
    let mut ehdr = Elf64_Ehdr {
        e_type: 2,
        e_machine: 62,
        e_phoff: 64,
        e_phentsize: 56,
        e_phnum: 2,
        ..Default::default()
    };
    ehdr.e_ident[..6].copy_from_slice(b"\x7fELF\x02\x01");
    ehdr.e_entry = 16 * MIB;
    let code = Elf64_Phdr {
        p_type: 1,
        p_offset: 0x400,
        p_paddr: 16 * MIB,
        p_filesz: 0x100,
        p_memsz: 0x2000,
        ..Default::default()
    };
    let notes_header = Elf64_Phdr {
        p_type: 4,
        p_offset: 0x200,
        p_filesz: notes.len() as u64,
        ..Default::default()
    };
    let mut image = ehdr.as_slice().to_vec();
    image.extend(code.as_slice());
    image.extend(notes_header.as_slice());
    image.resize(0x200, 0);
    image.extend(notes);
    image.resize(0x400, 0);
    image.extend([0x90; 0x100]);
    image
}

fn parse(bytes: &[u8]) -> anyhow::Result<Image> {
    Image::parse(&mut Cursor::new(bytes), bytes.len() as u64)
}

fn source(kernel: &Path, initrd: Option<&Path>, cmdline: &str) -> Kernel {
    Kernel { path: kernel.into(), initrd: initrd.map(Into::into), cmdline: cmdline.into() }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

#[test]
fn bzimage_goes_to_its_preferred_address() {
    let (mem, kernel, initrd) = (memory(256 * MIB), file(&bzimage()), file(&[7; 5000]));
    let source = source(kernel.path(), Some(initrd.path()), "console=ttyS0");
    let loaded = load(&mem, &source, RSDP).unwrap();
    assert_eq!(loaded.entry, Entry::Linux64 { rip: 16 * MIB + 0x200, boot_params: 0x7000 });
    assert_eq!(loaded.kernel, (16 * MIB, 32 * MIB));
    assert_eq!(loaded.initrd, Some((256 * MIB - 8192, 5000)));

    let params: boot_params = mem.read_obj(GuestAddress(0x7000)).unwrap();
    let hdr = params.hdr;
    assert_eq!((hdr.ramdisk_image, hdr.ramdisk_size), ((256 * MIB - 8192) as u32, 5000));
    assert_eq!((hdr.type_of_loader, hdr.cmd_line_ptr, hdr.version), (0xFF, 0x2_0000, 0x20F));
    assert_eq!(({ params.acpi_rsdp_addr }, params.sentinel, params.e820_entries), (RSDP, 0, 6));
    let mut reset = [0; 6];
    mem.read_slice(&mut reset, GuestAddress(0xF_FFF0)).unwrap();
    assert_eq!(reset, [0xBA, 0x02, 0x06, 0xB0, 1, 0xEE]);
    let mut line = [0; 14];
    mem.read_slice(&mut line, GuestAddress(0x2_0000)).unwrap();
    assert_eq!(&line, b"console=ttyS0\0");
    let mut code = [0; 4];
    mem.read_slice(&mut code, GuestAddress(16 * MIB + 4092)).unwrap();
    assert_eq!(code, [0xFC, 0xFD, 0xFE, 0xFF]);
}

#[test]
fn elf_enters_through_pvh_or_startup_64() {
    let (mem, initrd) = (memory(128 * MIB), file(&[7; 4096]));
    let kernel = file(&elf(true));
    let loaded = load(&mem, &source(kernel.path(), Some(initrd.path()), "quiet"), RSDP).unwrap();
    assert_eq!(loaded.entry, Entry::Pvh { rip: 16 * MIB + 0x10, start_info: 0x6000 });
    assert_eq!(loaded.kernel, (16 * MIB, 0x2000));
    let info: hvm_start_info = mem.read_obj(GuestAddress(0x6000)).unwrap();
    assert_eq!((info.magic, info.version, info.nr_modules), (0x336E_C578, 1, 1));
    assert_eq!((info.rsdp_paddr, info.memmap_entries), (RSDP, 6));
    let module: hvm_modlist_entry = mem.read_obj(GuestAddress(info.modlist_paddr)).unwrap();
    assert_eq!((module.paddr, module.size), (128 * MIB - 4096, 4096));

    let kernel = file(&elf(false));
    let loaded = load(&mem, &source(kernel.path(), None, ""), RSDP).unwrap();
    assert_eq!(loaded.entry, Entry::Linux64 { rip: 16 * MIB, boot_params: 0x7000 });
}

#[test]
fn a_unified_image_boots_as_its_parts_do() {
    use crate::boot::uki::tests::image;
    let read = |mem: &GuestMemory, at: u64, len: usize| {
        let mut bytes = vec![0; len];
        mem.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    };
    let sections: [(&str, &[u8]); 3] =
        [(".cmdline", b"root=/dev/vda quiet\n"), (".initrd", &[7; 5000]), (".linux", &bzimage())];
    let (mem, uki, other) = (memory(256 * MIB), file(&image(&sections)), file(&[8; 100]));
    let loaded = load(&mem, &source(uki.path(), None, "console=ttyS0"), RSDP).unwrap();
    assert_eq!(loaded.entry, Entry::Linux64 { rip: 16 * MIB + 0x200, boot_params: 0x7000 });
    assert_eq!(loaded.initrd, Some((256 * MIB - 8192, 5000)));
    assert_eq!(read(&mem, 256 * MIB - 8192, 5001), [&[7; 5000][..], &[0]].concat());
    assert_eq!(read(&mem, 16 * MIB + 4092, 5), [0xFC, 0xFD, 0xFE, 0xFF, 0]);
    assert_eq!(read(&mem, 0x2_0000, 34), b"root=/dev/vda quiet console=ttyS0\0");

    let given = source(uki.path(), Some(other.path()), "");
    let mem = memory(256 * MIB);
    assert_eq!(load(&mem, &given, RSDP).unwrap().initrd, Some((256 * MIB - 4096, 100)));
    assert_eq!(read(&mem, 256 * MIB - 4096, 101), [&[8; 100][..], &[0]].concat());

    let no_kernel = file(&image(&[(".linux", b"text")]));
    let error = load(&mem, &source(no_kernel.path(), None, ""), RSDP).unwrap_err();
    assert!(format!("{error:#}").contains("neither a bzImage nor an ELF"), "{error:#}");
}

#[test]
fn memory_map_is_sorted_and_covers_ram() {
    for size in [128 * MIB, 3 * GIB, 8 * GIB, 128 * GIB] {
        // Address space alone: nothing is touched.
        let mem = memory(size);
        let map = memory_map(&mem);
        for pair in map.windows(2) {
            assert!(pair[0].addr + pair[0].size <= pair[1].addr, "{map:?}");
        }
        let ram: u64 = map.iter().filter(|e| e.r#type == 1).map(|e| e.size).sum();
        assert_eq!(ram, size - (0x10_0000 - 0x9_FC00));
    }
}

#[test]
fn initrd_stays_below_the_kernels_limit() {
    assert_eq!(place_initrd(4097, 0x1000, 0x8000_0000).unwrap(), 0x7FFF_E000);
    assert_eq!(place_initrd(0x2000, 0x1000, 0x3000).unwrap(), 0x1000);
    for (size, ceiling, why) in [
        (0x2001, 0x3000, "only 0 MiB of RAM is free"),
        (0x40_0000, 0x30_1000, "has 4 MiB, but only 3 MiB"),
        (u64::MAX, 0x3000, "only 0 MiB of RAM is free"),
        (0, 0x3000, "is empty"),
    ] {
        let text = place_initrd(size, 0x1000, ceiling).unwrap_err().to_string();
        assert!(text.contains(why), "{text}");
    }
}

#[test]
fn bad_inputs_have_clear_errors() {
    let text = |bytes: &[u8]| parse(bytes).unwrap_err().to_string();
    assert!(text(b"").contains("it is empty"), "{}", text(b""));
    assert!(text(b"\x1f\x8b\x08 whatever").contains("gzip"));
    let good = bzimage();
    assert!(text(&good[..good.len() - 1]).contains("truncated"));
    let change = |at: usize, value: &[u8]| {
        let mut bytes = good.clone();
        put(&mut bytes, at, value);
        text(&bytes)
    };
    assert!(change(0x206, &0x20Bu16.to_le_bytes()).contains("protocol 2.11"));
    assert!(change(0x236, &0u16.to_le_bytes()).contains("32-bit"));
    assert!(change(0x260, &0u32.to_le_bytes()).contains("init_size"));
    assert!(change(0x258, &0u64.to_le_bytes()).contains("preferred address"));
    assert!(change(0x230, &0u32.to_le_bytes()).contains("aligned"));
    let mut arm = elf(true);
    put(&mut arm, 18, &183u16.to_le_bytes());
    assert!(text(&arm).contains("another architecture"));
}

#[test]
fn sizes_are_checked_against_ram() {
    let (mem, kernel) = (memory(128 * MIB), file(&bzimage()));
    let mut big = bzimage();
    put(&mut big, 0x260, &(200u32 << 20).to_le_bytes());
    let big = file(&big);
    let huge = tempfile::NamedTempFile::new().unwrap();
    huge.as_file().set_len(100 * MIB).unwrap();
    let (kernel, long) = (kernel.path(), "x".repeat(2048));
    for (source, why) in [
        (source(big.path(), None, ""), "needs RAM from 0x1000000 to 0xd800000"),
        (source(kernel, None, &long), "has 2048 bytes; this kernel takes at most 2047"),
        (source(kernel, None, "a\0b"), "contains a NUL byte"),
        (source(kernel, Some(huge.path()), ""), "has 100 MiB, but only 80 MiB of RAM is free"),
        (source(Path::new("/nonexistent/vmlinuz"), None, ""), "vmlinuz: cannot be read"),
        (source(Path::new("/"), None, ""), "kernel /: is not a regular file"),
    ] {
        let text = format!("{:#}", load(&mem, &source, RSDP).unwrap_err());
        assert!(text.contains(why), "{text}");
    }
    let refused = load(&memory(64 * MIB), &source(kernel, None, ""), RSDP).unwrap_err();
    assert!(refused.to_string().contains("64 MiB of guest RAM is too little"), "{refused}");
}

/// Loads the kernel named by `WHERRY_TEST_KERNEL`, if there is one.
#[test]
fn a_real_kernel_loads() {
    let Some(path) = std::env::var_os("WHERRY_TEST_KERNEL") else {
        println!("skipped: WHERRY_TEST_KERNEL names no kernel");
        return;
    };
    let source = source(Path::new(&path), None, "console=ttyS0");
    let loaded = load(&memory(256 * MIB), &source, RSDP).unwrap();
    println!("{loaded:x?}");
}

/// Bytes to overwrite, mostly in the headers, and where the file is cut.
fn damage() -> impl Strategy<Value = (Vec<(usize, u8)>, usize)> {
    let at = prop_oneof![4 => 0usize..0x300, 1 => 0usize..8192];
    (prop::collection::vec((at, any::<u8>()), 0..24), prop_oneof![Just(usize::MAX), 0usize..6000])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Whatever is parsed fits the file and says where it goes; the rest is refused. Nothing
    /// panics.
    #[test]
    fn damaged_kernels_never_panic(kind in 0usize..3, (edits, cut) in damage()) {
        let mut bytes = match kind { 0 => bzimage(), 1 => elf(true), _ => elf(false) };
        for (at, value) in edits {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        bytes.truncate(cut);
        if let Ok(image) = parse(&bytes)
            && let Ok((start, len)) = image.check_fits(128 * MIB)
        {
            prop_assert!(start >= MIB && start + len <= 128 * MIB);
            let mem = memory(128 * MIB);
            image.copy(&mem, &mut Cursor::new(&bytes)).unwrap();
            let handover = Handover { initrd: None, rsdp: RSDP };
            image.write_params(&mem, &handover).unwrap();
        }
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        let _ = parse(&bytes);
    }
}
