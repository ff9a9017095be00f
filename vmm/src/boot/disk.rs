//! What is in a disk boots: its own kernel and initrd, read by a confined process
//! ([`wherry_rootfs`]).
//!
//! A reset boots what is there then, so a kernel that the guest has installed is used.

use std::fs::File;
use std::sync::Arc;

use anyhow::Context;
use wherry_rootfs::{BootFiles, Listing, Reader};

use super::files::{Files, Named};
use super::part::Part;

/// What a disk boots.
#[derive(Debug)]
pub struct FromDisk {
    /// To be loaded.
    pub files: Files,
    /// Where they were.
    pub listing: Listing,
    /// Whether Landlock confined the process that read them, too.
    pub landlock: bool,
}

/// Reads what `image`, a guest's first disk, boots. `cmdline` follows the words about the root, so
/// that its own win. A process that the image may mislead gets it as it is: open for reading only.
/// Its position is not kept.
///
/// # Errors
/// It has nothing to boot, or none that can be read; the text says what there is.
pub fn from_disk(reader: &Reader, image: &File, cmdline: &str) -> anyhow::Result<FromDisk> {
    let found = reader.read(image).context(
        "the disk cannot be booted from (with --kernel and --initrd a kernel of the host's boots)",
    )?;
    let files = files(&found, cmdline)?;
    Ok(FromDisk { files, landlock: found.landlock, listing: found.listing })
}

fn files(found: &BootFiles, cmdline: &str) -> anyhow::Result<Files> {
    let listing = &found.listing;
    let file = Arc::new(found.file().try_clone().context("too many open files")?);
    let part = |span: wherry_rootfs::reader::Span| Part::new(file.clone(), span.start, span.len);
    let name = |what, path: &str| format!("{what} {path} of the disk");
    let kernel = Named { name: name("kernel", &listing.kernel.path), part: part(found.kernel()) };
    let initrd = match (&listing.initrd, found.initrd()) {
        (Some(info), Some(span)) => {
            Some(Named { name: name("initrd", &info.path), part: part(span) })
        }
        _ => None,
    };
    let cmdline = format!("{} ro {cmdline}", listing.root()).trim_end().to_owned();
    Ok(Files { kernel, initrd, cmdline })
}
