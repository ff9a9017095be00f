//! Taking chains from a queue and giving them back.

use std::collections::BTreeMap;
use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use virtio_queue::{Error, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};

use super::completions::Done;
use super::{MmioDevice, Pause, regs};
use crate::GuestMemory;
use crate::virtio::{Completion, More, VirtioDevice};

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
        let before = self.queues.get(index).map_or(0, QueueT::next_used);
        let outcome = self.run_batch(index, &mem);
        self.notify_used(index, &mem, before);
        if self.device.config_news() {
            self.config_changed();
        }
        match outcome {
            Ok(batch) => batch == Batch::More,
            Err(_) => {
                self.needs_reset();
                false
            }
        }
    }

    fn run_batch(&mut self, index: usize, mem: &GuestMemory) -> Result<Batch, Error> {
        let started = Instant::now();
        let unanswered = self.interrupt_status & regs::INT_VRING != 0;
        let Self { device, queues, .. } = self;
        let Some(queue) = queues.get_mut(index) else { return Ok(Batch::Drained) };
        queue.disable_notification(mem)?;
        let mut parts = Vec::new();
        let mut left = device.batch(index).max(1);
        while left > 0 {
            let Some(chain) = queue.iter(mem)?.next() else {
                // True if a chain came in between, whose kick we may have suppressed.
                let more = queue.enable_notification(mem)?;
                // Only now: the next kick is wanted for a chain after these.
                let rest = !parts.is_empty() && is_at_rest(queue, mem, unanswered)?;
                let again = take_back(device, index, queue, 0, parts.len(), rest);
                return Ok(if more || again { Batch::More } else { Batch::Drained });
            };
            let head = chain.head_index();
            // Checked here because a held chain passes `add_used`, which checks it too, only much
            // later.
            if head >= queue.size() {
                return Err(Error::InvalidDescriptorIndex);
            }
            match device.handle(index, chain) {
                Completion::Used(len) => give_back(queue, mem, &mut parts, head, len)?,
                Completion::Part(len) => {
                    if parts.len() >= usize::from(queue.size()) {
                        // The driver has taken a chain back that is out.
                        return Err(Error::InvalidAvailRingIndex);
                    }
                    parts.push((head, len));
                    continue;
                }
                Completion::Held => {}
                Completion::Again => {
                    take_back(device, index, queue, 1, parts.len(), false);
                    break;
                }
                Completion::Wait => {
                    take_back(device, index, queue, 1, parts.len(), false);
                    queue.enable_notification(mem)?;
                    return Ok(Batch::Drained);
                }
            }
            left -= 1;
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
        let mut used = BTreeMap::new();
        for done in all {
            let Some(queue) = self.queues.get_mut(done.queue).filter(|q| q.ready()) else {
                continue;
            };
            used.entry(done.queue).or_insert(queue.next_used());
            match done.len.map(|len| queue.add_used(&*mem, done.head, len)) {
                Some(Ok(())) => {}
                Some(Err(_)) | None => self.needs_reset(),
            }
        }
        used.into_iter().for_each(|(queue, before)| self.notify_used(queue, &mem, before));
    }

    /// Guest memory to write to. What is written while the device stands still a migration would
    /// miss.
    fn memory(&self) -> Arc<GuestMemory> {
        debug_assert!(self.pause != Pause::Still, "guest memory is written to while paused");
        Arc::clone(&self.mem)
    }

    /// Tells the driver of what was used since the used ring's index was `before`.
    fn notify_used(&mut self, index: usize, mem: &GuestMemory, before: u16) {
        let Some(queue) = self.queues.get_mut(index) else { return };
        match wants_interrupt(queue, mem, before) {
            Ok(true) => self.raise(regs::INT_VRING),
            Ok(false) => {}
            Err(_) => self.needs_reset(),
        }
    }
}

/// The last chain, if it is one, and the parts before it are to come again. Returns whether they
/// are to come at once.
fn take_back<D: VirtioDevice>(
    device: &mut D,
    index: usize,
    queue: &mut Queue,
    last: u16,
    parts: usize,
    rest: bool,
) -> bool {
    // No more parts than the queue has chains.
    let nr = last.wrapping_add(parts as u16);
    queue.set_next_avail(queue.next_avail().wrapping_sub(nr));
    let more = match rest {
        _ if parts >= usize::from(queue.size()) => More::Never,
        true => More::Unlikely,
        false => More::Maybe,
    };
    parts > 0 && device.undone(index, parts, more)
}

/// Gives back the parts and the last of them. The index of the used ring, which the driver looks
/// at, moves once.
fn give_back(
    queue: &mut Queue,
    mem: &GuestMemory,
    parts: &mut Vec<(u16, u32)>,
    head: u16,
    len: u32,
) -> Result<(), Error> {
    for (head, len) in parts.drain(..) {
        let nth = queue.next_used() % queue.size();
        let at = GuestAddress(queue.used_ring()).checked_add(4 + 8 * u64::from(nth));
        let element = [u32::from(head).to_le(), len.to_le()];
        mem.write_obj(element, at.ok_or(Error::AddressOverflow)?).map_err(Error::GuestMemory)?;
        queue.set_next_used(queue.next_used().wrapping_add(1));
    }
    queue.add_used(mem, head, len)
}

/// Section 2.7.7: with EVENT_IDX the driver's used_event decides, without it the flag in the
/// available ring. (The queue's own answer counts the calls of `add_used`, which parts pass by.)
fn wants_interrupt(queue: &Queue, mem: &GuestMemory, before: u16) -> Result<bool, Error> {
    let (old, new) = (Wrapping(before), Wrapping(queue.next_used()));
    if old == new {
        return Ok(false);
    }
    // The driver sees what was used before we look at what it wants.
    fence(Ordering::SeqCst);
    let word = wanted(queue, mem)?;
    if queue.event_idx_enabled() {
        return Ok(new - Wrapping(word) - Wrapping(1) < new - old);
    }
    Ok(word & AVAIL_NO_INTERRUPT == 0)
}

/// What the driver says of interrupts: used_event, or flags.
fn wanted(queue: &Queue, mem: &GuestMemory) -> Result<u16, Error> {
    let offset = if queue.event_idx_enabled() { 4 + 2 * u64::from(queue.size()) } else { 0 };
    let at = GuestAddress(queue.avail_ring()).checked_add(offset).ok_or(Error::AddressOverflow)?;
    let word: u16 = mem.load(at, Ordering::Acquire).map_err(Error::GuestMemory)?;
    Ok(u16::from_le(word))
}

/// Whether the driver has seen all that was used, and waits for the next: then it has made what it
/// has available, too. `unanswered`: an interrupt is.
fn is_at_rest(queue: &Queue, mem: &GuestMemory, unanswered: bool) -> Result<bool, Error> {
    let word = wanted(queue, mem)?;
    if queue.event_idx_enabled() {
        return Ok(word == queue.next_used());
    }
    Ok(word & AVAIL_NO_INTERRUPT == 0 && !unanswered)
}
