//! From pausing the guest to the destination's Running.
//!
//! What follows the hand-off is decided by one flag of the guard, which is set *before* the first
//! byte of HandOff is given to the transport and taken back only if the transport took none.

use std::time::Duration;

use crate::bitmap::Bitmap;
use crate::config::SourceConfig;
use crate::error::{Error, Phase};
use crate::units::PAGE_SIZE;
use crate::wire::{Kind, STATE_PART, StateEnd, max_state};

use super::guard::Guard;
use super::migration::{Migration, Stopwatch};

/// Pauses the guest. Returns what was `dirty` before, and what has become so until then.
pub(super) fn pause(
    m: &mut Migration<'_>,
    guard: &mut Guard,
    mut dirty: Bitmap,
) -> Result<Bitmap, Error> {
    let machine = m.vm.machine.clone();
    m.meanwhile(move || machine.before_pause())?.map_err(Error::machine("prepare the pause"))?;
    m.tick(None)?;
    m.enter(Phase::LastRound);
    let predicted = m.predicted_downtime(dirty.count());
    m.paused = Stopwatch::start();
    m.peer.interrupt.limit.begin(pause_limit(m.cfg, predicted, m.nr_pages));
    guard.paused = true;
    m.vm.machine.pause().map_err(Error::machine("pause the guest"))?;
    m.report.downtime.pause_us = m.paused.lap();
    let mut last = m.map();
    m.vm.log.harvest(&mut last).map_err(Error::machine("harvest the dirty log"))?;
    dirty.or(&last);
    m.give_back(last);
    Ok(dirty)
}

/// The state of vCPUs and devices.
pub(super) fn save(m: &mut Migration<'_>) -> Result<Vec<u8>, Error> {
    m.enter(Phase::State);
    let state =
        m.vm.machine.save(m.peer.writer.version).map_err(Error::machine("save machine state"))?;
    if m.cfg.pause_limit.is_none() {
        // Its size was only guessed before. Ten times what sending it takes, as for all the rest.
        let time = m.sender.meter.time_on_link(state.len() as u64);
        m.peer.interrupt.limit.extend(time.saturating_mul(10));
    }
    m.report.state_bytes = state.len() as u64;
    m.report.downtime.state_us = m.paused.lap();
    Ok(state)
}

/// Sends the state. Returns when the destination has loaded it.
pub(super) fn send_state(m: &mut Migration<'_>, state: &[u8]) -> Result<(), Error> {
    m.enter(Phase::State);
    if state.len() > max_state(m.nr_pages) {
        return Err(Error::StateTooLarge(state.len() as u64));
    }
    let machine = m.vm.machine.clone();
    m.meanwhile(move || machine.let_go())?.map_err(Error::machine("let go of the disks"))?;
    for part in state.chunks(STATE_PART) {
        m.peer.writer.send(Kind::State, &[part])?;
    }
    let end = StateEnd { len: state.len() as u64, crc: crc32fast::hash(state) };
    m.peer.writer.send_control(Kind::StateEnd, &end)?;
    m.peer.expect(Kind::Loaded)?;
    m.report.downtime.state_us += m.paused.lap();
    Ok(())
}

/// Sends HandOff. Returns when the destination runs the guest.
pub(super) fn hand_over(m: &mut Migration<'_>, guard: &mut Guard) -> Result<(), Error> {
    m.enter(Phase::Commit);
    m.peer.interrupt.check()?;
    if !m.peer.interrupt.cancel.commit() {
        return Err(Error::Cancelled);
    }
    // From here on the guest may be the destination's: what follows has limits of its own.
    m.peer.interrupt.limit.lift();
    let before = m.peer.writer.bytes();
    guard.hand_over(true).map_err(Error::machine("hand over the guest as it was paused"))?;
    if let Err(cause) = m.peer.writer.send(Kind::HandOff, &[]) {
        // A write that fails has taken nothing, and less than a whole frame is nothing to the
        // destination; but only the first is beyond doubt, so only then does the guest stay here.
        if m.peer.writer.bytes() == before {
            guard.hand_over(false).map_err(Error::machine("take the guest back"))?;
        }
        return Err(cause);
    }
    m.report.downtime.commit_us = m.paused.lap();
    m.peer.expect(Kind::Running)?;
    m.report.downtime.resume_us = m.paused.lap();
    m.report.downtime.total_us = m.paused.total();
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_has_a_limit_whether_or_not_one_was_asked_for() {
        let seconds = Duration::from_secs;
        let cfg = SourceConfig { pause_limit: None, ..SourceConfig::default() };
        // 100 GB of RAM.
        let limit = |cfg: &SourceConfig, predicted| {
            pause_limit(cfg, seconds(predicted), 100_000_000_000 / 4096)
        };
        assert_eq!((limit(&cfg, 0), limit(&cfg, 3)), (seconds(10), seconds(30)));
        let verifies = SourceConfig { verify: true, ..cfg.clone() };
        assert_eq!(limit(&verifies, 3).as_secs(), 30 + 999);
        let asked = SourceConfig { pause_limit: Some(seconds(1)), ..verifies };
        assert_eq!(limit(&asked, 3), seconds(1));
        assert_eq!(pause_limit(&cfg, Duration::MAX, u64::MAX), Duration::MAX);
    }
}
