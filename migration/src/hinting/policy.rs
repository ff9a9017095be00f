//! Whether to go on asking for hints, and whether to wait for them: one pure decision a slice.
//!
//! **What can still be saved decides.** Before the guest is asked its statistics tell how much of
//! the populated memory is free. What hints have cleared of that is saved; the rest can still be.
//! The same holds for blocks that the driver named and that could not be honoured. As long as that
//! is *much*, an eighth of what has to be sent anyway, waiting and asking are paid for by it in
//! advance: for the first hint, for a driver that is slow to take its memory back, through hints
//! that clear nothing, whatever their order.
//!
//! **The advance is bounded.** A silence, in which hints clear nothing, lasts at most half of the
//! time that sending what can still be saved would take. And all waiting, less what the hints that
//! came meanwhile saved, is at most half of the time that sending all of it would have taken. Time
//! in which nobody ran here, because the host stood still, counts as one slice.
//!
//! **Without an advance**, because little is left or nothing is known, `Pacer` decides how
//! long to wait, and hints end that clear nothing, or too little, many times in a row.
//!
//! A driver that got back what could not be honoured names it again. One that is through and has
//! not done so still holds it: it is told again to take it back, a few times.

use std::time::Duration;

use super::pace::{Pace, Pacer, Sample};
use crate::report::Reason;

/// The longest that is waited at a time.
const SLICE: Duration = Duration::from_millis(20);
/// The part of the time that sending would take that may be waited in advance.
const IN_ADVANCE: f64 = 0.5;
/// What can be saved is much if it is more than this part of what has to be sent anyway.
const MUCH: f64 = 1.0 / 8.0;
/// Hints in a row of which none clears a page before the driver is not asked any more: 64 MiB of
/// Linux's 4 MiB blocks. Behind what was freed comes memory that was never used, and what it costs
/// a guest to zero that is for nothing.
const IDLE_HINTS: u64 = 16;
/// Hints judged together when deciding whether to go on: 512 MiB of Linux's 4 MiB blocks.
const JUDGE_HINTS: u64 = 128;
/// How often a driver is told again to take its memory back: each time writes page structures.
const MAX_TAKE_BACKS: u32 = 3;

/// What the driver was last told, as far as it is known to have come to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Driver {
    /// To take its memory back; it has not come to that.
    Returning,
    /// To hint, or to rest in between.
    Hinting,
    /// It says that it has nothing more to hint.
    Finished,
}

/// What is decided on, once a slice. Bytes and hints of this round so far.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Since the first id was published.
    pub now: Duration,
    /// What the driver is at.
    pub driver: Driver,
    /// Hints that have come.
    pub hints: u64,
    /// Bytes that they named.
    pub named: u64,
    /// Bytes that they took out of what is to be sent.
    pub cleared: u64,
    /// Bytes that were read and are zero.
    pub zero: u64,
    /// Bytes still to be sent.
    pub remaining: u64,
    /// The part of these that was named and could not be honoured.
    pub held: u64,
    /// Since it was last to take its memory back, the driver has named some of that again.
    pub renamed: bool,
    /// Bytes of guest memory that the link takes in a second.
    pub link_rate: f64,
}

impl Seen {
    fn tally(&self) -> Tally {
        Tally { hints: self.hints, named: self.named, cleared: self.cleared }
    }
}

/// Hints at some time, and the bytes that they named and cleared.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    hints: u64,
    named: u64,
    cleared: u64,
}

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Wait for hints.
    Hold,
    /// Send for a slice; hints may still come.
    Send,
    /// Publish DONE, and a new id when the driver has taken its memory back.
    TakeBack,
    /// Ask no more: the driver is through, or what it names is of no use.
    End(Reason),
}

/// The hints of one round.
#[derive(Debug, Default)]
pub struct Asking {
    pacer: Pacer,
    judges: bool,
    expected: u64,
    /// What was to be sent at first, and the most that could be saved.
    at_first: Option<u64>,
    whole: u64,
    /// When it was last decided, whether to hold, and what had been cleared by then.
    last: Option<(Duration, bool)>,
    cleared: u64,
    /// Seconds held since a hint last cleared something.
    silence: f64,
    /// Seconds held in all that hints have not saved again.
    debt: f64,
    /// When this id was published, and the hints before it.
    since: Duration,
    hints_before: u64,
    /// Hints, bytes named and bytes cleared when they were last judged.
    judged: Tally,
    /// The same when bytes cleared last grew.
    useful: Tally,
    /// Hints up to this one are not called idle.
    not_idle_before: u64,
    take_backs: u32,
}

impl Asking {
    /// `expected`: bytes that are to be sent and free, by the guest's statistics; 0 if they do not
    /// tell. With `judges`, hints must pay for what they cost the guest.
    pub fn new(expected: u64, judges: bool) -> Self {
        Self { judges, expected, ..Self::default() }
    }

