//! Wherry's live-migration engine: wire protocol, rounds, hint accounting.
//!
//! [`source::migrate`] moves a running guest to a [`destination::receive`] at the other end of a
//! [`transport::Transport`], in rounds: everything once, then what was written meanwhile, until the
//! rest is small enough to be sent while the guest is paused. Pages that the guest's balloon driver
//! hints free are skipped.
//!
//! Read in this order: [`traits`] (what a machine must offer), [`round`] and [`hints`] (why
//! skipping is safe), [`source`] (the sequence, and who owns the guest when it breaks), [`wire`]
//! (the protocol), [`destination`] (what it takes to believe it), [`verify`] (proof of one
//! migration, on request).
#![forbid(unsafe_code)]

pub mod bitmap;
pub mod control;
pub mod destination;
pub mod error;
pub mod hint_policy;
pub mod hints;
pub mod link;
pub mod pacing;
pub mod replay;
pub mod report;
pub mod round;
pub mod source;
pub mod trace;
pub mod traits;
pub mod transport;
pub mod verify;
pub mod wire;

#[cfg(test)]
mod tests;

pub use control::CancelToken;
pub use destination::{Arrival, DestinationConfig, Received, await_source, receive, receive_from};
pub use error::{Error, Failure, Ownership, Phase};
pub use hints::{HintMode, HintPolicy};
pub use link::FrameLimit;
pub use report::{Downtime, HintFigures, Progress, Report, RoundReport, Snapshot};
pub use source::{Compression, OnTimeout, SourceConfig, migrate};
pub use transport::{Endpoint, Listener, Transport, TransportError, connect};
pub use verify::{VerifyReport, WrongPage, WrongPages};
