//! What a guest boots, as files that are open: kernel, initrd and command line by themselves, of a
//! unified kernel image, or of a disk.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::error::READ;
use super::kept::{Carried, Kept};
use super::part::{Part, open};
use super::uki::{self, Uki};

/// What to boot, and to boot again at a reset. At a destination a path is the source's, kept for
/// the next migration but never opened, unless it was given there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// bzImage, ELF kernel or unified kernel image. Empty: what is in the first disk boots.
    pub path: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Complete command line; a unified kernel image's own is before it.
    pub cmdline: String,
}

impl Kernel {
    /// Whether the first disk's own kernel boots.
    pub fn is_in_disk(&self) -> bool {
        self.path.as_os_str().is_empty()
    }
}

/// A part with its name for people: `kernel /boot/vmlinuz`.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) part: Part,
}

/// What is loaded.
#[derive(Debug)]
pub struct Files {
    pub(super) kernel: Named,
    pub(super) initrd: Option<Named>,
    pub(super) cmdline: String,
}

impl Files {
    /// Opens what `source` names; what was `carried` here is that instead of a path.
    ///
    /// # Errors
    /// A file cannot be opened, or is a damaged unified kernel image.
    pub fn open(source: &Kernel, carried: &Carried) -> anyhow::Result<Self> {
        let name = named("kernel", &source.path, carried.kernel.as_ref());
        let kernel = || -> anyhow::Result<(Part, Option<Uki>)> {
            let mut part = open_or(&source.path, carried.kernel.as_ref())?.context(
                "is not a regular file; give the path of a bzImage (vmlinuz) or an ELF vmlinux",
            )?;
            let len = part.len();
            let uki = uki::parse(&mut part, len)?;
            Ok((part, uki))
        };
        let (part, uki) = kernel().with_context(|| name.clone())?;
        let given = source.initrd.as_ref().map(|path| {
            let name = named("initrd", path, carried.initrd.as_ref());
            let opened = open_or(path, carried.initrd.as_ref())
                .and_then(|part| part.context("is not a regular file"));
            let part = opened.with_context(|| name.clone())?;
            anyhow::Ok(Named { name, part })
        });
        let initrd = given.transpose()?;
        let Some(uki) = uki else {
            let cmdline = source.cmdline.clone();
            return Ok(Self { kernel: Named { name, part }, initrd, cmdline });
        };
        let own = |span| part.part(span).context(READ);
        let initrd = match (initrd, uki.initrd) {
            (None, Some(span)) => {
                Some(Named { name: format!("initrd of {name}"), part: own(span)? })
            }
            (given, _) => given,
        };
        let cmdline = [uki.cmdline.as_str(), source.cmdline.as_str()].join(" ").trim().to_owned();
        let kernel = Named { part: own(uki.linux)?, name };
        Ok(Self { kernel, initrd, cmdline })
    }
}

fn named(what: &str, path: &Path, kept: Option<&Kept>) -> String {
    match kept {
        Some(_) => format!("{what} that came with the guest"),
        None => format!("{what} {}", path.display()),
    }
}

fn open_or(path: &Path, kept: Option<&Kept>) -> anyhow::Result<Option<Part>> {
    kept.map_or_else(|| open(path), |kept| kept.part().map(Some).context(READ))
}
