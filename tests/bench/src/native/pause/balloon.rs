//! The machine's own balloon, full of pages that no guest has given: its driver is made up.

use std::io;
use std::sync::Arc;

use anyhow::{Context, Result};
use wherry_devices::interrupt::InterruptLine;
use wherry_devices::virtio::balloon::{
    Balloon, BalloonConfig, BalloonDeviceState, BalloonHandle, SavedPages,
};
use wherry_devices::virtio::mmio::MmioError;
use wherry_devices::virtio::mmio::regs::status;
use wherry_vmm::memory::Ram;

/// Nobody takes its interrupts.
struct Nobody;

impl InterruptLine for Nobody {
    fn set(&self, _high: bool) -> io::Result<()> {
        Ok(())
    }
}

/// What it offers. Without EVENT_IDX the queues need not be set up.
fn config() -> BalloonConfig {
    BalloonConfig { event_idx: false, ..BalloonConfig::default() }
}

/// One with these pages in it, by their numbers in all of RAM.
pub fn with(ram: &Arc<Ram>, pages: &[u64]) -> Result<BalloonHandle> {
    let fresh = Balloon::create(config(), ram.memory().clone(), Arc::new(Nobody), ram.clone())?;
    let mut state = fresh.state();
    state.mmio.status =
        status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
    state.mmio.driver_features = state.mmio.device_features;
    state.device.ballooned = SavedPages::Runs(runs(pages));
    restored(ram, &state).context("no balloon").inspect(|balloon| balloon.set_paused(false))
}

/// Pages, ascending, as runs.
fn runs(pages: &[u64]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &page in pages {
        match runs.last_mut() {
            Some((first, nr)) if *first + *nr == page => *nr += 1,
            _ => runs.push((page, 1)),
        }
    }
    runs
}

/// One as it was saved.
pub fn load(ram: &Arc<Ram>, state: &[u8]) -> io::Result<BalloonHandle> {
    let state = wherry_codec::decode(state).map_err(io::Error::other)?;
    restored(ram, &state).map_err(io::Error::other)
}

fn restored(ram: &Arc<Ram>, state: &BalloonDeviceState) -> Result<BalloonHandle, MmioError> {
    Balloon::restore(config(), ram.memory().clone(), Arc::new(Nobody), ram.clone(), state)
}

#[cfg(test)]
mod tests {
    use wherry_migration::bitmap::Bitmap;
    use wherry_migration::traits::{GuestRam, HintSource};
    use wherry_vmm::memory::Backing;
    use wherry_vmm::migrate::Hints;

    use super::*;

    #[test]
    fn the_machine_finds_its_pages_by_their_numbers_in_ram() {
        // The second region begins at page 786432, far above in addresses.
        let ram = Arc::new(Ram::new(4 << 30, &Backing::Memfd).unwrap());
        let pages = [0, 63, 64, 65, 786_431, 786_432, 786_500, ram.nr_pages() - 1];
        let hints = Hints { ram: ram.clone(), balloon: with(&ram, &pages).unwrap() };
        let found = || {
            let mut out = Bitmap::new(ram.nr_pages());
            hints.ballooned(&mut out);
            let runs = out.runs().flat_map(|(first, nr)| first..first + nr);
            runs.collect::<Vec<_>>()
        };
        assert_eq!(found(), pages);
        let ranges = hints.balloon.ballooned().into_iter();
        let mut by_address = vec![];
        ranges.for_each(|(gpa, len)| {
            ram.for_pages(gpa, len, |first, nr| by_address.extend(first..first + nr));
        });
        assert_eq!(by_address, pages);
    }
}
