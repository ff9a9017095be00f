//! What a migration tells about itself: progress while it runs, a report when it is done. Plain
//! data, `serde::Serialize`.
//!
//! Identity of every round, checked by the engine before the report is built:
//! `sent + zero + hole + hinted + ballooned + clean = pages of guest RAM`.
//!
//! # What hints saved
//! *Bytes saved* are the pages that were skipped for a hint and not written before the round ended
//! (`hinted − overridden`), as if each had content: what they held before the guest was asked is
//! not known any more if it zeroes what it hints. So it is an upper bound, and exact for memory
//! that was used and freed. It is guest memory: compressed it would have been fewer bytes on the
//! wire.
//!
//! *Time saved* is what these bytes would have taken at the link's rate (with compression, of what
//! else was sent), less the time for which the sender held back for hints. The rate is the measured
//! one, or the cap where that is lower. Negative: the waiting cost more than the hints saved. What
//! hinting costs the guest is not in it.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

use crate::config::{Compression, HintMode};
use crate::error::Phase;
use crate::units::PAGE_SIZE;
use crate::verify::verdict::VerifyReport;

/// One round.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
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
    /// Pages skipped because they are in the balloon.
    pub ballooned: u64,
    /// Pages that did not need this round.
    pub clean: u64,
    /// What hints did.
    #[serde(flatten)]
    pub hinting: HintFigures,
    /// Length of the round in milliseconds.
    pub duration_ms: u64,
    /// How hints were honoured; `None` if none were asked for, and for whoever reads a report: it
    /// may be of an engine that knows other ways.
    #[serde(skip_deserializing)]
    pub hint_mode: Option<HintMode>,
    /// Milliseconds that the sender held back for hints.
    pub held_ms: u64,
    /// Dirty pages in the harvest that ended the round, and those that one in its middle left.
    pub dirty_at_end: u64,
}

/// What hints did: in one round, or in several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HintFigures {
    /// Bytes named by all hints, useful or not.
    pub hint_bytes: u64,
    /// Pages skipped because of a hint.
    pub hinted: u64,
    /// Hinted pages that were not skipped: sent before the hint came, or the epoch was closed.
    pub hinted_too_late: u64,
    /// The part of `hinted_too_late` that was sent before its hint came, in the same round: bytes
    /// that more patience had saved.
    pub sent_then_hinted: u64,
    /// Pages skipped for a hint and found in the next harvest: written since.
    pub overridden: u64,
    /// From asking to the first hint, in milliseconds; of several rounds, in the first that got
    /// one.
    pub time_to_first_hint_ms: Option<u64>,
    /// Bytes named by hints per second, from the first hint to the last; of several rounds, the
    /// highest. 0 with fewer than two hints.
    pub hint_rate: u64,
    /// Bytes that were not sent thanks to hints: see the module's text.
    pub saved_bytes: u64,
    /// Time that this saved in milliseconds: see the module's text.
    pub saved_ms: i64,
}

impl HintFigures {
    /// Adds another round's.
    pub fn add(&mut self, round: &Self) {
        self.hint_bytes += round.hint_bytes;
        self.hinted += round.hinted;
        self.hinted_too_late += round.hinted_too_late;
        self.sent_then_hinted += round.sent_then_hinted;
        self.overridden += round.overridden;
        self.time_to_first_hint_ms = self.time_to_first_hint_ms.or(round.time_to_first_hint_ms);
        self.hint_rate = self.hint_rate.max(round.hint_rate);
        self.saved_bytes += round.saved_bytes;
        self.saved_ms = self.saved_ms.saturating_add(round.saved_ms);
    }
}

impl RoundReport {
    /// Fills in what hints saved, at a link rate in bytes per second.
    pub fn set_savings(&mut self, link_rate: f64) {
        let hints = &mut self.hinting;
        hints.saved_bytes = hints.hinted.saturating_sub(hints.overridden) * PAGE_SIZE as u64;
        let saved = hints.saved_bytes as f64 * 1000.0 / link_rate.max(1.0);
        hints.saved_ms = (saved - self.held_ms as f64) as i64;
    }
}

/// Where the downtime went, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
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

