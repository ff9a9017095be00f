//! The hint queue (virtio 1.3, section 5.5.6.5): commands and free blocks.
//!
//! A hint may cost a look at all of its memory, and a chain may name all memory again and again:
//! what is left of a chain when its time is up is dropped, which is always safe.

use std::time::Instant;

use vm_memory::Bytes;

use super::constants::*;
use super::device::Balloon;
use super::ram::pieces;
use crate::virtio::{Chain, descriptors};

impl Balloon {
    /// One chain of the hint queue: commands and pages are told apart by direction, never by
    /// length.
    pub(super) fn hinted(&mut self, chain: Chain<'_>) {
        let until = self.chain_ends();
        let (descs, complete) = descriptors(chain, MAX_CHAIN);
        self.telemetry.hints_malformed += u64::from(!complete);
        for (nth, desc) in descs.into_iter().enumerate() {
            if !desc.is_write_only() {
                let mut word = [0; 4];
                match desc.len() == 4 && self.mem.read_slice(&mut word, desc.addr()).is_ok() {
                    true => self.hinting.command(u32::from_le_bytes(word), &mut self.telemetry),
                    false => self.telemetry.hints_malformed += 1,
                }
            } else {
                self.block(nth, desc.addr().0, u64::from(desc.len()), until);
            }
        }
        let open = self.hinting.state.open;
        if open && self.hinting.sink.as_ref().is_some_and(|sink| sink.enough()) {
            self.rest_is_news |= self.hinting.rest();
        }
    }

    /// The `nth` descriptor of a chain.
    fn block(&mut self, nth: usize, gpa: u64, len: u64, until: Instant) {
        let mut pieces = self.ram.clip(gpa, len).flat_map(pieces).peekable();
        if pieces.peek().is_none() {
            self.telemetry.hints_malformed += 1;
            return;
        }
        let Some(sink) = self.hinting.sink.as_ref().filter(|_| self.hinting.state.open) else {
            self.telemetry.hints_stale += 1;
            return;
        };
        for (part, (gpa, len)) in pieces.enumerate() {
            // The first always gets through, however slow the host is.
            if nth + part > 0 && self.backend.now() >= until {
                self.telemetry.hints_dropped += 1;
                return;
            }
            self.telemetry.hints_received += u64::from(part == 0);
            self.telemetry.hinted_bytes += len;
            sink.range(gpa, len);
        }
    }
}
