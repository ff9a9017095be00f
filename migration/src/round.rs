//! One round: which pages are still to be sent, who takes them, and what became of each.
//!
//! # Invariants
//! 1. **A page leaves the to-send bitmap once.** The sender takes whole words with one swap. A hint
//!    clears bits with one `fetch_and`, or takes whole words to check them and puts back what it
//!    does not skip. Whoever gets the bit counts the page. No mutex stands between hints and
//!    sending.
//! 2. **After [`Gate::close`](crate::hinting::gate::Gate::close) returned no hint has any effect.**
//! 3. `sent + zero + hole + hinted + ballooned + clean = pages`, checked in [`Round::account`].
//! 4. **Only pages of the plan have a bit in any map of the round.** What is put back was taken,
//!    and what is sent or hinted was taken, too. So the words of the plan are all that anybody has
//!    to look at, and a round costs by what it has to send.
//!
//! # Hazard
//! A round that ended while a hint is half done could lose a page: the hint takes the word, the
//! sender sees an empty bitmap and ends the round, the hint puts the word back. So the gate is
//! closed first, and then the bitmap is swept once more.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use crate::bitmap::{AtomicBitmap, Bitmap, word_masks};
use crate::error::Error;
use crate::report::{HintFigures, RoundReport};
use crate::sync::AtomicU64;
use crate::units::{PAGE_SIZE, millis};

/// Why a page does not need sending, decided before the round starts.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Pages to send: disjoint from the two below.
    pub to_send: Bitmap,
    /// Pages of the dirty set that are in the balloon.
    pub ballooned: Bitmap,
    /// Pages that the host never populated; without a bit, or of no length, in later rounds.
    pub hole: Bitmap,
}

impl Plan {
    /// These are to be sent, and the rest needs no sending.
    pub fn of(to_send: Bitmap) -> Self {
        Self { to_send, ballooned: Bitmap::new(0), hole: Bitmap::new(0) }
    }

    /// Round one's plan, of all pages: what is in the balloon or a hole, in words that are
    /// `protected`, needs no sending.
    pub fn of_all(populated: &Bitmap, mut ballooned: Bitmap, protected: &Bitmap) -> Self {
        let nr_pages = populated.len();
        let mut known = Bitmap::new(nr_pages);
        for (first, nr) in protected.runs() {
            known.set_range(first * 64, nr * 64);
        }
        ballooned.and(&known);
        let mut hole = known;
        hole.and_not(populated);
        hole.and_not(&ballooned);
        let mut to_send = Bitmap::full(nr_pages);
        to_send.and_not(&hole);
        to_send.and_not(&ballooned);
        Self { to_send, ballooned, hole }
    }

    /// A later round's plan, of a harvest, whose pages are protected again: the same reasoning
    /// holds for the balloon as in round one. Nobody looks for holes, which would cost by all of
    /// memory: one that is dirty was punched since, and is read as zero.
    pub fn of_dirty(mut dirty: Bitmap, mut ballooned: Bitmap) -> Self {
        ballooned.and(&dirty);
        dirty.and_not(&ballooned);
        Self { ballooned, ..Self::of(dirty) }
    }
}

/// The words of 64 pages that are not wholly populated.
pub fn words_with_a_hole(populated: &Bitmap) -> Bitmap {
    let nr_pages = populated.len();
    let mut found = Bitmap::full(nr_pages.div_ceil(64));
    for (word, pages) in (0..).zip(populated.words()) {
        if (nr_pages - word * 64).min(64) == u64::from(pages.count_ones()) {
            found.clear(word);
        }
    }
    found
}

/// What became of its pages so far, and what its hints said.
#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    zero: AtomicU64,
    hinted: AtomicU64,
    too_late: AtomicU64,
    sent_then_hinted: AtomicU64,
    hints: AtomicU64,
    hint_bytes: AtomicU64,
    last_hint_us: AtomicU64,
}

/// The bitmaps of a round, without a bit. Making them costs by all of memory, so one round's become
/// the next one's.
#[derive(Debug)]
pub struct Maps {
    /// The words of the plan.
    planned: Bitmap,
    to_send: AtomicBitmap,
    sent: AtomicBitmap,
    hinted: AtomicBitmap,
}