/// Why hints are asked for, or not, or not any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Reason {
    /// Nothing speaks against it.
    #[default]
    On,
    /// There is no balloon.
    NoBalloon,
    /// [`HintPolicy::Off`](crate::HintPolicy::Off).
    NotWanted,
    /// The guest's driver cannot hint, or is not there.
    NoDriver,
    /// Too little could be saved.
    LittleFree,
    /// What could be saved is sent in no time.
    FastLink,
    /// The last hints all named memory that needs no sending.
    OnlyIdle,
    /// Most of what was hinted needs no sending.
    DoesNotPay,
    /// A guest decides when its driver goes: that costs it the hints, never the migration.
    DriverGone,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::On => "on",
            Self::NoBalloon => "off: the machine has no balloon",
            Self::NotWanted => "off: not wanted",
            Self::NoDriver => "off: the guest's driver does not hint",
            Self::LittleFree => "off: little populated memory is free",
            Self::FastLink => "off: the link is faster than the hints could save",
            Self::OnlyIdle => "on, until only memory that needs no sending was hinted",
            Self::DoesNotPay => "stopped early: most of what was hinted needed no sending",
            Self::DriverGone => "stopped early: the guest's driver does not hint any more",
        })
    }
}

/// Whether hints were used, for people. In a report it is its text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HintUse {
    /// Why, or why not.
    pub reason: Reason,
    /// Bytes that the guest called free and did not name in time, if they are many.
    pub unnamed_bytes: Option<u64>,
}

impl From<Reason> for HintUse {
    fn from(reason: Reason) -> Self {
        Self { reason, unnamed_bytes: None }
    }
}

impl fmt::Display for HintUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(bytes) = self.unnamed_bytes else { return self.reason.fmt(f) };
        let (reason, mb) = (self.reason, bytes / 1_000_000);
        write!(f, "{reason}; {mb} MB that the guest called free were not named in time")
    }
}

impl Serialize for HintUse {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
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
    /// Bytes of kernel and initrd, which a destination that has them does not need; part of the
    /// total.
    pub boot_file_bytes: u64,
    /// Whether the destination was told what the guest boots at a reset; else that ends it there.
    #[serde(skip)]
    pub boot_told: bool,
    /// Pages sent with content, all rounds.
    pub sent: u64,
    /// Pages skipped for hints, all rounds.
    pub hinted: u64,
    /// What hints did, all rounds.
    pub hinting: HintFigures,
    /// Where the downtime went.
    pub downtime: Downtime,
    /// From the first byte to the destination's last answer, in milliseconds.
    pub total_ms: u64,
    /// Pages of guest RAM dealt with per second of round one, however they were dealt with.
    pub pages_per_second: f64,
    /// Whether content was compressed. If so a page that was sent may have taken less than its 4096
    /// bytes.
    pub compression: Compression,
    /// Connections that carried memory.
    pub streams: u32,
    /// Whether hints were used, and why not.
    pub hints: HintUse,
    /// Bytes of round one that were sent although they were free by the guest's statistics, or were
    /// named and not honoured. Small blocks, which no hint names, are part of it.
    pub expected_unsaved_bytes: u64,
    /// The comparison of both sides' memory, if it was asked for.
    pub verify: Option<VerifyReport>,
}

/// A moment of a running migration.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
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
    /// What hints did in this round so far; waiting for them is counted at the round's end.
    pub round_hinting: HintFigures,
    /// What hints did since the start.
    pub hinting: HintFigures,
    /// Bytes on the wire since the start.
    pub bytes: u64,
    /// Measured link rate in bytes per second; 0 until measured.
    pub rate: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hints_saved() {
        let hinting = HintFigures { hinted: 1000, overridden: 200, ..Default::default() };
        let mut round = RoundReport { hinting, held_ms: 30, ..Default::default() };
        round.set_savings(4_096_000.0);
        assert_eq!((round.hinting.saved_bytes, round.hinting.saved_ms), (800 * 4096, 770));
        // Waiting for nothing.
        let mut vain = RoundReport { held_ms: 250, ..Default::default() };
        vain.set_savings(4_096_000.0);
        assert_eq!((vain.hinting.saved_bytes, vain.hinting.saved_ms), (0, -250));
        let first = HintFigures { time_to_first_hint_ms: Some(7), hint_rate: 5, ..vain.hinting };
        let mut all = HintFigures::default();
        all.add(&first);
        all.add(&HintFigures { time_to_first_hint_ms: Some(9), hint_rate: 3, ..round.hinting });
        assert_eq!(all.time_to_first_hint_ms, Some(7));
        assert_eq!(
            (all.hint_rate, all.saved_bytes, all.saved_ms, all.hinted),
            (5, 800 * 4096, 520, 1000)
        );
    }
}