    /// An id was published, whose first hint may be waited for so long even if nothing is known to
    /// be saved.
    ///
    /// What the driver got back may now be anywhere in its free lists, behind memory that was never
    /// used. So after that it may name as many blocks again before those that clear nothing end the
    /// asking.
    pub fn asked(&mut self, seen: &Seen, first_wait: Duration) {
        self.pacer = Pacer::new(first_wait);
        self.not_idle_before = (2 * seen.hints).saturating_sub(self.hints_before);
        (self.since, self.hints_before) = (seen.now, seen.hints);
        (self.judged, self.useful) = (seen.tally(), seen.tally());
    }

    /// Bytes that were expected to be saved and were not, now that the round is over.
    /// `saved` were not sent; `named` were named and not honoured.
    pub fn unsaved(&self, saved: u64, named: u64) -> u64 {
        self.expected.saturating_sub(saved).max(named)
    }

    /// Whether so many bytes are much beside what had to be sent anyway.
    pub fn is_much(&self, bytes: u64) -> bool {
        let anyway = self.at_first.unwrap_or(0).saturating_sub(self.whole);
        bytes > 0 && bytes as f64 > anyway as f64 * MUCH
    }

    /// Decides the next slice.
    pub fn act(&mut self, seen: &Seen) -> Action {
        let advance = self.advance(seen);
        let action = self.decide(seen, advance);
        self.last = Some((seen.now, action == Action::Hold));
        action
    }

    fn decide(&mut self, seen: &Seen, advance: bool) -> Action {
        let idle = self.idle_hints(seen);
        let pays = !self.judges || self.pays(seen);
        let through = seen.driver == Driver::Finished;
        if seen.driver == Driver::Returning {
            return if advance { Action::Hold } else { Action::Send };
        }
        if through
            && advance
            && !seen.renamed
            && self.take_backs < MAX_TAKE_BACKS
            && self.is_much(seen.held)
        {
            self.take_backs += 1;
            return Action::TakeBack;
        }
        if !advance && idle >= IDLE_HINTS {
            return Action::End(Reason::OnlyIdle);
        }
        if !advance && !pays {
            return Action::End(Reason::DoesNotPay);
        }
        if through {
            return Action::End(Reason::On);
        }
        let pace = self.pacer.pace(&Sample {
            now: seen.now.saturating_sub(self.since),
            cleared: seen.cleared,
            any_hint: seen.hints > self.hints_before,
            link_rate: seen.link_rate,
            advance,
        });
        match pace {
            _ if advance => Action::Hold,
            // Hints that clear nothing are not worth waiting for, however fast they are.
            Pace::Hold if idle < IDLE_HINTS / 4 => Action::Hold,
            _ => Action::Send,
        }
    }

    /// Whether what can still be saved pays for the next slice.
    fn advance(&mut self, seen: &Seen) -> bool {
        let left = self
            .expected
            .saturating_sub(seen.cleared + seen.zero)
            .max(seen.held)
            .min(seen.remaining);
        self.at_first.get_or_insert(seen.remaining);
        self.whole = self.whole.max(left);
        let rate = seen.link_rate.max(1.0);
        let gained = seen.cleared.saturating_sub(self.cleared);
        self.cleared = seen.cleared;
        if gained > 0 {
            self.silence = 0.0;
        }
        if let Some((then, true)) = self.last {
            // A slice is short: when more has passed nobody ran here.
            let passed = seen.now.saturating_sub(then).min(SLICE).as_secs_f64();
            self.debt += passed;
            self.silence += if gained == 0 { passed } else { 0.0 };
        }
        self.debt = (self.debt - gained as f64 / rate).max(0.0);
        let may_wait = |bytes: u64| bytes as f64 / rate * IN_ADVANCE;
        self.is_much(left) && self.silence < may_wait(left) && self.debt < may_wait(self.whole)
    }

    /// Hints since the last that cleared a page.
    fn idle_hints(&mut self, seen: &Seen) -> u64 {
        if seen.cleared != self.useful.cleared {
            self.useful = seen.tally();
        }
        if seen.hints < self.not_idle_before {
            0
        } else {
            seen.hints.saturating_sub(self.useful.hints)
        }
    }

    /// Whether the last hints were worth it: at least one page in sixteen was still to be sent.
    fn pays(&mut self, seen: &Seen) -> bool {
        let now = seen.tally();
        if seen.hints < self.not_idle_before {
            self.judged = now;
        }
        let Tally { hints, named, cleared } = self.judged;
        if seen.hints.saturating_sub(hints) < JUDGE_HINTS {
            return true;
        }
        self.judged = now;
        seen.cleared.saturating_sub(cleared).saturating_mul(16) >= seen.named.saturating_sub(named)
    }
}
