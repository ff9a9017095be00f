//! The device's place in the event loop.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use super::MmioDevice;
use crate::sync::TwoLane;
use crate::virtio::VirtioDevice;

/// Waits for kicks and processes the queues, one batch for each time it holds the device's lock.
pub struct Subscriber<D> {
    device: Arc<TwoLane<MmioDevice<D>>>,
    events: Vec<Arc<EventFd>>,
}

impl<D: VirtioDevice> Subscriber<D> {
    /// For `EventManager::add_subscriber`.
    pub fn new(device: Arc<TwoLane<MmioDevice<D>>>) -> Self {
        let events = device.urgent().queue_events();
        Self { device, events }
    }
}

impl<D: VirtioDevice> MutEventSubscriber for Subscriber<D> {
    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        let index = events.data() as usize;
        let Some(event) = self.events.get(index).filter(|e| e.as_raw_fd() == events.fd()) else {
            return;
        };
        // Cleared before the queue is looked at, so that a kick from now on is seen by the next
        // round. While paused this forgets the kick: resuming kicks every queue.
        let _ = event.read();
        if self.device.patient().process_queue(index) {
            let _ = event.write(1);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        for (index, event) in self.events.iter().enumerate() {
            let interest = Events::with_data(event.as_ref(), index as u32, EventSet::IN);
            // Only fails if the process is out of kernel memory or epoll watches; there is nobody
            // to tell here.
            let _ = ops.add(interest);
        }
    }
}
