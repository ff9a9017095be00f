//! Which memory a large guest uses, and what it writes.

use std::fmt;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};
use wherry_migration::bitmap::Bitmap;
use wherry_migration::traits::{GuestRam, PAGE_SIZE};
use wherry_vmm::memory::{PAGE, Ram};

use crate::native::content::{self, SEED};

/// Rounds before the pause: the last two are on a dirty set, so planning has been measured, too.
pub const ROUNDS: u32 = 3;
/// Each of these ends with a harvest, and before the pause everything is written once more.
pub const WRITES: u64 = ROUNDS as u64 + 1;
/// Pages in a chunk of torn memory.
const CHUNK: u64 = 512;
/// Pages of a chunk that are written again and again, before every second of them is left out.
const WRITTEN: u64 = 16;
/// Pages that are written where memory is not torn.
const WRITTEN_TOGETHER: u64 = 256;

/// How what is used lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Memory {
    /// All together at its beginning. Nothing is in the balloon, and 1 MiB is written.
    Sparse,
    /// Every second page of chunks that lie all over memory, and what is between these pages is in
    /// the balloon. Of each chunk 8 pages are written, every second one.
    Fragmented,
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Sparse => "sparse",
            Self::Fragmented => "fragmented",
        })
    }
}

/// What is used of a guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// How it lies.
    pub memory: Memory,
    /// Pages of RAM.
    ram_pages: u64,
    /// Pages that have content.
    pages: u64,
    /// How often the written ones are written.
    writes: u64,
}

impl Usage {
    /// Of a guest with so much RAM, of which so much has content, and some of that is written so
    /// often.
    ///
    /// # Errors
    /// There is not room for it.
    pub fn new(memory: Memory, ram: u64, populated: u64, writes: u64) -> Result<Self> {
        let usage = Self { memory, ram_pages: ram / PAGE, pages: populated / PAGE, writes };
        ensure!(
            usage.pages >= CHUNK && usage.pages.is_multiple_of(CHUNK) && populated <= ram / 2,
            "guests of {} MiB cannot have {} MiB in use: at most half, in steps of 2 MiB",
            ram >> 20,
            populated >> 20
        );
        Ok(usage)
    }

    /// Bytes that have content.
    pub fn bytes(&self) -> u64 {
        self.pages * PAGE
    }

    /// Where the chunks begin.
    fn chunks(&self) -> impl Iterator<Item = u64> + use<> {
        let nr = self.pages / (CHUNK / 2);
        let apart = self.ram_pages / nr / CHUNK * CHUNK;
        (0..nr).map(move |chunk| chunk * apart)
    }

    /// Pages that have content, ascending.
    pub fn populated(&self) -> Box<dyn Iterator<Item = u64>> {
        match self.memory {
            Memory::Sparse => Box::new(0..self.pages),
            Memory::Fragmented => {
                Box::new(self.chunks().flat_map(|at| (at..at + CHUNK).step_by(2)))
            }
        }
    }

    /// Those of them that are written again and again.
    pub fn written(&self) -> Box<dyn Iterator<Item = u64>> {
        match self.memory {
            Memory::Sparse => Box::new(0..WRITTEN_TOGETHER.min(self.pages)),
            Memory::Fragmented => {
                Box::new(self.chunks().flat_map(|at| (at..at + WRITTEN).step_by(2)))
            }
        }
    }

    /// Pages in the balloon.
    pub fn ballooned(&self) -> Vec<u64> {
        match self.memory {
            Memory::Sparse => Vec::new(),
            Memory::Fragmented => {
                self.chunks().flat_map(|at| (at + 1..at + CHUNK).step_by(2)).collect()
            }
        }
    }

    /// Gives all pages their content.
    pub fn fill(&self, ram: &Ram) -> Result<()> {
        write(ram, self.populated(), SEED)
    }

    /// Writes the written ones, for the `nth` time from 1.
    pub fn write(&self, ram: &Ram, nth: u64) -> Result<()> {
        write(ram, self.written(), SEED + nth)
    }

    /// Compares memory with what was written last, and looks that there is no more of it.
    pub fn check(&self, ram: &Ram) -> Result<()> {
        let (mut there, mut wanted) = (Bitmap::new(self.ram_pages), Bitmap::new(self.ram_pages));
        ram.populated(0..self.ram_pages, &mut there)?;
        self.populated().for_each(|page| wanted.set(page));
        ensure!(there == wanted, "other memory is in use than was sent");
        let (mut written, mut content) = (self.written().peekable(), vec![0; PAGE_SIZE]);
        for page in self.populated() {
            let seed = SEED + written.next_if_eq(&page).map_or(0, |_| self.writes);
            ram.read(page, &mut content).context("cannot read guest memory")?;
            content::compare(&content, page, seed)?;
        }
        Ok(())
    }
}

fn write(ram: &Ram, pages: impl Iterator<Item = u64>, seed: u64) -> Result<()> {
    let mut content = vec![0; PAGE_SIZE];
    for number in pages {
        content::page(seed, number, &mut content);
        let at = GuestAddress(ram.address(number));
        ram.memory().write_slice(&content, at).context("cannot fill guest memory")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use wherry_vmm::memory::Backing;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn torn_memory_is_torn_all_over() {
        let usage = Usage::new(Memory::Fragmented, 256 * MIB, 4 * MIB, 1).unwrap();
        let populated: Vec<u64> = usage.populated().collect();
        assert_eq!((populated.len(), usage.bytes()), (1024, 4 * MIB));
        assert!(populated.windows(2).all(|pair| pair[1] - pair[0] >= 2));
        // The last of four chunks lies in the last quarter.
        assert_eq!(populated.last(), Some(&(3 * 16384 + 510)));
        let balloon = usage.ballooned();
        assert!(balloon.iter().zip(&populated).all(|(gone, page)| *gone == page + 1));
        let written: Vec<u64> = usage.written().collect();
        assert_eq!((written.len(), &written[..9]), (32, &[0, 2, 4, 6, 8, 10, 12, 14, 16384][..]));
        for (ram, populated) in [(256 * MIB, MIB), (256 * MIB, 130 * MIB), (256 * MIB, 3 * MIB)] {
            assert!(Usage::new(Memory::Sparse, ram, populated, 1).is_err(), "{ram} {populated}");
        }
    }

    #[test]
    fn a_page_too_many_and_an_old_page_are_noticed() {
        for memory in [Memory::Sparse, Memory::Fragmented] {
            let ram = Ram::new(16 * MIB, &Backing::Memfd).unwrap();
            let usage = Usage::new(memory, 16 * MIB, 4 * MIB, 2).unwrap();
            usage.fill(&ram).unwrap();
            usage.write(&ram, 1).unwrap();
            assert!(usage.check(&ram).is_err(), "written once");
            usage.write(&ram, 2).unwrap();
            usage.check(&ram).unwrap();
            ram.write(4095, &[1; PAGE_SIZE]).unwrap();
            let error = usage.check(&ram).unwrap_err().to_string();
            assert_eq!(error, "other memory is in use than was sent");
        }
    }
}
