//! Taking chains from a queue and giving them back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use virtio_queue::{Error, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::completions::Done;
use super::{MmioDevice, Pause, regs};
use crate::GuestMemory;
use crate::virtio::{Completion, VirtioDevice};

/// Longest time for one batch, whatever its size; one chain is always handled.
const BATCH_TIME: Duration = Duration::from_millis(2);
/// `VIRTQ_AVAIL_F_NO_INTERRUPT` (section 2.7.6): the driver polls.
const AVAIL_NO_INTERRUPT: u16 = 1;

/// How a batch ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Batch {
    /// The queue is empty and kicks are on.
    Drained,
    /// There may be more chains.
    More,
}

impl<D: VirtioDevice> MmioDevice<D> {
    /// Handles one batch of a queue. Returns whether there may be more: then call again, after
    /// others had the lock.
    pub fn process_queue(&mut self, index: usize) -> bool {
        if self.paused()
            || self.withdrawal.is_some()
            || !self.live()
            || !self.queues.get(index).is_some_and(QueueT::ready)
        {
            return false;
        }
        let mem = self.memory();
        let mut used = false;
        let outcome = self.run_batch(index, &mem, &mut used);
        if used {
            self.notify_used(index, &mem);
        }
        match outcome {
            Ok(batch) => batch == Batch::More,
            Err(_) => {
                self.needs_reset();
                false
            }
        }
    }

    fn run_batch(
        &mut self,
        index: usize,
        mem: &GuestMemory,
        used: &mut bool,
    ) -> Result<Batch, Error> {
        let started = Instant::now();
        let Self { device, queues, .. } = self;
        let Some(queue) = queues.get_mut(index) else { return Ok(Batch::Drained) };
        queue.disable_notification(mem)?;
        for _ in 0..device.batch(index).max(1) {
            let Some(chain) = queue.iter(mem)?.next() else {
                // True if a chain came in between, whose kick we may have suppressed.
                return Ok(if queue.enable_notification(mem)? {
                    Batch::More
                } else {
                    Batch::Drained
                });
            };
            let head = chain.head_index();
            // Checked here because a held chain passes `add_used`, which checks it too, only much
            // later.
            if head >= queue.size() {
                return Err(Error::InvalidDescriptorIndex);
            }
            match device.handle(index, chain) {
                Completion::Used(len) => {
                    queue.add_used(mem, head, len)?;
                    *used = true;
                }
                Completion::Held => {}
                Completion::Again => {
                    queue.set_next_avail(queue.next_avail().wrapping_sub(1));
                    break;
                }
                Completion::Wait => {
                    queue.set_next_avail(queue.next_avail().wrapping_sub(1));
                    queue.enable_notification(mem)?;
                    return Ok(Batch::Drained);
                }
            }
            if started.elapsed() >= BATCH_TIME {
                break;
            }
        }
        Ok(Batch::More)
    }

    /// Gives back the chains that were completed elsewhere; what waits for the last goes on.
    pub(crate) fn finish_completed(&mut self) {
        let done = self.completions.take_done();
        if !done.is_empty() {
            self.give_back(done);
        }
        self.settle();
    }

    fn give_back(&mut self, all: Vec<Done>) {
        let mem = self.memory();
        let mut used = BTreeSet::new();
        for done in all {
            let Some(queue) = self.queues.get_mut(done.queue).filter(|q| q.ready()) else {
                continue;
            };
            match done.len.map(|len| queue.add_used(&*mem, done.head, len)) {
                Some(Ok(())) => drop(used.insert(done.queue)),
                Some(Err(_)) | None => self.needs_reset(),
            }
        }
        used.into_iter().for_each(|queue| self.notify_used(queue, &mem));
    }

    /// Guest memory to write to. What is written while the device stands still a migration would
    /// miss.
    fn memory(&self) -> Arc<GuestMemory> {
        debug_assert!(self.pause != Pause::Still, "guest memory is written to while paused");
        Arc::clone(&self.mem)
    }

    fn notify_used(&mut self, index: usize, mem: &GuestMemory) {
        let Some(queue) = self.queues.get_mut(index) else { return };
        match wants_interrupt(queue, mem) {
            Ok(true) => self.raise(regs::INT_VRING),
            Ok(false) => {}
            Err(_) => self.needs_reset(),
        }
    }
}

/// Section 2.7.7: with EVENT_IDX the driver's used_event decides, without it the flag in the
/// available ring.
fn wants_interrupt(queue: &mut Queue, mem: &GuestMemory) -> Result<bool, Error> {
    if !queue.needs_notification(mem)? {
        return Ok(false);
    }
    if queue.event_idx_enabled() {
        return Ok(true);
    }
    let flags: u16 = mem
        .load(GuestAddress(queue.avail_ring()), Ordering::Acquire)
        .map_err(Error::GuestMemory)?;
    Ok(u16::from_le(flags) & AVAIL_NO_INTERRUPT == 0)
}
