//! What the process that reads leaves in its file: a page with its answer, then the kernel, then
//! the initrd, each from a page's beginning.
//!
//! The page is written last, so a process that dies halfway has left no answer.

use std::fmt::Write;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};
use wherry_codec::text::printable;

use crate::limits::Limits;
use crate::refusal::Refusal;

/// Size of the answer, and alignment of what follows.
pub(crate) const PAGE: u64 = 4096;
/// Longest path or text in it.
const MAX_TEXT: usize = 1024;

/// A file of the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileInfo {
    /// Its path there, symbolic links followed.
    pub path: String,
    /// Its length in bytes.
    pub len: u64,
}

/// The partition that holds the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// Its number, from 1.
    pub number: u32,
    /// Its GUID, as it stands on the disk.
    pub uuid: [u8; 16],
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The kernel.
    pub kernel: FileInfo,
    /// Its initrd, if it has one.
    pub initrd: Option<FileInfo>,
    /// The root file system's UUID.
    pub uuid: [u8; 16],
    /// Where it is, unless it takes all of the disk.
    pub partition: Option<Partition>,
}

impl Listing {
    /// The words about the root for the kernel's command line.
    ///
    /// A kernel by itself knows nothing of file systems' UUIDs, only an initrd's tools do. The disk
    /// that is booted from is the first.
    pub fn root(&self) -> String {
        match (&self.initrd, &self.partition) {
            (Some(_), _) => format!("root=UUID={}", uuid(&self.uuid)),
            (None, Some(partition)) => format!("root=PARTUUID={}", partition.guid()),
            (None, None) => "root=/dev/vda".into(),
        }
    }

    /// The file system's UUID as it is written.
    pub fn uuid(&self) -> String {
        uuid(&self.uuid)
    }

    /// The command line to boot it with: the root, and the serial console.
    pub fn cmdline(&self) -> String {
        format!("{} ro console=ttyS0", self.root())
    }

    /// Where the kernel is in the file.
    pub(crate) fn kernel_at(&self) -> u64 {
        PAGE
    }

    /// Where the initrd is.
    pub(crate) fn initrd_at(&self) -> Option<u64> {
        self.kernel.len.checked_next_multiple_of(PAGE)?.checked_add(PAGE)
    }
}

impl Partition {
    /// Its GUID as it is written.
    pub fn guid(&self) -> String {
        let mut plain = self.uuid;
        plain[0..4].reverse();
        plain[4..6].reverse();
        plain[6..8].reverse();
        uuid(&plain)
    }
}

fn uuid(bytes: &[u8; 16]) -> String {
    let mut text = String::new();
    for (i, byte) in bytes.iter().enumerate() {
        let dash = if matches!(i, 4 | 6 | 8 | 10) { "-" } else { "" };
        // A string takes everything.
        let _ = write!(text, "{dash}{byte:02x}");
    }
    text
}

/// The answer's page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Whether Landlock confined the process.
    pub landlock: bool,
    /// What it found.
    pub result: Result<Listing, Refusal>,
}

/// The front of the page.
const MAGIC: &[u8; 8] = b"WHRYBOOT";

impl Answer {
    /// Writes the page.
    pub(crate) fn write(&self, out: &File) -> io::Result<()> {
        let mut answer = self.clone();
        answer.each_text(|text| *text = clean(text));
        let bytes = wherry_codec::encode(&answer).map_err(io::Error::other)?;
        let mut page = MAGIC.to_vec();
        page.extend((bytes.len() as u32).to_le_bytes());
        page.extend(bytes);
        page.resize(PAGE as usize, 0);
        out.write_all_at(&page, 0)
    }

    /// Reads what a process left behind, which may be anything. Of what was found, all lies in the
    /// file and keeps to the limits.
    ///
    /// # Errors
    /// It is not an answer; with the reason.
    pub(crate) fn read(file: &File, limits: &Limits) -> Result<Self, &'static str> {
        let len = file.metadata().map_err(|_| "its file has no length")?.len();
        let mut page = [0; PAGE as usize];
        file.read_exact_at(&mut page, 0).map_err(|_| "it left none")?;
        let (magic, rest) = page.split_at(MAGIC.len());
        let (size, rest) = rest.split_at(4);
        let size = size.try_into().map(u32::from_le_bytes).unwrap_or(u32::MAX);
        let bytes = rest.get(..size as usize).filter(|_| magic == MAGIC).ok_or("it left none")?;
        let mut answer: Self =
            wherry_codec::decode(bytes).map_err(|_| "its answer cannot be decoded")?;
        if let Ok(listing) = &answer.result {
            listing.check(len, limits)?;
        }
        answer.each_text(|text| *text = clean(text));
        Ok(answer)
    }

    fn each_text(&mut self, mut change: impl FnMut(&mut String)) {
        match &mut self.result {
            Ok(listing) => {
                change(&mut listing.kernel.path);
                listing.initrd.iter_mut().for_each(|initrd| change(&mut initrd.path));
            }
            Err(refusal) => change(&mut refusal.detail),
        }
    }
}

impl Listing {
    fn check(&self, len: u64, limits: &Limits) -> Result<(), &'static str> {
        let lies = |at: Option<u64>, size: u64| {
            at.and_then(|at| at.checked_add(size)).is_some_and(|end| end <= len)
        };
        let kernel = self.kernel.len;
        if kernel == 0 || kernel > limits.kernel || !lies(Some(self.kernel_at()), kernel) {
            return Err("the kernel's length is wrong");
        }
        if let Some(initrd) = &self.initrd
            && (initrd.len == 0
                || initrd.len > limits.initrd
                || !lies(self.initrd_at(), initrd.len))
        {
            return Err("the initrd's length is wrong");
        }
        Ok(())
    }
}

/// A text without what a terminal would obey, and not too long.
fn clean(text: &str) -> String {
    let mut clean = printable(text);
    clean.truncate(clean.floor_char_boundary(MAX_TEXT));
    clean
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
