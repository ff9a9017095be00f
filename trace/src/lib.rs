//! A migration over time, for `--trace`, `--report` and `wherry replay`: what was sent, hinted,
//! dirtied and decided, and when.
//!
//! A trace is JSON Lines: one [`Event`] a line, in order of time, [`What::Start`] first and
//! [`What::End`] or [`What::Failed`] last. Who reads one must skip events and fields that it does
//! not know, and take absent fields for zero; [`VERSION`] changes only when the meaning of an old
//! field does. The format is documented for users in `docs/trace.md`.
//!
//! Counts are pages unless the name says bytes; times are microseconds since the migration began.
//!
//! [`event`] has the lines, [`record`] writes and [`read`] reads them; [`history`] is what they say
//! together.
#![forbid(unsafe_code)]

pub mod event;
pub mod history;
pub mod read;
pub mod record;

// The engine's model guest, which the tests use, says `crate` of the engine.
#[cfg(test)]
use wherry_migration::{bitmap, config, traits};

#[cfg(test)]
mod tests;

pub use event::{
    Event, FATES, Fates, Harvest, MAX_CELLS, Map, RoundPlan, Slice, Start, VERSION, What,
};
pub use history::{History, Round};
pub use record::Recording;
