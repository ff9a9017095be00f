//! The lines of a trace.

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

/// The settings of a recorded migration: its first line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Start {
    /// [`VERSION`].
    pub version: u32,
    /// Pages of guest RAM.
    pub nr_pages: u64,
    /// `auto`, `on` or `off`.
    pub hints: String,
    /// Cap in bytes per second.
    pub bandwidth: Option<u64>,
    /// `lz4`, or none.
    pub compression: Option<String>,
    /// Connections that carry memory; 0, of traces that do not say, is 1.
    pub streams: u32,
    /// Microseconds.
    pub downtime_limit_us: u64,
    /// Rounds with the guest running, at most.
    pub max_rounds: u32,
    /// After these the guest is paused all the same, instead of staying where it is.
    pub force: bool,
    /// What the engine adds to each prediction for pausing, state and hand-off.
    pub switchover_estimate_us: u64,
}

impl Start {
    /// Of a trace's first line.
    ///
    /// # Errors
    /// If it is another event, or of another version, in words.
    pub fn of(first: What) -> Result<Self, &'static str> {
        match first {
            What::Start(start) if start.version == VERSION => Ok(start),
            What::Start(_) => Err("a trace of another version"),
            _ => Err("a trace begins with its start event"),
        }
    }
}

/// A round as it is planned: the four classes sum up to guest RAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RoundPlan {
    /// From 1.
    pub round: u32,
    /// Pages to deal with.
    pub to_send: u64,
    /// Never populated.
    pub hole: u64,
    /// In the balloon.
    pub ballooned: u64,
    /// Not written since they were sent.
    pub clean: u64,
}

/// Where a round stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Slice {
    /// From 1.
    pub round: u32,
    /// All bytes on the wire since the migration began.
    pub bytes: u64,
    /// Pages of this round sent with content.
    pub sent: u64,
    /// Pages of this round read and found zero.
    pub zero: u64,
    /// Pages of this round skipped for hints.
    pub hinted: u64,
    /// Pages of this round still to deal with.
    pub remaining: u64,
    /// Measured link rate in bytes per second; 0 until measured.
    pub rate: u64,
    /// Microseconds held back for hints in this round.
    pub held_us: u64,
    /// Microseconds since the migration began that went into claiming, protecting and reading
    /// pages.
    pub reading_us: u64,
    /// The same for compressing, checksumming and writing them, of all connections together.
    pub sending_us: u64,
}

/// What was written while a round was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Harvest {
    /// From 1.
    pub round: u32,
    /// Distinct pages written since the round's plan.
    pub dirty: u64,
    /// Of these, pages that had been skipped for a hint.
    pub overridden: u64,
}

/// What became of guest RAM in a round, cell by cell from address 0 on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Map {
    /// From 1.
    pub round: u32,
    /// Pages of each cell (the last may be short).
    pub cell_pages: u64,
    /// Pages by class and cell.
    pub cells: Vec<Fates>,
}

/// Classes of [`Map`], in order. They sum up to the cell's pages.
pub const FATES: [&str; 8] =
    ["sent", "sent_then_hinted", "zero", "hole", "hinted", "overridden", "ballooned", "clean"];

/// Pages by class, in the order of [`FATES`].
pub type Fates = [u64; FATES.len()];

/// What a line tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// The settings.
    Start(Start),
    /// A phase begins: see [`Phase`](wherry_migration::Phase).
    Phase {
        /// Its name.
        #[serde(default)]
        phase: String,
    },
    /// A round is planned.
    Round(RoundPlan),
    /// An id was published: hints may come.
    Publish {
        /// The round that it belongs to.
        #[serde(default)]
        round: u32,
        /// How its hints are honoured: `protected` or `checked_zero`.
        #[serde(default)]
        mode: String,
    },
    /// Whether hints are asked for and why they no longer are; after each round what its dirty set
    /// is predicted to cost.
    Decision {
        /// In a few words.
        #[serde(default)]
        what: String,
    },
    /// Hints since the last such line, useful or not.
    Hints {
        /// Ranges, as `[first page, pages]`.
        #[serde(default)]
        ranges: Vec<(u64, u64)>,
        /// Hints that were left out because there were too many at a time.
        #[serde(default)]
        dropped: u64,
    },
    /// Where the round stands; about every 50 ms and at its end.
    Slice(Slice),
    /// The dirty log was looked at, not consumed: distinct pages written since they were last
    /// protected, as far as KVM's own log has them. In round one only pages that are protected
    /// already count, which are `protected` pages.
    Dirty {
        /// From 1.
        #[serde(default)]
        round: u32,
        /// Distinct pages.
        #[serde(default)]
        pages: u64,
        /// Pages that could have been seen.
        #[serde(default)]
        protected: u64,
    },
    /// The harvest that ended a round, with what is left of the one in the middle of round one.
    Harvest(Harvest),
    /// What became of guest RAM in a round, cell by cell from address 0 on.
    Map(Map),
    /// So many events are missing here: they came faster than their reader took them.
    Lost {
        /// Events.
        #[serde(default)]
        events: u64,
    },
    /// It failed.
    Failed {
        /// Where it was.
        #[serde(default)]
        phase: String,
        /// Why, in one line.
        #[serde(default)]
        error: String,
    },
    /// It succeeded: the same report as `--json` prints.
    End {
        /// See [`Report`](wherry_migration::Report).
        #[serde(default)]
        report: serde_json::Value,
    },
    /// An event of a later version.
    #[serde(other)]
    Unknown,
}
