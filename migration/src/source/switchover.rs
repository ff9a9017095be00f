//! From pausing the guest to the destination's Running.
//!
//! What follows the hand-off is decided by one flag of the guard, which is set *before* the first
//! byte of HandOff is given to the transport and taken back only if the transport took none.

use std::time::{Duration, Instant};

use crate::bitmap::Bitmap;
use crate::error::{Error, Phase};
use crate::report::{Downtime, Report};
use crate::units::micros;
use crate::wire::{Kind, STATE_PART, StateEnd, max_state};

use super::guard::Guard;
use super::rounds;
use super::session::Session;
use super::verify;

/// Pauses, sends what is dirty and the state, and hands the guest over.
pub(super) fn switchover(
    session: &mut Session<'_>,
    guard: &mut Guard,
    mut dirty: Bitmap,
    limit: Duration,
    report: &mut Report,
) -> Result<(), Error> {
    session.tick(None)?;
    session.enter(Phase::LastRound);
    let start = Instant::now();
    session.interrupt.limit.begin(limit);
    guard.pausing();
    let machine = session.vm.machine.clone();
    machine.pause().map_err(Error::machine("pause the guest"))?;
    let paused = Instant::now();

    let mut last = Bitmap::new(session.nr_pages);
    let harvested = session.vm.log.harvest(&mut last);
    harvested.map_err(Error::machine("harvest the dirty log"))?;
    dirty.or(&last);
    rounds::last_round(session, &dirty, report)?;
    let sent = Instant::now();

    session.enter(Phase::State);
    let state = machine.save().map_err(Error::machine("save machine state"))?;
    if session.cfg.pause_limit.is_none() {
        // Its size was not known before. Ten times what sending it takes, as for all the rest.
        let seconds = 10.0 * state.len() as f64 / session.link_rate();
        session
            .interrupt
            .limit
            .extend(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
    }
    // After saving, which must not have changed memory either.
    let (saved, verify) = (Instant::now(), verify::verify(session)?);
    report.verify = verify;
    let verified = saved.elapsed();
    session.enter(Phase::State);
    send_state(session, &state)?;
    report.state_bytes = state.len() as u64;
    session.expect(Kind::Loaded)?;
    let loaded = Instant::now();

    session.enter(Phase::Commit);
    session.interrupt.check()?;
    if !session.interrupt.cancel.commit() {
        return Err(Error::Cancelled);
    }
    // From here on the guest may be the destination's: what follows has limits of its own.
    session.interrupt.limit.lift();
    let before = session.writer.bytes();
    guard.hand_over().map_err(Error::machine("hand over the guest as it was paused"))?;
    if let Err(cause) = session.writer.send(Kind::HandOff, &[]) {
        // A write that fails has taken nothing, and less than a whole frame is nothing to the
        // destination; but only the first is beyond doubt, so only then does the guest stay here.
        if session.writer.bytes() == before {
            guard.take_back().map_err(Error::machine("take the guest back"))?;
        }
        return Err(cause);
    }
    let committed = Instant::now();
    session.expect(Kind::Running)?;
    let running = Instant::now();
    report.downtime = Downtime {
        pause_us: micros(paused - start),
        last_round_us: micros(sent - paused),
        verify_us: if verify.is_some() { micros(verified) } else { 0 },
        state_us: micros((loaded - sent).saturating_sub(verified)),
        commit_us: micros(committed - loaded),
        resume_us: micros(running - committed),
        total_us: micros(running - start),
    };
    Ok(())
}

fn send_state(session: &mut Session<'_>, state: &[u8]) -> Result<(), Error> {
    if state.len() > max_state(session.nr_pages) {
        return Err(Error::StateTooLarge(state.len() as u64));
    }
    for part in state.chunks(STATE_PART) {
        session.writer.send(Kind::State, &[part])?;
    }
    let end = StateEnd { len: state.len() as u64, crc: crc32fast::hash(state) };
    session.writer.send_control(Kind::StateEnd, "state end", &end)
}
