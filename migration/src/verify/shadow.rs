//! The second opinion of a verified migration: which pages may differ, judged from outside the
//! engine.
//!
//! It is an observer of what is done to the machine, and draws its own conclusions in code that
//! shares nothing with sinks and gates. See [`crate::verify`] for the rule, and why the engine's
//! word is not enough. What a round says of its pages is kept for messages only.
//!
//! Invariant: a bit in `free` means that the page was hinted under an id, or found in the balloon,
//! while it was write-protected, and that no write since can have been forgotten. Every doubt
//! clears the bit or leaves it clear: then the page must be equal.

use std::ops::Range;
use std::sync::Mutex;

use crate::bitmap::{AtomicBitmap, Bitmap, word_masks};
use crate::observe::{EpochId, Event, Observer};
use crate::round::{Plan, Round};
use crate::sync::lock;

use super::verdict::{History, PageOutcome};

/// What was seen.
#[derive(Debug)]
pub(crate) struct Shadow {
    nr_pages: u64,
    /// Pages that may differ.
    free: AtomicBitmap,
    /// Words of 64 pages that are write-protected.
    protected: AtomicBitmap,
    /// Words protected twice since the last harvest: writes to them may have been forgotten, so no
    /// hint is believed for them.
    twice: AtomicBitmap,
    epoch: Mutex<Option<Epoch>>,
    history: Mutex<Rounds>,
}

/// The open id.
#[derive(Debug)]
struct Epoch {
    id: EpochId,
    /// Words that were protected before the id was published.
    before: Bitmap,
}

/// What rounds did with each page.
#[derive(Debug)]
struct Rounds {
    pages: Vec<History>,
    /// What the present round was to send.
    to_send: Bitmap,
}

impl Shadow {
    pub(crate) fn new(nr_pages: u64) -> Self {
        let words = nr_pages.div_ceil(64);
        let pages = vec![History::default(); nr_pages as usize];
        Self {
            nr_pages,
            free: AtomicBitmap::new(nr_pages),
            protected: AtomicBitmap::new(words),
            twice: AtomicBitmap::new(words),
            epoch: Mutex::default(),
            history: Mutex::new(Rounds { pages, to_send: Bitmap::new(nr_pages) }),
        }
    }

    /// The pages that may differ.
    pub(crate) fn free(&self) -> Bitmap {
        self.free.snapshot()
    }

    /// What a round last did with a page.
    pub(crate) fn history(&self, page: u64) -> History {
        lock(&self.history).pages.get(page as usize).copied().unwrap_or_default()
    }

    fn excuse(&self, first: u64, nr: u64, believed: impl Fn(u64) -> bool) {
        for (word, mask) in word_masks(self.nr_pages, first, nr) {
            if believed(word as u64) {
                self.free.set_mask(word, mask);
            }
        }
    }

    fn protected(&self, words: Range<u64>) {
        for word in words {
            if self.protected.test(word) {
                self.twice.set(word);
                self.free.take(word as usize);
            }
            self.protected.set(word);
        }
    }

    fn harvested(&self, dirty: &Bitmap) {
        for (word, &written) in dirty.words().iter().enumerate() {
            self.free.clear_mask(word, written);
        }
        // What was not protected before was dirty, and what was dirty is protected now.
        for word in 0..self.protected.len() {
            self.protected.set(word);
        }
        for word in 0..self.twice.nr_words() {
            self.twice.take(word);
        }
    }

    fn hinted(&self, id: EpochId, first: u64, nr: u64) {
        if let Some(epoch) = lock(&self.epoch).as_ref().filter(|epoch| epoch.id == id) {
            self.excuse(first, nr, |word| epoch.before.test(word) && !self.twice.test(word));
        }
    }
}

impl Observer for Shadow {
    fn observe(&self, event: &Event<'_>) {
        match event {
            Event::Protected(words) => self.protected(words.clone()),
            Event::Harvested(dirty) => self.harvested(dirty),
            Event::Publishing { epoch: id, .. } => {
                let before = self.protected.snapshot();
                *lock(&self.epoch) = Some(Epoch { id: *id, before });
            }
            Event::Hinted { epoch, first, nr } => self.hinted(*epoch, *first, *nr),
            Event::Closed => *lock(&self.epoch) = None,
            Event::Ballooned(pages) => {
                for (first, nr) in pages.runs() {
                    self.excuse(first, nr, |word| self.protected.test(word));
                }
            }
            Event::Round(round, plan) => lock(&self.history).planned(round, plan),
            Event::Slice(slice) if slice.over => lock(&self.history).over(slice.round),
            _ => {}
        }
    }
}

impl Rounds {
    fn planned(&mut self, round: &Round, plan: &Plan) {
        self.to_send = plan.to_send.clone();
        self.note(PageOutcome::Hole, &plan.hole, round);
        self.note(PageOutcome::Ballooned, &plan.ballooned, round);
    }

    fn over(&mut self, round: &Round) {
        let (sent, hinted) = (round.sent_pages(), round.hinted_pages());
        let mut zero = self.to_send.clone();
        zero.and_not(&sent);
        zero.and_not(&hinted);
        self.note(PageOutcome::Zero, &zero, round);
        self.note(PageOutcome::Sent, &sent, round);
        self.note(PageOutcome::Hinted, &hinted, round);
    }

    fn note(&mut self, what: PageOutcome, pages: &Bitmap, round: &Round) {
        for (first, nr) in pages.runs() {
            if let Some(entries) = self.pages.get_mut(first as usize..(first + nr) as usize) {
                entries.fill(History::new(what, round.number));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn free(shadow: &Shadow) -> Vec<(u64, u64)> {
        shadow.free().runs().collect()
    }

    #[test]
    fn only_hints_of_an_open_id_about_pages_protected_before_it_are_believed() {
        let nr_pages = 64 * 4 + 5;
        let shadow = Shadow::new(nr_pages);
        let protect = |word: u64| shadow.observe(&Event::Protected(word..word + 1));
        let publish = |epoch| shadow.observe(&Event::Publishing { epoch, again: false });
        let hint = |epoch, first, nr| shadow.observe(&Event::Hinted { epoch, first, nr });
        let [one, next] = [0, 1].map(|nth| EpochId { round: 1, nth });
        protect(1);
        publish(one);
        protect(2);
        hint(one, 60, 100);
        assert_eq!(
            free(&shadow),
            [(64, 64)],
            "the words around were not protected when the id was published"
        );
        hint(one, u64::MAX, u64::MAX);
        // Protecting again forgets writes: no excuse, not even by another hint.
        protect(1);
        hint(one, 64, 64);
        assert_eq!(free(&shadow), []);
        shadow.observe(&Event::Closed);
        shadow.observe(&Event::Harvested(&Bitmap::new(nr_pages)));
        hint(one, 64, 64);
        assert_eq!(free(&shadow), [], "the epoch is closed");

        publish(next);
        hint(one, 64, 64);
        assert_eq!(free(&shadow), [], "the hint is of an older id");
        hint(next, 256, 100);
        hint(next, 3, 2);
        assert_eq!(free(&shadow), [(3, 2), (256, 5)], "the harvest has protected everything");
    }
}
