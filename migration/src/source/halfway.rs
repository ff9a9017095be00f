//! Harvesting the dirty log in the middle of round one, too.
//!
//! A page that is written before its turn comes would be sent twice: what is sent holds the write,
//! and the harvest at the end of the round finds its mark. Round one is the longest, and while
//! hints were awaited nothing was sent at all. So when half of what is left has gone, the marks of
//! pages that nobody has taken yet are dropped.
//!
//! # Invariant
//! A page whose mark is dropped is read after the harvest that took the mark. It is write-protected
//! by that harvest; nobody had claimed it when the harvest was over; and only claimed pages are
//! read. Claims are this thread's, and hints, which would take pages out without reading them, have
//! no effect any more. So a write before the harvest is in what will be read, and a write after it
//! is marked again.
//!
//! All other marks are kept for the round's end: pages that were sent, are being sent, were hinted,
//! or left out.

use crate::bitmap::{AtomicBitmap, Bitmap, word_masks};
use crate::error::Error;
use crate::round::Round;

use super::migration::Migration;

/// When to harvest, and what was found.
#[derive(Default)]
pub(super) struct Halfway {
    /// Pages that are left then; `None` while hints are awaited.
    due: Option<u64>,
    /// Pages that were written, and are not sent after that in this round.
    written: Option<Bitmap>,
}

impl Halfway {
    /// Hints have no effect any more: what is left is to be sent. May be called again.
    pub(super) fn begin(&mut self, round: &Round) {
        self.due.get_or_insert(round.remaining() / 2);
    }

    /// Whether it is time.
    pub(super) fn is_due(&self, round: &Round) -> bool {
        self.written.is_none() && self.due.is_some_and(|due| (1..=due).contains(&round.remaining()))
    }

    /// Harvests.
    pub(super) fn harvest(
        &mut self,
        m: &mut Migration<'_>,
        round: &Round,
        guarded: &AtomicBitmap,
    ) -> Result<(), Error> {
        let mut written = m.harvest()?;
        written.and_not(&round.to_send());
        self.written = Some(written);
        // It has protected everything.
        for (word, mask) in word_masks(guarded.len(), 0, guarded.len()) {
            guarded.set_mask(word, mask);
        }
        Ok(())
    }

    /// Adds what was found to the harvest at the round's end.
    pub(super) fn add_to(self, m: &mut Migration<'_>, dirty: &mut Bitmap) {
        if let Some(written) = self.written {
            dirty.or(&written);
            m.give_back(written);
        }
    }
}
