//! Counters of a VM, for `info` and `wherry metrics`. They begin at zero with the VM's process and
//! go on through reboots.

use serde::{Deserialize, Serialize};

use super::{ControlError, ErrorCode};

/// What a disk was asked for. A large request counts as several, as it is done in pieces.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskInfo {
    /// Its id.
    pub id: String,
    /// Reads that were done.
    pub reads: u64,
    /// Bytes in them.
    pub read_bytes: u64,
    /// Writes that were done.
    pub writes: u64,
    /// Bytes in them.
    pub written_bytes: u64,
    /// Flushes that were done.
    pub flushes: u64,
    /// Discards and writes of zeros that were done.
    pub discards: u64,
    /// What failed of all that, each try that found no room included.
    pub errors: u64,
}

/// What went through a network, as its guest sees it. Bytes are those of Ethernet frames, and one
/// that is yet to be segmented counts once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetInfo {
    /// The id of its device.
    pub id: String,
    /// Frames that came for the guest.
    pub received: u64,
    /// Bytes in them.
    pub received_bytes: u64,
    /// Frames that the guest sent.
    pub sent: u64,
    /// Bytes in them.
    pub sent_bytes: u64,
    /// Frames of the guest's that the host's end refused: they are lost.
    pub lost: u64,
}

/// How migrations away ended. One that was refused is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MigrationCounts {
    /// The guest runs at the destination.
    pub completed: u64,
    /// The guest went on here.
    pub failed: u64,
    /// It did because somebody wanted that.
    pub cancelled: u64,
    /// Nobody knows where the guest runs.
    pub unknown: u64,
    /// Bytes that all of them sent.
    pub sent_bytes: u64,
}

impl MigrationCounts {
    /// One has ended, after so many bytes.
    pub(super) fn count<T>(&mut self, result: &Result<T, ControlError>, sent_bytes: u64) {
        *match result.as_ref().map_err(|error| error.code) {
            Ok(_) => &mut self.completed,
            Err(ErrorCode::Cancelled) => &mut self.cancelled,
            Err(ErrorCode::MigrationUnknown) => &mut self.unknown,
            Err(_) => &mut self.failed,
        } += 1;
        self.sent_bytes = self.sent_bytes.saturating_add(sent_bytes);
    }
}
