//! Places kernel, initrd and command line in guest memory.
//!
//! The kernel goes to its preferred address, the initrd as high as the kernel allows below the
//! 32-bit hole, the command line and the boot structures into the first 640 KiB
//! ([`super::layout`]). Nothing is written before the kernel's headers have been checked; nothing
//! of what the files say is believed without a bound.

use super::bzimage::BzImage;
use super::elf::{ElfEntry, ElfKernel};
use super::layout::{CMDLINE, CMDLINE_AREA, MIN_RAM_BYTES, RAM_GRANULE};
use super::params::{Handover, low_ram_end, write_reset_vector, write_start_info, write_zero_page};
use super::{BootError, InitrdError, KernelError};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, ReadVolatile};
use wherry_devices::GuestMemory;

/// COMMAND_LINE_SIZE of x86 Linux, less the NUL: what an ELF kernel takes, which does not say.
const LINUX_CMDLINE_MAX: usize = 2047;
/// Highest initrd byte for a kernel that does not say: what x86 Linux puts in its setup header.
const LINUX_INITRD_ADDR_MAX: u64 = 0x7FFF_FFFF;

/// What to boot.
#[derive(Debug, Clone, Copy)]
pub struct BootSource<'a> {
    /// A bzImage or an ELF `vmlinux`.
    pub kernel: &'a Path,
    /// Initial RAM file system, if any.
    pub initrd: Option<&'a Path>,
    /// Kernel command line, without NUL.
    pub cmdline: &'a str,
}

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

/// Loads everything into fresh (zero) guest memory. `rsdp` comes from
/// [`super::acpi::write_tables`].
pub fn load(
    mem: &GuestMemory,
    source: &BootSource<'_>,
    rsdp: u64,
) -> Result<LoadedKernel, BootError> {
    let ram: u64 = mem.iter().map(|r| r.len()).sum();
    if ram < MIN_RAM_BYTES {
        return Err(BootError::RamTooSmall { have: ram });
    }
    let bad_kernel = |e| BootError::Kernel { path: source.kernel.into(), source: e };
    let (mut file, len) = open(source.kernel)
        .map_err(KernelError::Read)
        .and_then(|f| f.ok_or(KernelError::NotAFile))
        .map_err(bad_kernel)?;
    let image = Image::parse(&mut file, len).map_err(bad_kernel)?;
    let kernel = image.check_fits(low_ram_end(mem)).map_err(bad_kernel)?;
    check_cmdline(source.cmdline, image.cmdline_max())?;

    image.copy(mem, &mut file).map_err(bad_kernel)?;
    let kernel_end = kernel.0 + kernel.1;
    let initrd = source.initrd.map(|path| {
        load_initrd(mem, path, kernel_end, image.initrd_addr_max())
            .map_err(|e| BootError::Initrd { path: path.into(), source: e })
    });
    let initrd = initrd.transpose()?;
    write_cmdline(mem, source.cmdline)?;
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
    fn parse<F: Read + Seek>(file: &mut F, len: u64) -> Result<Self, KernelError> {
        if let Some(kernel) = ElfKernel::parse(file, len)? {
            return Ok(Self::Elf(kernel));
        }
        if let Some(kernel) = BzImage::parse(file, len)? {
            return Ok(Self::Bz(kernel));
        }
        Err(KernelError::UnknownFormat { hint: guess(file) })
    }

    /// Address and length of what the kernel occupies, if that is all RAM below the hole.
    fn check_fits(&self, ram_end: u64) -> Result<(u64, u64), KernelError> {
        let (start, end) = match self {
            Self::Bz(k) => (k.load_addr, k.end),
            Self::Elf(k) => (k.start, k.end),
        };
        if end > ram_end {
            Err(KernelError::TooLarge { start, end, ram_end })
        } else {
            Ok((start, end - start))
        }
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

    fn copy<F: Seek + ReadVolatile>(
        &self,
        mem: &GuestMemory,
        file: &mut F,
    ) -> Result<(), KernelError> {
        let mut copy = |offset, addr, len: u64| {
            file.seek(SeekFrom::Start(offset)).map_err(KernelError::Read)?;
            mem.read_exact_volatile_from(GuestAddress(addr), file, len as usize)
                .map_err(KernelError::Copy)
        };
        match self {
            Self::Bz(k) => copy(k.payload_offset, k.load_addr, k.payload_len),
            Self::Elf(k) => {
                k.segments.iter().try_for_each(|s| copy(s.file_offset, s.addr, s.file_len))
            }
        }
    }

    fn write_params(&self, mem: &GuestMemory, handover: &Handover) -> Result<Entry, BootError> {
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

/// Opens a file for reading, with its length; `None` if it is not a regular file.
fn open(path: &Path) -> std::io::Result<Option<(File, u64)>> {
    let meta = std::fs::metadata(path)?;
    if !meta.is_file() {
        return Ok(None);
    }
    let file = File::open(path)?;
    let len = file.metadata()?.len();
    Ok(Some((file, len)))
}

/// Places the initrd on a page boundary as high as possible, above `floor` and not past `addr_max`
/// or low RAM.
fn load_initrd(
    mem: &GuestMemory,
    path: &Path,
    floor: u64,
    addr_max: u64,
) -> Result<(u64, u64), InitrdError> {
    let (mut file, size) =
        open(path).map_err(InitrdError::Read).and_then(|f| f.ok_or(InitrdError::NotAFile))?;
    let addr = place_initrd(size, floor, low_ram_end(mem).min(addr_max.saturating_add(1)))?;
    mem.read_exact_volatile_from(GuestAddress(addr), &mut file, size as usize)
        .map_err(InitrdError::Copy)?;
    Ok((addr, size))
}

/// Highest page-aligned address for `size` bytes between `floor` and `ceiling`.
fn place_initrd(size: u64, floor: u64, ceiling: u64) -> Result<u64, InitrdError> {
    if size == 0 {
        return Err(InitrdError::Empty);
    }
    let room = ceiling.saturating_sub(floor);
    let addr = ceiling.checked_sub(size).map(|a| a - a % RAM_GRANULE);
    addr.filter(|&a| a >= floor).ok_or(InitrdError::TooLarge { size, room })
}

fn check_cmdline(cmdline: &str, max: usize) -> Result<(), BootError> {
    if cmdline.len() > max {
        return Err(BootError::CmdlineTooLong { len: cmdline.len(), max });
    }
    if cmdline.contains('\0') { Err(BootError::CmdlineNul) } else { Ok(()) }
}

fn write_cmdline(mem: &GuestMemory, cmdline: &str) -> Result<(), BootError> {
    let bytes: Vec<u8> = cmdline.bytes().chain([0]).collect();
    let write = mem.write_slice(&bytes, GuestAddress(CMDLINE));
    write.map_err(|source| BootError::GuestMemory { what: "the command line", source })
}

/// A hint at what a file is that is no kernel.
fn guess<F: Read + Seek>(file: &mut F) -> &'static str {
    let mut head = Vec::new();
    if file.seek(SeekFrom::Start(0)).is_err() || file.take(64).read_to_end(&mut head).is_err() {
        return "";
    }
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
