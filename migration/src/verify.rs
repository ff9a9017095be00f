//! Verification: proof, for one migration, that the destination's memory is the source's.
//!
//! Asked for with [`SourceConfig::verify`](crate::SourceConfig::verify). The guest is paused, the
//! last round is sent, the vCPU and device state is saved but not yet sent. Both sides then digest
//! every page, chunk by chunk ([`CHUNK_PAGES`]); the source asks, the destination answers with its
//! digests, the source compares. Each page is one of:
//!
//! * **equal**: the same content on both sides (holes are zero);
//! * **free**: different, and that is right: the guest had hinted or ballooned it and has not
//!   written it since;
//! * **wrong**: different without that excuse.
//!
//! One wrong page fails the migration before the hand-off: the guest goes on at the source with all
//! of its memory.
//!
//! # Whose word is taken for "free"
//! Not the engine's: it would repeat its own mistakes. The private module `source::witness` stands
//! between the engine and the machine, sees every protection, harvest, published id and hint, and
//! keeps its own set by the rule of [`crate::hints`]: a hint excuses a page only if the page was
//! write-protected *before* the id was published and the epoch is open, a page in the balloon only
//! if it is protected; any harvest of the page and any second protection (which forgets writes)
//! ends the excuse. Pages skipped because they were checked to be zero have no excuse and need
//! none: they are zero on both sides.
//!
//! What it cannot see: a write that neither the dirty log reports nor changes a page that is in use
//! (that is, into hinted memory), and damage that hits both sides alike.
//!
//! # Cost
//! The guest is paused while both sides read all populated memory once, at the same time. On the
//! wire, 8 bytes a page with content and 1 bit a page of a chunk that has any. In memory, at the
//! source, a byte a page for the history of wrong pages and two bitmaps from the start of the
//! migration; at either side a bitmap and 1 MiB while comparing. The downtime limit does not count
//! it.

use std::fmt;

use serde::Serialize;

use crate::bitmap::Bitmap;
use crate::error::Error;
use crate::traits::{GuestRam, PAGE_SIZE};
use crate::wire::digests::{CHUNK_PAGES, Digests};
use crate::wire::pages::is_zero;

/// Wrong pages named in an error; more are only counted.
pub const NAMED: usize = 16;
/// Pages read at a time: 1 MiB.
const READ_PAGES: u64 = 256;
/// Highest round number that a [`History`] can tell apart.
const LAST_ROUND: u32 = 31;

/// Outcome of a verification that found nothing wrong. `equal + free + wrong` is the number of
/// pages of guest RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VerifyReport {
    /// Pages with the same content on both sides.
    pub equal: u64,
    /// Pages that differ and were free and unwritten.
    pub free: u64,
    /// Pages that differ otherwise. 0 in a report: a migration with a wrong page has none.
    pub wrong: u64,
    /// Time for which it kept the guest paused, in milliseconds.
    pub ms: u64,
    /// Bytes on the wire, both directions, headers included.
    pub bytes: u64,
}

/// What a round last did with a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Dealt {
    /// Sent with content.
    Sent = 1,
    /// Read, and zero.
    Zero = 2,
    /// Never populated.
    Hole = 3,
    /// Skipped for a hint.
    Hinted = 4,
    /// Skipped because it was in the balloon.
    Ballooned = 5,
}

/// What is known of a page: the last thing that a round did with it. In all rounds since then it
/// was clean.
///
/// One byte: three bits of what, five bits of when.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct History(u8);

impl History {
    /// Dealt with in this round (from 1).
    pub fn new(what: Dealt, round: u32) -> Self {
        Self((what as u8) << 5 | round.min(LAST_ROUND) as u8)
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.0 >> 5 {
            1 => "sent",
            2 => "zero",
            3 => "a hole",
            4 => "hinted",
            5 => "ballooned",
            _ => return f.write_str("in no round"),
        };
        let round = u32::from(self.0 & 0x1f);
        let more = if round == LAST_ROUND { " or later" } else { "" };
        write!(f, "{what} in round {round}{more}, clean since")
    }
}

