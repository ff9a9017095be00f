//! Counters.

use serde::Serialize;

/// What the balloon has done since it was made (a restored balloon starts at zero). Pages are 4096
/// bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BalloonTelemetry {
    /// Pages in the balloon now.
    pub ballooned_pages: u64,
    /// Pages that went in.
    pub inflated_pages: u64,
    /// Pages that came out.
    pub deflated_pages: u64,
    /// Inflate or deflate requests, or single page numbers in them, that made no sense.
    pub malformed_requests: u64,
    /// Bytes given back to the host.
    pub discarded_bytes: u64,
    /// Discards that the backend refused.
    pub discard_errors: u64,
    /// Bytes that were not discarded: it was forbidden, the pages are poisoned, or the request took
    /// too long.
    pub withheld_bytes: u64,
    /// Ranges that the driver reported as free.
    pub reports: u64,
    /// Bytes in them, after clipping.
    pub reported_bytes: u64,
    /// Reported ranges that made no sense.
    pub malformed_reports: u64,
    /// Ids that the driver announced (STOP not counted).
    pub ids_announced: u64,
    /// STOPs that the driver sent.
    pub stops: u64,
    /// Announced ids that were not the current one.
    pub ids_stale: u64,
    /// Announcements of the current id after its STOP.
    pub ids_replayed: u64,
    /// Hinted ranges that were passed on.
    pub hints_received: u64,
    /// Bytes in them, after clipping.
    pub hinted_bytes: u64,
    /// Hinted ranges under an id that is not (or no longer) current.
    pub hints_stale: u64,
    /// Hints or commands that made no sense.
    pub hints_malformed: u64,
    /// Hinted ranges dropped because their chain took too long.
    pub hints_dropped: u64,
    /// Statistics buffers received.
    pub stats_updates: u64,
    /// Statistics buffers that were partly or wholly unusable.
    pub stats_malformed: u64,
}
