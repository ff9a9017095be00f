//! What each page must hold.
//!
//! A word of a page tells the page, the word's place and the page's version, so that a lost, stale
//! or swapped page is recognised. Bits 63 and 31 are always set: neither half is ever the number of
//! a page of RAM nor the address of one, whatever the device takes it for.

use crate::phys::*;
use crate::serial::say;

/// Pages of the lower RAM, then those of the edges.
const NR_PAGES: u64 = RAM / PAGE + EDGES.len() as u64 * EDGE / PAGE;
const WORDS: u64 = PAGE / 8;
const VERSIONS: u64 = LEDGER;
const KINDS: u64 = LEDGER + NR_PAGES * 4;
/// Bad pages that are described; the rest is counted.
const DESCRIBED: u64 = 5;

/// What the guest has said about a page, and so may expect of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing is expected.
    Free = 0,
    /// It holds its last version.
    Honest = 1,
    /// The guest has called it free while it used it: each word is the page's own, of any version,
    /// or zero.
    Lie = 2,
}

/// What was found so far.
#[derive(Default)]
pub struct Tally {
    /// Honest pages looked at.
    pub checked: u64,
    /// Pages, honest or not, that hold what they never can.
    pub bad: u64,
    /// Of the pages lied about that were looked at: those that still held their last version.
    pub lies_kept: u64,
    /// And those that did not, which is the guest's own fault.
    pub lies_lost: u64,
}

/// The page's line in the ledger.
fn slot(page: u64) -> u64 {
    let nth = EDGES.iter().position(|zone| zone.has(page));
    nth.map_or(page / PAGE, |nth| (RAM + nth as u64 * EDGE + page - EDGES[nth].start) / PAGE)
}

/// What is expected of it.
pub fn kind(page: u64) -> Kind {
    match read8(KINDS + slot(page)) {
        1 => Kind::Honest,
        2 => Kind::Lie,
        _ => Kind::Free,
    }
}

fn version(page: u64) -> u32 {
    read32(VERSIONS + slot(page) * 4)
}

fn word(page: u64, at: u64, version: u32) -> u64 {
    1 << 63 | slot(page) << 45 | at << 32 | 1 << 31 | u64::from(version)
}

/// Nothing is expected of the page any more.
pub fn release(page: u64) {
    write8(KINDS + slot(page), Kind::Free as u8);
}

/// Writes the page's next version. While it is being written nothing is expected.
pub fn write(page: u64, kind: Kind) {
    release(page);
    let version = (version(page) + 1) & 0x7FFF_FFFF;
    write32(VERSIONS + slot(page) * 4, version);
    (0..WORDS).for_each(|at| write64(page + at * 8, word(page, at, version)));
    write8(KINDS + slot(page), kind as u8);
}

/// Whether the guest counts on the page.
pub fn is_honest(page: u64) -> bool {
    kind(page) == Kind::Honest
}

/// Looks at a page, and says what is wrong with it.
pub fn check(page: u64, tally: &mut Tally) {
    let (kind, now) = (kind(page), version(page));
    if kind == Kind::Free {
        return;
    }
    let mut kept = true;
    let mut wrong = None;
    for at in 0..WORDS {
        let (found, last) = (read64(page + at * 8), word(page, at, now));
        if found == last {
            continue;
        }
        kept = false;
        let earlier = found | 0x7FFF_FFFF == last | 0x7FFF_FFFF && found < last;
        if kind == Kind::Honest || !(found == 0 || earlier) {
            wrong = wrong.or(Some((at, found)));
        }
    }
    match kind {
        Kind::Honest => tally.checked += 1,
        _ if kept => tally.lies_kept += 1,
        _ => tally.lies_lost += 1,
    }
    if let Some((at, found)) = wrong {
        tally.bad += 1;
        if tally.bad <= DESCRIBED {
            let area = if kind == Kind::Honest { "honest" } else { "lie" };
            say!(
                "BAD page={page:#x} area={area} expected=version-{now} word={at} found={found:#x}"
            );
        }
        // Repaired, so that it counts once.
        write(page, kind);
    }
}

/// Looks at all pages; returns how many are honest.
pub fn check_all(tally: &mut Tally) -> u64 {
    let before = tally.checked;
    (FREE_OF_CODE..RAM).step_by(PAGE as usize).for_each(|page| check(page, tally));
    edges().iter().flat_map(Zone::pages).for_each(|page| check(page, tally));
    tally.checked - before
}
