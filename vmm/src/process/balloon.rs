//! The balloon for people: names of features, counters, statistics.

use wherry_devices::virtio::balloon::constants::{
    F_DEFLATE_ON_OOM, F_FREE_PAGE_HINT, F_MUST_TELL_HOST, F_PAGE_POISON, F_PAGE_REPORTING,
    F_STATS_VQ, STAT_NAMES,
};

use crate::control::BalloonInfo;
use crate::machine::Machine;
use crate::memory::PAGE;

const FEATURES: [(u64, &str); 6] = [
    (F_MUST_TELL_HOST, "must_tell_host"),
    (F_STATS_VQ, "stats"),
    (F_DEFLATE_ON_OOM, "deflate_on_oom"),
    (F_FREE_PAGE_HINT, "free_page_hint"),
    (F_PAGE_POISON, "page_poison"),
    (F_PAGE_REPORTING, "page_reporting"),
];

/// The balloon for `info`, if there is one.
pub fn balloon_info(machine: &Machine) -> Option<BalloonInfo> {
    let b = machine.balloon()?;
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
            "guest_statistics_age_ms":
                age.map(|a| u64::try_from(a.as_millis()).unwrap_or(u64::MAX)),
            // What a migration leaves out; null if it is not certain which pages those are.
            "ballooned_bytes": figures.ballooned_pages.map(|nr| nr * PAGE),
            "resident_bytes": machine.ram().resident_bytes(),
            "device": figures.telemetry,
        }),
    })
}
