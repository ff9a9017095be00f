//! The source's side of a migration.
//!
//! # Sequence
//! handshake → log on → round one (hints arrive while sending) → rounds on the dirty set until the
//! predicted downtime fits → pause → harvest → last round → (verification) → state → the
//! destination says Loaded → HandOff → the destination says Running.
//!
//! STOP is published and the epoch closed before every harvest; each round has a new id. DONE comes
//! from the destination's balloon, some time after the guest runs there.
//!
//! # Who owns the guest
//! One fact decides: whether the source began to send HandOff.
//!
//! | broken | source | destination |
//! |---|---|---|
//! | before HandOff | resumes, log off, DONE; [`Ownership::SourceRuns`] | has no HandOff, never runs |
//! | HandOff sent in part, or sent and no Running came | never runs again; [`Ownership::Unknown`] | runs if HandOff arrived whole and untouched, else never |
//! | Running lost on its way | as above | runs |
//! | Running arrived | success: paused for good | runs |
//!
//! So never both, and where neither may run by itself both sides say so. The source counts HandOff
//! as sent as soon as the transport took its first byte. [`CancelToken::cancel`] and the hand-off
//! exclude each other by one atomic.
//!
//! From the pause to HandOff there is a limit on the whole, [`SourceConfig::pause_limit`]: after it
//! the guest resumes.
//!
//! Undoing is the work of a drop guard (module `guard`): it publishes DONE, resumes and stops the
//! log on every way out, a panic included.
//!
//! # Threads
//! One thread does everything in turn: it sends for a slice, looks at hints, sleeps. A second one
//! blocks in reading the destination's answers, so that an Abort interrupts sending within a
//! [`TICK`](crate::transport::TICK). Hints come on the device's thread. With several connections
//! for memory each has a thread that packs and writes (module `streams`). Nothing spins.

mod epoch;
mod guard;
mod record;
mod rounds;
mod sender;
mod session;
mod streams;
mod switchover;
mod verify;
mod witness;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::control::CancelToken;
use crate::error::{Error, Failure, Ownership, Phase};
use crate::hints::{HintMode, HintPolicy};
use crate::link::FrameLimit;
use crate::report::{Progress, Report};
use crate::round::millis;
use crate::traits::{PAGE_SIZE, SourceVm};
use crate::transport::Transport;
use guard::Guard;
use record::Record;
use session::Session;

/// What to do when the guest does not converge.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnTimeout {
    /// Give up; the guest goes on at the source.
    #[default]
    Fail,
    /// Switch over however long the downtime will be.
    Force,
}

/// Whether content is compressed on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// No.
    #[default]
    None,
    /// As LZ4 blocks, where that saves anything: for links that are slower than the CPU compresses.
    Lz4,
}

impl Compression {
    /// Whether there is none.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }

    /// As options and traces have it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
        }
    }
}

/// How to migrate.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// Whether to ask the guest for hints.
    pub hints: HintPolicy,
    /// How to honour them in round one.
    pub hint_mode: HintMode,
    /// Bytes per second on the wire at most, the last round included; `None` for no cap.
    pub bandwidth: Option<u64>,
    /// Whether to compress. The destination must be able to unpack it, or refuses.
    pub compression: Compression,
    /// Connections that carry memory, 1 to [`MAX_STREAMS`](crate::wire::MAX_STREAMS). With 1 the
    /// first connection carries it; with more, so many further ones do.
    pub streams: u32,
    /// Switch over when the predicted downtime is at most this.
    pub downtime_limit: Duration,
    /// Rounds with the guest running, at most. At least 1.
    pub max_rounds: u32,
    /// Time for these rounds; `None` for no limit. Looked at between rounds.
    pub total_timeout: Option<Duration>,
    /// What then.
    pub on_timeout: OnTimeout,
    /// Give a peer up that neither takes nor sends anything for this long.
    pub stall_timeout: Duration,
    /// How long a frame may take, once begun.
    pub frame_limit: FrameLimit,
    /// Longest time from pausing the guest to the hand-off, however its bytes trickle; then it goes
    /// on here. `None`: ten times the predicted downtime, 10 s at least, and with `verify` the
    /// time that reading its RAM at 100 MB/s takes.
    pub pause_limit: Option<Duration>,
    /// Longest wait for the first hint.
    pub first_hint_wait: Duration,
    /// Length of a pacing slice.
    pub slice: Duration,
    /// Longest time for which the guest is kept hinting under one id; Linux's driver does not yield
    /// while it hints.
    pub hint_time: Duration,
    /// Time that it gets for itself before the next id.
    pub hint_rest: Duration,
    /// Compare all memory before the hand-off, and give up if any of it is wrong: see
    /// [`crate::verify`].
    pub verify: bool,
    /// What pausing, state and hand-off add to the downtime, for the prediction.
    pub switchover_estimate: Duration,
    /// A deliberate mistake, for the tests that show that they notice.
    #[cfg(test)]
    pub(crate) mutation: Option<crate::tests::Mutation>,
}