impl Maps {
    /// For a guest of `nr_pages`.
    pub fn new(nr_pages: u64) -> Self {
        let new = || AtomicBitmap::new(nr_pages);
        let planned = Bitmap::new(nr_pages.div_ceil(64));
        Self { planned, to_send: new(), sent: new(), hinted: new() }
    }
}

/// One round of pre-copy. Shared by the sender and the hint sink.
#[derive(Debug)]
pub struct Round {
    /// From 1.
    pub number: u32,
    nr_pages: u64,
    left_out: LeftOut,
    maps: Maps,
    started: Instant,
    counts: Counts,
    first_hint_us: AtomicU64,
}

/// Pages that a round's plan left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeftOut {
    /// Never populated.
    pub hole: u64,
    /// In the balloon.
    pub ballooned: u64,
    /// Not written since they were sent.
    pub clean: u64,
}

impl Round {
    /// A round over `plan` for a guest of `nr_pages`.
    pub fn new(number: u32, nr_pages: u64, plan: &Plan) -> Self {
        Self::with(Maps::new(nr_pages), number, nr_pages, plan)
    }

    /// The same, with maps that were made for this guest.
    pub fn with(mut maps: Maps, number: u32, nr_pages: u64, plan: &Plan) -> Self {
        for (word, pages) in plan.to_send.nonzero() {
            maps.planned.set(word as u64);
            maps.to_send.put(word, pages);
        }
        let (ballooned, hole) = (plan.ballooned.count(), plan.hole.count());
        let planned = plan.to_send.count() + ballooned + hole;
        let clean = nr_pages.saturating_sub(planned);
        Self {
            number,
            nr_pages,
            left_out: LeftOut { hole, ballooned, clean },
            maps,
            started: Instant::now(),
            counts: Counts::default(),
            first_hint_us: AtomicU64::new(u64::MAX),
        }
    }

    /// Its maps, for another round.
    pub fn into_maps(self) -> Maps {
        let mut maps = self.maps;
        for word in maps.planned.runs().flat_map(|(first, nr)| first..first + nr) {
            for map in [&mut maps.to_send, &mut maps.sent, &mut maps.hinted] {
                map.put(word as usize, 0);
            }
        }
        maps.planned.clear_all();
        maps
    }

    /// Pages of memory.
    pub fn nr_pages(&self) -> u64 {
        self.nr_pages
    }

    /// Words of the bitmaps.
    pub fn nr_words(&self) -> usize {
        self.maps.to_send.nr_words()
    }

    /// The first word from this one on that the plan has pages of.
    pub(crate) fn planned_from(&self, word: usize) -> Option<usize> {
        let word = self.maps.planned.next_set(word as u64) as usize;
        (word < self.nr_words()).then_some(word)
    }

    fn planned(&self) -> impl Iterator<Item = usize> {
        self.maps.planned.runs().flat_map(|(first, nr)| first as usize..(first + nr) as usize)
    }

    /// Takes all pages of a word that are still to be sent.
    pub fn claim(&self, word: usize) -> u64 {
        self.maps.to_send.take(word)
    }

    /// Returns claimed pages that were neither sent nor skipped.
    pub fn put_back(&self, word: usize, mask: u64) {
        self.maps.to_send.set_mask(word, mask);
    }

    /// Pages that nobody has taken yet.
    pub fn to_send(&self) -> Bitmap {
        self.maps.to_send.snapshot()
    }

    /// Pages still to be dealt with: derived from the counters, so that asking costs nothing.
    pub fn remaining(&self) -> u64 {
        let LeftOut { hole, ballooned, clean } = self.left_out;
        let done = self.sent() + self.zero() + self.hinted();
        self.nr_pages.saturating_sub(hole + ballooned + clean + done)
    }

    /// Claimed pages of `word` were sent with content.
    pub fn mark_sent(&self, word: usize, mask: u64) {
        self.maps.sent.set_mask(word, mask);
        self.counts.sent.fetch_add(u64::from(mask.count_ones()), Relaxed);
    }

    /// Claimed pages were read and are zero.
    pub fn mark_zero(&self, nr: u64) {
        self.counts.zero.fetch_add(nr, Relaxed);
    }

