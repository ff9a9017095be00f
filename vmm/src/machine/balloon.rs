//! The balloon for people: names of features, counters, statistics.

use std::time::{Duration, Instant};

use wherry_devices::virtio::balloon::constants::{
    F_DEFLATE_ON_OOM, F_FREE_PAGE_HINT, F_MUST_TELL_HOST, F_PAGE_POISON, F_PAGE_REPORTING,
    F_STATS_VQ, STAT_NAMES,
};

use super::Machine;
use crate::control::BalloonInfo;
use crate::memory::PAGE;

const FEATURES: [(u64, &str); 6] = [
    (F_MUST_TELL_HOST, "must_tell_host"),
    (F_STATS_VQ, "stats"),
    (F_DEFLATE_ON_OOM, "deflate_on_oom"),
    (F_FREE_PAGE_HINT, "free_page_hint"),
    (F_PAGE_POISON, "page_poison"),
    (F_PAGE_REPORTING, "page_reporting"),
];

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

    /// The balloon for `info`.
    pub fn balloon_info(&self) -> Option<BalloonInfo> {
        let b = self.balloon()?;
        let figures = b.figures();
        let statistics: serde_json::Map<_, _> = (figures.stats.values.iter())
            .filter_map(|&(tag, value)| {
                Some(((*STAT_NAMES.get(usize::from(tag))?).to_owned(), value.into()))
            })
            .collect();
        let age = figures.stats.updated.map(|t| t.elapsed());
        let features = FEATURES.iter().filter(|(bit, _)| figures.features & bit != 0);
        Some(BalloonInfo {
            target_bytes: u64::from(figures.target_pages) * PAGE,
            actual_bytes: u64::from(figures.actual_pages) * PAGE,
            features: features.map(|(_, name)| (*name).to_owned()).collect(),
            counters: serde_json::json!({
                "guest": statistics,
                "guest_statistics_age_ms": age.map(|a| u64::try_from(a.as_millis()).unwrap_or(u64::MAX)),
                // What a migration leaves out; null if it is not certain which pages those are.
                "ballooned_bytes": figures.ballooned_pages.map(|nr| nr * PAGE),
                "resident_bytes": self.ram().resident_bytes(),
                "device": figures.telemetry,
            }),
        })
    }
}