impl Default for SourceConfig {
    fn default() -> Self {
        Self {
            hints: HintPolicy::Auto,
            hint_mode: HintMode::Auto,
            bandwidth: None,
            compression: Compression::None,
            streams: 1,
            downtime_limit: Duration::from_millis(300),
            max_rounds: 30,
            total_timeout: None,
            on_timeout: OnTimeout::Fail,
            stall_timeout: Duration::from_secs(30),
            frame_limit: FrameLimit::default(),
            pause_limit: None,
            first_hint_wait: Duration::from_millis(250),
            slice: Duration::from_millis(20),
            hint_time: Duration::from_millis(40),
            hint_rest: Duration::from_millis(10),
            verify: false,
            switchover_estimate: Duration::from_millis(10),
            #[cfg(test)]
            mutation: None,
        }
    }
}

/// Moves the guest to the destination at the other end of `transport`. Blocks until that is done or
/// has failed.
///
/// On success the machine is paused here and must never run again. On failure
/// [`Failure::ownership`] says who owns the guest; if it is the source, the guest already runs
/// again, and a second attempt may be made over a new connection.
pub fn migrate(
    vm: &SourceVm,
    transport: Box<dyn Transport>,
    cfg: &SourceConfig,
    progress: &dyn Progress,
    cancel: &CancelToken,
) -> Result<Report, Failure> {
    let started = Instant::now();
    let (record, recorded) = Record::start(progress.recorder(), vm, cfg);
    let vm = recorded.as_ref().unwrap_or(vm);
    let watched = cfg.verify.then(|| verify::Audit::of(vm));
    let (vm, audit) = match watched {
        Some((ref watched, audit)) => (watched, Some(audit)),
        None => (vm, None),
    };
    let mut guard = Guard::new(vm);
    let opened = Session::open(vm, transport, cfg, progress, cancel);
    let mut session = opened.map_err(|cause| Failure {
        phase: Phase::Handshake,
        ownership: Ownership::SourceRuns,
        cause,
    })?;
    (session.audit, session.record) = (audit, record);
    // A panic becomes a failure like any other, so that the guard says who owns the guest.
    match catch_unwind(AssertUnwindSafe(|| run(&mut session, &mut guard))) {
        Ok(Ok(mut report)) => {
            guard.succeed();
            report.total_bytes = session.bytes();
            report.nr_pages = session.nr_pages;
            report.total_ms = millis(started.elapsed());
            report.sent = report.rounds.iter().map(|r| r.sent).sum();
            report.hinting = session.hinting;
            report.compression = cfg.compression;
            report.streams = cfg.streams;
            report.hinted = report.rounds.iter().map(|r| r.hinted).sum();
            session.enter(Phase::Done);
            session.record.end(&report);
            Ok(report)
        }
        Err(_) => {
            let ownership = guard.undo();
            session.record.failed(session.phase, &Error::Panicked);
            // No word to the peer: who knows how much of the last frame is out.
            Err(Failure { phase: session.phase, ownership, cause: Error::Panicked })
        }
        Ok(Err(cause)) => {
            // The guest first: it has waited long enough.
            let ownership = guard.undo();
            let cause = session.explain(cause);
            session.record.failed(session.phase, &cause);
            if ownership != Ownership::Unknown {
                session.writer.abort(&describe(&cause));
            }
            Err(Failure { phase: session.phase, ownership, cause })
        }
    }
}

fn run(session: &mut Session<'_>, guard: &mut Guard) -> Result<Report, Error> {
    session.handshake()?;
    session.enter(Phase::Prepare);
    guard.log_started();
    let mut report = Report::default();
    let started = Instant::now();
    let mut dirty = rounds::round_one(session, &mut report)?;
    let mut expected;
    if let Some(first) = report.rounds.first() {
        report.round_one_bytes = first.bytes;
        let seconds = (first.duration_ms.max(1)) as f64 / 1000.0;
        report.pages_per_second = session.nr_pages as f64 / seconds;
    }
    loop {
        let pages = dirty.count();
        let predicted = session.time_for(pages) + session.cfg.switchover_estimate;
        session.record.prediction(predicted);
        expected = predicted;
        if predicted <= session.cfg.downtime_limit {
            break;
        }
        let rounds = report.rounds.len() as u32;
        let late = session.cfg.total_timeout;
        if rounds >= session.cfg.max_rounds || late.is_some_and(|t| started.elapsed() >= t) {
            match session.cfg.on_timeout {
                OnTimeout::Force => break,
                OnTimeout::Fail => {
                    return Err(Error::NotConverging {
                        rounds,
                        dirty_pages: pages,
                        predicted_ms: millis(predicted),
                    });
                }
            }
        }
        dirty = rounds::next_round(session, &dirty, &mut report)?;
    }
    let limit = pause_limit(session.cfg, expected, session.nr_pages);
    switchover::switchover(session, guard, dirty, limit, &mut report)?;
    Ok(report)
}

/// How long the guest may be paused before the hand-off. Going on here is safe until then, so a
/// limit costs one more attempt; none would let any peer keep the guest standing still.
fn pause_limit(cfg: &SourceConfig, predicted: Duration, nr_pages: u64) -> Duration {
    const LEAST: Duration = Duration::from_secs(10);
    const VERIFIED_PER_SECOND: f64 = 100e6;
    cfg.pause_limit.unwrap_or_else(|| {
        let limit = LEAST.max(predicted.saturating_mul(10));
        let bytes = nr_pages as f64 * PAGE_SIZE as f64;
        let verifying = Duration::from_secs_f64(bytes / VERIFIED_PER_SECOND);
        if cfg.verify { limit.saturating_add(verifying) } else { limit }
    })
}

/// An error and its sources in one line.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
