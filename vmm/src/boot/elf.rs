//! ELF kernels (`vmlinux`): where their segments go and where to enter them.
//!
//! A kernel built with CONFIG_PVH carries a Xen ELF note of type 18 (PHYS32_ENTRY,
//! xen/include/public/elfnote.h) with a 32-bit physical entry point. Without the note the ELF entry
//! itself is used: for Linux that is the physical address of `startup_64`, which takes the same
//! state as a bzImage's 64-bit entry.
//!
//! Every number in the file may be hostile: additions are checked and nothing is allocated by a
//! size from the file beyond 64 KiB.

use super::KernelError;
use super::layout::HIGH_MEMORY_START;
use linux_loader::elf::{Elf64_Ehdr, Elf64_Nhdr, Elf64_Phdr};
use std::io::{Read, Seek, SeekFrom};
use vm_memory::ByteValued;

const EM_X86_64: u16 = 62;
const ELFCLASS64: u8 = 2;
const ELFDATA2LSB: u8 = 1;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// XEN_ELFNOTE_PHYS32_ENTRY
const PHYS32_ENTRY: u32 = 18;
/// More than any kernel has; bounds the work on a corrupt file.
const MAX_SEGMENTS: u16 = 128;
/// Likewise for one note segment, in bytes.
const MAX_NOTES: u64 = 64 << 10;

/// One part of the file that is copied to guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) file_offset: u64,
    pub(super) file_len: u64,
    pub(super) addr: u64,
}

/// How the kernel wants to be entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ElfEntry {
    /// 32-bit protected mode, PVH start info in EBX.
    Pvh(u64),
    /// 64-bit mode, `boot_params` in RSI.
    Linux64(u64),
}

/// A validated ELF kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ElfKernel {
    pub(super) segments: Vec<Segment>,
    /// Lowest physical address used.
    pub(super) start: u64,
    /// One past the highest physical address used, bss included.
    pub(super) end: u64,
    pub(super) entry: ElfEntry,
}

impl ElfKernel {
    /// Reads and checks the headers. `Ok(None)`: the file has no ELF magic.
    pub(super) fn parse<F: Read + Seek>(
        file: &mut F,
        file_len: u64,
    ) -> Result<Option<Self>, KernelError> {
        let mut ident = Vec::new();
        file.seek(SeekFrom::Start(0)).map_err(KernelError::Read)?;
        file.by_ref().take(4).read_to_end(&mut ident).map_err(KernelError::Read)?;
        if ident != b"\x7fELF" {
            return Ok(None);
        }
        let ehdr: Elf64_Ehdr = read_at(file, 0, file_len, "the ELF header")?;
        check_header(&ehdr)?;

        let mut kernel = Self {
            segments: Vec::new(),
            start: u64::MAX,
            end: 0,
            entry: ElfEntry::Linux64(ehdr.e_entry),
        };
        for i in 0..u64::from(ehdr.e_phnum) {
            let offset = ehdr.e_phoff.checked_add(i * size_of::<Elf64_Phdr>() as u64);
            let offset = offset.ok_or(corrupt("its program headers lie outside the file"))?;
            let phdr: Elf64_Phdr = read_at(file, offset, file_len, "its program headers")?;
            match phdr.p_type {
                PT_LOAD if phdr.p_memsz > 0 => kernel.add_segment(&phdr, file_len)?,
                PT_NOTE => {
                    if let Some(addr) = find_pvh_note(file, &phdr, file_len)? {
                        kernel.entry = ElfEntry::Pvh(addr);
                    }
                }
                _ => {}
            }
        }
        kernel.check_entry()?;
        Ok(Some(kernel))
    }

    fn add_segment(&mut self, phdr: &Elf64_Phdr, file_len: u64) -> Result<(), KernelError> {
        let file_end =
            phdr.p_offset.checked_add(phdr.p_filesz).ok_or(corrupt("a segment wraps around"))?;
        let end =
            phdr.p_paddr.checked_add(phdr.p_memsz).ok_or(corrupt("a segment wraps around"))?;
        if phdr.p_filesz > phdr.p_memsz {
            return Err(corrupt("a segment is larger in the file than in memory"));
        }
        if file_end > file_len {
            return Err(KernelError::Truncated {
                what: "a segment",
                need: file_end,
                have: file_len,
            });
        }
        if phdr.p_paddr < HIGH_MEMORY_START {
            return Err(corrupt("a segment lies below 1 MiB"));
        }
        self.start = self.start.min(phdr.p_paddr);
        self.end = self.end.max(end);
        if phdr.p_filesz > 0 {
            let (file_offset, file_len, addr) = (phdr.p_offset, phdr.p_filesz, phdr.p_paddr);
            self.segments.push(Segment { file_offset, file_len, addr });
        }
        Ok(())
    }

