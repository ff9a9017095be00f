//! Wherry's live-migration engine: wire protocol, rounds, hint accounting.
//!
//! [`source::migrate`] moves a running guest to a [`destination::receive`] at the other end of a
//! [`transport::Transport`], in rounds: everything once, then what was written meanwhile, until the
//! rest is small enough to be sent while the guest is paused. Pages are skipped that the guest's
//! balloon driver names as free.
//!
//! Read in this order: [`traits`] (what a machine must offer), [`round`] and [`hinting`] (why
//! skipping is safe), [`source`] (the sequence, and who owns the guest when it breaks), [`wire`]
//! (the protocol), [`destination`] (how to trust none of it), [`verify`] (proof of one migration,
//! on request).
#![forbid(unsafe_code)]
#![deny(clippy::print_stderr)]

pub mod aside;
pub mod bitmap;
pub mod config;
pub mod control;
pub mod destination;
pub mod error;
pub mod hinting;
pub mod link;
pub mod observe;
pub mod report;
pub mod round;
pub mod source;
pub mod sync;
pub mod traits;
pub mod transport;
pub mod units;
pub mod verify;
pub mod wire;

#[cfg(test)]
mod tests;

pub use config::{
    Compression, DestinationConfig, FrameLimit, HintMode, HintPolicy, OnTimeout, SourceConfig,
};
pub use control::CancelToken;
pub use destination::{Arrival, Received, await_source, receive, receive_from};
pub use error::{Error, Failure, Ownership, Phase};
pub use observe::{Observer, Progress};
pub use report::{Downtime, HintFigures, HintUse, Reason, Report, RoundReport, Snapshot};
pub use source::migrate;
pub use transport::{Endpoint, Listener, Transport, TransportError, connect, connect_at, look_up};
pub use verify::verdict::{VerifyReport, WrongPage, WrongPages};
