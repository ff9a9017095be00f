//! Free page reporting (virtio 1.3, section 5.5.6.7): the driver lends pages until the buffer is acknowledged.
//!
//! Without PAGE_POISON a reported page may read as anything afterwards, so it is given to the host. With it the driver
//! expects `poison_val`: zero is what a discarded page reads as, any other value forbids discarding.

use super::constants::*;
use super::{Balloon, descriptors};
use crate::virtio::Chain;

impl Balloon {
    pub(super) fn reported(&mut self, chain: Chain<'_>) {
        let (descs, complete) = descriptors(chain);
        self.telemetry.malformed_reports += u64::from(!complete);
        for desc in descs {
            // A report that runs out of its region is nonsense beyond it: whatever follows the hole was not meant.
            let range = self.ram.clip_to_region(desc.addr().0, u64::from(desc.len()));
            let Some((gpa, len)) = range.filter(|_| desc.is_write_only()) else {
                self.telemetry.malformed_reports += 1;
                continue;
            };
            self.telemetry.reports += 1;
            self.telemetry.reported_bytes += len;
            if self.poisoned() {
                self.telemetry.withheld_bytes += len;
            } else {
                self.discard_range(gpa, len);
            }
        }
    }

    /// Free pages hold a value that a discarded page would not read as.
    fn poisoned(&self) -> bool {
        self.negotiated & F_PAGE_POISON != 0 && self.poison_val != 0
    }

    /// Gives RAM to the host, unless that is forbidden. Always before the buffer is acknowledged.
    pub(super) fn discard_range(&mut self, gpa: u64, len: u64) {
        if !self.discard_allowed {
            self.telemetry.withheld_bytes += len;
            return;
        }
        let parts: Vec<_> = self.ram.clip(gpa, len).collect();
        for (gpa, len) in parts {
            match self.backend.discard(gpa, len) {
                Ok(()) => self.telemetry.discarded_bytes += len,
                Err(_) => self.telemetry.discard_errors += 1,
            }
        }
    }
}
