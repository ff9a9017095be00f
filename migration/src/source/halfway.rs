//! Harvesting the dirty log in the middle of round one, too, after hints.
//!
//! Memory is protected before it is hinted: words with holes, or all of it. What is written there
//! from then on has a mark, also if its turn comes later. So it would be sent twice: what is sent
//! holds the write, and the harvest at the end of the round finds the mark. Naming its free memory
//! takes a guest seconds in which nothing is sent. So when hints have no effect any more and half
//! of what is left has gone, the marks of pages that nobody has taken yet are dropped.
//!
//! Words that are not protected early need none of this: they are when their turn comes, and what
//! was written to them before is forgotten then. That is not changed by the harvest in the middle,
//! though it protects all memory.
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

use crate::bitmap::Bitmap;
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
    pub(super) fn harvest(&mut self, m: &mut Migration<'_>, round: &Round) -> Result<(), Error> {
        let mut written = m.harvest()?;
        written.and_not(&round.to_send());
        self.written = Some(written);
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
