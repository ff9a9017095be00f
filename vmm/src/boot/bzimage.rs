//! The bzImage format, as far as a 64-bit boot loader has to understand it.
//!
//! Source: the kernel's Documentation/arch/x86/boot.rst. A bzImage is a real-mode part of
//! `setup_sects + 1` sectors, which holds the setup header at 0x1F1, and after it the
//! protected-mode part, which alone is loaded. Its 64-bit entry is 0x200 bytes in. It unpacks
//! itself over its own load address, so `init_size` bytes from there must be RAM that nothing else
//! uses.
//!
//! The header is taken apart here and not by `linux-loader`, which loads at `code32_start` (below
//! the preferred address, where the kernel then has to move itself), does not look at `init_size`,
//! and has one error for all damage.

use super::error::{corrupt, foreign, read_part, truncated};
use super::layout::HIGH_MEMORY_START;
use anyhow::bail;
use std::io::{Read, Seek};

/// Offset of the setup header in the file and in `boot_params`.
pub(super) const SETUP_HEADER: usize = 0x1F1;
/// The header's largest end: its length byte counts from 0x202.
const SETUP_HEADER_MAX: usize = 0x202 + 0xFF;
/// "HdrS" at 0x202.
const HEADER_MAGIC: u32 = 0x5372_6448;
/// Distance from the load address to the 64-bit entry.
const ENTRY_64: u64 = 0x200;
/// First protocol version with `xloadflags`.
const PROTOCOL_MIN: u16 = 0x020C;
/// `loadflags`: the protected-mode part is loaded high.
const LOADED_HIGH: u8 = 1;
/// `xloadflags`: there is a 64-bit entry.
const XLF_KERNEL_64: u16 = 1;
/// Room in `boot_params` between the header's start and the next field, `edd_mbr_sig_buffer` at
/// 0x290.
const HEADER_ROOM: usize = 0x290 - SETUP_HEADER;

/// A validated bzImage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BzImage {
    /// Raw header bytes, to go to `boot_params` at 0x1F1.
    pub(super) header: Vec<u8>,
    /// Offset in the file of what is to be loaded.
    pub(super) payload_offset: u64,
    /// Length of what is to be loaded.
    pub(super) payload_len: u64,
    /// Where to load it.
    pub(super) load_addr: u64,
    /// One past the last byte that the kernel uses before it knows the memory map.
    pub(super) end: u64,
    /// Most bytes of command line, without the NUL.
    pub(super) cmdline_max: usize,
    /// Highest address that a byte of the initrd may have.
    pub(super) initrd_addr_max: u64,
}

impl BzImage {
    /// The 64-bit entry point.
    pub(super) fn entry(&self) -> u64 {
        self.load_addr + ENTRY_64
    }

    /// Reads and checks the header. `Ok(None)`: the file has no bzImage magic.
    pub(super) fn parse<F: Read + Seek>(
        file: &mut F,
        file_len: u64,
    ) -> anyhow::Result<Option<Self>> {
        let head = read_part(file, 0, SETUP_HEADER_MAX as u64)?;
        if head.get(0x202..0x206) != Some(&HEADER_MAGIC.to_le_bytes()[..]) {
            return Ok(None);
        }
        let header_end = 0x202 + usize::from(head[0x201]);
        if header_end > head.len() {
            return Err(truncated("the setup header", header_end as u64, file_len));
        }
        let field = Fields { bytes: &head[..header_end] };
        field.check()?;
        let header = head[SETUP_HEADER..header_end].to_vec();
        if header.len() > HEADER_ROOM {
            return Err(corrupt("the setup header is too long"));
        }

        // boot.rst: "for backwards compatibility, if setup_sects is 0, the real value is 4".
        let sectors = match field.u8(0x1F1)? {
            0 => 4,
            n => u64::from(n),
        };
        let payload_offset = (sectors + 1) * 512;
        // syssize counts 16-byte paragraphs of protected-mode code: with it a truncated file is
        // found out.
        let payload_len = u64::from(field.u32(0x1F4)?) * 16;
        if payload_len <= ENTRY_64 {
            return Err(corrupt("no code"));
        }
        if payload_offset + payload_len > file_len {
            return Err(truncated("the kernel", payload_offset + payload_len, file_len));
        }

        let load_addr = field.u64(0x258)?;
        let init_size = u64::from(field.u32(0x260)?);
        let alignment = u64::from(field.u32(0x230)?);
        if load_addr < HIGH_MEMORY_START || load_addr > u64::from(u32::MAX) {
            return Err(corrupt("its preferred address is not between 1 MiB and 4 GiB"));
        }
        if !alignment.is_power_of_two() || !load_addr.is_multiple_of(alignment) {
            return Err(corrupt("its preferred address is not aligned"));
        }
        if init_size < payload_len {
            return Err(corrupt("init_size is smaller than the code"));
        }
        Ok(Some(Self {
            header,
            payload_offset,
            payload_len,
            load_addr,
            end: load_addr + init_size,
            cmdline_max: field.u32(0x238)? as usize,
            initrd_addr_max: u64::from(field.u32(0x22C)?),
        }))
    }
}

/// Little-endian fields by their offset in `boot_params`.
struct Fields<'a> {
    bytes: &'a [u8],
}

impl Fields<'_> {
    /// Refuses a kernel that is not entered in 64-bit mode, or too old to say so.
    fn check(&self) -> anyhow::Result<()> {
        if self.u16(0x1FE)? != 0xAA55 {
            return Err(corrupt("no boot sector signature"));
        }
        let version = self.u16(0x206)?;
        if version < PROTOCOL_MIN {
            bail!(
                "speaks boot protocol {}.{:02}; 2.12 (Linux 3.8) is the oldest supported",
                version >> 8,
                version & 0xFF
            );
        }
        if self.u8(0x211)? & LOADED_HIGH == 0 {
            return Err(foreign("a zImage that loads below 1 MiB"));
        }
        if self.u16(0x236)? & XLF_KERNEL_64 == 0 {
            return Err(foreign("it has no 64-bit entry, so it is a 32-bit x86 kernel"));
        }
        Ok(())
    }

    fn array<const N: usize>(&self, offset: usize) -> anyhow::Result<[u8; N]> {
        let bytes = self.bytes.get(offset..offset + N).and_then(|b| b.try_into().ok());
        bytes.ok_or_else(|| corrupt("the setup header is too short for its version"))
    }
    fn u8(&self, offset: usize) -> anyhow::Result<u8> {
        self.array(offset).map(u8::from_le_bytes)
    }
    fn u16(&self, offset: usize) -> anyhow::Result<u16> {
        self.array(offset).map(u16::from_le_bytes)
    }
    fn u32(&self, offset: usize) -> anyhow::Result<u32> {
        self.array(offset).map(u32::from_le_bytes)
    }
    fn u64(&self, offset: usize) -> anyhow::Result<u64> {
        self.array(offset).map(u64::from_le_bytes)
    }
}
