//! What a migration tells about itself: progress while it runs, a report when it is done. Plain data, `serde::Serialize`.
//!
//! Identity of every round, checked by the engine before the report is built:
//! `sent + zero + hole + hinted + ballooned + clean = pages of guest RAM`.

use serde::Serialize;

use crate::error::Phase;
use crate::hints::HintMode;
use crate::trace::Recorder;
use crate::verify::VerifyReport;

/// One round.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RoundReport {
    /// Number, from 1.
    pub round: u32,
    /// Bytes on the wire, headers included.
    pub bytes: u64,
    /// Pages sent with content.
    pub sent: u64,
    /// Pages that were read and are zero.
    pub zero: u64,
    /// Pages that the host never populated: zero without reading.
    pub hole: u64,
    /// Pages skipped because of a hint.
    pub hinted: u64,
    /// Pages skipped because they are in the balloon.
    pub ballooned: u64,
    /// Pages that did not need this round.
    pub clean: u64,
    /// Hinted pages that were not skipped: sent before the hint came, or the epoch was closed.
    pub hinted_too_late: u64,
    /// The part of `hinted_too_late` that was sent in this round before its hint came: bytes that more patience had saved.
    pub sent_then_hinted: u64,
    /// Pages skipped for a hint and found in the next harvest: written since.
    pub overridden: u64,
    /// Bytes named by all hints of the round, useful or not.
    pub hint_bytes: u64,
    /// Length of the round in milliseconds.
    pub duration_ms: u64,
    /// From publishing the id to the first hint, in milliseconds; `None` without a hint.
    pub time_to_first_hint_ms: Option<u64>,
    /// How hints were honoured; `None` if none were asked for.
    pub hint_mode: Option<HintMode>,
    /// Milliseconds that the sender held back for hints.
    pub held_ms: u64,
    /// Dirty pages in the harvest that ended the round.
    pub dirty_at_end: u64,
}

/// Where the downtime went, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Downtime {
    /// Stopping vCPUs and devices.
    pub pause_us: u64,
    /// Last harvest and last round.
    pub last_round_us: u64,
    /// Comparing memory; 0 unless that was asked for.
    pub verify_us: u64,
    /// Saving, sending and loading vCPU and device state.
    pub state_us: u64,
    /// Sending HandOff.
    pub commit_us: u64,
    /// From there until the destination says that the guest runs.
    pub resume_us: u64,
    /// From the start of pausing to that answer.
    pub total_us: u64,
}

/// A migration that succeeded.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// All rounds, the last one (guest paused) included.
    pub rounds: Vec<RoundReport>,
    /// Pages of guest RAM.
    pub nr_pages: u64,
    /// Wire bytes of round one.
    pub round_one_bytes: u64,
    /// All bytes the source sent.
    pub total_bytes: u64,
    /// Bytes of vCPU and device state.
    pub state_bytes: u64,
    /// Pages sent with content, all rounds.
    pub sent: u64,
    /// Pages skipped for hints, all rounds.
    pub hinted: u64,
    /// Where the downtime went.
    pub downtime: Downtime,
    /// From the first byte to the destination's last answer, in milliseconds.
    pub total_ms: u64,
    /// Pages of guest RAM dealt with per second of round one, however they were dealt with.
    pub pages_per_second: f64,
    /// Why hints were used or not, in words.
    pub hints: String,
    /// The comparison of both sides' memory, if it was asked for.
    pub verify: Option<VerifyReport>,
}

/// A moment of a running migration.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Snapshot {
    /// Where it is.
    pub phase: Phase,
    /// Round, from 1; 0 before the first.
    pub round: u32,
    /// Pages sent with content in this round.
    pub sent: u64,
    /// Pages still to be dealt with in this round.
    pub remaining: u64,
    /// Pages skipped for hints in this round.
    pub hinted: u64,
    /// Bytes on the wire since the start.
    pub bytes: u64,
    /// Measured link rate in bytes per second; 0 until measured.
    pub rate: u64,
}

/// Receives snapshots about every 200 ms and at each phase's start, on the migration's thread: return soon.
pub trait Progress: Sync {
    /// One snapshot.
    fn update(&self, snapshot: &Snapshot);

    /// Who takes the trace, if one is wanted. Asked once.
    fn recorder(&self) -> Option<&dyn Recorder> {
        None
    }
}

/// No progress wanted.
impl Progress for () {
    fn update(&self, _: &Snapshot) {}
}

/// A closure is a progress receiver.
impl<F: Fn(&Snapshot) + Sync> Progress for F {
    fn update(&self, snapshot: &Snapshot) {
        self(snapshot);
    }
}
