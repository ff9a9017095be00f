//! What is saved of the device: requests that it has taken and not done.
//!
//! Nothing is in flight in a paused device, but what waited for its turn, or for room on the host,
//! came back undone. It goes along as the driver's descriptors, which nobody else has any more, and
//! is parsed anew where it arrives.

use serde::{Deserialize, Serialize};

use super::config::{DEPTH, MAX_CHAIN, QUEUE_SIZE};
use crate::virtio::mmio::{MmioStateV1, regs};

/// The device's part of the state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkStateV1 {
    /// Requests that are to be done, in this order.
    pub kept: Vec<KeptV1>,
}

/// A request that is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptV1 {
    /// Head of its chain.
    pub head: u16,
    /// The chain, at most [`MAX_CHAIN`] descriptors.
    pub descs: Vec<DescV1>,
}

/// A descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescV1 {
    /// Guest-physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// The device may write.
    pub write: bool,
}

impl BlkStateV1 {
    /// Whether a device with this transport can be in it. Two requests may have the same head: a
    /// driver that makes a chain available twice is answered twice.
    pub(super) fn possible(&self, mmio: &MmioStateV1) -> bool {
        let running = mmio.status & regs::status::DRIVER_OK != 0;
        let ready = mmio.queues.first().is_some_and(|queue| queue.ready);
        let chain = |kept: &KeptV1| kept.head < QUEUE_SIZE && kept.descs.len() <= MAX_CHAIN;
        self.kept.is_empty()
            || (running && ready && self.kept.len() <= DEPTH && self.kept.iter().all(chain))
    }
}
