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
//! for memory each has a thread that packs and writes (module `lanes`). Nothing spins.

mod epoch;
mod guard;
mod lanes;
mod meter;
mod rounds;
mod sender;
mod session;
mod switchover;
mod verify;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{OnTimeout, SourceConfig};
use crate::control::CancelToken;
use crate::error::{Error, Failure, Ownership, Phase, describe};
use crate::observe::{Event, Observer, Progress, watched};
use crate::report::Report;
use crate::traits::SourceVm;
use crate::transport::Transport;
use crate::units::{PAGE_SIZE, millis};
use crate::verify::shadow::Shadow;
use guard::Guard;
use session::Session;

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
    let shadow = cfg.verify.then(|| Shadow::new(vm.ram.nr_pages()));
    let mut observers: Vec<Arc<dyn Observer>> = progress.observer().into_iter().collect();
    observers.extend(shadow.clone().map(|shadow| -> Arc<dyn Observer> { shadow }));
    let observer: Arc<dyn Observer> = Arc::new(observers);
    let vm = &watched(vm, &observer);
    let mut guard = Guard::new(vm);
    let opened = Session::open(vm, transport, cfg, progress, cancel);
    let mut session = opened.map_err(|cause| Failure {
        phase: Phase::Handshake,
        ownership: Ownership::SourceRuns,
        cause,
    })?;
    (session.shadow, session.observer) = (shadow, observer);
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
            session.tell(&Event::Succeeded(&report));
            Ok(report)
        }
        Err(_) => {
            let ownership = guard.undo();
            session.tell(&Event::Failed(session.phase, &Error::Panicked));
            // No word to the peer: who knows how much of the last frame is out.
            Err(Failure { phase: session.phase, ownership, cause: Error::Panicked })
        }
        Ok(Err(cause)) => {
            // The guest first: it has waited long enough.
            let ownership = guard.undo();
            let cause = session.explain(cause);
            session.tell(&Event::Failed(session.phase, &cause));
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
        session.tell(&Event::Predicted(predicted));
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
