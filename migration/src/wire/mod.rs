//! The wire protocol; its versions are in [`version`].
//!
//! A connection carries frames both ways. A frame is a header of [`HEADER_LEN`] bytes, all fields
//! little-endian, and a payload:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic `WHRY` |
//! | 4 | 2 | protocol version |
//! | 6 | 2 | kind |
//! | 8 | 8 | sequence number, from 0, one series per direction |
//! | 16 | 4 | payload length in bytes |
//! | 20 | 4 | [`Sum`] of the payload |
//! | 24 | 4 | CRC32 of bytes 0..24 |
//!
//! The header has this layout in every version.
//!
//! Rules of the receiver ([`crate::link::FrameReader`]), in this order: magic, header CRC, version,
//! sequence number, kind known and legal in the present phase, length within the kind's limit; only
//! then room for the payload, and its checksum before its content is looked at. Control payloads go
//! through the private `codec` module; [`pages`] describes the frames that carry guest memory.
//!
//! ```text
//! source                                   destination
//!   Hello {versions, features}           ->
//!                                        <- Welcome {version, features}
//!   Machine {nr_pages, description}      ->               builds it
//!                                        <- Ready
//!   [Boot {description, files}           ->]              with FEATURE_BOOT: what a reset boots
//!   [                                    <- BootWanted]   the files of it that are not here
//!   [BootPart*                           ->]              these, one after another
//!   [Streams {nr, token}                 ->]              with FEATURE_STREAMS: so many data
//!                                                         connections are open
//!   Round {1}  Pages*  Idle*  Round {2}  Pages* … ->      writes guest RAM (with FEATURE_LZ4
//!                                                         any Pages may be PagesLz4)
//!   [Verify {first, nr}                  ->               digests the chunk
//!                                        <- Digests]*     all chunks in order, if Hello asks so
//!   State*  StateEnd {len, crc}          ->               loads state, runs nothing
//!                                        <- Loaded
//!   HandOff                              ->               runs the guest
//!                                        <- Running
//! either, at any time: Abort {reason}
//!
//! each of the data connections, source to destination only:
//!   Join {stream, token}  Pages*  Idle*  Sync {1}  Pages* … Sync {n}, end
//! and with them on the first connection, where only what became zero goes between two rounds:
//!   Round {1}  Idle*  Sync {1}  Pages*  Round {2} … Sync {n}, then verification or state
//! ```
//!
//! Nothing that follows a Sync on any connection is applied before everything that precedes it on
//! all of them; and no state is looked at before the data connections have ended.

pub mod boot;
pub(crate) mod codec;
pub mod digests;
pub mod error;
pub mod kind;
pub mod pages;
pub mod sum;
pub mod version;

use serde::{Deserialize, Serialize};

pub use error::WireError;
pub use kind::Kind;
pub use sum::Sum;

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"WHRY";
/// Length of a frame header in bytes.
pub const HEADER_LEN: usize = 28;
/// Longest machine description in bytes.
pub const MAX_DESCRIPTION: usize = 1 << 20;
/// Longest vCPU and device state in bytes, but for what grows with RAM: see [`max_state`].
pub const MAX_STATE: usize = 64 << 20;
/// Longest part of it in one frame, in bytes.
pub const STATE_PART: usize = 1 << 20;

/// Longest state of a machine with so many pages: a device may have to tell one bit for each, as a
/// balloon does whose pages lie scattered.
#[must_use]
pub fn max_state(nr_pages: u64) -> usize {
    MAX_STATE + usize::try_from(nr_pages.min(MAX_PAGES) / 8).unwrap_or(0)
}

/// Longest reason in an Abort, in bytes.
pub const MAX_REASON: usize = 4096;

/// Feature of [`version::Hello`]: memory is compared before the state is sent.
pub const FEATURE_VERIFY: u64 = 1;
/// Feature of [`version::Hello`]: content may come compressed, in [`Kind::PagesLz4`].
pub const FEATURE_LZ4: u64 = 2;
/// Feature of [`version::Hello`]: memory comes over data connections.
pub const FEATURE_STREAMS: u64 = 4;
/// Feature of [`version::Hello`]: what the machine boots at a reset comes with it. Offered, never
/// needed: at a destination without it a reset ends the guest.
pub const FEATURE_BOOT: u64 = 8;
/// Feature of [`version::Hello`]: frames of memory are summed by CRC32. Offered, never needed, by
/// and to sides where that is faster.
pub const FEATURE_CRC32: u64 = 16;
/// Feature of [`version::Hello`]: frames of memory are not summed. Offered, never needed, by and to
/// sides whose connection finds damage itself, as TLS does.
pub const FEATURE_UNSUMMED: u64 = 32;
/// All features that there are.
pub const FEATURES: u64 = FEATURE_VERIFY
    | FEATURE_LZ4
    | FEATURE_STREAMS
    | FEATURE_BOOT
    | FEATURE_CRC32
    | FEATURE_UNSUMMED;
/// Data connections at most.
pub const MAX_STREAMS: u32 = 16;
/// Most pages of guest RAM, one page less than 8 TiB: what one memory slot of KVM can have.
pub const MAX_PAGES: u64 = (1 << 31) - 1;

