//! The frame that is on its way into guest memory.

use std::io;

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::constants::*;
use crate::GuestMemory;
use crate::host::Frames;

/// The frame that the guest gets next.
pub struct Incoming {
    frame: Vec<u8>,
    /// Its length; 0: there is none.
    len: usize,
    /// Bytes of it that are in chains.
    filled: usize,
    /// How many chains that is.
    chains: u16,
    /// Descriptors that were looked at for it.
    pub pieces: usize,
    /// Chains that did not hold it, the last time.
    pub tried: usize,
    /// Where the bytes of `num_buffers` are in guest memory.
    count: [Option<GuestAddress>; 2],
}

impl Incoming {
    pub fn new() -> Self {
        let frame = vec![0; MAX_FRAME];
        Self { frame, len: 0, filled: 0, chains: 0, pieces: 0, tried: 0, count: [None; 2] }
    }

    /// Takes one from the network, unless there is one.
    ///
    /// # Errors
    /// As [`Frames::read`].
    pub fn get(&mut self, frames: &mut dyn Frames) -> io::Result<()> {
        if self.len == 0 {
            self.len = frames.read(&mut self.frame)?.min(self.frame.len());
        }
        Ok(())
    }

    /// Header and all.
    pub fn frame(&mut self) -> &mut [u8] {
        self.frame.get_mut(..self.len).unwrap_or_default()
    }

    /// Whether a part of it is in a chain.
    pub fn begun(&self) -> bool {
        self.chains > 0
    }

    /// There is none.
    pub fn clear(&mut self) {
        (self.len, self.tried) = (0, 0);
        self.restart();
    }

    /// No part of it is in a chain.
    pub fn restart(&mut self) {
        (self.filled, self.chains, self.pieces, self.count) = (0, 0, 0, [None; 2]);
    }

    /// Copies what fits into a chain. Returns how many bytes that was, and whether it is the
    /// frame's last chain: it is if the driver's memory is none, too, for the driver does not mean
    /// it.
    pub fn fill(&mut self, mem: &GuestMemory, room: &[Descriptor]) -> (u32, bool) {
        let start = self.filled;
        let mut failed = false;
        for desc in room {
            let rest = self.frame.get(self.filled..self.len).unwrap_or_default();
            let part = rest.get(..rest.len().min(desc.len() as usize)).unwrap_or_default();
            if part.is_empty() {
                continue;
            }
            failed = mem.write_slice(part, desc.addr()).is_err();
            if failed {
                break;
            }
            for (at, place) in (NUM_BUFFERS..).zip(&mut self.count) {
                if (self.filled..self.filled + part.len()).contains(&at) {
                    *place = Some(GuestAddress(desc.addr().0 + (at - self.filled) as u64));
                }
            }
            self.filled += part.len();
        }
        self.chains += 1;
        ((self.filled - start) as u32, failed || self.filled == self.len)
    }

    /// Says in the first chain how many there are.
    pub fn set_count(&self, mem: &GuestMemory) {
        for (byte, at) in self.chains.to_le_bytes().into_iter().zip(self.count) {
            if let Some(at) = at {
                // It was written a moment ago.
                let _ = mem.write_obj(byte, at);
            }
        }
    }
}
