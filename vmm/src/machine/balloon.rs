//! What is asked of the balloon.

use std::time::{Duration, Instant};

use super::Machine;
use crate::memory::PAGE;

impl Machine {
    /// Asks the guest for a balloon of this many bytes. False while paused.
    pub fn set_balloon_target(&self, bytes: u64) -> bool {
        self.balloon().is_none_or(|b| b.set_target(u32::try_from(bytes / PAGE).unwrap_or(u32::MAX)))
    }

    /// Asks the guest for fresh statistics. If that can be: when the last ones came, for
    /// [`await_statistics`](Self::await_statistics).
    pub fn ask_for_statistics(&self) -> Option<Option<Instant>> {
        let b = self.balloon()?;
        let before = b.stats().updated;
        b.request_stats().then_some(before)
    }

    /// Waits until others come than those of `before`, at most for `timeout`.
    pub fn await_statistics(&self, before: Option<Instant>, timeout: Duration) {
        let Some(b) = self.balloon() else { return };
        let asked = Instant::now();
        while b.stats().updated == before && asked.elapsed() < timeout {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}
