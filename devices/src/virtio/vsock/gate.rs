//! After a move: the guest's connections are gone, and it must hear that before anything else.
//!
//! The driver gives buffers for events in advance; the device holds them. A restored device fills
//! one with TRANSPORT_RESET (section 5.10.6.7), as soon as there is one. Until the driver has taken
//! it nothing else goes to the guest, for it would end what was connected before it looked. A
//! driver that has taken an event gives the buffer back, so every reset that was sent is answered
//! by a buffer that comes later. How many are not is saved: a guest that is moved again before it
//! looked gets another one, and answers both.
//!
//! The device takes every buffer from the ring when it comes, and holds it, so that the driver's
//! next one is a kick that it wants.

use std::collections::VecDeque;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};

use super::constants::*;
use crate::GuestMemory;
use crate::virtio::mmio::Completer;
use crate::virtio::{Chain, Completion, descriptors};

/// A buffer for an event that the device holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventBufferV1 {
    /// Head of its chain.
    pub head: u16,
    /// Where the event goes.
    pub at: u64,
}

/// See the module's text.
#[derive(Default)]
pub struct Gate {
    /// The guest is to be told.
    due: bool,
    /// Resets that it was sent and has not answered.
    pub sent: u32,
    pub held: VecDeque<EventBufferV1>,
}

impl Gate {
    /// It came from elsewhere, with a driver that is up.
    pub fn arrive(&mut self) {
        self.due = true;
    }

    /// The driver is gone.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether packets may go to the guest.
    pub fn is_open(&self) -> bool {
        !self.due && self.sent == 0
    }

    /// Whether this state can be.
    pub fn check(&self) -> Result<(), &'static str> {
        let most = usize::from(QUEUE_SIZE);
        if self.held.len() > most || self.held.iter().any(|one| one.head >= QUEUE_SIZE) {
            return Err("it holds buffers for events that its queue cannot have");
        }
        if self.sent as usize > most {
            return Err("it has sent more events than its queue has buffers");
        }
        Ok(())
    }

    /// A buffer for an event.
    pub fn buffer(&mut self, mem: &GuestMemory, chain: Chain<'_>) -> Completion {
        self.sent = self.sent.saturating_sub(1);
        let head = chain.head_index();
        let (descs, complete) = descriptors(chain, usize::from(QUEUE_SIZE));
        let fits = descs.iter().find(|desc| desc.is_write_only() && desc.len() >= EVENT_BYTES);
        let Some(desc) = fits.filter(|_| complete) else { return Completion::Used(0) };
        let buffer = EventBufferV1 { head, at: desc.addr().0 };
        if self.due {
            return Completion::Used(self.fill(mem, buffer));
        }
        if self.held.len() >= usize::from(QUEUE_SIZE) {
            return Completion::Used(0);
        }
        self.held.push_back(buffer);
        Completion::Held
    }

    /// Tells the guest, if it is to be told and there is a buffer.
    pub fn tell(&mut self, mem: &Arc<GuestMemory>, completer: &Completer) {
        while self.due
            && let Some(buffer) = self.held.pop_front()
        {
            let ticket = completer.take(EVENT, buffer.head);
            ticket.complete(self.fill(mem, buffer));
        }
    }

    /// Returns the bytes that were written.
    fn fill(&mut self, mem: &GuestMemory, buffer: EventBufferV1) -> u32 {
        let event = EVENT_TRANSPORT_RESET.to_le_bytes();
        if mem.write_slice(&event, GuestAddress(buffer.at)).is_err() {
            return 0;
        }
        self.due = false;
        self.sent += 1;
        EVENT_BYTES
    }
}
