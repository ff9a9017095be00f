//! Saved state of the balloon.

use serde::{Deserialize, Serialize};

use super::config::Role;
use super::constants::{F_FREE_PAGE_HINT, F_PAGE_POISON};
use super::device::Balloon;
use super::hinting::{HintStateV1, Hinting};
use super::set::{PageSet, SavedPages};
use crate::virtio::mmio::regs::status;
use crate::virtio::mmio::{MmioStateV1, VirtioStateV1};

/// Why a saved balloon was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BalloonStateError {
    /// The guest's RAM has another size.
    #[error("saved balloon is for {saved} pages of RAM, there are {own}")]
    RamPages {
        /// In the state.
        saved: u64,
        /// Of the guest.
        own: u64,
    },
    /// The set of ballooned pages is malformed or leaves RAM.
    #[error("saved set of ballooned pages is invalid")]
    PageSet,
    /// The held statistics buffer cannot exist.
    #[error("saved statistics buffer is invalid")]
    HeldStats,
    /// The hint command contradicts the rest.
    #[error("saved hint state is invalid")]
    Hinting,
    /// A value that the driver could not have set.
    #[error("saved poison value is invalid")]
    Poison,
}

/// The balloon without its transport. Numbers of pages are in 4096 bytes. Both versions have this
/// layout; version 2 knows one form more of [`SavedPages`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    /// Target.
    pub num_pages: u32,
    /// What the driver says it gave.
    pub actual: u32,
    /// Value in the guest's free pages.
    pub poison_val: u32,
    /// Pages of guest RAM.
    pub ram_pages: u64,
    /// Pages in the balloon.
    pub ballooned: SavedPages,
    /// Whether that set is to be believed.
    pub set_known: bool,
    /// Head of the statistics buffer that the device holds.
    pub held_stats: Option<u16>,
    /// Free page hinting.
    pub hinting: HintStateV1,
}

/// A balloon with its transport.
pub type BalloonDeviceState = VirtioStateV1<BalloonState>;

impl Balloon {
    pub(super) fn save(&self, version: u32) -> BalloonState {
        BalloonState {
            num_pages: self.num_pages,
            actual: self.actual,
            poison_val: self.poison_val,
            ram_pages: self.ram.pages(),
            ballooned: self.set.save(version),
            set_known: self.set_known,
            held_stats: self.stats.held,
            hinting: self.hinting.saved(),
        }
    }

    pub(super) fn load_saved(
        &mut self,
        mmio: &MmioStateV1,
        saved: &BalloonState,
    ) -> Result<(), BalloonStateError> {
        let own = self.ram.pages();
        if saved.ram_pages != own {
            return Err(BalloonStateError::RamPages { saved: saved.ram_pages, own });
        }
        let has = |bit| mmio.status & bit != 0;
        self.live = has(status::DRIVER_OK);
        self.negotiated = if has(status::FEATURES_OK) { mmio.driver_features } else { 0 };
        self.set = PageSet::restore(self.ram.clone(), &saved.ballooned)
            .ok_or(BalloonStateError::PageSet)?;
        if self.set.count() > 0 && !self.live {
            return Err(BalloonStateError::PageSet);
        }
        self.hinting = Hinting::restore(saved.hinting).ok_or(BalloonStateError::Hinting)?;
        let hints = self.live && self.negotiated & F_FREE_PAGE_HINT != 0;
        if saved.hinting.issued && !hints {
            return Err(BalloonStateError::Hinting);
        }
        if saved.poison_val != 0 && self.negotiated & F_PAGE_POISON == 0 {
            return Err(BalloonStateError::Poison);
        }
        if !self.held_is_possible(saved.held_stats, mmio) {
            return Err(BalloonStateError::HeldStats);
        }
        self.num_pages = saved.num_pages;
        self.actual = saved.actual;
        self.poison_val = saved.poison_val;
        self.set_known = saved.set_known;
        self.stats.held = saved.held_stats;
        Ok(())
    }

    fn held_is_possible(&self, held: Option<u16>, mmio: &MmioStateV1) -> bool {
        let Some(head) = held else { return true };
        let queue = self.role_index(Role::Stats).and_then(|index| mmio.queues.get(index));
        self.live && queue.is_some_and(|q| q.ready && head < q.size)
    }
}
