//! An epoch: the time from publishing an id until STOP or DONE, in which hints count.
//!
//! **Hinting in bursts.** Linux's driver allocates and hints block after block without yielding, so
//! a guest with one vCPU does nothing else until it has finished: seconds, if it zeroes. But it
//! looks at the id after each block. So each id is good for a short burst; then the driver is asked
//! to rest, the guest's other work runs, and a new id follows. The driver keeps what it has hinted
//! and goes on with what is left. Its hints count during the rest, too: the epoch is open until
//! asking ends, or the round does.
//!
//! **Taking back.** The driver names what could not be honoured again only if it got it back. DONE
//! makes it take everything back, but only once its work item runs. A new id published before that
//! would take DONE's place: the driver would go on, still hold what it named, and never name it
//! again. So no new id is published before the device says that the driver cannot miss DONE any
//! more, however long that takes. The sink is closed meanwhile, and the sender waits or sends, as
//! the policy says.
//!
//! **The end.** When the driver is through, or is not to be asked any more, it is told DONE at
//! once. The guest then has its memory while it is moved. What it writes to take it back, a page of
//! structures for each 64 that it named, is mostly still to be sent, or found by the harvest in the
//! middle ([`crate::source`]). A guest that poisons or zeroes what it frees would write all of it
//! once more: it is told STOP, and takes it back at the destination.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bitmap::AtomicBitmap;
use crate::config::{HintMode, HintPolicy, SourceConfig};
use crate::observe::{EpochId, Event, Observer};
use crate::report::Reason;
use crate::round::Round;
use crate::traits::{HintSource, SourceVm};
use crate::units::PAGE_SIZE;

use super::policy::{Action, Asking, Driver, Seen};
use super::sink::{ObservedSink, Sink};

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

/// What the sender is to do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Step {
    /// Send for a slice; hints may come meanwhile.
    Send,
    /// Hold back for so long, and ask again.
    Hold(Duration),
    /// The guest does not zero what it hints, or holds what could not be honoured: it was told to
    /// take its memory back. Protect everything before the next step.
    Protect,
    /// The driver is not asked any more in this round.
    Over(Reason),
}

/// What an epoch belongs to.
#[derive(Clone)]
pub(crate) struct EpochContext<'a> {
    pub(crate) vm: &'a SourceVm,
    pub(crate) cfg: &'a SourceConfig,
    pub(crate) source: &'a Arc<dyn HintSource>,
    pub(crate) round: Arc<Round>,
    pub(crate) observer: Arc<dyn Observer>,
}

/// Hints of one round: the published id and what listens to it, or the rest between two ids.
pub(crate) struct Epoch<'a> {
    of: EpochContext<'a>,
    sink: Arc<Sink>,
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
    mode: HintMode,
    /// What was not honoured may be left: it need not be counted before.
    switched: bool,
    /// Why it is closed, if it is.
    over: Option<Reason>,
}

impl<'a> Epoch<'a> {
    /// For round one, in the way that is wanted. `guarded`: the words that are protected. By the
    /// guest's statistics `expected` bytes are to be sent and free; 0 if they do not tell.
    pub(crate) fn first(of: EpochContext<'a>, guarded: &Arc<AtomicBitmap>, expected: u64) -> Self {
        let (ram, log, wanted) = (&of.vm.ram, &of.vm.log, of.cfg.hint_mode);
        let (sink, mode) = match wanted {
            HintMode::Protected => (Sink::protected(&of.round, ram, log), wanted),
            _ => {
                let probe = wanted == HintMode::Auto;
                let sink = Sink::checked_zero(&of.round, ram, log, guarded, probe);
                (sink, HintMode::CheckedZero)
            }
        };
        let first_wait = of.cfg.first_hint_wait;
        Self::new(of, sink, mode, first_wait, expected)
    }

