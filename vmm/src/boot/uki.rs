//! Unified kernel images: a PE executable with kernel, initrd and command line as sections (UAPI
//! Group's specification "Unified Kernel Image"; Microsoft's "PE Format").
//!
//! The executable itself, a stub for UEFI, is not run: its sections say what it would boot.

use std::io::{Read, Seek};

use anyhow::ensure;

use super::error::{corrupt, foreign, read_part, truncated};

/// Position of the PE header's position.
const E_LFANEW: u64 = 0x3C;
/// Bytes of the signature and the COFF header behind it.
const COFF: u64 = 24;
/// Bytes of a section's header.
const SECTION: u64 = 40;
/// Most sections; the format's own limit for loaders.
const MAX_SECTIONS: u16 = 96;
const MACHINE_X86_64: u16 = 0x8664;
/// Longest command line that is looked at.
const MAX_CMDLINE: u64 = 4096;

/// Position and length in the file.
pub(super) type Span = (u64, u64);

/// What an image holds. Each span lies in the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Uki {
    /// The kernel, a bzImage.
    pub(super) linux: Span,
    pub(super) initrd: Option<Span>,
    /// On one line.
    pub(super) cmdline: String,
}

/// A number in a header, 0 behind its end.
fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    let field = bytes.get(at..at + len).unwrap_or_default();
    field.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Reads the headers; `None` if the file is no such image. (A bzImage is a PE executable, too, but
/// has no section `.linux`.)
///
/// # Errors
/// It is damaged, or for another machine.
pub(super) fn parse<F: Read + Seek>(file: &mut F, len: u64) -> anyhow::Result<Option<Uki>> {
    if read_part(file, 0, 2)? != b"MZ" {
        return Ok(None);
    }
    let pe = number(&read_part(file, E_LFANEW, 4)?, 0, 4);
    let header = read_part(file, pe, COFF)?;
    if header.len() < COFF as usize || !header.starts_with(b"PE\0\0") {
        return Ok(None);
    }
    let count = number(&header, 6, 2) as u16;
    let table = pe + COFF + number(&header, 20, 2);
    let headers = read_part(file, table, SECTION * u64::from(count.min(MAX_SECTIONS)))?;
    let (mut linux, mut initrd, mut cmdline) = (None, None, None);
    // Sections before the first `.profile` belong to all profiles, those up to the second to the
    // first profile, which is the one that is booted.
    let mut profiles = 0;
    for section in headers.chunks_exact(SECTION as usize) {
        let slot = match section.split_at(8).0 {
            b".linux\0\0" => &mut linux,
            b".initrd\0" => &mut initrd,
            b".cmdline" => &mut cmdline,
            b".profile" if profiles == 0 => {
                profiles = 1;
                continue;
            }
            b".profile" => break,
            _ => continue,
        };
        ensure!(slot.is_none_or(|(of, _)| of < profiles), corrupt("a section is there twice"));
        *slot = Some((profiles, span(section, len)?));
    }
    let Some((_, linux)) = linux else { return Ok(None) };
    let initrd = initrd.map(|(_, span)| span);
    ensure!(count <= MAX_SECTIONS, corrupt("too many sections"));
    if number(&header, 4, 2) != u64::from(MACHINE_X86_64) {
        return Err(foreign("its PE header is of another machine"));
    }
    let cmdline = match cmdline {
        Some((_, (start, len))) => {
            ensure!(len <= MAX_CMDLINE, corrupt("the command line is too long"));
            one_line(&read_part(file, start, len)?)?
        }
        None => String::new(),
    };
    Ok(Some(Uki { linux, initrd, cmdline }))
}

/// Where a section's content is.
fn span(section: &[u8], file_len: u64) -> anyhow::Result<Span> {
    let (size, stored) = (number(section, 8, 4), number(section, 16, 4));
    let start = number(section, 20, 4);
    // What is stored is padded to whole sectors; what is not stored would be zeros.
    ensure!(size > 0 && size <= stored, corrupt("a section has a wrong size"));
    let end = start + size;
    if end > file_len {
        return Err(truncated("a section", end, file_len));
    }
    Ok((start, size))
}

fn one_line(bytes: &[u8]) -> anyhow::Result<String> {
    let text = std::str::from_utf8(bytes).map_err(|_| corrupt("the command line is no text"))?;
    let text = text.trim_end_matches('\0').trim();
    ensure!(!text.contains('\0'), corrupt("the command line has a zero byte in it"));
    Ok(text.lines().map(str::trim).collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
#[path = "uki_tests.rs"]
pub(super) mod tests;