    fn check_entry(&self) -> Result<(), KernelError> {
        if self.segments.is_empty() {
            return Err(KernelError::NoEntry {
                what: "no segment is to be loaded; is this an object file?",
            });
        }
        let (ElfEntry::Pvh(addr) | ElfEntry::Linux64(addr)) = self.entry;
        let inside = |s: &Segment| addr >= s.addr && addr - s.addr < s.file_len;
        if !self.segments.iter().any(inside) {
            return Err(KernelError::NoEntry {
                what: "its entry lies outside its segments; build the kernel with CONFIG_PVH, or \
                       give the bzImage",
            });
        }
        Ok(())
    }
}

fn check_header(ehdr: &Elf64_Ehdr) -> Result<(), KernelError> {
    if ehdr.e_ident[4] != ELFCLASS64 {
        return Err(KernelError::NotX86_64 { what: "a 32-bit ELF file" });
    }
    if ehdr.e_ident[5] != ELFDATA2LSB || ehdr.e_machine != EM_X86_64 {
        return Err(KernelError::NotX86_64 { what: "an ELF file for another architecture" });
    }
    if ehdr.e_type != ET_EXEC && ehdr.e_type != ET_DYN {
        return Err(KernelError::NoEntry { what: "an ELF object or core file is no kernel" });
    }
    if usize::from(ehdr.e_phentsize) != size_of::<Elf64_Phdr>() || ehdr.e_phnum > MAX_SEGMENTS {
        return Err(corrupt("its program headers have the wrong size or number"));
    }
    Ok(())
}

/// Looks through one note segment for the PVH entry point.
fn find_pvh_note<F: Read + Seek>(
    file: &mut F,
    phdr: &Elf64_Phdr,
    file_len: u64,
) -> Result<Option<u64>, KernelError> {
    let end =
        phdr.p_offset.checked_add(phdr.p_filesz).ok_or(corrupt("a note segment wraps around"))?;
    if end > file_len {
        return Err(KernelError::Truncated { what: "a note segment", need: end, have: file_len });
    }
    if phdr.p_filesz > MAX_NOTES {
        return Ok(None);
    }
    let mut notes = Vec::new();
    file.seek(SeekFrom::Start(phdr.p_offset)).map_err(KernelError::Read)?;
    file.by_ref().take(phdr.p_filesz).read_to_end(&mut notes).map_err(KernelError::Read)?;

    let mut rest = notes.as_slice();
    while let Some((head, tail)) = rest.split_at_checked(size_of::<Elf64_Nhdr>()) {
        let mut nhdr = Elf64_Nhdr::default();
        nhdr.as_mut_slice().copy_from_slice(head);
        let Some((name, tail)) = split_padded(tail, nhdr.n_namesz) else { break };
        let Some((desc, tail)) = split_padded(tail, nhdr.n_descsz) else { break };
        if nhdr.n_type == PHYS32_ENTRY && name == b"Xen\0" {
            // The note's type says "PHYS32", yet 64-bit kernels write eight bytes; the entry is
            // below 4 GiB.
            let Some(bytes) = desc.get(..4).and_then(|b| b.try_into().ok()) else {
                return Err(corrupt("its PVH note is too short"));
            };
            return Ok(Some(u64::from(u32::from_le_bytes(bytes))));
        }
        rest = tail;
    }
    Ok(None)
}

/// Splits off `len` bytes and drops the padding to the next multiple of four.
fn split_padded(bytes: &[u8], len: u32) -> Option<(&[u8], &[u8])> {
    let len = len as usize;
    let (item, _) = bytes.split_at_checked(len)?;
    // The last item may lack its padding.
    Some((item, bytes.get(len.next_multiple_of(4)..).unwrap_or_default()))
}

/// Reads a plain structure at `offset`.
fn read_at<F: Read + Seek, T: ByteValued + Default>(
    file: &mut F,
    offset: u64,
    file_len: u64,
    what: &'static str,
) -> Result<T, KernelError> {
    let end = offset
        .checked_add(size_of::<T>() as u64)
        .ok_or(corrupt("its headers lie outside the file"))?;
    if end > file_len {
        return Err(KernelError::Truncated { what, need: end, have: file_len });
    }
    let mut value = T::default();
    file.seek(SeekFrom::Start(offset)).map_err(KernelError::Read)?;
    file.read_exact(value.as_mut_slice()).map_err(KernelError::Read)?;
    Ok(value)
}

fn corrupt(what: &'static str) -> KernelError {
    KernelError::Corrupt { what }
}
