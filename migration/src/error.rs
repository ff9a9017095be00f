//! What can go wrong, in which phase, and who owns the guest afterwards.
//!
//! The one question that a failed migration must answer is *who may run the guest now?*
//! [`Ownership`] is that answer, and it is derived from one fact alone: whether the source began to
//! send HandOff. See [`crate::source`] for the table.

use std::fmt;
use std::io;
use std::time::Duration;

use thiserror::Error;

use crate::transport::TransportError;
use crate::transport::tls::TlsError;
use crate::verify::verdict::WrongPages;
use crate::wire::WireError;
use crate::wire::error::NoCommonVersion;

/// Where a migration was when it failed (or is, in a progress snapshot).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// From Hello to Ready: the destination builds its machine. Then data connections.
    #[default]
    Handshake,
    /// Turning on the log and planning round one.
    Prepare,
    /// Rounds while the guest runs.
    Rounds,
    /// Guest paused, last round.
    LastRound,
    /// Guest paused, both sides' memory is compared.
    Verify,
    /// vCPU and device state.
    State,
    /// HandOff, and what follows it.
    Commit,
    /// The destination runs the guest.
    Done,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Handshake => "handshake",
            Phase::Prepare => "preparation",
            Phase::Rounds => "rounds",
            Phase::LastRound => "last round",
            Phase::Verify => "verification",
            Phase::State => "state transfer",
            Phase::Commit => "hand-off",
            Phase::Done => "end",
        })
    }
}

/// Who owns the guest after a failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ownership {
    /// HandOff was not sent: the guest is the source's and runs there, the destination never will
    /// run it.
    SourceRuns,
    /// HandOff was not sent, but the source could not resume its vCPUs: the guest is the source's,
    /// and paused.
    SourcePaused,
    /// HandOff may have arrived and no proof came back. This side does not run the guest.
    Unknown,
}

impl fmt::Display for Ownership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ownership::SourceRuns => "the guest belongs to the source and runs there",
            Ownership::SourcePaused => {
                "the guest belongs to the source and is paused there; resume it by hand"
            }
            Ownership::Unknown => {
                "the hand-off may or may not have arrived, so this side does not run the guest; \
                 look at the other side: \
                 if it runs the guest, end this process; if it says that no hand-off came, end it \
                 and resume the source \
                 by hand"
            }
        })
    }
}

/// A migration that did not succeed.
#[derive(Debug, Error)]
#[error("migration failed in {phase}: {ownership}")]
pub struct Failure {
    /// Where it failed.
    pub phase: Phase,
    /// Who owns the guest now.
    pub ownership: Ownership,
    /// Why.
    #[source]
    pub cause: Error,
}

/// Why a migration failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The peer does not speak Wherry's protocol.
    #[error("the peer is not a Wherry migration endpoint")]
    NotWherry,
    /// The peer speaks no version of the protocol that this side does.
    #[error("the two sides have no migration protocol in common: {0}")]
    Version(NoCommonVersion),
    /// The destination cannot take this guest.
    #[error("the destination refused the guest: {0}")]
    Refused(String),
    /// The peer gave up and said why.
    #[error("the peer gave up: {0}")]
    PeerAbort(String),
    /// The connection ended before the migration did.
    #[error("the peer closed the connection")]
    Closed,
    /// Nothing moved on the connection for this long.
    #[error("the peer has been silent for {} ms", .0.as_millis())]
    Stalled(Duration),
    /// Bytes come or go, but too few of them.
    #[error("the peer took longer than {} ms over one message", .0.as_millis())]
    Late(Duration),
    /// The guest was paused for this long and could not be handed over.
    #[error("the guest could not be handed over within {} ms of its pause", .0.as_millis())]
    PauseLimit(Duration),
    /// The guest has more memory than this side takes.
    #[error(
        "the guest has {} MiB of memory and the receiver takes {} MiB; `receive --max-memory` \
         allows more",
        .pages / 256, .most / 256
    )]
    TooLarge {
        /// Pages of the guest.
        pages: u64,
        /// [`crate::DestinationConfig::max_pages`].
        most: u64,
    },
    /// [`crate::CancelToken::cancel`] was called.
    #[error("cancelled")]
    Cancelled,
    /// What the peer sent is not valid.
    #[error("invalid data from the peer")]
    Wire(#[source] WireError),
    /// The peer is not who it should be, or does not want this side.
    #[error("no TLS")]
    Tls(#[source] TlsError),
    /// A data connection could not be made.
    #[error("no data connection")]
    Stream(#[source] TransportError),
    /// The connection failed.
    #[error("connection failed")]
    Connection(#[source] io::Error),
    /// The machine failed to do its part.
    #[error("could not {what}")]
    Machine {
        /// What was tried, as an infinitive.
        what: &'static str,
        /// The machine's error.
        #[source]
        source: io::Error,
    },
    /// The guest writes faster than the link sends.
    #[error(
        "the guest did not converge in {rounds} rounds: {dirty_pages} pages are dirty, a predicted \
         downtime of {predicted_ms} ms"
    )]
    NotConverging {
        /// Rounds done.
        rounds: u32,
        /// Dirty pages at the last harvest.
        dirty_pages: u64,
        /// What stopping now would cost.
        predicted_ms: u64,
    },
    /// The machine's state does not fit the protocol's limit.
    #[error("machine state is {0} bytes, over the limit")]
    StateTooLarge(u64),
    /// Verification found memory that did not arrive as it is at the source. The guest has lost
    /// nothing: it goes on there.
    #[error("verification: {0}")]
    Wrong(WrongPages),
    /// A defect of the engine.
    #[error("the migration engine panicked; standard error of the VM says where")]
    Panicked,
    /// The engine's own accounting does not add up: a bug, never ignored.
    #[error("round {round}: {counted} pages accounted for, guest RAM has {pages}")]
    Accounting {
        /// The round.
        round: u32,
        /// Sum of all classes.
        counted: u64,
        /// Pages of guest RAM.
        pages: u64,
    },
}

impl Error {
    /// For `map_err` on data connections.
    pub(crate) fn stream(error: TransportError) -> Self {
        match error {
            TransportError::Cancelled => Error::Cancelled,
            other => Error::Stream(other),
        }
    }

    /// For `map_err` on calls into the machine; `what` is an infinitive.
    pub(crate) fn machine(what: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Machine { what, source }
    }
}

impl From<WireError> for Error {
    fn from(e: WireError) -> Self {
        match e {
            WireError::Magic => Error::NotWherry,
            WireError::Version(versions) => Error::Version(versions),
            other => Error::Wire(other),
        }
    }
}

/// An error and its sources in one line.
pub fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