impl Kind {
    /// Longest legal payload in bytes.
    pub fn limit(self) -> usize {
        match self {
            // With room for what later versions add.
            Kind::Hello | Kind::Welcome => 1024,
            Kind::Machine => MAX_DESCRIPTION + 64,
            Kind::Pages | Kind::PagesLz4 => pages::MAX_PAYLOAD,
            Kind::State => STATE_PART,
            Kind::Boot => boot::MAX_PAYLOAD,
            Kind::BootPart => boot::PART,
            Kind::Abort => MAX_REASON + 16,
            Kind::Digests => digests::MAX_PAYLOAD,
            Kind::Round | Kind::StateEnd | Kind::Verify => 64,
            Kind::Streams | Kind::Join | Kind::Sync | Kind::BootWanted => 64,
            Kind::Idle | Kind::HandOff | Kind::Ready | Kind::Loaded | Kind::Running => 0,
        }
    }
}

/// A header whose own checksum was right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// The protocol's version.
    pub version: u16,
    /// What the payload is.
    pub kind: u16,
    /// Position in its direction's series.
    pub seq: u64,
    /// Payload length in bytes; not yet held against the kind's limit.
    pub len: u32,
    /// [`Sum`] of the payload.
    pub sum: u32,
}

impl Header {
    /// As sent.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[0..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&self.version.to_le_bytes());
        out[6..8].copy_from_slice(&self.kind.to_le_bytes());
        out[8..16].copy_from_slice(&self.seq.to_le_bytes());
        out[16..20].copy_from_slice(&self.len.to_le_bytes());
        out[20..24].copy_from_slice(&self.sum.to_le_bytes());
        let crc = crc32fast::hash(&out[..24]);
        out[24..28].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Checks magic and checksum, in this order.
    pub fn decode(raw: &[u8; HEADER_LEN]) -> Result<Self, WireError> {
        if raw[..4] != MAGIC {
            return Err(WireError::Magic);
        }
        if u32::from_le_bytes(field(raw, 24)) != crc32fast::hash(&raw[..24]) {
            return Err(WireError::HeaderCrc);
        }
        Ok(Self {
            version: u16::from_le_bytes(field(raw, 4)),
            kind: u16::from_le_bytes(field(raw, 6)),
            seq: u64::from_le_bytes(field(raw, 8)),
            len: u32::from_le_bytes(field(raw, 16)),
            sum: u32::from_le_bytes(field(raw, 20)),
        })
    }
}

fn field<const N: usize>(raw: &[u8; HEADER_LEN], at: usize) -> [u8; N] {
    std::array::from_fn(|byte| raw[at + byte])
}

/// Payload of [`Kind::Machine`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Pages of guest RAM.
    pub nr_pages: u64,
    /// For [`crate::traits::DestinationVm::prepare`].
    pub description: Vec<u8>,
}

/// Payload of [`Kind::Round`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RoundStart {
    /// From 1, ascending.
    pub round: u32,
}

/// Payload of [`Kind::Streams`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Streams {
    /// How many, 1 to [`MAX_STREAMS`].
    pub nr: u32,
    /// By which they are known: random, so that no other source's connections, and no stranger's,
    /// are taken for these. It travels in the clear and keeps nobody out who can read the wire.
    pub token: u128,
}

/// Payload of [`Kind::Join`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Join {
    /// From 0.
    pub stream: u32,
    /// As in [`Streams`].
    pub token: u128,
}

/// Payload of [`Kind::Sync`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SyncPoint {
    /// The round that is complete.
    pub round: u32,
}

/// Payload of [`Kind::Verify`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VerifyChunk {
    /// First page.
    pub first: u64,
    /// Number of pages: [`digests::CHUNK_PAGES`], or what is left of memory.
    pub nr: u32,
}

/// Payload of [`Kind::StateEnd`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StateEnd {
    /// Bytes of all State frames.
    pub len: u64,
    /// CRC32 of them.
    pub crc: u32,
}

/// Payload of [`Kind::Abort`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Abort {
    /// In words, for people.
    pub reason: String,
}

impl Abort {
    /// Cuts the reason to [`MAX_REASON`] bytes.
    pub fn new(reason: &str) -> Self {
        let mut end = reason.len().min(MAX_REASON);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        let reason = reason.get(..end).unwrap_or_default().to_owned();
        Self { reason }
    }

    /// From the wire.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        codec::decode_front(bytes, Kind::Abort)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: Header = Header { version: 2, kind: 3, seq: 77, len: 1000, sum: 0xdead_beef };

    #[test]
    fn header_survives_and_any_flipped_bit_is_noticed() {
        let raw = HEADER.encode();
        assert_eq!(Header::decode(&raw), Ok(HEADER));
        for bit in 0..HEADER_LEN * 8 {
            let mut bad = raw;
            bad[bit / 8] ^= 1 << (bit % 8);
            let expected = match bit / 8 {
                0..4 => WireError::Magic,
                _ => WireError::HeaderCrc,
            };
            assert_eq!(Header::decode(&bad), Err(expected));
        }
    }

    #[test]
    fn reasons_are_cut_at_a_character() {
        let long = "é".repeat(MAX_REASON);
        assert_eq!(Abort::new(&long).reason.len(), MAX_REASON);
        assert_eq!(Abort::new("short").reason, "short");
    }

    #[test]
    fn kinds_come_back_from_their_numbers() {
        for n in 0..u16::MAX {
            if let Some(kind) = Kind::from_u16(n) {
                assert_eq!(kind as u16, n);
            }
        }
    }
}
