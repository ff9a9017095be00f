//! Unpacks the ELF `vmlinux` out of a compressed `bzImage`.
//!
//! Under software emulation the kernel spends seconds on unpacking itself; the host does it in a
//! fraction of one. The result boots through its PVH entry. Layout: kernel
//! Documentation/arch/x86/boot.rst.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result, io};

const SETUP_SECTS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// The compressed payload of a bzImage.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let u32_at =
        |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    if image.get(MAGIC..MAGIC + 4)? != b"HdrS" {
        return None;
    }
    let setup = match image[SETUP_SECTS] {
        0 => 4,
        n => usize::from(n),
    };
    let start = (setup + 1) * 512 + u32_at(PAYLOAD_OFFSET)?;
    image.get(start..start.checked_add(u32_at(PAYLOAD_LENGTH)?)?)
}

/// Unpacks `image` (the bytes of a bzImage). Only xz payloads are understood, which Debian's
/// generic 6.1 kernel has; `None` stands for "some other compression", for which the bzImage itself
/// must be booted.
pub fn vmlinux(path: &Path) -> Result<Option<Vec<u8>>> {
    let image = fs::read(path).map_err(io("read", path))?;
    let malformed = |what: &str| Error::Malformed { path: path.to_owned(), what: what.to_owned() };
    let payload = payload(&image).ok_or_else(|| malformed("not a bzImage"))?;
    if !payload.starts_with(b"\xfd7zXZ\0") {
        return Ok(None);
    }
    let mut elf = Vec::with_capacity(64 << 20);
    lzma_rust2::XzReader::new(payload, false).read_to_end(&mut elf).map_err(io("unpack", path))?;
    if !elf.starts_with(b"\x7fELF") {
        return Err(malformed("its payload is no ELF file"));
    }
    Ok(Some(elf))
}

/// The unpacked kernel beside `vmlinuz` (made on first use), or `vmlinuz` itself where it cannot be
/// unpacked.
pub fn cached(vmlinuz: &Path) -> Result<PathBuf> {
    let target = vmlinuz.with_file_name("vmlinux");
    if target.exists() {
        return Ok(target);
    }
    let Some(elf) = vmlinux(vmlinuz)? else { return Ok(vmlinuz.to_owned()) };
    let dir = target.parent().unwrap_or(Path::new("."));
    let file = tempfile::NamedTempFile::new_in(dir).map_err(io("create a file in", dir))?;
    fs::write(file.path(), elf).map_err(io("write", file.path()))?;
    file.persist(&target).map_err(|e| Error::Io {
        what: "create",
        path: target.clone(),
        source: e.error,
    })?;
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payload_is_bounded() {
        let mut image = vec![0u8; 0x1000];
        image[SETUP_SECTS] = 1;
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16u32.to_le_bytes());
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&8u32.to_le_bytes());
        assert_eq!(payload(&image).unwrap().len(), 8);
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(payload(&image).is_none());
        assert!(payload(b"short").is_none());
    }
}
