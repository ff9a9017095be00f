//! What is in a disk goes into guest memory, read by this program's own process.

#[path = "../../rootfs/tests/common/mod.rs"]
mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use common::{LINUX, Tree, UUID, gpt, mke2fs_is_here};
use linux_loader::loader::bootparam::boot_params;
use vm_memory::{ByteValued, Bytes, GuestAddress};
use wherry_devices::GuestMemory;
use wherry_rootfs::reader::ARGUMENT;
use wherry_rootfs::{Limits, Reader};
use wherry_vmm::boot::disk::from_disk;
use wherry_vmm::boot::layout::ram_regions;
use wherry_vmm::boot::loader::{LoadedKernel, load_files};

const MIB: u64 = 1 << 20;

/// A bzImage of 4 KiB, preferred at 16 MiB.
fn bzimage(fill: u8) -> Vec<u8> {
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
    image.extend([fill; 4096]);
    image
}

struct Booted {
    mem: GuestMemory,
    loaded: LoadedKernel,
}

impl Booted {
    fn read(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }
}

fn boot(image: &File) -> anyhow::Result<Booted> {
    let limits = Limits { deadline: Duration::from_secs(300), ..Limits::default() };
    let reader = Reader::new(env!("CARGO_BIN_EXE_wherry-vm"), &[ARGUMENT], limits);
    let found = from_disk(&reader, image, "console=ttyS0")?;
    let ranges: Vec<_> =
        ram_regions(128 * MIB).iter().map(|&(a, l)| (GuestAddress(a), l as usize)).collect();
    let mem = GuestMemory::from_ranges(&ranges)?;
    let loaded = load_files(&mem, found.files, 0xE_0000)?;
    Ok(Booted { mem, loaded })
}

#[test]
fn each_boot_takes_what_is_in_the_disk_then() {
    if !mke2fs_is_here() {
        return;
    }
    let root = Tree::new()
        .file("boot/vmlinuz-1", &bzimage(1))
        .file("boot/initrd.img-1", &[11; 5000])
        .link("vmlinuz", "boot/vmlinuz-1");
    let disk = common::file(&gpt(&[(LINUX, &root.ext4())]));
    let booted = boot(&disk).unwrap();
    assert_eq!(booted.read(16 * MIB, 4097), [&[1; 4096][..], &[0]].concat());
    assert_eq!(booted.loaded.initrd, Some((128 * MIB - 8192, 5000)));
    assert_eq!(booted.read(128 * MIB - 8192, 5001), [&[11; 5000][..], &[0]].concat());
    let line = format!("root=UUID={UUID} ro console=ttyS0\0");
    assert_eq!(booted.read(0x2_0000, line.len()), line.as_bytes());

    // The guest has installed another kernel, through the same open file.
    let root = root
        .file("boot/vmlinuz-2", &bzimage(2))
        .file("boot/initrd.img-2", &[22; 3])
        .link("vmlinuz", "boot/vmlinuz-2");
    disk.write_all_at(&gpt(&[(LINUX, &root.ext4())]), 0).unwrap();
    let booted = boot(&disk).unwrap();
    assert_eq!(booted.read(16 * MIB, 4096), [2; 4096]);
    assert_eq!(booted.read(128 * MIB - 4096, 3), [22; 3]);
}

#[test]
fn what_is_wrong_is_said_with_the_way_out() {
    let text = |image: &[u8]| format!("{:#}", boot(&common::file(image)).err().unwrap());
    let nothing = text(&[0; 1 << 20]);
    assert!(nothing.contains("--kernel") && nothing.contains("no root file system"), "{nothing}");
    if mke2fs_is_here() {
        let broken = text(&Tree::new().file("boot/vmlinuz-1", b"no kernel").ext4());
        assert!(broken.contains("kernel /boot/vmlinuz-1 of the disk"), "{broken}");
        assert!(broken.contains("neither a bzImage nor an ELF"), "{broken}");
    }
}
