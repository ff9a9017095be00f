//! An epoch: the time from publishing an id until STOP, in which hints count.
//!
//! **Hinting in spells.** Linux's driver allocates and hints block after block without giving way, so a guest with one vCPU does
//! nothing else until it is through: seconds, if it zeroes. It looks at the id after each block, though. So each id is good for a
//! short spell; then the driver is asked to rest, the guest's other work runs, and a new id follows. The driver keeps what it
//! has hinted and goes on with what is left. Its hints count during the rest as before: the epoch is open until the round ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::hints::{HintMode, Sink};
use crate::pacing::{Pace, Pacer, Sample};
use crate::round::Round;
use crate::traits::{HintSource, PAGE_SIZE};

use super::SourceConfig;
use super::session::Session;

/// How long the driver may take to read a new id before the engine stops waiting for it.
const SEEN: Duration = Duration::from_millis(100);
/// How long the guest's CPU is given to begin taking memory back after its driver has stopped.
const TAKE_BACK: Duration = Duration::from_millis(10);
/// How long a driver that was asked to rest may be silent before it is asked for hints again.
const SILENT: Duration = Duration::from_secs(1);
/// Hints in a row of which none clears a page before the driver is not asked any more: 64 MiB of Linux's 4 MiB blocks. Linux hands out
/// what was freed last first; behind that comes memory that was never used, and what it costs a guest to zero that is for nothing.
const IDLE_HINTS: u64 = 16;
/// Hints judged together when deciding whether to go on: 512 MiB of Linux's 4 MiB blocks.
const JUDGE_HINTS: u64 = 128;

/// Hints of one round: the published id and what listens to it, or the rest between two ids.
pub(super) struct Epoch {
    pub(super) source: Arc<dyn HintSource>,
    pub(super) sink: Arc<Sink>,
    /// When the first id was published.
    published: Instant,
    /// When the present id was published, or the driver was asked to rest.
    since: Instant,
    resting: bool,
    /// When the driver was last asked to rest.
    asked: Instant,
    pacer: Pacer,
    pub(super) mode: HintMode,
    /// Hints that the round had seen before this epoch.
    pub(super) hints_before: u64,
    /// Hints, pages in them and pages skipped when they were last judged.
    judged: (u64, u64, u64),
    /// Pages skipped, and hints, when the former last grew.
    useful: (u64, u64),
    /// Hints up to this one are not called idle: see `switch` in the module `rounds`.
    pub(super) not_idle_before: u64,
}

impl Epoch {
    /// `None`: there is no driver (any more) to ask.
    pub(super) fn publish(
        session: &Session<'_>,
        source: &Arc<dyn HintSource>,
        round: &Round,
        sink: Sink,
        mode: HintMode,
        first_wait: Duration,
    ) -> Option<Self> {
        let (hints_before, pages_before) = round.hints();
        let judged = (hints_before, pages_before, round.hinted());
        let useful = (round.hinted(), hints_before);
        let sink = Arc::new(sink);
        #[cfg(test)]
        crate::tests::sink_published(session.cfg.mutation, &sink);
        session.record.publishing();
        source.start(sink.clone()).ok()?;
        let published = Instant::now();
        session.record.published(round, mode);
        let first_wait = first_wait.min(session.cfg.first_hint_wait);
        let seen = source.wait_seen(SEEN.min(first_wait));
        let wait = if seen { first_wait } else { Duration::ZERO };
        let (source, pacer, since) = (source.clone(), Pacer::new(wait), Instant::now());
        Some(Self {
            source,
            sink,
            published,
            since,
            resting: false,
            asked: since,
            pacer,
            mode,
            hints_before,
            judged,
            useful,
            not_idle_before: hints_before,
        })
    }

