//! A migration over time, for `--trace`, `--report` and `wherry replay`: what was sent, hinted, dirtied and decided, and when.
//!
//! A trace is JSON Lines: one [`Event`] a line, in order of time, [`What::Start`] first and, if it succeeded, [`What::End`] last.
//! Who reads one must skip events and fields that it does not know, and take absent fields for zero; [`VERSION`] changes only when the
//! meaning of an old field does. The format is documented for users in `docs/trace.md`.
//!
//! Counts are pages unless the name says bytes; times are microseconds since the migration began.

use serde::{Deserialize, Serialize};

/// Version of the format.
pub const VERSION: u32 = 1;

/// Cells of a memory map at most: each stands for an equal share of guest RAM.
pub const MAX_CELLS: u64 = 4096;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Microseconds since the migration began.
    pub t_us: u64,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// What a line tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// The settings.
    Start {
        /// [`VERSION`].
        version: u32,
        /// Pages of guest RAM.
        nr_pages: u64,
        /// `auto`, `on` or `off`.
        hints: String,
        /// Cap in bytes per second.
        bandwidth: Option<u64>,
        /// Microseconds.
        downtime_limit_us: u64,
        /// Rounds with the guest running, at most.
        max_rounds: u32,
    },
    /// A phase begins: see [`Phase`](crate::Phase).
    Phase {
        /// Its name.
        phase: String,
    },
    /// A round is planned: the four classes sum up to guest RAM.
    Round {
        /// From 1.
        round: u32,
        /// Pages to deal with.
        to_send: u64,
        /// Never populated.
        hole: u64,
        /// In the balloon.
        ballooned: u64,
        /// Not written since they were sent.
        clean: u64,
    },
    /// An id was published: hints may come.
    Publish {
        /// The round that it belongs to.
        round: u32,
        /// How its hints are honoured: `protected` or `checked_zero`.
        mode: String,
    },
    /// The driver was asked to rest, found to be done, gone, or not worth asking any more.
    Decision {
        /// In a few words.
        what: String,
    },
    /// Hints since the last such line.
    Hints {
        /// Ranges, as `[first page, pages]`.
        ranges: Vec<(u64, u64)>,
    },
    /// Where the round stands; about every 50 ms and at its end.
    Slice {
        /// From 1.
        round: u32,
        /// All bytes on the wire since the migration began.
        bytes: u64,
        /// Pages of this round sent with content.
        sent: u64,
        /// Pages of this round read and found zero.
        zero: u64,
        /// Pages of this round skipped for hints.
        hinted: u64,
        /// Pages of this round still to deal with.
        remaining: u64,
        /// Measured link rate in bytes per second; 0 until measured.
        rate: u64,
        /// Microseconds held back for hints in this round.
        held_us: u64,
    },
    /// The dirty log was looked at, not consumed: distinct pages written since they were last protected. In round one only
    /// pages that are protected already count, which are `protected` pages.
    Dirty {
        /// From 1.
        round: u32,
        /// Distinct pages.
        pages: u64,
        /// Pages that could have been seen.
        protected: u64,
    },
    /// The harvest that ended a round.
    Harvest {
        /// From 1.
        round: u32,
        /// Distinct pages written since the round's plan.
        dirty: u64,
        /// Of these, pages that had been skipped for a hint.
        overridden: u64,
    },
    /// What became of guest RAM in a round, cell by cell from address 0 on.
    Map {
        /// From 1.
        round: u32,
        /// Pages of each cell (the last may be short).
        cell_pages: u64,
        /// Pages by class and cell, in the order of [`FATES`].
        cells: Vec<[u64; FATES.len()]>,
    },
    /// It succeeded: the same report as `--json` prints.
    End {
        /// See [`Report`](crate::Report).
        report: serde_json::Value,
    },
}

/// Classes of [`What::Map`], in order. They sum up to the cell's pages.
pub const FATES: [&str; 8] =
    ["sent", "sent_then_hinted", "zero", "hole", "hinted", "overridden", "ballooned", "clean"];

/// Receives the events of a migration on its thread: must return soon and must not fail.
pub trait Recorder: Sync {
    /// One event.
    fn record(&self, event: Event);
}