    /// For a later round, all of which is protected. Most of its pages are in use: nobody waits for
    /// the first hint.
    pub(crate) fn later(of: EpochContext<'a>) -> Self {
        let sink = Sink::protected(&of.round, &of.vm.ram, &of.vm.log);
        Self::new(of, sink, HintMode::Protected, Duration::ZERO, 0)
    }

    fn new(
        of: EpochContext<'a>,
        sink: Sink,
        mode: HintMode,
        first_wait: Duration,
        expected: u64,
    ) -> Self {
        let now = Instant::now();
        let judges = of.cfg.hints == HintPolicy::Auto;
        Self {
            of,
            sink: Arc::new(sink),
            began: now,
            since: now,
            state: State::Returning,
            nth: 0,
            asked: now,
            asking: Asking::new(expected, judges),
            first_wait,
            mode,
            switched: false,
            over: None,
        }
    }

    /// `None`: there is no driver (any more) to ask. A driver that has yet to take back what it
    /// hinted in an earlier migration is asked when it has come to that.
    pub(crate) fn open(mut self, link_rate: f64) -> Option<Self> {
        let published = !self.of.source.returned() || self.publish(link_rate);
        published.then_some(self)
    }

    /// How hints are honoured now.
    pub(crate) fn mode(&self) -> HintMode {
        self.mode
    }

    /// Whether a later round may ask again. Another driver may be there by then.
    pub(crate) fn may_ask_again(&self) -> bool {
        self.mode == HintMode::Protected && self.over != Some(Reason::DoesNotPay)
    }

    /// Whether no hint has any effect any more.
    pub(crate) fn is_over(&self) -> bool {
        self.over.is_some()
    }

    /// Decides the next slice. `link_rate`: bytes of guest memory that the link takes in a second.
    pub(crate) fn step(&mut self, link_rate: f64) -> Step {
        if self.over.is_some() {
            return Step::Send;
        }
        let action = match self.sink.not_zeroing() {
            true => Action::TakeBack,
            false => self.asking.act(&self.seen(link_rate)),
        };
        let over = match action {
            Action::TakeBack => {
                self.take_back();
                return Step::Protect;
            }
            Action::End(why) => Some(why),
            _ => (!self.turn(link_rate)).then_some(Reason::DriverGone),
        };
        match over {
            Some(why) => {
                match self.of.source.writes_what_it_frees() {
                    // All that it hinted would be dirty.
                    true => self.of.source.stop(),
                    // It has its memory back while it is moved, and need not take it all back in
                    // one go at the destination.
                    false => self.of.source.done(),
                }
                self.closed(why);
                Step::Over(why)
            }
            None if action == Action::Hold && self.of.round.remaining() > 0 => {
                Step::Hold(self.patience())
            }
            None => Step::Send,
        }
    }

    /// The round is over. When this returns no hint has any effect. Idempotent.
    ///
    /// STOP, if the driver is still at it: the pause may be next, and what it would take back now
    /// would be sent in it.
    pub(crate) fn close(&mut self) {
        if self.over.is_none() {
            self.of.source.stop();
            self.closed(Reason::On);
        }
    }

    /// What the guest was expected to name and did not, in bytes, and whether it is much. The round
    /// is over.
    pub(crate) fn unsaved(&self) -> (u64, bool) {
        let (round, page) = (&self.of.round, PAGE_SIZE as u64);
        let named = self.sink.not_honoured() * page;
        let bytes = self.asking.unsaved((round.hinted() + round.zero()) * page, named);
        (bytes, self.asking.is_much(bytes))
    }

    /// False: there is no driver any more.
    fn publish(&mut self, link_rate: f64) -> bool {
        // Hints under the new id are this id's.
        let before = self.seen(link_rate);
        if !self.start(false) {
            return false;
        }
        self.tell(&Event::Published { round: self.of.round.number, mode: self.mode });
        (self.state, self.since) = (State::Hinting, Instant::now());
        let seen = self.of.source.wait_seen(SEEN.min(self.first_wait));
        let wait = if seen { self.first_wait } else { Duration::ZERO };
        self.asking.asked(&before, wait);
        true
    }

