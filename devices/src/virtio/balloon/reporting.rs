//! Free page reporting (virtio 1.3, section 5.5.6.7): the driver lends pages until the buffer is
//! acknowledged.
//!
//! Without PAGE_POISON a reported page may read as anything afterwards, so it is given to the host.
//! With it the driver expects `poison_val`: zero is what a discarded page reads as, any other value
//! forbids discarding.
//!
//! A chain may name 4 GiB, whose pages take longer to give back than anybody should wait for the
//! device's lock: then the device goes on with the same chain after others had the lock.

use std::time::Instant;

use virtio_queue::desc::split::Descriptor;

use super::constants::*;
use super::device::Balloon;
use super::ram::pieces;
use crate::virtio::{Chain, Completion, descriptors};

impl Balloon {
    pub(super) fn reported(&mut self, chain: Chain<'_>) -> Completion {
        let (descs, complete) = descriptors(chain, MAX_CHAIN);
        let before = self.reported.take();
        let ranges: Vec<_> = descs.iter().map(|desc| self.reported_range(desc)).collect();
        if before.is_none() {
            self.count_report(&ranges, complete);
        }
        if self.poisoned() {
            return Completion::Used(0);
        }
        let until = self.chain_ends();
        let mut skip = before.unwrap_or(0);
        let mut done = skip;
        for (gpa, len) in ranges.into_iter().flatten() {
            let at = skip.min(len);
            skip -= at;
            let now = self.discard_range(gpa + at, len - at, until);
            done += now;
            if at + now < len {
                self.reported = Some(done);
                return Completion::Again;
            }
        }
        Completion::Used(0)
    }

    /// A report that runs out of its region is nonsense beyond it: whatever follows the hole was
    /// not meant.
    fn reported_range(&self, desc: &Descriptor) -> Option<(u64, u64)> {
        let range = self.ram.clip_to_region(desc.addr().0, u64::from(desc.len()));
        range.filter(|_| desc.is_write_only())
    }

    fn count_report(&mut self, ranges: &[Option<(u64, u64)>], complete: bool) {
        let poisoned = self.poisoned();
        let telemetry = &mut self.telemetry;
        telemetry.malformed_reports += u64::from(!complete);
        for range in ranges {
            let Some((_, len)) = range else {
                telemetry.malformed_reports += 1;
                continue;
            };
            telemetry.reports += 1;
            telemetry.reported_bytes += len;
            telemetry.withheld_bytes += if poisoned { *len } else { 0 };
        }
    }

    /// Free pages hold a value that a discarded page would not read as.
    fn poisoned(&self) -> bool {
        self.negotiated & F_PAGE_POISON != 0 && self.poison_val != 0
    }

    /// Gives whole pages of one region to the host, unless that is forbidden, and until the time is
    /// up. Always before the buffer is acknowledged. Returns how many bytes were dealt with.
    pub(super) fn discard_range(&mut self, gpa: u64, len: u64, until: Instant) -> u64 {
        if !self.discard_allowed {
            self.telemetry.withheld_bytes += len;
            return len;
        }
        let mut done = 0;
        for (at, len) in pieces((gpa, len)).take_while(|_| self.backend.now() < until) {
            match self.backend.discard(at, len) {
                Ok(()) => self.telemetry.discarded_bytes += len,
                Err(_) => self.telemetry.discard_errors += 1,
            }
            done += len;
        }
        done
    }
}
