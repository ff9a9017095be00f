//! What a balloon offers, and which queues it has then.

use serde::{Deserialize, Serialize};

use super::constants::*;
use crate::virtio::mmio::regs;

/// What the device offers. Both ends of a migration must offer the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonConfig {
    /// Target at start, in pages of 4096 bytes.
    pub target_pages: u32,
    /// Offer MUST_TELL_HOST. Without it nobody knows for certain which pages it has.
    pub must_tell_host: bool,
    /// Offer DEFLATE_ON_OOM.
    pub deflate_on_oom: bool,
    /// Offer STATS_VQ.
    pub stats: bool,
    /// Offer FREE_PAGE_HINT.
    pub hinting: bool,
    /// Offer PAGE_POISON. A Linux guest that initialises its free memory gives up reporting without
    /// it.
    pub poison: bool,
    /// Offer PAGE_REPORTING.
    pub reporting: bool,
    /// Offer EVENT_IDX.
    pub event_idx: bool,
    /// Offer INDIRECT_DESC.
    pub indirect: bool,
    /// Further device feature bits (6 to 23) that change nothing here. Bit 6 is claimed by two
    /// rival proposals.
    pub experimental_features: u64,
}

impl Default for BalloonConfig {
    /// Everything, with an empty target: then the specification and all drivers agree on the
    /// numbers of the queues.
    fn default() -> Self {
        Self {
            target_pages: 0,
            must_tell_host: true,
            deflate_on_oom: true,
            stats: true,
            hinting: true,
            poison: true,
            reporting: true,
            event_idx: true,
            indirect: true,
            experimental_features: 0,
        }
    }
}

impl BalloonConfig {
    pub(super) fn features(&self) -> u64 {
        [
            (self.must_tell_host, F_MUST_TELL_HOST),
            (self.stats, F_STATS_VQ),
            (self.deflate_on_oom, F_DEFLATE_ON_OOM),
            (self.hinting, F_FREE_PAGE_HINT),
            (self.poison, F_PAGE_POISON),
            (self.reporting, F_PAGE_REPORTING),
            (self.event_idx, regs::F_EVENT_IDX),
            (self.indirect, regs::F_INDIRECT_DESC),
        ]
        .into_iter()
        .filter(|(on, _)| *on)
        .fold(regs::F_VERSION_1 | (self.experimental_features & 0xff_ffc0), |all, (_, bit)| {
            all | bit
        })
    }

    /// Drivers number only the queues that exist.
    pub(super) fn roles(&self) -> Vec<Role> {
        [
            (true, Role::Inflate),
            (true, Role::Deflate),
            (self.stats, Role::Stats),
            (self.hinting, Role::Hint),
            (self.reporting, Role::Reporting),
        ]
        .into_iter()
        .filter_map(|(on, role)| on.then_some(role))
        .collect()
    }
}

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Inflate,
    Deflate,
    Stats,
    Hint,
    Reporting,
}
