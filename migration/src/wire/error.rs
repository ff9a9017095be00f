//! What can be wrong with what a peer sends.

use thiserror::Error;

use super::kind::Kind;

/// Two sides that speak no version that both know.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the other has {theirs}, this one {ours}")]
pub struct NoCommonVersion {
    /// What the peer speaks, and what it is if it says so.
    pub theirs: String,
    /// What this side speaks and is.
    pub ours: String,
    /// The version of the peer's frame, in which it understands an Abort.
    pub version: u16,
}

/// Why bytes from the peer were not accepted.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum WireError {
    /// Not a frame of this protocol at all.
    #[error("not a Wherry frame")]
    Magic,
    /// The two sides speak no version that both know.
    #[error(transparent)]
    Version(NoCommonVersion),
    /// Header damaged.
    #[error("frame header checksum does not match")]
    HeaderCrc,
    /// Payload damaged.
    #[error("frame payload checksum does not match")]
    PayloadSum,
    /// A frame is missing, doubled or out of order.
    #[error("frame number {found}, expected {expected}")]
    Sequence {
        /// Number in the header.
        found: u64,
        /// Number that is due.
        expected: u64,
    },
    /// No such kind.
    #[error("unknown frame kind {0}")]
    UnknownKind(u16),
    /// Not now.
    #[error("frame {found:?} is not expected {during}")]
    Unexpected {
        /// What came.
        found: Kind,
        /// What was going on.
        during: &'static str,
    },
    /// Too long for its kind.
    #[error("payload of {len} bytes in a {kind:?} frame")]
    TooLong {
        /// The frame's kind.
        kind: Kind,
        /// Length in the header.
        len: u32,
    },
    /// A control payload that does not decode, or decodes and leaves bytes over.
    #[error("malformed payload in a {0:?} frame")]
    Payload(Kind),
    /// A page table that lies.
    #[error("invalid page runs: {0}")]
    Runs(&'static str),
    /// Digests of memory that cannot be.
    #[error("digests {0}")]
    Digests(&'static str),
    /// Verification of another chunk than the one that is due.
    #[error("verification of {nr} pages from {first}, {due} is due")]
    Chunk {
        /// First page asked for.
        first: u64,
        /// Number of pages asked for.
        nr: u32,
        /// Page that is due.
        due: u64,
    },
    /// Both sides know the protocol, but one needs what the other lacks.
    #[error("unsupported features {0:#x}")]
    Features(u64),
    /// State longer than [`max_state`](super::max_state), or not of the announced length or
    /// checksum.
    #[error("machine state: {0}")]
    State(&'static str),
    /// What a reset boots, and its files.
    #[error("what it boots: {0}")]
    Boot(&'static str),
    /// Data connections that cannot be.
    #[error("data connections: {0}")]
    Streams(&'static str),
    /// Rounds out of order.
    #[error("round {found} after round {previous}")]
    Round {
        /// Number that came.
        found: u32,
        /// Number before it.
        previous: u32,
    },
}
