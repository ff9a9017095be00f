//! What is saved of a transport.

use serde::{Deserialize, Serialize};
use virtio_queue::QueueState;

/// One queue. Addresses are guest-physical.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStateV1 {
    /// Largest size that the device offers.
    pub max_size: u16,
    /// Size that the driver chose.
    pub size: u16,
    /// In use.
    pub ready: bool,
    /// EVENT_IDX is in use.
    pub event_idx: bool,
    /// Index of the next chain to take.
    pub next_avail: u16,
    /// Index of the next chain to give back.
    pub next_used: u16,
    /// Descriptor table.
    pub desc_table: u64,
    /// Available ring.
    pub avail_ring: u64,
    /// Used ring.
    pub used_ring: u64,
}

/// Registers and queues of a transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmioStateV1 {
    /// Device id.
    pub device_type: u32,
    /// Offered features; a device that offers others refuses the state.
    pub device_features: u64,
    /// What the driver wrote.
    pub driver_features: u64,
    /// DeviceFeaturesSel.
    pub device_features_sel: u32,
    /// DriverFeaturesSel.
    pub driver_features_sel: u32,
    /// QueueSel.
    pub queue_sel: u32,
    /// Device status.
    pub status: u32,
    /// Unacknowledged causes of interrupts.
    pub interrupt_status: u32,
    /// ConfigGeneration.
    pub config_generation: u32,
    /// The queues, in order.
    pub queues: Vec<QueueStateV1>,
}

/// A device with its transport: what is saved of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtioStateV1<S> {
    /// Registers and queues.
    pub mmio: MmioStateV1,
    /// The device behind them.
    pub device: S,
}

impl From<QueueState> for QueueStateV1 {
    fn from(s: QueueState) -> Self {
        Self {
            max_size: s.max_size,
            size: s.size,
            ready: s.ready,
            event_idx: s.event_idx_enabled,
            next_avail: s.next_avail,
            next_used: s.next_used,
            desc_table: s.desc_table,
            avail_ring: s.avail_ring,
            used_ring: s.used_ring,
        }
    }
}

impl From<&QueueStateV1> for QueueState {
    fn from(s: &QueueStateV1) -> Self {
        Self {
            max_size: s.max_size,
            size: s.size,
            ready: s.ready,
            event_idx_enabled: s.event_idx,
            next_avail: s.next_avail,
            next_used: s.next_used,
            desc_table: s.desc_table,
            avail_ring: s.avail_ring,
            used_ring: s.used_ring,
        }
    }
}
