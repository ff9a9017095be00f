//! Values of options that several commands have.

use clap::ValueEnum;

/// What `--streams` may be.
pub const STREAMS: std::ops::RangeInclusive<i64> = 1..=wherry_migration::wire::MAX_STREAMS as i64;

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}
