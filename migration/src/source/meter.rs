//! How fast the link is, and what that means for the guest's memory.

use std::time::Duration;

use crate::config::SourceConfig;
use crate::units::PAGE_SIZE;

/// Assumed until something was measured, in bytes per second.
const ASSUMED_RATE: f64 = (1u64 << 30) as f64;
/// Bytes that count as sent at the assumed rate where a hint's worth is reckoned.
const PRIOR: f64 = 2.0 * 1024.0 * 1024.0;
/// Pages sent from which a round says how well dirty pages compress.
const ENOUGH_TO_TELL: u64 = 64;

/// Link rate, from sending chunks with content. Old measurements fade.
#[derive(Default)]
pub(super) struct Meter {
    content: f64,
    wire: f64,
    seconds: f64,
    /// Bytes per second that the link is kept to.
    cap: Option<f64>,
    compresses: bool,
    /// Bytes of guest memory that a byte on the wire carried in the last round on a dirty set; 1
    /// before, and without compression.
    dirty_packing: f64,
}

impl Meter {
    pub(super) fn new(cfg: &SourceConfig) -> Self {
        Self {
            cap: cfg.bandwidth.map(|cap| cap.max(1) as f64),
            compresses: !cfg.compression.is_none(),
            dirty_packing: 1.0,
            ..Self::default()
        }
    }

    /// Bytes of guest memory, bytes on the wire for them, and the time that they took.
    pub(super) fn add(&mut self, content: u64, wire: u64, time: Duration) {
        // The last 20 MiB or so count.
        let fade = 0.95f64.powf(content as f64 / f64::from(1 << 20));
        self.content = self.content * fade + content as f64;
        self.wire = self.wire * fade + wire as f64;
        self.seconds = self.seconds * fade + time.as_secs_f64();
    }

    /// A round on a dirty set sent so many pages in so many bytes.
    pub(super) fn add_dirty(&mut self, pages: u64, wire: u64) {
        if self.compresses && pages >= ENOUGH_TO_TELL {
            self.dirty_packing = (pages * PAGE_SIZE as u64) as f64 / wire.max(1) as f64;
        }
    }

    /// Bytes on the wire per second, measured.
    pub(super) fn rate(&self) -> Option<f64> {
        (self.seconds > 0.0 && self.wire > 0.0).then(|| self.wire / self.seconds)
    }

    /// Bytes on the wire per second to reckon with: the cap, or what was measured, or an
    /// assumption.
    pub(super) fn link_rate(&self) -> f64 {
        match (self.cap, self.rate()) {
            (Some(cap), Some(rate)) => rate.min(cap),
            (None, Some(rate)) | (Some(rate), None) => rate,
            (None, None) => ASSUMED_RATE,
        }
    }

    /// Bytes of guest memory per second: what a hint is worth. Compressed, the link carries more
    /// than its own bytes.
    pub(super) fn memory_rate(&self) -> f64 {
        let cap = self.cap.unwrap_or(f64::INFINITY);
        self.likely_rate(ASSUMED_RATE.min(cap)).min(cap) * self.packing()
    }

    /// How long this dirty set would take.
    ///
    /// Compressed it may take a fraction of that, and what the guest writes may compress quite
    /// unlike what it keeps. So nothing is taken for granted until a round has sent a dirty set.
    pub(super) fn time_for(&self, pages: u64) -> Duration {
        let bytes = (pages * PAGE_SIZE as u64) as f64;
        Duration::from_secs_f64(bytes / (self.link_rate() * self.dirty_packing))
    }

    /// How long so many bytes on the wire take.
    pub(super) fn time_on_link(&self, bytes: u64) -> Duration {
        Duration::try_from_secs_f64(bytes as f64 / self.link_rate()).unwrap_or(Duration::MAX)
    }

    /// As [`Self::rate`], if [`PRIOR`] bytes had gone at the `assumed` rate before: what the first
    /// chunks tell, which share the machine with a guest that hints, is little.
    fn likely_rate(&self, assumed: f64) -> f64 {
        (self.wire + PRIOR) / (self.seconds + PRIOR / assumed)
    }

    /// Bytes of guest memory that a byte on the wire carries; 1 until measured.
    fn packing(&self) -> f64 {
        if self.wire > 0.0 { self.content / self.wire } else { 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meter_tells_wire_and_memory_apart() {
        let mut meter = Meter::default();
        assert_eq!((meter.rate(), meter.packing()), (None, 1.0));
        assert_eq!(meter.likely_rate(1e8), 1e8);
        meter.add(3_000_000, 1_000_000, Duration::from_secs(2));
        assert_eq!((meter.rate(), meter.packing()), (Some(500_000.0), 3.0));
        for _ in 0..1000 {
            meter.add(1_000_000, 1_000_000, Duration::from_secs(1));
        }
        assert!((meter.packing() - 1.0).abs() < 1e-9 && meter.rate().unwrap() > 999_999.0);
    }

    #[test]
    fn one_slow_chunk_does_not_make_a_slow_link() {
        let mut meter = Meter::default();
        meter.add(872_000, 872_000, Duration::from_millis(42));
        assert!(meter.rate().unwrap() < 21e6);
        assert!(meter.likely_rate(1e9) > 60e6);
        for _ in 0..100 {
            meter.add(1 << 20, 1 << 20, Duration::from_millis(50));
        }
        assert!(meter.likely_rate(1e9) < 25e6);
    }
}
