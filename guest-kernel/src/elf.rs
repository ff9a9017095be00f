//! Just enough ELF to read a kernel module's `.modinfo`, and to load a kernel.

/// Reads little-endian fields of an ELF64 file without trusting any offset.
struct Elf<'a>(&'a [u8]);

impl<'a> Elf<'a> {
    fn bytes(&self, offset: u64, len: u64) -> Option<&'a [u8]> {
        let start = usize::try_from(offset).ok()?;
        self.0.get(start..start.checked_add(usize::try_from(len).ok()?)?)
    }

    fn int(&self, offset: u64, len: u64) -> Option<u64> {
        self.bytes(offset, len)
            .map(|b| b.iter().rev().fold(0, |acc, &byte| acc << 8 | u64::from(byte)))
    }

    /// File offset and length of section `index`, and its name's offset. Elf64_Shdr: name@0,
    /// offset@24, size@32.
    fn section(&self, index: u64) -> Option<(u64, u64, u64)> {
        let (table, entry) = (self.int(40, 8)?, self.int(58, 2)?);
        let header = table.checked_add(index.checked_mul(entry)?)?;
        let at = |o: u64| header.checked_add(o);
        Some((self.int(at(24)?, 8)?, self.int(at(32)?, 8)?, self.int(header, 4)?))
    }
}

/// The content of the section called `name`, or `None` when the file is no ELF64 or has no such
/// section.
pub(crate) fn section<'a>(file: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let elf = Elf(file);
    if elf.bytes(0, 6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (count, names_index) = (elf.int(60, 2)?, elf.int(62, 2)?);
    let (names, names_len, _) = elf.section(names_index)?;
    let names = elf.bytes(names, names_len)?;
    (0..count).find_map(|index| {
        let (offset, len, name_at) = elf.section(index)?;
        let found = names.get(usize::try_from(name_at).ok()?..)?.split(|&b| b == 0).next()?;
        if found == name.as_bytes() { elf.bytes(offset, len) } else { None }
    })
}

/// A part of a program: what is in the file of it, where it belongs, and how many bytes it takes
/// there.
#[derive(Debug)]
pub(crate) struct Segment<'a> {
    /// PT_LOAD or another kind.
    pub kind: u64,
    /// Its physical address.
    pub address: u64,
    /// Bytes in memory; those that are not in the file are zero.
    pub size: u64,
    /// Bytes in the file.
    pub content: &'a [u8],
}

/// Segments to be loaded.
pub(crate) const PT_LOAD: u64 = 1;
/// The loader that a program names.
pub(crate) const PT_INTERP: u64 = 3;
/// Notes.
pub(crate) const PT_NOTE: u64 = 4;

/// A program's segments; `None` when the file is no ELF64 or ends too early. Elf64_Phdr: type@0,
/// offset@8, paddr@24, filesz@32, memsz@40.
pub(crate) fn segments(file: &[u8]) -> Option<Vec<Segment<'_>>> {
    let elf = Elf(file);
    if elf.bytes(0, 6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, entry, count) = (elf.int(32, 8)?, elf.int(54, 2)?, elf.int(56, 2)?);
    let segment = |index: u64| {
        let header = table.checked_add(index.checked_mul(entry)?)?;
        let field = |offset: u64, len| elf.int(header.checked_add(offset)?, len);
        let content = elf.bytes(field(8, 8)?, field(32, 8)?)?;
        Some(Segment { kind: field(0, 4)?, address: field(24, 8)?, size: field(40, 8)?, content })
    };
    (0..count).map(segment).collect()
}

/// The content of the first note of this owner and type in a segment of notes. Elf64_Nhdr: sizes
/// of name and content, type; both are padded to four bytes.
pub(crate) fn note<'a>(notes: &'a [u8], owner: &[u8], kind: u64) -> Option<&'a [u8]> {
    let notes = Elf(notes);
    let mut at = 0;
    loop {
        let (name_len, len) = (notes.int(at, 4)?, notes.int(at + 4, 4)?);
        let name = notes.bytes(at + 12, name_len)?;
        let content = at + 12 + name_len.next_multiple_of(4);
        if name == owner && notes.int(at + 8, 4)? == kind {
            return notes.bytes(content, len);
        }
        at = content + len.next_multiple_of(4);
    }
}

/// The modules that this one needs, from the `depends=` entry of its `.modinfo`; `None` when it has
/// no such section.
pub(crate) fn depends(module: &[u8]) -> Option<Vec<String>> {
    let info = section(module, ".modinfo")?;
    let depends = info
        .split(|&b| b == 0)
        .find_map(|entry| entry.strip_prefix(b"depends="))
        .unwrap_or_default();
    let depends = String::from_utf8_lossy(depends);
    Some(depends.split(',').filter(|s| !s.is_empty()).map(|s| s.replace('-', "_")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF64 file with two sections: the names and `.modinfo`.
    fn module(modinfo: &[u8]) -> Vec<u8> {
        let names = b"\0.modinfo\0";
        let mut file = vec![0u8; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let (names_at, info_at) = (64u64, 64 + names.len() as u64);
        file.extend_from_slice(names);
        file.extend_from_slice(modinfo);
        let table = file.len() as u64;
        for (name, offset, len) in [(0u32, names_at, names.len()), (1, info_at, modinfo.len())] {
            let mut header = [0u8; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[24..32].copy_from_slice(&offset.to_le_bytes());
            header[32..40].copy_from_slice(&(len as u64).to_le_bytes());
            file.extend_from_slice(&header);
        }
        file[40..48].copy_from_slice(&table.to_le_bytes());
        file[58..60].copy_from_slice(&64u16.to_le_bytes());
        file[60..62].copy_from_slice(&2u16.to_le_bytes());
        file
    }

    #[test]
    fn reads_dependencies_with_dashes_made_underscores() {
        let file = module(b"license=GPL\0depends=kvm,virtio-ring\0name=x\0");
        assert_eq!(depends(&file).unwrap(), ["kvm", "virtio_ring"]);
        assert_eq!(depends(&module(b"depends=\0")).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn truncation_anywhere_is_no_panic() {
        let file = module(b"depends=kvm\0");
        for len in 0..file.len() {
            let _ = depends(&file[..len]);
        }
        assert_eq!(depends(b"not an elf"), None);
    }
}
