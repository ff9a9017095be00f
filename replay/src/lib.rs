//! What a recorded migration would have been under other settings.
//!
//! [`Trace::read`] believes nothing of a trace file, [`Replay`] learns from it how the guest and
//! the link behaved, and [`Replay::simulate`] runs the engine's rules over that: the same pacer,
//! the same prediction, the same end. Pure arithmetic; no clock, no randomness: the same trace
//! gives the same answer.
//!
//! # What is simulated
//! - **Round one** goes through the cells of the trace's map in order. Each hint takes its pages
//!   out of the cells that it names, at its recorded time, unless they were sent before; the rest
//!   goes out at the link's rate, and while the [policy](wherry_migration::hinting::policy) says so
//!   nothing goes out.
//! - **Dirty pages** grow with time as they did: within what was seen by interpolation, beyond it
//!   by a curve fitted to all of it ([`growth`]).
//! - **Later rounds** carry of each dirty set the part with content that the recorded round had.
//! - **The end** is the engine's: the predicted downtime against the limit, or the number of
//!   rounds.
//!
//! # What is not
//! The guest does the same things at the same times: one that a smaller link slows down, or whose
//! CPU the sender shares, does not. Hints that the driver had no time to give are unknown; without
//! hints what they named counts as content.
#![forbid(unsafe_code)]

pub mod growth;
mod model;
mod read;
mod sim;
#[cfg(test)]
mod tests;

use serde::Serialize;

pub use model::Replay;
pub use read::{ReadError, Trace};

/// Settings of a simulated migration.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Cap in bytes per second.
    pub bandwidth: Option<u64>,
    /// Connections that carry memory, from 1.
    pub streams: u32,
    /// Microseconds.
    pub downtime_limit_us: u64,
    /// Whether hints are used. False counts what they named as content.
    pub hints: bool,
    /// Rounds with the guest running, at most.
    pub max_rounds: u32,
    /// After these the guest is paused all the same.
    pub force: bool,
}

/// What came of a migration, recorded or simulated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Outcome {
    /// Whether it came to an end; otherwise the guest stays where it is and the last two figures
    /// are 0.
    pub converged: bool,
    /// Wire bytes of round one.
    pub round_one_bytes: u64,
    /// All wire bytes.
    pub total_bytes: u64,
    /// Rounds, the last one included.
    pub rounds: u32,
    /// Dirty pages after the last round with the guest running.
    pub dirty_pages: u64,
    /// Milliseconds from the beginning to the destination's answer.
    pub total_ms: f64,
    /// Milliseconds without a running guest.
    pub downtime_ms: f64,
}

impl Outcome {
    /// How far this is from `was`, of the same migration.
    #[must_use]
    pub fn error_from(&self, was: &Self) -> OutcomeError {
        let off = |is: f64, was: f64| {
            let percent = if was > 0.0 { (is - was) / was * 100.0 } else { 0.0 };
            (percent * 100.0).round() / 100.0
        };
        OutcomeError {
            round_one_bytes: off(self.round_one_bytes as f64, was.round_one_bytes as f64),
            total_bytes: off(self.total_bytes as f64, was.total_bytes as f64),
            total_ms: off(self.total_ms, was.total_ms),
            downtime_ms: off(self.downtime_ms, was.downtime_ms),
        }
    }
}

/// How far one outcome is from another, in per cent of the other, to two digits; 0 where the other
/// is 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[allow(missing_docs)] // As in `Outcome`.
pub struct OutcomeError {
    pub round_one_bytes: f64,
    pub total_bytes: f64,
    pub total_ms: f64,
    pub downtime_ms: f64,
}
