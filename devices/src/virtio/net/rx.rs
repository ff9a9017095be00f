//! Frames to the guest. One frame is taken from the network, copied into the chains that the driver
//! has for it, and given to the driver as a whole.

use std::io::ErrorKind;

use virtio_queue::desc::split::Descriptor;

use super::constants::*;
use super::{MAX_CHAIN, MAX_PIECES, Net, header};
use crate::virtio::{Chain, Completion, descriptors};

impl Net {
    /// A chain of the queue for frames to the guest.
    pub(super) fn receive(&mut self, chain: Chain<'_>) -> Completion {
        let (mut room, _) = descriptors(chain, MAX_CHAIN);
        let pieces = room.len();
        room.retain(|desc| desc.is_write_only());
        if !self.incoming.begun()
            && let Some(instead) = self.begin(&room)
        {
            return instead;
        }
        self.incoming.pieces += pieces;
        if self.incoming.pieces > MAX_PIECES {
            // Lost: room in crumbs is for short ones.
            self.incoming.clear();
            return Completion::Again;
        }
        let (len, last) = self.incoming.fill(&self.mem, &room);
        if !last {
            return Completion::Part(len);
        }
        self.incoming.set_count(&self.mem);
        self.incoming.clear();
        Completion::Used(len)
    }

    /// Gets a frame for this chain and those that follow. What becomes of the chain if it has none.
    fn begin(&mut self, room: &[Descriptor]) -> Option<Completion> {
        let room = room.iter().fold(0, |sum: usize, desc| sum.saturating_add(desc.len() as usize));
        if room < HEADER {
            return Some(Completion::Used(0));
        }
        match self.incoming.get(&mut *self.frames) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::Interrupted => return Some(Completion::Again),
            Err(_) => return Some(Completion::Wait),
        }
        let allowed = header::to_guest(self.guest_offloads);
        let mergeable = self.has(feature::MRG_RXBUF);
        let frame = self.incoming.frame();
        let fits = mergeable || frame.len() <= room;
        if fits && header::check(frame, allowed) {
            return None;
        }
        self.incoming.clear();
        Some(Completion::Again)
    }
}
