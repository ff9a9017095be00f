//! A thread at normal priority that notices when the guest stands still.
//!
//! It sleeps 5 ms at a time and keeps the longest time between two beats by CLOCK_MONOTONIC.
//! Whether that clock counts the time in which the VMM had the guest paused is up to the VMM: a TSC
//! or kvmclock that goes on across the pause makes the downtime part of the gap, one that is set
//! back hides it. CLOCK_BOOTTIME is no different under KVM, since no suspend takes place inside the
//! guest.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use crate::sys::monotonic_ns;

/// Time between two beats when nothing is in the way.
const PERIOD: Duration = Duration::from_millis(5);

static BEATS: AtomicU64 = AtomicU64::new(0);
static LONGEST_NS: AtomicU64 = AtomicU64::new(0);
static LONGEST_AT_NS: AtomicU64 = AtomicU64::new(0);

/// Starts the thread.
pub fn start() {
    thread::spawn(|| {
        let mut last = monotonic_ns();
        loop {
            thread::sleep(PERIOD);
            let now = monotonic_ns();
            let gap = now.saturating_sub(last);
            if gap > LONGEST_NS.load(Relaxed) {
                LONGEST_NS.store(gap, Relaxed);
                LONGEST_AT_NS.store(now, Relaxed);
            }
            BEATS.fetch_add(1, Relaxed);
            last = now;
        }
    });
}

/// Forgets the longest gap.
pub fn reset() {
    LONGEST_NS.store(0, Relaxed);
    LONGEST_AT_NS.store(0, Relaxed);
}

/// Beats so far, the longest gap since the last reset, and when it ended (both in ms, the latter
/// since boot).
pub fn read() -> (u64, f64, u64) {
    let gap = LONGEST_NS.load(Relaxed) as f64 / 1e6;
    (BEATS.load(Relaxed), gap, LONGEST_AT_NS.load(Relaxed) / 1_000_000)
}
