//! Chains that a device works on elsewhere: in other threads, or in the kernel.
//!
//! A device that cannot answer a chain at once takes a [`Ticket`] for it ([`Completer::take`]),
//! returns [`Completion::Held`](crate::virtio::Completion::Held), and passes the ticket on. Whoever
//! is through completes it, on any thread and without the device's lock; the event loop then gives
//! the chain back, several in one go with one interrupt. A paused device has no ticket out
//! ([`Device::pause`](crate::device::Device::pause) waits), so a saved state knows of none.
//!
//! Write to guest memory, mark it dirty, let go of it, then complete: in this order.
//!
//! A driver that resets the device, or stops a queue, takes its memory back, which requests in
//! flight may still write to. Virtio 1.3 (section 2.4.2) has a driver read the status until it is
//! 0, but Linux's for virtio-mmio writes the register, looks at nothing, and uses the memory anew;
//! and when it stops a queue it reads back once. So the write must not be over before the last
//! request is. The vCPU that wrote waits for that, with no lock, so that nobody else does
//! ([`settled`](crate::BusDevice::settled)); the status stays what it was for whoever reads it
//! meanwhile.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

#[derive(Default)]
struct Inner {
    in_flight: usize,
    done: Vec<Done>,
    /// The loop wants to know when nothing is in flight.
    awaited: bool,
}

/// A chain to give back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Done {
    pub(super) queue: usize,
    pub(super) head: u16,
    /// `None`: nobody will ever answer it.
    pub(super) len: Option<u32>,
}

pub(super) struct Completions {
    inner: Mutex<Inner>,
    idle: Condvar,
    /// Something is done, or all that was awaited.
    pub(super) event: EventFd,
}

impl Completions {
    pub(super) fn new() -> std::io::Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Self { inner: Mutex::default(), idle: Condvar::new(), event })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has been completed since.
    pub(super) fn take_done(&self) -> Vec<Done> {
        std::mem::take(&mut self.lock().done)
    }

    /// Waits until nothing is in flight. Returns how much is at `deadline`.
    pub(super) fn wait_idle(&self, deadline: Instant) -> usize {
        let left = deadline.saturating_duration_since(Instant::now());
        let busy = |inner: &mut Inner| inner.in_flight > 0;
        let waited = self.idle.wait_timeout_while(self.lock(), left, busy);
        waited.unwrap_or_else(PoisonError::into_inner).0.in_flight
    }

    /// Whether nothing is in flight, nor done and not yet given back.
    pub(super) fn is_settled(&self) -> bool {
        let inner = self.lock();
        inner.in_flight == 0 && inner.done.is_empty()
    }

    /// Whether nothing is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.lock().in_flight == 0
    }

    /// Whether nothing is in flight. If not, the loop is told as soon as nothing is.
    pub(super) fn is_idle_or_tells(&self) -> bool {
        let mut inner = self.lock();
        inner.awaited = inner.in_flight > 0;
        !inner.awaited
    }

    /// The only error is a counter that is about to overflow, which wakes the loop as well.
    fn tell(&self) {
        let _ = self.event.write(1);
    }
}

/// Gives tickets out. Cheap to clone.
#[derive(Clone)]
pub struct Completer(pub(super) Arc<Completions>);

impl Completer {
    /// A ticket for the chain with this head. The chain counts as in flight until it is completed.
    pub fn take(&self, queue: usize, head: u16) -> Ticket {
        self.0.lock().in_flight += 1;
        Ticket { to: self.0.clone(), done: Some(Done { queue, head, len: None }) }
    }
}

/// A chain in flight. Dropped without an answer, it makes the device need a reset: the driver would
/// wait for ever.
#[must_use = "the driver waits for the chain"]
pub struct Ticket {
    to: Arc<Completions>,
    /// `None`: the device still has the chain.
    done: Option<Done>,
}

impl Ticket {
    /// The chain goes back to the driver, with `len` bytes written into it.
    pub fn complete(mut self, len: u32) {
        if let Some(done) = &mut self.done {
            done.len = Some(len);
        }
    }

    /// The chain is not done, and nothing is in flight for it any more. The device has kept it, in
    /// its saved state, too, and takes another ticket for it when there is no
    /// [hurry](crate::virtio::VirtioDevice::hurry).
    pub fn put_back(mut self) {
        self.done = None;
    }
}

impl Drop for Ticket {
    /// The loop is told once for all that is done before it looks, without the lock that it then
    /// takes, and before this is no longer in flight: who sees that nothing is finds it told.
    fn drop(&mut self) {
        if let Some(done) = self.done {
            let mut inner = self.to.lock();
            inner.done.push(done);
            let first = inner.done.len() == 1;
            drop(inner);
            if first {
                self.to.tell();
            }
        }
        let mut inner = self.to.lock();
        inner.in_flight -= 1;
        if inner.in_flight == 0 {
            self.to.idle.notify_all();
            if std::mem::take(&mut inner.awaited) {
                self.to.tell();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completer() -> Completer {
        Completer(Arc::new(Completions::new().unwrap()))
    }

    /// How often the loop was told since.
    fn told(completer: &Completer) -> u64 {
        completer.0.event.read().unwrap_or(0)
    }

    #[test]
    fn the_loop_is_told_once_for_all_that_it_has_not_taken() {
        let completer = completer();
        let tickets = [1, 2, 3].map(|head| completer.take(0, head));
        let mut left = tickets.into_iter();
        left.by_ref().take(2).for_each(|ticket| ticket.complete(0));
        assert_eq!((told(&completer), completer.0.take_done().len()), (1, 2));
        left.for_each(|ticket| ticket.complete(0));
        assert_eq!((told(&completer), completer.0.take_done().len()), (1, 1));
        completer.take(0, 4).put_back();
        assert_eq!((told(&completer), completer.0.take_done().len()), (0, 0));
    }

    /// Once more than for what is done: it may have taken that, and seen it still in flight.
    #[test]
    fn who_waits_for_the_last_is_told_of_it() {
        let completer = completer();
        assert!(completer.0.is_idle_or_tells());
        let [first, second] = [1, 2].map(|head| completer.take(0, head));
        assert!(!completer.0.is_idle_or_tells());
        first.put_back();
        assert_eq!(told(&completer), 0);
        second.complete(0);
        assert_eq!(told(&completer), 2);
        assert!(completer.0.is_idle_or_tells());
        completer.take(0, 3).complete(0);
        assert_eq!(told(&completer), 0, "nobody waits any more");
    }
}
