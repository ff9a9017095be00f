//! The device's place in the event loop.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use super::Shared;
use super::completions::Completions;
use crate::virtio::{HostFd, VirtioDevice};

/// Waits for kicks, completions and the device's host descriptors. Queues are processed one batch
/// for each time it holds the device's lock.
pub struct Subscriber<D> {
    device: Shared<D>,
    kicks: Vec<Arc<EventFd>>,
    completions: Arc<Completions>,
    host: Vec<HostFd>,
}

impl<D: VirtioDevice> Subscriber<D> {
    /// For `EventManager::add_subscriber`.
    pub fn new(device: Shared<D>) -> Self {
        let (kicks, completions, host) = {
            let device = device.urgent();
            (device.queue_events(), device.completions.clone(), device.device().host_fds())
        };
        Self { device, kicks, completions, host }
    }

    fn kicked(&self, queue: usize, kick: &EventFd) {
        // Cleared before the queue is looked at, so that a kick from now on is seen by the next
        // round. While paused this forgets the kick: resuming kicks every queue.
        let _ = kick.read();
        if self.device.patient().process_queue(queue) {
            let _ = kick.write(1);
        }
    }

    /// Every descriptor with its number in the loop: kicks, completions, the host's.
    fn watched(&self) -> impl Iterator<Item = (u32, RawFd, EventSet)> {
        let kicks = self.kicks.iter().map(|kick| (kick.as_raw_fd(), EventSet::IN));
        let done = (self.completions.event.as_raw_fd(), EventSet::IN);
        // Told of news only: a device that cannot take what there is must not be told for ever.
        let news = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let host = self.host.iter().map(move |fd| (fd.as_raw_fd(), news));
        (0u32..).zip(kicks.chain([done]).chain(host)).map(|(nr, (fd, set))| (nr, fd, set))
    }
}

impl<D: VirtioDevice> MutEventSubscriber for Subscriber<D> {
    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        let index = events.data() as usize;
        if let Some(kick) = self.kicks.get(index) {
            self.kicked(index, kick);
        } else if index == self.kicks.len() {
            let _ = self.completions.event.read();
            self.device.patient().finish_completed();
        } else {
            self.device.patient().host_ready(index - self.kicks.len() - 1);
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        for (nr, fd, set) in self.watched() {
            // Only fails if the process is out of kernel memory or epoll watches; there is nobody
            // to tell here.
            let _ = ops.add(Events::with_data_raw(fd, nr, set));
        }
    }
}
