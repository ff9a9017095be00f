//! The hint queue (virtio 1.3, section 5.5.6.5): commands and free blocks.

use std::time::Duration;

use vm_memory::Bytes;

use super::constants::*;
use super::device::Balloon;
use crate::virtio::{Chain, descriptors};

/// After this long the remaining blocks of a chain are dropped, which is always safe, so that a
/// guest with a chain of huge overlapping blocks cannot keep the lock.
const CHAIN_TIME: Duration = Duration::from_millis(20);

impl Balloon {
    /// One chain of the hint queue: commands and pages are told apart by direction, never by
    /// length.
    pub(super) fn hinted(&mut self, chain: Chain<'_>) {
        let until = self.backend.now() + CHAIN_TIME;
        let (descs, complete) = descriptors(chain, MAX_CHAIN);
        self.telemetry.hints_malformed += u64::from(!complete);
        for (nth, desc) in descs.into_iter().enumerate() {
            if !desc.is_write_only() {
                let mut word = [0; 4];
                match desc.len() == 4 && self.mem.read_slice(&mut word, desc.addr()).is_ok() {
                    true => self.hinting.command(u32::from_le_bytes(word), &mut self.telemetry),
                    false => self.telemetry.hints_malformed += 1,
                }
            } else if nth > 0 && self.backend.now() > until {
                self.telemetry.hints_dropped += 1;
            } else {
                self.block(desc.addr().0, u64::from(desc.len()));
            }
        }
    }

    fn block(&mut self, gpa: u64, len: u64) {
        let parts: Vec<_> = self.ram.clip(gpa, len).collect();
        if parts.is_empty() {
            self.telemetry.hints_malformed += 1;
            return;
        }
        let Some(sink) = self.hinting.sink.as_ref().filter(|_| self.hinting.state.open) else {
            self.telemetry.hints_stale += 1;
            return;
        };
        self.telemetry.hints_received += 1;
        for (gpa, len) in parts {
            self.telemetry.hinted_bytes += len;
            sink.range(gpa, len);
        }
    }
}