    /// Claimed pages of `word` are skipped for a hint.
    pub fn mark_hinted(&self, word: usize, mask: u64) {
        self.maps.hinted.set_mask(word, mask);
        let nr = u64::from(mask.count_ones());
        self.counts.hinted.fetch_add(nr, Relaxed);
    }

    /// A hint clears the bits of `mask`: the protected way. Returns how many pages it skipped.
    pub fn clear_hinted(&self, word: usize, mask: u64) -> u64 {
        let mask = self.maps.to_send.clear_mask(word, mask);
        if mask != 0 {
            self.mark_hinted(word, mask);
        }
        u64::from(mask.count_ones())
    }

    /// Notes pages of a hint that had already been sent in this round. `mask` is the hint's part of
    /// `word`.
    pub fn note_sent_before(&self, word: usize, mask: u64) {
        let nr = u64::from((self.maps.sent.load(word) & mask).count_ones());
        if nr > 0 {
            self.counts.sent_then_hinted.fetch_add(nr, Relaxed);
            self.counts.too_late.fetch_add(nr, Relaxed);
        }
    }

    /// Notes that a hint arrived.
    pub fn note_hint(&self, pages: u64) {
        let us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.first_hint_us.fetch_min(us, Relaxed);
        self.counts.last_hint_us.fetch_max(us, Relaxed);
        self.counts.hints.fetch_add(1, Relaxed);
        let bytes = pages * PAGE_SIZE as u64;
        self.counts.hint_bytes.fetch_add(bytes, Relaxed);
    }

    /// Notes a hint that found the gate closed.
    pub fn note_late(&self, pages: u64) {
        self.counts.too_late.fetch_add(pages, Relaxed);
    }

    /// Hints so far.
    pub fn hints(&self) -> u64 {
        self.counts.hints.load(Relaxed)
    }

    /// Bytes that they named.
    pub fn hint_bytes(&self) -> u64 {
        self.counts.hint_bytes.load(Relaxed)
    }

    /// Pages skipped for hints so far.
    pub fn hinted(&self) -> u64 {
        self.counts.hinted.load(Relaxed)
    }

    /// Pages sent with content so far.
    pub fn sent(&self) -> u64 {
        self.counts.sent.load(Relaxed)
    }

    /// Pages read and found zero so far.
    pub fn zero(&self) -> u64 {
        self.counts.zero.load(Relaxed)
    }

    /// Pages that the plan left out.
    pub fn left_out(&self) -> LeftOut {
        self.left_out
    }

    /// Pages of a word that were sent with content so far.
    pub fn sent_mask(&self, word: usize) -> u64 {
        self.maps.sent.load(word)
    }

    /// Pages of `pages` that are still to be sent.
    pub(crate) fn left_of(&self, pages: &AtomicBitmap) -> u64 {
        let to_send = &self.maps.to_send;
        let left = |word| u64::from((to_send.load(word) & pages.load(word)).count_ones());
        self.planned().map(left).sum()
    }

    /// Pages of this round that were sent with content.
    pub fn sent_pages(&self) -> Bitmap {
        self.maps.sent.snapshot()
    }

    /// Its report so far; exact once the round is over.
    pub fn figures(&self) -> RoundReport {
        let first_hint = self.first_hint_us.load(Relaxed);
        let hinting = self.counts.last_hint_us.load(Relaxed).saturating_sub(first_hint);
        let (hint_bytes, LeftOut { hole, ballooned, clean }) = (self.hint_bytes(), self.left_out);
        let rate = u128::from(hint_bytes) * 1_000_000 / u128::from(hinting.max(1));
        RoundReport {
            round: self.number,
            sent: self.sent(),
            zero: self.zero(),
            hole,
            ballooned,
            clean,
            hinting: HintFigures {
                hint_bytes,
                hinted: self.hinted(),
                hinted_too_late: self.counts.too_late.load(Relaxed),
                sent_then_hinted: self.counts.sent_then_hinted.load(Relaxed),
                time_to_first_hint_ms: (first_hint != u64::MAX).then_some(first_hint / 1000),
                hint_rate: if hinting == 0 { 0 } else { u64::try_from(rate).unwrap_or(u64::MAX) },
                ..HintFigures::default()
            },
            duration_ms: millis(self.started.elapsed()),
            ..RoundReport::default()
        }
    }

