//! Whether to ask a guest for hints at all.

use std::sync::Arc;

use crate::config::{HintPolicy, SourceConfig};
use crate::report::Reason;
use crate::traits::{HintSource, SourceVm};
use crate::units::PAGE_SIZE;

/// Numbers that decide whether hints pay.
#[derive(Clone, Copy, Debug)]
pub struct Worth {
    /// Pages that the host has populated.
    pub populated: u64,
    /// Pages of guest RAM.
    pub nr_pages: u64,
    /// Free memory by the guest's own statistics, in bytes.
    pub guest_free_bytes: Option<u64>,
    /// The link, in bytes per second.
    pub link_rate: f64,
}

/// The decision of [`HintPolicy::Auto`]: `Err` says why not.
///
/// Only populated memory that the guest does not use can be saved: populated − (RAM − free). Below
/// 64 MiB (what a guest that zeroes may populate for nothing until the asking ends; an idle guest
/// of 8 GiB has 37 MiB that are free and populated), below 2 % of what is populated, or below 50 ms
/// on the link it is not worth making the guest allocate all its free memory (and, if it zeroes,
/// populate it). Without statistics all that is populated might be free.
pub fn worthwhile(worth: &Worth) -> Result<u64, Reason> {
    let page = PAGE_SIZE as u64;
    let populated = worth.populated * page;
    let used = match worth.guest_free_bytes {
        Some(free) => (worth.nr_pages * page).saturating_sub(free),
        None => 0,
    };
    let saving = populated.saturating_sub(used);
    if saving < 64 << 20 || saving < populated / 50 {
        return Err(Reason::LittleFree);
    }
    if (saving as f64) < worth.link_rate * 0.05 {
        return Err(Reason::FastLink);
    }
    Ok(saving)
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
        let nr_pages = vm.ram.nr_pages();
        let guest_free_bytes = source.guest_free_bytes();
        worthwhile(&Worth { populated, nr_pages, guest_free_bytes, link_rate })?;
    }
    Ok(source)
}

/// Bytes that are populated and free, if `used` are neither: what hints could take out of a round
/// that sends all of `populated`.
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
        let base = Worth {
            populated: gib,
            nr_pages: 8 * gib,
            guest_free_bytes: Some(15 << 29),
            link_rate: 1e9,
        };
        // 1 GiB populated, 0.5 GiB used.
        assert_eq!(worthwhile(&base), Ok(1 << 29));
        // 37 MiB, as an idle guest of 8 GiB has it.
        let idle = Worth { populated: 354 << 8, guest_free_bytes: Some(7875 << 20), ..base };
        assert!(worthwhile(&idle).is_err());
        let used = Worth { guest_free_bytes: Some(7 << 30), ..base };
        assert!(worthwhile(&used).is_err());
        let fast = Worth { link_rate: 1e11, ..base };
        assert!(worthwhile(&fast).is_err());
        let silent = Worth { guest_free_bytes: None, ..base };
        assert_eq!(worthwhile(&silent), Ok(1 << 30));
    }
}
