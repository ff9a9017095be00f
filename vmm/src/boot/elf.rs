//! ELF kernels (`vmlinux`): where their segments go and where to enter them.
//!
//! A kernel built with CONFIG_PVH carries a Xen ELF note of type 18 (PHYS32_ENTRY,
//! xen/include/public/elfnote.h) with a 32-bit physical entry point. Without the note the ELF entry
//! itself is used: for Linux that is the physical address of `startup_64`, which takes the same
//! state as a bzImage's 64-bit entry.
//!
//! Every number in the file may be hostile: additions are checked and nothing is allocated by a
//! size from the file beyond 64 KiB.

use super::error::{READ, corrupt, foreign, read_part, truncated};
use super::layout::HIGH_MEMORY_START;
use anyhow::{anyhow, ensure};
use linux_loader::elf::{Elf64_Ehdr, Elf64_Nhdr, Elf64_Phdr};
use std::io::{Read, Seek};
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
    ) -> anyhow::Result<Option<Self>> {
        if read_part(file, 0, 4)? != b"\x7fELF" {
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
            let offset = ehdr.e_phoff.saturating_add(i * size_of::<Elf64_Phdr>() as u64);
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

    fn add_segment(&mut self, phdr: &Elf64_Phdr, file_len: u64) -> anyhow::Result<()> {
        end_within(file_len, "a segment", phdr.p_offset, phdr.p_filesz)?;
        let end = phdr.p_paddr.checked_add(phdr.p_memsz);
        let end = end.ok_or_else(|| corrupt("a segment wraps around"))?;
        if phdr.p_filesz > phdr.p_memsz {
            return Err(corrupt("a segment is larger in the file than in memory"));
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

    fn check_entry(&self) -> anyhow::Result<()> {
        if self.segments.is_empty() {
            return Err(no_entry("no segment is to be loaded; is this an object file?"));
        }
        let (ElfEntry::Pvh(addr) | ElfEntry::Linux64(addr)) = self.entry;
        let inside = |s: &Segment| addr >= s.addr && addr - s.addr < s.file_len;
        if !self.segments.iter().any(inside) {
            return Err(no_entry(
                "its entry lies outside its segments; build the kernel with CONFIG_PVH, or give \
                 the bzImage",
            ));
        }
        Ok(())
    }
}

fn check_header(ehdr: &Elf64_Ehdr) -> anyhow::Result<()> {
    if ehdr.e_ident[4] != ELFCLASS64 {
        return Err(foreign("a 32-bit ELF file"));
    }
    if ehdr.e_ident[5] != ELFDATA2LSB || ehdr.e_machine != EM_X86_64 {
        return Err(foreign("an ELF file for another architecture"));
    }
    if ehdr.e_type != ET_EXEC && ehdr.e_type != ET_DYN {
        return Err(no_entry("an ELF object or core file is no kernel"));
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
) -> anyhow::Result<Option<u64>> {
    end_within(file_len, "a note segment", phdr.p_offset, phdr.p_filesz)?;
    if phdr.p_filesz > MAX_NOTES {
        return Ok(None);
    }
    let notes = read_part(file, phdr.p_offset, phdr.p_filesz)?;
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

/// Refuses a part that does not end within the file.
fn end_within(file_len: u64, what: &str, offset: u64, len: u64) -> anyhow::Result<()> {
    match offset.checked_add(len) {
        None => Err(corrupt(&format!("{what} wraps around"))),
        Some(end) if end > file_len => Err(truncated(what, end, file_len)),
        Some(_) => Ok(()),
    }
}

/// Reads a plain structure at `offset`.
fn read_at<F: Read + Seek, T: ByteValued + Default>(
    file: &mut F,
    offset: u64,
    file_len: u64,
    what: &'static str,
) -> anyhow::Result<T> {
    end_within(file_len, what, offset, size_of::<T>() as u64)?;
    let mut value = T::default();
    let part = read_part(file, offset, size_of::<T>() as u64)?;
    ensure!(part.len() == size_of::<T>(), READ);
    value.as_mut_slice().copy_from_slice(&part);
    Ok(value)
}

fn no_entry(what: &str) -> anyhow::Error {
    anyhow!("has no entry point that can be used: {what}")
}
