//! Whether to ask a guest for hints at all.

use std::sync::Arc;

use crate::config::{HintPolicy, SourceConfig};
use crate::report::Reason;
use crate::traits::{HintSource, SourceVm};
use crate::units::PAGE_SIZE;

/// The decision of [`HintPolicy::Auto`] where hints could save so many bytes of `populated` pages:
/// `Err` says why not.
///
/// Below 64 MiB (what a guest that zeroes may populate for nothing until the asking ends; an idle
/// guest of 8 GiB has 37 MiB that are free and populated), below 2 % of what is populated, or below
/// 50 ms on the link it is not worth making the guest allocate all its free memory (and, if it
/// zeroes, populate it).
pub(crate) fn worthwhile(saving: u64, populated: u64, link_rate: f64) -> Result<(), Reason> {
    if saving < 64 << 20 || saving < populated * PAGE_SIZE as u64 / 50 {
        return Err(Reason::LittleFree);
    }
    if (saving as f64) < link_rate * 0.05 {
        return Err(Reason::FastLink);
    }
    Ok(())
}

/// Whom to ask for hints, or why nobody. `populated` pages are; the link takes `link_rate` bytes of
/// guest memory in a second.
pub(crate) fn hint_source<'a>(
    vm: &'a SourceVm,
    cfg: &SourceConfig,
    populated: u64,
    link_rate: f64,
) -> Result<&'a Arc<dyn HintSource>, Reason> {
    let source = vm.hints.as_ref().ok_or(Reason::NoBalloon)?;
    if cfg.hints == HintPolicy::Off {
        return Err(Reason::NotWanted);
    }
    if !source.available() {
        return Err(Reason::NoDriver);
    }
    if cfg.hints == HintPolicy::Auto {
        // Without statistics all that is populated might be free.
        let (nr_pages, free) = (vm.ram.nr_pages(), source.guest_free_bytes());
        let saving = free_and_populated(populated, nr_pages, free.unwrap_or(u64::MAX));
        worthwhile(saving, populated, link_rate)?;
    }
    Ok(source)
}

/// Bytes that are populated and that the guest does not use, populated − (RAM − free): what hints
/// could take out of a round that sends all of `populated`.
pub(crate) fn free_and_populated(populated: u64, nr_pages: u64, free_bytes: u64) -> u64 {
    let page = PAGE_SIZE as u64;
    (populated * page).saturating_sub((nr_pages * page).saturating_sub(free_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_are_asked_for_where_they_pay() {
        let gib = (1u64 << 30) / PAGE_SIZE as u64;
        let saving = |populated, free| free_and_populated(populated, 8 * gib, free);
        let pays = |populated, free, link_rate| {
            worthwhile(saving(populated, free), populated, link_rate).is_ok()
        };
        // 1 GiB populated, 0.5 GiB used.
        assert_eq!(saving(gib, 15 << 29), 1 << 29);
        assert!(pays(gib, 15 << 29, 1e9) && !pays(gib, 15 << 29, 1e11));
        // 37 MiB, as an idle guest of 8 GiB has it.
        assert!(!pays(354 << 8, 7875 << 20, 1e9));
        assert!(!pays(gib, 7 << 30, 1e9));
        // It does not tell.
        assert_eq!(saving(gib, u64::MAX), 1 << 30);
    }
}