    /// Publishes a new id. `again`: only to let the driver go on after a rest.
    fn start(&mut self, again: bool) -> bool {
        let epoch = EpochId { round: self.of.round.number, nth: self.nth };
        self.nth += 1;
        self.tell(&Event::Publishing { epoch, again });
        let (sink, observer) = (self.sink.clone(), self.of.observer.clone());
        self.of.source.start(Arc::new(ObservedSink { sink, epoch, observer })).is_ok()
    }

    /// Ends the burst, the rest, or the wait for the driver to take its memory back, when it is
    /// time. False: the driver is gone.
    ///
    /// A driver is asked to rest only when it has announced the present id. One that has not come
    /// to it, in a busy guest, would find STOP in its place and do nothing, or take STOP for an id
    /// and hint all its memory for nothing. Waiting for its first hint instead would make every
    /// burst two blocks long: the driver has begun the second when the first is seen. One that
    /// still says nothing gets a new id after [`SILENT`].
    fn turn(&mut self, link_rate: f64) -> bool {
        let (cfg, elapsed) = (self.of.cfg, self.since.elapsed());
        match self.state {
            State::Returning => !self.of.source.returned() || self.publish(link_rate),
            // Hints on their way still count. The guest's rest begins when the driver has stopped,
            // however long that takes.
            State::Resting if !self.of.source.rested() && self.asked.elapsed() < SILENT => {
                self.since = Instant::now();
                true
            }
            State::Resting if elapsed >= cfg.hint_rest => {
                self.sink.close();
                self.sink = Arc::new(self.sink.renew());
                (self.state, self.since) = (State::Hinting, Instant::now());
                self.start(true)
            }
            State::Hinting if elapsed >= cfg.hint_time && self.of.source.rest() => {
                (self.state, self.since, self.asked) =
                    (State::Resting, Instant::now(), Instant::now());
                true
            }
            _ => true,
        }
    }

    /// How long to hold back at most before looking again.
    fn patience(&self) -> Duration {
        let cfg = self.of.cfg;
        let burst = match self.state {
            State::Hinting => cfg.hint_time,
            State::Resting => cfg.hint_rest,
            State::Returning => return LOOK_FOR_RETURN.min(cfg.slice),
        };
        let left = burst.saturating_sub(self.since.elapsed());
        left.max(Duration::from_millis(1)).min(cfg.slice)
    }

    /// STOP or DONE is published.
    fn closed(&mut self, why: Reason) {
        self.tell(&Event::Closed);
        self.sink.close();
        self.over = Some(why);
    }

    /// DONE: the guest takes its memory back. When this returns no hint has any effect, until
    /// [`turn`](Self::turn) finds that the driver has come to that and publishes a new id, in the
    /// protected way: everything must be protected before.
    fn take_back(&mut self) {
        self.of.source.done();
        self.tell(&Event::Closed);
        self.sink.close();
        self.sink = Arc::new(self.sink.switched());
        (self.state, self.mode, self.switched) = (State::Returning, HintMode::Protected, true);
    }

    fn tell(&self, event: &Event<'_>) {
        self.of.observer.observe(event);
    }

    fn seen(&self, link_rate: f64) -> Seen {
        let (round, page) = (&self.of.round, PAGE_SIZE as u64);
        // In this order: hints that come between the readings must not count as idle.
        let (hints, named) = (round.hints(), round.hint_bytes());
        let cleared = round.hinted() * page;
        Seen {
            now: self.began.elapsed(),
            driver: match self.state {
                State::Returning => Driver::Returning,
                State::Hinting if self.of.source.finished() => Driver::Finished,
                _ => Driver::Hinting,
            },
            hints,
            named,
            cleared,
            zero: round.zero() * page,
            remaining: round.remaining() * page,
            held: if self.switched { self.sink.held() * page } else { 0 },
            renamed: self.sink.renamed(),
            link_rate,
        }
    }
}
