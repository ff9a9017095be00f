//! Sorting pages before a round: what is to be sent, what is a hole, what is in the balloon.

use crate::bitmap::{AtomicBitmap, Bitmap};
use crate::error::Error;
use crate::hinting::sink::protect_words;
use crate::observe::Event;
use crate::round::Plan;

use super::migration::Migration;

/// Words protected in one call when a lot is to be protected: 1 GiB.
const PROTECT_WORDS: usize = 4096;
/// Asking for holes looks at each page of RAM (40 ns), reading a page costs some 600 ns: from this
/// part of RAM on it costs less than reading what is dirty, and a dirty set smaller than that in
/// pages is not worth the while.
const ASK_FOR_HOLES: (u64, u64) = (16, 4096);

/// The words of 64 pages that are not wholly populated.
pub(super) fn words_with_a_hole(populated: &Bitmap) -> Bitmap {
    let nr_pages = populated.len();
    let mut found = Bitmap::full(nr_pages.div_ceil(64));
    for (word, pages) in (0..).zip(populated.words()) {
        if (nr_pages - word * 64).min(64) == u64::from(pages.count_ones()) {
            found.clear(word);
        }
    }
    found
}

/// Protects the words of `todo` that are not yet protected.
pub(super) fn protect(
    m: &mut Migration<'_>,
    todo: &Bitmap,
    guarded: &AtomicBitmap,
) -> Result<(), Error> {
    let mut todo = todo.clone();
    todo.and_not(&guarded.snapshot());
    for (first, nr) in todo.runs() {
        let end = (first + nr) as usize;
        let mut start = first as usize;
        while start < end {
            let stop = end.min(start + PROTECT_WORDS);
            protect_words(&*m.vm.log, m.nr_pages, start..stop)
                .map_err(Error::machine("write-protect guest memory"))?;
            for word in start..stop {
                guarded.set(word as u64);
            }
            start = stop;
            m.tick(None)?;
        }
    }
    Ok(())
}

/// Round one's plan, of all pages: what is in the balloon or a hole, in words that are protected,
/// needs no sending.
pub(super) fn of_all(m: &Migration<'_>, populated: &Bitmap, protected: &Bitmap) -> Plan {
    let mut known = Bitmap::new(m.nr_pages);
    for (first, nr) in protected.runs() {
        known.set_range(first * 64, nr * 64);
    }
    let ballooned = ballooned(m, &known);
    let mut hole = known;
    hole.and_not(populated);
    hole.and_not(&ballooned);
    let mut to_send = Bitmap::full(m.nr_pages);
    to_send.and_not(&hole);
    to_send.and_not(&ballooned);
    Plan { to_send, ballooned, hole }
}

/// A later round's plan, of a harvest, whose pages are protected again: the same reasoning holds
/// for holes and the balloon as in round one. The destination is told what has become zero.
pub(super) fn of_dirty(m: &mut Migration<'_>, dirty: &Bitmap) -> Result<Plan, Error> {
    let mut plan = of_dirty_while_paused(m, dirty);
    let (part, least) = ASK_FOR_HOLES;
    if plan.to_send.count() >= least.max(m.nr_pages / part) {
        let populated = m.populated()?;
        plan.hole = plan.to_send.clone();
        plan.hole.and_not(&populated);
        plan.to_send.and_not(&plan.hole);
        m.sender.send_zeroed(&mut m.peer.writer, &plan.hole)?;
    }
    Ok(plan)
}

/// The same with the guest paused. Nobody asks for holes: the time for that grows with all of RAM,
/// is not foretold, and what is dirty has to be read in any case.
pub(super) fn of_dirty_while_paused(m: &Migration<'_>, dirty: &Bitmap) -> Plan {
    let ballooned = ballooned(m, dirty);
    let mut to_send = dirty.clone();
    to_send.and_not(&ballooned);
    Plan { to_send, ballooned, hole: Bitmap::new(m.nr_pages) }
}

/// The pages of `among` that are in the balloon.
fn ballooned(m: &Migration<'_>, among: &Bitmap) -> Bitmap {
    let mut ballooned = Bitmap::new(m.nr_pages);
    if let Some(hints) = &m.vm.hints {
        hints.ballooned(&mut ballooned);
        m.tell(&Event::Ballooned(&ballooned));
        ballooned.and(among);
    }
    ballooned
}