/// A page whose content did not arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WrongPage {
    /// Page number.
    pub page: u64,
    /// Guest-physical address in bytes.
    pub address: u64,
    /// What the source did with it last.
    pub history: History,
}

impl fmt::Display for WrongPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {} at {:#x} ({})", self.page, self.address, self.history)
    }
}

/// Pages that are wrong: the first [`NAMED`] of them, and how many there are.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WrongPages {
    /// How many.
    pub count: u64,
    /// The first of them, ascending.
    pub named: Vec<WrongPage>,
}

impl fmt::Display for WrongPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} wrong page{}", self.count, if self.count == 1 { "" } else { "s" })?;
        for (at, page) in self.named.iter().enumerate() {
            write!(f, "{} {page}", if at == 0 { ":" } else { "," })?;
        }
        let more = self.count.saturating_sub(self.named.len() as u64);
        if more > 0 { write!(f, " and {more} more") } else { Ok(()) }
    }
}

/// Digests memory chunk by chunk without populating any of it. The guest is paused, or not yet
/// running.
pub(crate) struct Digester {
    populated: Bitmap,
    buffer: Vec<u8>,
}

impl Digester {
    /// Asks once which memory is populated.
    pub(crate) fn new(ram: &dyn GuestRam) -> Result<Self, Error> {
        let mut populated = Bitmap::new(ram.nr_pages());
        ram.populated(&mut populated).map_err(Error::machine("find populated memory"))?;
        Ok(Self { populated, buffer: vec![0; READ_PAGES as usize * PAGE_SIZE] })
    }

    /// Digests `nr` pages from `first` on into `out`.
    pub(crate) fn digest(
        &mut self,
        ram: &dyn GuestRam,
        first: u64,
        nr: u32,
        out: &mut Digests,
    ) -> Result<(), Error> {
        out.begin(first, nr);
        let end = first + u64::from(nr);
        for (start, nr) in self.populated.runs_in(first, end) {
            let mut at = start;
            while at < start + nr {
                let pages = READ_PAGES.min(start + nr - at);
                let buffer = self.buffer.get_mut(..pages as usize * PAGE_SIZE).unwrap_or_default();
                ram.read(at, buffer).map_err(Error::machine("read guest memory"))?;
                for (page, bytes) in (at..).zip(buffer.chunks_exact(PAGE_SIZE)) {
                    if !is_zero(bytes) {
                        out.push(page, bytes);
                    }
                }
                at += pages;
            }
        }
        Ok(())
    }
}

/// Number of pages of the chunk that begins at `first`: what both sides agree on without saying it.
pub(crate) fn chunk_at(first: u64, nr_pages: u64) -> u32 {
    // At most CHUNK_PAGES, so it fits.
    nr_pages.saturating_sub(first).min(u64::from(CHUNK_PAGES)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_pages_are_named_with_their_history() {
        let page = |page, history| WrongPage { page, address: page * 4096, history };
        let mut wrong = WrongPages { count: 1, named: vec![page(7, History::new(Dealt::Sent, 2))] };
        assert_eq!(
            wrong.to_string(),
            "1 wrong page: page 7 at 0x7000 (sent in round 2, clean since)"
        );
        wrong.named.push(page(9, History::new(Dealt::Hole, 99)));
        wrong.named.push(page(10, History::default()));
        wrong.count = 1000;
        assert_eq!(
            wrong.to_string(),
            "1000 wrong pages: page 7 at 0x7000 (sent in round 2, clean since), \
             page 9 at 0x9000 (a hole in round 31 or later, clean since), page 10 at 0xa000 (in no round) and 997 more"
        );
    }

    #[test]
    fn chunks_cover_ram_exactly() {
        let chunk = u64::from(CHUNK_PAGES);
        assert_eq!(chunk_at(0, 5), 5);
        assert_eq!(chunk_at(chunk, 3 * chunk - 1), CHUNK_PAGES);
        assert_eq!(chunk_at(2 * chunk, 3 * chunk - 1), CHUNK_PAGES - 1);
        assert_eq!(chunk_at(9, 5), 0);
    }
}
