//! Reports of migrations: one HTML file with no scripts and nothing loaded from elsewhere, readable
//! in light, in dark and on paper.
//!
//! - [`Trace`]: a trace (`wherry migrate --trace`) as it is drawn. Nothing in it is believed: what
//!   is wrong is left out and named, what is too much is left out and named, and all text is
//!   escaped.
//! - [`migration_page`]: the report of one migration. [`timeline()`], [`memory_map`]: its figures,
//!   which the benchmark's report has for each run.
//! - [`bars`], [`html`], [`units`]: what other reports are drawn with.
//!
//! Colours are style classes (`c0`…): [`html::STYLE`] says how they look. No class is told by its
//! colour alone; every figure says in words, too, what it shows.

#![forbid(unsafe_code)]

pub mod bars;
mod escape;
pub mod html;
mod map;
mod page;
mod svg;
mod timeline;
mod trace;
pub mod units;

pub use map::{memory_map, memory_picture};
pub use page::migration_page;
pub use timeline::timeline;
pub use trace::{Reader, Round, Trace};

/// Classes of pages in a round: style class and name, in the order of
/// [`wherry_trace::FATES`], and one for VMMs that do not tell why a page was neither
/// sent nor zero. Together they are all pages of the guest.
pub const CLASSES: [(u8, &str); 9] = [
    (0, "sent"),
    (1, "sent before its hint came"),
    (2, "zero"),
    (3, "hole"),
    (4, "hinted"),
    (5, "hinted and overridden"),
    (6, "ballooned"),
    (7, "clean"),
    (8, "neither sent nor zero (QEMU does not say why)"),
];

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The trace could not be read.
    #[error("cannot read the trace: {0}")]
    Read(#[from] std::io::Error),
    /// There is nothing of a trace in it.
    #[error("this is no trace of a migration: {0}")]
    NoTrace(String),
    /// The drawing library failed.
    #[error("cannot draw a plot: {0}")]
    Draw(String),
}
