//! Just enough ELF to read a kernel module's `.modinfo`.

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
