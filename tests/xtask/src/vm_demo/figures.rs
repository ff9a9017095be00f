//! What the demo measures.

use serde::{Deserialize, Serialize};

/// MiB that the guest wrote and freed before it moves.
pub const FREED_MIB: u32 = 1024;

/// What came out.
#[derive(Debug, Serialize, Deserialize)]
pub struct Figures {
    /// The guest answers, its kernel is the one that was started, and its file system is sound.
    pub guest_ok: bool,
    /// On the wire.
    pub total_bytes: u64,
    /// In round one.
    pub round_one_bytes: u64,
    /// The migration.
    pub total_ms: u64,
    /// The guest was paused.
    pub downtime_ms: f64,
    /// Every number arrived over ssh, in order.
    pub ssh_stream_gapless: bool,
    /// Between two numbers.
    pub ssh_longest_gap_ms: f64,
    /// Committed as pgbench saw it.
    pub transactions: u64,
    /// Of them not in the database.
    pub lost_transactions: u64,
    /// Between two commits.
    pub longest_transaction_gap_ms: f64,
    /// What round one left out: holes, hinted and ballooned pages.
    pub skipped_bytes: u64,
    /// Guest RAM.
    pub ram_bytes: u64,
    /// From `wherry run` to a login by ssh.
    pub boot_s: f64,
}
