//! Saving and restoring a transport with its device.

use std::sync::Arc;

use virtio_queue::{Queue, QueueState, QueueT};

use super::regs::{self, status};
use super::saved::{MmioStateV1, QueueStateV1, VirtioStateV1};
use super::{MmioDevice, MmioError};
use crate::GuestMemory;
use crate::interrupt::InterruptLine;
use crate::virtio::VirtioDevice;

impl<D: VirtioDevice> MmioDevice<D> {
    /// The whole state, in this version of the device's. Take it while paused.
    pub fn state(&self, version: u32) -> VirtioStateV1<D::State> {
        VirtioStateV1 { mmio: self.transport_state(), device: self.device.state(version) }
    }

    fn transport_state(&self) -> MmioStateV1 {
        MmioStateV1 {
            device_type: self.device.device_type(),
            device_features: self.device.features(),
            driver_features: self.driver_features,
            device_features_sel: self.device_features_sel,
            driver_features_sel: self.driver_features_sel,
            queue_sel: self.queue_sel,
            status: self.status,
            interrupt_status: self.interrupt_status,
            config_generation: self.config_generation,
            queues: self.queues.iter().map(|q| q.state().into()).collect(),
        }
    }

    /// A fresh device and its transport, as saved, or not at all. They come paused: nothing is
    /// consumed before `set_paused(false)`, which belongs after the interrupt controller was
    /// restored.
    pub fn restore(
        mut device: D,
        mem: Arc<GuestMemory>,
        irq: Arc<dyn InterruptLine>,
        state: &VirtioStateV1<D::State>,
    ) -> Result<Self, MmioError> {
        let changed = device.load(&state.mmio, &state.device).map_err(MmioError::Device)?;
        let state = &state.mmio;
        let mut this = Self::new(device, mem, irq)?;
        this.check(state)?;
        this.set_paused(true);
        this.status = state.status;
        this.driver_features = state.driver_features;
        this.device_features_sel = state.device_features_sel;
        this.driver_features_sel = state.driver_features_sel;
        this.queue_sel = state.queue_sel;
        this.interrupt_status = state.interrupt_status;
        // If config space changed, the driver is told when there is an interrupt controller to take
        // it.
        this.config_generation = state.config_generation.wrapping_add(u32::from(changed));
        let event_idx =
            state.status & status::DRIVER_OK != 0 && state.driver_features & regs::F_EVENT_IDX != 0;
        for (index, (slot, saved)) in this.queues.iter_mut().zip(&state.queues).enumerate() {
            *slot = restore_queue(saved, slot.max_size(), event_idx, &this.mem)
                .ok_or(MmioError::Queue(index))?;
        }
        Ok(this)
    }

    fn check(&self, state: &MmioStateV1) -> Result<(), MmioError> {
        let (own_type, own_features) = (self.device.device_type(), self.device.features());
        if state.device_type != own_type {
            return Err(MmioError::DeviceType { saved: state.device_type, own: own_type });
        }
        if state.device_features != own_features {
            return Err(MmioError::Features { saved: state.device_features, own: own_features });
        }
        if state.queues.len() != self.queues.len() {
            return Err(MmioError::QueueCount {
                saved: state.queues.len(),
                own: self.queues.len(),
            });
        }
        let s = state.status;
        let needs = |bit: u32, before: u32| s & bit == 0 || s & before != 0;
        let negotiated = state.driver_features & !own_features == 0
            && state.driver_features & regs::F_VERSION_1 != 0;
        let possible = s & !(status::DRIVER_BITS | status::NEEDS_RESET) == 0
            && needs(status::DRIVER, status::ACKNOWLEDGE)
            && needs(status::FEATURES_OK, status::DRIVER)
            && needs(status::DRIVER_OK, status::FEATURES_OK)
            && (s & status::FEATURES_OK == 0 || negotiated)
            && state.interrupt_status & !(regs::INT_VRING | regs::INT_CONFIG) == 0;
        if possible { Ok(()) } else { Err(MmioError::Status(s)) }
    }
}

fn restore_queue(
    saved: &QueueStateV1,
    max_size: u16,
    event_idx: bool,
    mem: &GuestMemory,
) -> Option<Queue> {
    // DRIVER_OK sets the flag on every queue, and only a device reset clears it.
    if saved.max_size != max_size || saved.event_idx != event_idx {
        return None;
    }
    let queue = Queue::try_from(QueueState::from(saved)).ok()?;
    (!queue.ready() || queue.is_valid(mem)).then_some(queue)
}
