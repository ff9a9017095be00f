//! Frames from the guest.

use std::io::ErrorKind;

use vm_memory::Bytes;

use super::constants::*;
use super::{MAX_CHAIN, Net, header};
use crate::virtio::{Chain, Completion, descriptors};

impl Net {
    /// A chain of the queue for frames from the guest. It goes back at once, and a frame that
    /// cannot be sent is lost, as on a wire; but it waits for a network that is slower than the
    /// guest.
    pub(super) fn transmit(&mut self, chain: Chain<'_>) -> Completion {
        if self.gather(chain)
            && self.outgoing.len() >= HEADER + ETHERNET
            && header::check(&mut self.outgoing, header::to_host(self.features))
        {
            let sent = self.frames.write(&self.outgoing);
            if sent.is_err_and(|e| e.kind() == ErrorKind::WouldBlock) {
                self.tx_waits = true;
                return Completion::Wait;
            }
        }
        Completion::Used(0)
    }

    /// Copies the frame: what is looked at is what is sent. `false`: it is none.
    fn gather(&mut self, chain: Chain<'_>) -> bool {
        let (descs, complete) = descriptors(chain, MAX_CHAIN);
        self.outgoing.clear();
        for desc in descs.iter().filter(|desc| !desc.is_write_only()) {
            let (start, len) = (self.outgoing.len(), desc.len() as usize);
            if len > MAX_FRAME - start {
                return false;
            }
            self.outgoing.resize(start + len, 0);
            let part = self.outgoing.get_mut(start..).unwrap_or_default();
            if self.mem.read_slice(part, desc.addr()).is_err() {
                return false;
            }
        }
        complete
    }
}
