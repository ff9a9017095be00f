//! What a guest boots, as files that are open: kernel, initrd and command line by themselves, of a
//! unified kernel image, or of a disk.

use anyhow::Context;

use super::error::READ;
use super::part::Part;
use super::source::{Kernel, Source, Sources, name};
use super::uki::{self, Uki};

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
    /// What `source` names, as it was opened.
    ///
    /// # Errors
    /// A file cannot be read, or is a damaged unified kernel image.
    pub fn new(source: &Kernel, open: &Sources) -> anyhow::Result<Self> {
        let name = name("kernel", &source.path, open.kernel.as_ref());
        let kernel = || -> anyhow::Result<(Part, Option<Uki>)> {
            let mut part = part(open.kernel.as_ref())?;
            let len = part.len();
            let uki = uki::parse(&mut part, len)?;
            Ok((part, uki))
        };
        let (part, uki) = kernel().with_context(|| name.clone())?;
        let given = source.initrd.as_ref().map(|path| {
            let name = self::name("initrd", path, open.initrd.as_ref());
            let part = self::part(open.initrd.as_ref()).with_context(|| name.clone())?;
            anyhow::Ok(Named { name, part })
        });
        let initrd = given.transpose()?;
        let Some(uki) = uki else {
            let cmdline = source.cmdline.clone();
            return Ok(Self { kernel: Named { name, part }, initrd, cmdline });
        };
        let own = |span| part.part(span);
        let initrd = match (initrd, uki.initrd) {
            (None, Some(span)) => {
                Some(Named { name: format!("initrd of {name}"), part: own(span) })
            }
            (given, _) => given,
        };
        let cmdline = [uki.cmdline.as_str(), source.cmdline.as_str()].join(" ").trim().to_owned();
        let kernel = Named { part: own(uki.linux), name };
        Ok(Self { kernel, initrd, cmdline })
    }
}

fn part(source: Option<&Source>) -> anyhow::Result<Part> {
    source.context("is not open")?.part().context(READ)
}
