//! A virtio device's place on the bus.

use std::sync::{Arc, Mutex};

use super::Shared;
use super::regs::offset;
use crate::BusDevice;
use crate::virtio::VirtioDevice;

/// The bus's end of a shared device: every register access takes the fast lane of the device's
/// lock.
pub struct MmioPort<D> {
    device: Shared<D>,
    settled: bool,
}

impl<D: VirtioDevice + 'static> MmioPort<D> {
    /// For `Bus::insert`.
    pub fn shared(device: Shared<D>) -> Arc<Mutex<dyn BusDevice>> {
        Arc::new(Mutex::new(Self { device, settled: true }))
    }
}

impl<D: VirtioDevice> BusDevice for MmioPort<D> {
    fn read(&mut self, at: u64, data: &mut [u8]) {
        self.device.urgent().read(at, data);
    }

    fn write(&mut self, at: u64, data: &[u8]) {
        let mut device = self.device.urgent();
        device.write(at, data);
        self.settled = device.withdrawal.is_none();
    }

    /// What a driver takes its memory back with. Whoever writes anything else meanwhile goes on.
    fn may_last(&self, at: u64, data: &[u8]) -> bool {
        matches!(at, offset::STATUS | offset::QUEUE_READY) && data == [0; 4]
    }

    fn settled(&mut self) -> bool {
        if !self.settled {
            let mut device = self.device.urgent();
            device.finish_completed();
            self.settled = device.withdrawal.is_none();
        }
        self.settled
    }
}
