//! Memory statistics (virtio 1.3, section 5.5.6.3). The device drives: it holds the driver's buffer
//! and gives it back to ask for new numbers, which the driver sends in the same buffer.

use std::time::Instant;

use vm_memory::Bytes;

use super::constants::*;
use super::telemetry::BalloonTelemetry;
use crate::GuestMemory;
use crate::virtio::{Chain, Completion, descriptors};

/// The guest's last statistics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BalloonStats {
    /// Known tags (below 16) and their values, ascending; [`STAT_NAMES`] has their names. Sizes in
    /// bytes.
    pub values: Vec<(u16, u64)>,
    /// When they came. `None`: never since the driver started or the device was restored.
    pub updated: Option<Instant>,
}

impl BalloonStats {
    /// The value of a tag, if the guest sent it.
    pub fn get(&self, tag: u16) -> Option<u64> {
        self.values.iter().find(|(t, _)| *t == tag).map(|(_, value)| *value)
    }
}

/// The held buffer and what was last in it.
#[derive(Debug, Default)]
pub(super) struct Stats {
    pub(super) held: Option<u16>,
    pub(super) last: BalloonStats,
}

impl Stats {
    /// One chain of the statistics queue.
    pub(super) fn handle(
        &mut self,
        chain: Chain<'_>,
        mem: &GuestMemory,
        telemetry: &mut BalloonTelemetry,
    ) -> Completion {
        let head = chain.head_index();
        if self.held.is_some() {
            // Section 5.5.6.3: one buffer at a time. A second one goes back unread; holding both
            // would lose one.
            telemetry.stats_malformed += 1;
            return Completion::Used(0);
        }
        let (descs, complete) = descriptors(chain, MAX_CHAIN);
        let mut bytes = Vec::new();
        let mut usable = complete;
        for desc in descs {
            let room = MAX_STATS * STAT_LEN - bytes.len();
            let len = (desc.len() as usize).min(room);
            let mut part = vec![0; len];
            if desc.is_write_only() || mem.read_slice(&mut part, desc.addr()).is_err() {
                usable = false;
                continue;
            }
            usable &= len == desc.len() as usize;
            bytes.append(&mut part);
        }
        usable &= bytes.len().is_multiple_of(STAT_LEN);
        self.last = BalloonStats { values: parse(&bytes), updated: Some(Instant::now()) };
        telemetry.stats_updates += 1;
        telemetry.stats_malformed += u64::from(!usable);
        self.held = Some(head);
        Completion::Held
    }
}

/// Any order, unknown tags ignored, the last of several values for a tag wins.
fn parse(bytes: &[u8]) -> Vec<(u16, u64)> {
    let mut known = [None; STAT_NAMES.len()];
    for entry in bytes.chunks_exact(STAT_LEN) {
        let Some((tag, value)) = entry.split_first_chunk::<2>() else { continue };
        let Some(value) = value.first_chunk::<8>() else { continue };
        if let Some(slot) = known.get_mut(usize::from(u16::from_le_bytes(*tag))) {
            *slot = Some(u64::from_le_bytes(*value));
        }
    }
    (0..).zip(known).filter_map(|(tag, value)| Some((tag, value?))).collect()
}
