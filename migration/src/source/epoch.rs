//! An epoch: the time from publishing an id until STOP, in which hints count.
//!
//! **Hinting in spells.** Linux's driver allocates and hints block after block without giving way,
//! so a guest with one vCPU does nothing else until it is through: seconds, if it zeroes. It looks
//! at the id after each block, though. So each id is good for a short spell; then the driver is
//! asked to rest, the guest's other work runs, and a new id follows. The driver keeps what it has
//! hinted and goes on with what is left. Its hints count during the rest as before: the epoch is
//! open until the round ends.
//!
//! **Taking back.** What could not be honoured is named again only if the driver got it back. DONE
//! makes it take everything back, but only when it comes to that, and a new id published before
//! would take DONE's place: the driver would go on, still hold what it named, and never name it
//! again. So no new id is published before the device says that the driver cannot miss DONE any
//! more, however long that takes. The sink is closed meanwhile, and the sender waits, or sends, as
//! the policy says.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{HintMode, SourceConfig};
use crate::hinting::policy::{Action, Asking, Driver, Seen};
use crate::hinting::sink::Sink;
use crate::observe::{EpochId, Event, Listener};
use crate::round::Round;
use crate::traits::HintSource;
use crate::units::PAGE_SIZE;

use super::session::Session;

/// How long the driver may take to read a new id before the engine stops waiting for its first
/// hint, unless that is paid for.
const SEEN: Duration = Duration::from_millis(100);
/// How long a driver that was asked to rest may be silent before it is asked for hints again.
const SILENT: Duration = Duration::from_secs(1);
/// How long to hold back at most before looking whether the driver has come to taking its memory
/// back.
const LOOK_FOR_RETURN: Duration = Duration::from_millis(2);

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Hinting,
    Resting,
    /// DONE is published, the sink is closed.
    Returning,
}

/// Hints of one round: the published id and what listens to it, or the rest between two ids.
pub(super) struct Epoch {
    pub(super) source: Arc<dyn HintSource>,
    pub(super) sink: Arc<Sink>,
    /// When hints were first wanted.
    began: Instant,
    /// When the present id was published, or the driver was asked to rest.
    since: Instant,
    state: State,
    /// Ids published so far.
    nth: u32,
    /// When the driver was last asked to rest.
    asked: Instant,
    asking: Asking,
    first_wait: Duration,
    pub(super) mode: HintMode,
    /// What was not honoured may be left: it need not be counted before.
    switched: bool,
}

impl Epoch {
    /// `None`: there is no driver (any more) to ask. A driver that has yet to take back what it
    /// hinted in an earlier migration is asked when it has come to that.
    pub(super) fn open(
        session: &Session<'_>,
        source: &Arc<dyn HintSource>,
        round: &Round,
        sink: Sink,
        mode: HintMode,
        (first_wait, asking): (Duration, Asking),
    ) -> Option<Self> {
        let now = Instant::now();
        let mut epoch = Self {
            source: source.clone(),
            sink: Arc::new(sink),
            began: now,
            since: now,
            state: State::Returning,
            nth: 0,
            asked: now,
            asking,
            first_wait: first_wait.min(session.cfg.first_hint_wait),
            mode,
            switched: false,
        };
        let published = !epoch.source.returned() || epoch.publish(session, round);
        published.then_some(epoch)
    }

    /// False: there is no driver any more.
    fn publish(&mut self, session: &Session<'_>, round: &Round) -> bool {
        #[cfg(test)]
        crate::tests::sink_published(session.cfg.mutation, &self.sink);
        // Hints under the new id are this id's.
        let before = self.seen(round, session.memory_rate());
        if !self.start(session, round, false) {
            return false;
        }
        session.tell(&Event::Published { round: round.number, mode: self.mode });
        (self.state, self.since) = (State::Hinting, Instant::now());
        let seen = self.source.wait_seen(SEEN.min(self.first_wait));
        let wait = if seen { self.first_wait } else { Duration::ZERO };
        self.asking.asked(&before, wait);
        true
    }

    /// Publishes a new id. `again`: only to let the driver go on after a rest.
    fn start(&mut self, session: &Session<'_>, round: &Round, again: bool) -> bool {
        let epoch = EpochId { round: round.number, nth: self.nth };
        self.nth += 1;
        session.tell(&Event::Publishing { epoch, again });
        let (sink, observer) = (self.sink.clone(), session.observer.clone());
        self.source.start(Arc::new(Listener { sink, epoch, observer })).is_ok()
    }

