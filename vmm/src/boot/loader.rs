//! Places kernel, initrd and command line in guest memory.
//!
//! The kernel goes to its preferred address, the initrd as high as the kernel allows below the
//! 32-bit hole, the command line and the boot structures into the first 640 KiB
//! ([`super::layout`]). Nothing is written before the kernel's headers have been checked; nothing
//! of what the files say is believed without a bound.

use super::bzimage::BzImage;
use super::elf::{ElfEntry, ElfKernel};
use super::error::{READ, read_part};
use super::files::{Files, Named};
use super::layout::{CMDLINE, CMDLINE_AREA, MIN_RAM_BYTES, RAM_GRANULE};
use super::params::{Handover, low_ram_end, write_reset_vector, write_start_info, write_zero_page};
use super::part::Part;
pub use super::source::Kernel;
use super::source::Sources;
use anyhow::{Context, bail, ensure};
use std::io::{Read, Seek, SeekFrom};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, ReadVolatile};
use wherry_devices::GuestMemory;

/// COMMAND_LINE_SIZE of x86 Linux, less the NUL: what an ELF kernel takes, which does not say.
const LINUX_CMDLINE_MAX: usize = 2047;
/// Highest initrd byte for a kernel that does not say: what x86 Linux puts in its setup header.
const LINUX_INITRD_ADDR_MAX: u64 = 0x7FFF_FFFF;

/// Reading a file into guest memory failed.
const COPY: &str = "cannot be copied into guest memory";

/// Where the boot CPU starts and in which state; see [`crate::cpu::regs::setup_boot_vcpu`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// 64-bit mode, identity-mapped, RSI = `boot_params` (kernel Documentation/arch/x86/boot.rst).
    Linux64 {
        /// Guest-physical address of the first instruction.
        rip: u64,
        /// Guest-physical address of `boot_params`.
        boot_params: u64,
    },
    /// 32-bit protected mode without paging, EBX = `hvm_start_info` (Xen docs/misc/pvh.pandoc).
    Pvh {
        /// Guest-physical address of the first instruction, below 4 GiB.
        rip: u64,
        /// Guest-physical address of `hvm_start_info`.
        start_info: u64,
    },
}

/// What was loaded, and where. Ranges are `(guest address, bytes)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadedKernel {
    /// How to start the boot CPU.
    pub entry: Entry,
    /// What the kernel occupies, `init_size` or bss included.
    pub kernel: (u64, u64),
    /// The initrd.
    pub initrd: Option<(u64, u64)>,
}

/// Loads what `source` names into fresh (zero) guest memory. `rsdp` comes from
/// [`super::acpi::write_tables`].
pub fn load(mem: &GuestMemory, source: &Kernel, rsdp: u64) -> anyhow::Result<LoadedKernel> {
    load_files(mem, Files::new(source, &Sources::open(source)?)?, rsdp)
}

/// The same of files that are open.
pub fn load_files(mem: &GuestMemory, files: Files, rsdp: u64) -> anyhow::Result<LoadedKernel> {
    let ram: u64 = mem.iter().map(|r| r.len()).sum();
    ensure!(
        ram >= MIN_RAM_BYTES,
        "{} MiB of guest RAM is too little; give it at least 128 MiB",
        ram >> 20
    );
    let Files { kernel: Named { name, part: mut file }, initrd, cmdline } = files;
    let len = file.len();
    let image = Image::parse(&mut file, len).with_context(|| name.clone())?;
    let kernel = image.check_fits(low_ram_end(mem)).with_context(|| name.clone())?;
    check_cmdline(&cmdline, image.cmdline_max())?;

    image.copy(mem, &mut file).context(name)?;
    let kernel_end = kernel.0 + kernel.1;
    let initrd = initrd.map(|Named { name, part }| {
        load_initrd(mem, part, kernel_end, image.initrd_addr_max()).context(name)
    });
    let initrd = initrd.transpose()?;
    write_cmdline(mem, &cmdline)?;
    write_reset_vector(mem)?;
    let handover = Handover { initrd, rsdp };
    let entry = image.write_params(mem, &handover)?;
    Ok(LoadedKernel { entry, kernel, initrd })
}

/// A kernel file whose headers have been checked.
#[derive(Debug, PartialEq, Eq)]
enum Image {
    Bz(BzImage),
    Elf(ElfKernel),
}

impl Image {
    fn parse<F: Read + Seek>(file: &mut F, len: u64) -> anyhow::Result<Self> {
        if let Some(kernel) = ElfKernel::parse(file, len)? {
            return Ok(Self::Elf(kernel));
        }
        if let Some(kernel) = BzImage::parse(file, len)? {
            return Ok(Self::Bz(kernel));
        }
        let hint = guess(file);
        bail!(
            "is neither a bzImage nor an ELF vmlinux{hint}; give an x86-64 kernel, such as \
             /boot/vmlinuz-…"
        )
    }

