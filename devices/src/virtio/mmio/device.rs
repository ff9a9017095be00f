//! A virtio device as the machine's list sees it; the same for all.

use std::sync::Arc;
use std::time::Instant;

use wherry_codec::CodecError;

use super::saved::VirtioStateV1;
use super::subscriber::Subscriber;
use super::{MmioDevice, MmioPort};
use crate::device::{Build, BuildError, Built, Busy, Device};
use crate::sync::TwoLane;
use crate::virtio::VirtioDevice;

impl<D: VirtioDevice + 'static> MmioDevice<D> {
    /// Puts `device` on a transport, both fresh or both as saved.
    ///
    /// # Errors
    /// The saved state is refused, or the host has no descriptors left.
    pub fn build(build: &Build<'_>, device: D) -> Result<Built, BuildError> {
        let (mem, irq) = (build.host.memory(), build.irq.clone());
        let built = match build.state::<VirtioStateV1<D::State>>()? {
            None => Self::new(device, mem, irq),
            Some(state) => Self::restore(device, mem, irq, &state),
        };
        let mut mmio = built.map_err(|e| build.refuse(e))?;
        mmio.set_paused(true);
        let kicks = mmio.queue_events();
        let device = Arc::new(TwoLane::new(mmio));
        let subscriber = Box::new(Subscriber::new(device.clone()));
        let bus = MmioPort::shared(device.clone());
        Ok(Built { device, bus, kicks, subscriber: Some(subscriber) })
    }
}

impl<D: VirtioDevice + 'static> Device for TwoLane<MmioDevice<D>> {
    fn pause(&self, deadline: Instant) -> Result<(), Busy> {
        let completions = {
            let mut device = self.urgent();
            device.set_paused(true);
            device.completions.clone()
        };
        // Without the lock: the guest's vCPUs stand still, but the rest of the VMM does not.
        let in_flight = completions.wait_idle(deadline);
        let mut device = self.urgent();
        device.finish_completed();
        if in_flight == 0 {
            device.set_paused(true);
            return Ok(());
        }
        device.set_paused(false);
        Err(Busy { in_flight })
    }

    fn resume(&self) {
        self.urgent().set_paused(false);
    }

    fn state_bytes(&self, version: u32) -> u64 {
        self.urgent().device.state_bytes(version)
    }

    fn save(&self, version: u32) -> Result<Vec<u8>, CodecError> {
        wherry_codec::encode(&self.urgent().state(version))
    }

    fn announce(&self) {
        self.urgent().announce();
    }
}