    /// Ends the spell, the rest, or the wait for the driver to take its memory back, when it is
    /// time. False: the driver is gone.
    ///
    /// A driver is asked to rest only when it has announced the present id. One that has not come
    /// to it, in a busy guest, would find STOP in its place and do nothing, or take STOP for an id
    /// and hint all its memory for nothing. Waiting for its first hint would let it go through two
    /// blocks at a time, since it has begun the second when the first is seen. One that says nothing
    /// all the same gets a new id after [`SILENT`].
    pub(super) fn turn(&mut self, session: &Session<'_>, round: &Round) -> bool {
        let cfg = session.cfg;
        let elapsed = self.since.elapsed();
        match self.state {
            State::Returning => !self.source.returned() || self.publish(session, round),
            // Hints on their way still count. The guest's rest begins when the driver has stopped,
            // however long that takes.
            State::Resting if !self.source.rested() && self.asked.elapsed() < SILENT => {
                self.since = Instant::now();
                true
            }
            State::Resting if elapsed >= cfg.hint_rest => {
                self.sink.close();
                self.sink = Arc::new(self.sink.renew());
                (self.state, self.since) = (State::Hinting, Instant::now());
                self.start(session, round, true)
            }
            State::Hinting if elapsed >= cfg.hint_time && self.source.rest() => {
                (self.state, self.since, self.asked) =
                    (State::Resting, Instant::now(), Instant::now());
                true
            }
            _ => true,
        }
    }

    /// How long to hold back at most before looking again.
    pub(super) fn patience(&self, cfg: &SourceConfig) -> Duration {
        let spell = match self.state {
            State::Hinting => cfg.hint_time,
            State::Resting => cfg.hint_rest,
            State::Returning => return LOOK_FOR_RETURN.min(cfg.slice),
        };
        let left = spell.saturating_sub(self.since.elapsed());
        left.max(Duration::from_millis(1)).min(cfg.slice)
    }

    /// STOP: when this returns no hint has any effect.
    pub(super) fn close(&self, session: &Session<'_>) {
        self.source.stop();
        session.tell(&Event::Closed);
        self.sink.close();
    }

    /// DONE: the guest takes its memory back. When this returns no hint has any effect, until
    /// [`turn`](Self::turn) finds that the driver has come to that and publishes a new id, in the
    /// protected way: everything must be protected before.
    pub(super) fn take_back(&mut self, session: &Session<'_>) {
        self.source.done();
        session.tell(&Event::Closed);
        self.sink.close();
        self.sink = Arc::new(self.sink.switched());
        (self.state, self.mode, self.switched) = (State::Returning, HintMode::Protected, true);
    }

    pub(super) fn act(&mut self, round: &Round, link_rate: f64) -> Action {
        let seen = self.seen(round, link_rate);
        self.asking.act(&seen)
    }

    /// What the guest was expected to name and did not, in bytes, and whether it is much. The round
    /// is over.
    pub(super) fn unsaved(asking: &Asking, sink: &Sink, round: &Round) -> (u64, bool) {
        let page = PAGE_SIZE as u64;
        let named = sink.not_honoured() * page;
        let bytes = asking.unsaved((round.hinted() + round.zero()) * page, named);
        (bytes, asking.is_much(bytes))
    }

    /// What is known when the asking is over.
    pub(super) fn into_parts(self) -> (Asking, Arc<Sink>) {
        (self.asking, self.sink)
    }

    fn seen(&self, round: &Round, link_rate: f64) -> Seen {
        let page = PAGE_SIZE as u64;
        // In this order: hints that come between the readings must not count as idle.
        let (hints, named) = round.hints();
        let cleared = round.hinted() * page;
        Seen {
            now: self.began.elapsed(),
            driver: match self.state {
                State::Returning => Driver::Returning,
                State::Hinting if self.source.finished() => Driver::Finished,
                _ => Driver::Hinting,
            },
            hints,
            named: named * page,
            cleared,
            zero: round.zero() * page,
            remaining: round.remaining() * page,
            held: if self.switched { self.sink.held() * page } else { 0 },
            renamed: self.sink.renamed(),
            link_rate,
        }
    }
}