    /// Address and length of what the kernel occupies, if that is all RAM below the hole.
    fn check_fits(&self, ram_end: u64) -> anyhow::Result<(u64, u64)> {
        let (start, end) = match self {
            Self::Bz(k) => (k.load_addr, k.end),
            Self::Elf(k) => (k.start, k.end),
        };
        ensure!(
            end <= ram_end,
            "needs RAM from {start:#x} to {end:#x}, RAM there ends at {ram_end:#x}; give the guest \
             more memory"
        );
        Ok((start, end - start))
    }

    fn cmdline_max(&self) -> usize {
        let max = match self {
            Self::Bz(k) => k.cmdline_max,
            Self::Elf(_) => LINUX_CMDLINE_MAX,
        };
        max.min(CMDLINE_AREA as usize - 1)
    }

    fn initrd_addr_max(&self) -> u64 {
        match self {
            Self::Bz(k) => k.initrd_addr_max,
            Self::Elf(_) => LINUX_INITRD_ADDR_MAX,
        }
    }

    fn copy<F: Seek + ReadVolatile>(&self, mem: &GuestMemory, file: &mut F) -> anyhow::Result<()> {
        let mut copy = |offset, addr, len: u64| {
            file.seek(SeekFrom::Start(offset)).context(READ)?;
            mem.read_exact_volatile_from(GuestAddress(addr), file, len as usize).context(COPY)
        };
        match self {
            Self::Bz(k) => copy(k.payload_offset, k.load_addr, k.payload_len),
            Self::Elf(k) => {
                k.segments.iter().try_for_each(|s| copy(s.file_offset, s.addr, s.file_len))
            }
        }
    }

    fn write_params(&self, mem: &GuestMemory, handover: &Handover) -> anyhow::Result<Entry> {
        Ok(match self {
            Self::Bz(k) => {
                let boot_params = write_zero_page(mem, Some(&k.header), handover)?;
                Entry::Linux64 { rip: k.entry(), boot_params }
            }
            Self::Elf(ElfKernel { entry: ElfEntry::Linux64(rip), .. }) => {
                Entry::Linux64 { rip: *rip, boot_params: write_zero_page(mem, None, handover)? }
            }
            Self::Elf(ElfKernel { entry: ElfEntry::Pvh(rip), .. }) => {
                Entry::Pvh { rip: *rip, start_info: write_start_info(mem, handover)? }
            }
        })
    }
}

/// Places the initrd on a page boundary as high as possible, above `floor` and not past `addr_max`
/// or low RAM.
fn load_initrd(
    mem: &GuestMemory,
    mut file: Part,
    floor: u64,
    addr_max: u64,
) -> anyhow::Result<(u64, u64)> {
    let size = file.len();
    let addr = place_initrd(size, floor, low_ram_end(mem).min(addr_max.saturating_add(1)))?;
    // It may have shrunk meanwhile.
    mem.read_exact_volatile_from(GuestAddress(addr), &mut file, size as usize).context(COPY)?;
    Ok((addr, size))
}

/// Highest page-aligned address for `size` bytes between `floor` and `ceiling`.
fn place_initrd(size: u64, floor: u64, ceiling: u64) -> anyhow::Result<u64> {
    ensure!(size > 0, "is empty; leave it out or build it again");
    let room = ceiling.saturating_sub(floor);
    let addr = ceiling.checked_sub(size).map(|a| a - a % RAM_GRANULE);
    addr.filter(|&a| a >= floor).with_context(|| {
        format!(
            "has {} MiB, but only {} MiB of RAM is free for it above the kernel; give the guest \
             more memory or a smaller initrd",
            size.div_ceil(1 << 20),
            room >> 20
        )
    })
}

fn check_cmdline(cmdline: &str, max: usize) -> anyhow::Result<()> {
    let len = cmdline.len();
    ensure!(len <= max, "the kernel command line has {len} bytes; this kernel takes at most {max}");
    ensure!(!cmdline.contains('\0'), "the kernel command line contains a NUL byte");
    Ok(())
}

fn write_cmdline(mem: &GuestMemory, cmdline: &str) -> anyhow::Result<()> {
    let bytes: Vec<u8> = cmdline.bytes().chain([0]).collect();
    let write = mem.write_slice(&bytes, GuestAddress(CMDLINE));
    write.context("cannot write the command line into guest memory")
}

/// A hint at what a file is that is no kernel.
fn guess<F: Read + Seek>(file: &mut F) -> &'static str {
    let Ok(head) = read_part(file, 0, 64) else { return "" };
    match head.as_slice() {
        [] => ", it is empty",
        [0x1F, 0x8B, ..] => ", it is gzip-compressed (an initrd or a vmlinux.gz?)",
        [0x28, 0xB5, 0x2F, 0xFD, ..] => ", it is zstd-compressed (an initrd?)",
        h if h.starts_with(b"070701") => ", it is a cpio archive (an initrd?)",
        h if h.get(0x38..0x3C) == Some(b"ARM\x64") => ", it is an arm64 kernel",
        h if h.starts_with(b"QFI\xFB") => ", it is a qcow2 disk image",
        _ => "",
    }
}

#[cfg(test)]
#[path = "loader_tests.rs"]
mod tests;
