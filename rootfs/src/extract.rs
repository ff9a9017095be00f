//! From an image to its kernel and initrd, in one process; [`crate::reader`] has it done by
//! another.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use ext4_view::{Ext4, Ext4Error};

use crate::answer::{FileInfo, Listing, PAGE, Partition};
use crate::gpt::{self, Entry};
use crate::image::Window;
use crate::kernels::{self, Choice};
use crate::limits::Limits;
use crate::refusal::{Refusal, Why};
use crate::signature::{self, Content};

/// Bytes that are copied at once.
const COPY: usize = 256 << 10;
/// Partitions that are looked at.
const MAX_PARTITIONS: usize = 32;

/// Finds the root file system of `image`, and writes its kernel and initrd to `out`, each from a
/// page's beginning, after a page that is left free.
///
/// # Errors
/// There is none, or it cannot be read. An image can also make the parser panic, use up memory or
/// take very long: [`crate::reader`] confines that.
pub fn extract(image: File, out: &File, limits: &Limits) -> Result<Listing, Refusal> {
    let disk = Window::whole(image).map_err(|e| Refusal::io("its length", &e))?;
    if let Some(entries) = gpt::read(&disk)? {
        return from_partitions(&entries, out, limits);
    }
    match look(&disk)? {
        Content::Ext => from_ext4(&disk, None, out, limits),
        Content::Other(name) => Err(Refusal::new(Why::OtherFormat, not_ext4(name))),
        Content::Unknown => {
            let mbr = gpt::has_mbr(&disk).map_err(|e| Refusal::io("its first sector", &e))?;
            Err(if mbr {
                let detail = "it is an MBR; a GPT (see `sfdisk --label-nested`, `sgdisk -g`) or an \
                              ext4 without partitions is read";
                Refusal::new(Why::Table, detail)
            } else {
                let detail = "it has no partition table (GPT) and is no ext4 file system";
                Refusal::new(Why::NoRoot, detail)
            })
        }
    }
}

fn look(window: &Window) -> Result<Content, Refusal> {
    signature::look(window).map_err(|e| Refusal::io("its beginning", &e))
}

fn not_ext4(name: &str) -> String {
    format!("it holds {name}; only ext4 is read")
}

/// Partitions of the root's type come first, then those of Linux file systems: the first one with a
/// kernel is it. Without any, the first that may have hidden one says why.
fn from_partitions(entries: &[Entry], out: &File, limits: &Limits) -> Result<Listing, Refusal> {
    let of_kind = |kind| entries.iter().filter(move |entry| entry.kind == kind);
    let mut refused: Option<Refusal> = None;
    for entry in of_kind(gpt::ROOT).chain(of_kind(gpt::LINUX)).take(MAX_PARTITIONS) {
        match from_partition(entry, out, limits) {
            Ok(listing) => return Ok(listing),
            Err(new) => {
                let new = new.of_partition(entry.number);
                refused = Some(match refused {
                    Some(old) if old.why != Why::NoKernel || new.why == Why::NoKernel => old,
                    _ => new,
                });
            }
        }
    }
    match refused {
        Some(refusal) => Err(refusal),
        None => Err(Refusal::new(Why::NoRoot, what_is_there(entries)?)),
    }
}

/// What is in partitions of which none may be a root.
fn what_is_there(entries: &[Entry]) -> Result<String, Refusal> {
    let mut detail = String::from(
        "it has no partition of the types \"Linux root (x86-64)\" or \"Linux filesystem\"",
    );
    for entry in entries.iter().take(MAX_PARTITIONS) {
        if let Some(window) = &entry.window {
            detail += &format!("; partition {} holds {}", entry.number, look(window)?.name());
        }
    }
    Ok(detail)
}

fn from_partition(entry: &Entry, out: &File, limits: &Limits) -> Result<Listing, Refusal> {
    let behind = || Refusal::new(Why::Truncated, "it reaches behind the image's end");
    let window = entry.window.as_ref().ok_or_else(behind)?;
    let partition = Partition { number: entry.number, uuid: entry.uuid };
    match look(window)? {
        Content::Ext => from_ext4(window, Some(partition), out, limits),
        other => Err(Refusal::new(Why::OtherFormat, not_ext4(other.name()))),
    }
}

fn from_ext4(
    window: &Window,
    partition: Option<Partition>,
    out: &File,
    limits: &Limits,
) -> Result<Listing, Refusal> {
    check_size(window)?;
    let fs = Ext4::load(Box::new(window.clone())).map_err(|e| Refusal::ext4("superblock", &e))?;
    let Choice { kernel, initrd } = kernels::choose(&fs)?;
    let uuid = *fs.uuid().as_bytes();
    if initrd.is_some() && uuid == [0; 16] {
        return Err(Refusal::new(Why::NoUuid, "give it one with `tune2fs -U random`"));
    }
    let kernel = copy(&fs, kernel, limits.kernel, out, PAGE)?;
    let mut listing = Listing { kernel, initrd: None, uuid, partition };
    if let (Some(path), Some(at)) = (initrd, listing.initrd_at()) {
        listing.initrd = Some(copy(&fs, path, limits.initrd, out, at)?);
    }
    Ok(listing)
}

/// Refuses a file system that is larger than what it is in, before anybody believes its size.
fn check_size(window: &Window) -> Result<(), Refusal> {
    let io = |e: io::Error| Refusal::io("superblock", &e);
    let Some(superblock) = window.bytes::<1024>(1024).map_err(io)? else {
        return Err(Refusal::new(Why::Truncated, "it ends within the superblock"));
    };
    let field = |at: usize| {
        let bytes = superblock.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_le_bytes)
    };
    let blocks = u64::from(field(0x150)) << 32 | u64::from(field(0x4));
    let size = 1024u64.checked_shl(field(0x18)).filter(|size| (1024..=65536).contains(size));
    let Some(size) = size else {
        return Err(Refusal::new(Why::Damaged, "the size of its blocks is wrong"));
    };
    if blocks.checked_mul(size).is_none_or(|bytes| bytes > window.len()) {
        let detail = format!(
            "the file system has {blocks} blocks of {size} bytes, and there are {} bytes",
            window.len()
        );
        return Err(Refusal::new(Why::Truncated, detail));
    }
    Ok(())
}

/// Copies a file to `at` in `out`.
fn copy(fs: &Ext4, path: String, max: u64, out: &File, at: u64) -> Result<FileInfo, Refusal> {
    let failed = |error: Ext4Error| Refusal::ext4(&path, &error);
    let mut file = fs.open(path.as_str()).map_err(failed)?;
    let len = file.metadata().len();
    if len > max {
        let detail = format!("{path} has {len} bytes; {max} is the most");
        return Err(Refusal::new(Why::TooLarge, detail));
    }
    if len == 0 {
        return Err(Refusal::new(Why::Damaged, format!("{path} is empty")));
    }
    let mut buffer = vec![0; COPY];
    let mut done = 0;
    while done < len {
        let mut filled = 0;
        while filled < COPY {
            match file.read_bytes(&mut buffer[filled..]).map_err(failed)? {
                0 => break,
                n => filled += n,
            }
        }
        if filled == 0 {
            return Err(Refusal::new(Why::Damaged, format!("{path} ends early")));
        }
        out.write_all_at(&buffer[..filled], at + done)
            .map_err(|e| Refusal::new(Why::Write, format!("{path}: {e}")))?;
        done += filled as u64;
    }
    Ok(FileInfo { path, len })
}