    /// The round is over: its report. `Err` if the classes do not add up. Gate closed, nothing to
    /// send left.
    pub fn account(&self) -> Result<RoundReport, Error> {
        let report = self.figures();
        let skipped = report.zero + report.hole + report.hinting.hinted + report.ballooned;
        let counted = report.sent + skipped + report.clean;
        // Two things that must agree: the bitmap is empty, and the counters sum up.
        let left = self.planned().any(|word| self.maps.to_send.load(word) != 0);
        if counted != self.nr_pages || left {
            return Err(Error::Accounting { round: self.number, counted, pages: self.nr_pages });
        }
        Ok(report)
    }

    /// How many pages that were skipped for hints are in `harvest`: written since.
    pub fn overridden(&self, harvest: &Bitmap) -> u64 {
        let hinted = &self.maps.hinted;
        let both =
            |(word, written): (usize, u64)| u64::from((hinted.load(word) & written).count_ones());
        harvest.nonzero().map(both).sum()
    }

    /// Pages of this round that were skipped for hints.
    pub fn hinted_pages(&self) -> Bitmap {
        self.maps.hinted.snapshot()
    }

    /// The words that a hint touches, each with the mask of its pages.
    pub(crate) fn words_of(&self, first: u64, nr: u64) -> impl Iterator<Item = (usize, u64)> {
        word_masks(self.nr_pages, first, nr)
    }

    /// All valid pages of a word.
    pub(crate) fn valid(&self, word: usize) -> u64 {
        let masks = word_masks(self.nr_pages, word as u64 * 64, 64);
        masks.map(|(_, mask)| mask).next().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn plan(nr_pages: u64) -> Plan {
        Plan::of(Bitmap::full(nr_pages))
    }

    #[test]
    fn racing_claims_and_hints_count_every_page_once() {
        let pages = 64 * 400 + 17;
        for _ in 0..20 {
            let round = Arc::new(Round::new(1, pages, &plan(pages)));
            let hinter = {
                let round = round.clone();
                std::thread::spawn(move || {
                    for word in 0..round.nr_words() {
                        round.clear_hinted(word, 0x00ff_f0f0_0f0f_ff00);
                    }
                })
            };
            for word in (0..round.nr_words()).rev() {
                let mask = round.claim(word);
                round.mark_sent(word, mask);
            }
            hinter.join().unwrap();
            let report = round.account().unwrap();
            assert_eq!(report.sent + report.hinting.hinted, pages);
        }
    }

    #[test]
    fn a_plan_believes_holes_and_balloon_where_they_are_protected() {
        let map = |pages: &[u64]| {
            let mut map = Bitmap::new(64 * 2 + 3);
            pages.iter().for_each(|&page| map.set(page));
            map
        };
        let mut populated = Bitmap::full(64 * 2 + 3);
        populated.clear(70);
        populated.clear(5);
        let mut word = Bitmap::new(3);
        word.set(1);
        let plan = Plan::of_all(&populated, map(&[6, 71]), &word);
        assert_eq!((&plan.hole, &plan.ballooned), (&map(&[70]), &map(&[71])));
        assert_eq!(plan.to_send.count(), 64 * 2 + 1);
        assert_eq!(words_with_a_hole(&populated).runs().collect::<Vec<_>>(), [(0, 2)]);

        let plan = Plan::of_dirty(map(&[1, 5, 6]), map(&[6, 71]));
        assert_eq!((&plan.to_send, &plan.ballooned), (&map(&[1, 5]), &map(&[6])));
        assert_eq!(plan.hole.count(), 0);
    }

    #[test]
    fn a_page_that_nobody_counted_is_an_error() {
        let round = Round::new(3, 100, &plan(100));
        assert!(round.account().is_err());
        for word in 0..2 {
            let mask = round.claim(word);
            round.mark_sent(word, mask);
        }
        assert_eq!(round.account().unwrap().sent, 100);
        round.mark_zero(1);
        assert!(round.account().is_err());
    }
}