    /// Ends the spell, or the rest, when it is time. False: the driver is gone.
    ///
    /// A driver is asked to rest only when it has read the present id. One that has not come to it, in a busy guest, would find STOP in its
    /// place, do nothing and say nothing. Waiting for its first hint would let it go through two blocks at a time, since it has begun the second when
    /// the first is seen. One that says nothing all the same gets a new id after [`SILENT`].
    pub(super) fn turn(&mut self, cfg: &SourceConfig) -> bool {
        let elapsed = self.since.elapsed();
        if self.resting {
            // Hints on their way still count. The guest's rest begins when the driver has stopped, however long that takes.
            if !self.source.rested() && self.asked.elapsed() < SILENT {
                self.since = Instant::now();
            } else if elapsed >= cfg.hint_rest {
                self.sink.close();
                let sink = Arc::new(self.sink.renew());
                if self.source.start(sink.clone()).is_err() {
                    return false;
                }
                self.sink = sink;
                (self.resting, self.since) = (false, Instant::now());
            }
        } else if elapsed >= cfg.hint_time && self.source.wait_seen(Duration::ZERO) && !self.source.finished()
        {
            self.source.rest();
            (self.resting, self.since, self.asked) = (true, Instant::now(), Instant::now());
        }
        true
    }

    /// How long to hold back at most before looking again.
    pub(super) fn patience(&self, cfg: &SourceConfig) -> Duration {
        let spell = if self.resting { cfg.hint_rest } else { cfg.hint_time };
        let left = spell.saturating_sub(self.since.elapsed());
        left.max(Duration::from_millis(1)).min(cfg.slice)
    }

    /// STOP: when this returns no hint has any effect.
    pub(super) fn close(&self) {
        self.source.stop();
        self.sink.close();
    }

    /// DONE: the guest takes its memory back. Returns when it has begun to, or says nothing.
    ///
    /// Linux's driver leaves its loop when it reads DONE there, sends STOP, and comes back to give up what it holds; should it then find
    /// another id, it goes on with that one, still holds everything and does not hint it again.
    pub(super) fn give_back(&self, session: &Session<'_>) {
        self.source.done();
        self.sink.close();
        self.source.wait_seen(SEEN);
        let deadline = Instant::now() + SEEN;
        while !self.source.rested() && Instant::now() < deadline {
            session.interrupt.cancel.sleep(Duration::from_millis(1));
        }
        session.interrupt.cancel.sleep(TAKE_BACK);
    }

    pub(super) fn pace(&mut self, round: &Round, link_rate: f64) -> Pace {
        if !self.resting && self.source.finished() {
            return Pace::Send;
        }
        // Hints that clear nothing are not worth waiting for, however fast they are.
        if self.idle_hints(round.hints().0) >= IDLE_HINTS / 4 {
            return Pace::Send;
        }
        self.pacer.pace(&Sample {
            now: self.published.elapsed(),
            cleared: round.hinted() * PAGE_SIZE as u64,
            any_hint: round.hints().0 > self.hints_before,
            link_rate,
        })
    }

    /// Whether the last hints all named pages that need no sending anyway.
    pub(super) fn idle(&mut self, round: &Round) -> bool {
        // In this order: hints that come between the two readings must not count as idle.
        let (hints, _) = round.hints();
        let hinted = round.hinted();
        if hinted != self.useful.0 {
            self.useful = (hinted, hints);
        }
        self.idle_hints(hints) >= IDLE_HINTS
    }

    /// Hints since the last that cleared a page.
    fn idle_hints(&self, hints: u64) -> u64 {
        if hints < self.not_idle_before { 0 } else { hints - self.useful.1 }
    }

    /// Whether the last hints were worth it: at least one page in sixteen was still to be sent.
    pub(super) fn pays(&mut self, round: &Round) -> bool {
        let (hints, pages) = round.hints();
        let hinted = round.hinted();
        if hints < self.not_idle_before {
            self.judged = (hints, pages, hinted);
        }
        let (last_hints, last_pages, last_hinted) = self.judged;
        if hints - last_hints < JUDGE_HINTS {
            return true;
        }
        self.judged = (hints, pages, hinted);
        (hinted - last_hinted) * 16 >= pages - last_pages
    }
}
