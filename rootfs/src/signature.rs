//! What a disk or partition holds, by its magic numbers: to read ext4, and to name the others.

use std::io;

use crate::image::Window;

/// The magic number of ext2, ext3 and ext4.
const EXT: (u64, &[u8]) = (1024 + 0x38, &[0x53, 0xEF]);

/// Position, magic number, name.
const OTHERS: &[(u64, &[u8], &str)] = &[
    (0, b"QFI\xFB", "a qcow2 image (qemu-img convert -O raw makes a raw one of it)"),
    (0, b"KDMV", "a VMDK image (qemu-img convert -O raw makes a raw one of it)"),
    (0, b"vhdxfile", "a VHDX image (qemu-img convert -O raw makes a raw one of it)"),
    (0, b"\x1F\x8B", "gzip-compressed data; unpack it first"),
    (0, b"\xFD7zXZ\0", "xz-compressed data; unpack it first"),
    (0, b"\x28\xB5\x2F\xFD", "zstd-compressed data; unpack it first"),
    (0, b"LUKS\xBA\xBE", "LUKS encryption"),
    (0, b"XFSB", "xfs"),
    (0, b"hsqs", "squashfs"),
    (0x1_0040, b"_BHRfS_M", "btrfs"),
    (0, b"LABELONE", "an LVM volume"),
    (512, b"LABELONE", "an LVM volume"),
    (1024, b"LABELONE", "an LVM volume"),
    (1536, b"LABELONE", "an LVM volume"),
    (1024, b"\x10\x20\xF5\xF2", "f2fs"),
    (1024, b"\xE2\xE1\xF5\xE0", "erofs"),
    (4096, b"\xFC\x4E\x2B\xA9", "a RAID member"),
    (4086, b"SWAPSPACE2", "swap space"),
    (0x8001, b"CD001", "an ISO 9660 image"),
    (82, b"FAT32", "a FAT file system"),
    (54, b"FAT1", "a FAT file system"),
];

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// ext2, ext3 or ext4.
    Ext,
    /// This.
    Other(&'static str),
    /// Nothing that has a name here.
    Unknown,
}

impl Content {
    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ext => "ext4",
            Self::Other(name) => name,
            Self::Unknown => "nothing known",
        }
    }
}

fn is(window: &Window, at: u64, magic: &[u8]) -> io::Result<bool> {
    let mut there = [0; 16];
    let there = &mut there[..magic.len()];
    match window.read(at, there) {
        Ok(()) => Ok(there == magic),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

/// Looks at `window`. Who makes a file system over another wipes the other's magic number.
pub(crate) fn look(window: &Window) -> io::Result<Content> {
    if is(window, EXT.0, EXT.1)? {
        return Ok(Content::Ext);
    }
    for (at, magic, name) in OTHERS {
        if is(window, *at, magic)? {
            return Ok(Content::Other(name));
        }
    }
    Ok(Content::Unknown)
}
