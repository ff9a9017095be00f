//! The source's side of a migration.
//!
//! # Sequence
//! handshake → log on → round one (hints arrive while sending) → rounds on the dirty set until the
//! predicted downtime fits → pause → harvest → last round → (verification) → state → the
//! destination says Loaded → HandOff → the destination says Running.
//!
//! Round one is harvested in the middle, too (module `halfway`).
//!
//! Each round has a new id. The epoch is closed before every harvest: DONE is published when asking
//! is over, STOP if the round is over first; what the driver holds then it is told to take back by
//! the destination's balloon, some time after the guest runs there.
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
//! So the two never both run, and where neither may run by itself both sides say so. The source
//! counts HandOff as sent as soon as the transport took its first byte. One atomic decides between
//! [`CancelToken::cancel`] and the hand-off.
//!
//! [`SourceConfig::pause_limit`] limits the time from the pause to HandOff; after it the guest
//! resumes.
//!
//! Undoing is the work of a drop guard (module `guard`): it publishes DONE, resumes and stops the
//! log on every way out, a panic included.
//!
//! # Threads
//! One thread does everything in turn: it sends for a slice, looks at hints, sleeps. A second one
//! blocks reading the destination's answers, so that an Abort interrupts sending within a
//! [`TICK`](crate::transport::TICK). Hints come on the device's thread. With several connections
//! for memory, each has a thread that reads, packs and writes (module `lanes`). No thread spins.

mod claim;
mod guard;
mod halfway;
mod lanes;
mod meter;
mod migration;
mod peer;
mod reader;
mod rounds;
mod sender;
mod switchover;
mod verify;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use crate::config::SourceConfig;
use crate::control::CancelToken;
use crate::error::{Error, Failure, Ownership, Phase, describe};
use crate::observe::{Event, Observer, Progress, watched};
use crate::report::Report;
use crate::traits::SourceVm;
use crate::transport::Transport;
use crate::units::millis;
use crate::verify::shadow::Shadow;
use guard::Guard;
use migration::Migration;
use peer::Peer;

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
    let shadow = cfg.verify.then(|| Arc::new(Shadow::new(vm.ram.nr_pages())));
    let mut observers: Vec<Arc<dyn Observer>> = progress.observer().into_iter().collect();
    observers.extend(shadow.clone().map(|shadow| -> Arc<dyn Observer> { shadow }));
    let observer: Arc<dyn Observer> = Arc::new(observers);
    let vm = &watched(vm, &observer);
    let mut guard = Guard::new(vm);
    let peer = Peer::new(transport, cfg, cancel).map_err(|cause| {
        let (phase, ownership) = (Phase::Handshake, Ownership::SourceRuns);
        observer.observe(&Event::Failed(phase, &cause));
        Failure { phase, ownership, cause }
    })?;
    let mut m = Migration::new(vm, cfg, peer, observer, progress);
    // A panic becomes a failure like any other, so that the guard says who owns the guest.
    let outcome = catch_unwind(AssertUnwindSafe(|| run(&mut m, &mut guard, shadow.as_deref())));
    let cause = match outcome {
        Ok(Ok(())) => {
            guard.succeed();
            m.report.total_bytes = m.bytes();
            m.report.total_ms = millis(started.elapsed());
            m.report.sent = m.report.rounds.iter().map(|r| r.sent).sum();
            m.report.hinted = m.report.hinting.hinted;
            m.enter(Phase::Done);
            m.tell(&Event::Succeeded(&m.report));
            return Ok(m.report);
        }
        Ok(Err(cause)) => cause,
        Err(_) => Error::Panicked,
    };
    // The guest first: it has waited long enough.
    let ownership = guard.undo();
    let phase = m.phase;
    let cause = m.peer.explain(cause, phase);
    m.tell(&Event::Failed(phase, &cause));
    // No word after a panic: who knows how much of the last frame is out.
    if ownership != Ownership::Unknown && !matches!(cause, Error::Panicked) {
        m.peer.writer.abort(&describe(&cause));
    }
    Err(Failure { phase, ownership, cause })
}

/// The sequence.
fn run(m: &mut Migration<'_>, guard: &mut Guard, shadow: Option<&Shadow>) -> Result<(), Error> {
    m.handshake()?;
    guard.log_on = true;
    let dirty = rounds::converge(m)?;
    let dirty = switchover::pause(m, guard, dirty)?;
    rounds::last(m, dirty)?;
    let state = switchover::save(m)?;
    verify::verify(m, shadow)?;
    switchover::send_state(m, &state)?;
    switchover::hand_over(m, guard)
}
