//! The memory balloon (virtio 1.3, section 5.5): inflate and deflate, statistics, free page
//! hinting, page reporting.
//!
//! The queues are processed by the event loop; the VMM uses [`BalloonHandle`] from any thread.
//! Nothing the guest sends is fatal: a request that makes no sense is counted
//! ([`BalloonTelemetry`]), skipped and acknowledged. Every buffer is acknowledged with length 0,
//! for the device never writes into one.
//!
//! | file | concern |
//! |---|---|
//! | `constants` | numbers, with their sections |
//! | `config` | what is offered |
//! | `ram` | what is RAM |
//! | `set` | the exact set of ballooned pages |
//! | `device` | the balloon: what its queues share |
//! | `config_space` | the four fields |
//! | `inflate` | inflate and deflate queues |
//! | `stats` | statistics queue |
//! | `hinting` | command ids: whether a hint counts |
//! | `hint_queue` | hint queue |
//! | `reporting` | reporting queue, and all discards |
//! | `state` | saving and restoring |
//! | `control` | the handle |
//!
//! This file ties them to the transport.

mod config;
mod config_space;
pub mod constants;
mod control;
mod device;
mod hint_queue;
mod hinting;
mod inflate;
mod ram;
mod reporting;
mod set;
mod state;
mod stats;
mod telemetry;

use self::config::Role;
use self::constants::*;
use self::stats::Stats;
use super::mmio::{MmioDevice, MmioStateV1};
use super::{Chain, Completion, VirtioDevice};
use crate::device::{Cause, Kind};

pub use self::config::BalloonConfig;
pub use self::control::{BalloonFigures, BalloonHandle, DoneGuard};
pub use self::device::Balloon;
pub use self::hinting::{HintError, HintRange, HintState, HintStateV1, Hinting};
pub use self::set::SavedPages;
pub use self::state::{BalloonDeviceState, BalloonState, BalloonStateError};
pub use self::stats::BalloonStats;
pub use self::telemetry::BalloonTelemetry;

/// Chains of the hint queue in one batch. A hint may cost a system call and a look at 4 MiB of
/// memory.
const HINT_BATCH: usize = 16;
/// Chains of the other queues in one batch.
const BATCH: usize = 32;

/// The kind.
pub static KIND: Kind = Kind {
    name: "virtio-balloon",
    id: "balloon",
    options: 1,
    states: &[(2, 1), (3, 2)],
    virtio: true,
    build: |build| {
        let balloon = Balloon::new(&build.options()?, build.host.memory(), build.host.balloon());
        MmioDevice::build(&build, balloon)
    },
};

impl VirtioDevice for Balloon {
    type State = BalloonState;

    fn device_type(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; self.roles.len()]
    }

    fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        self.config_read(offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.config_write(offset, data);
    }

    fn negotiated(&mut self, features: u64) {
        self.negotiated = features;
    }

    fn activate(&mut self) {
        self.live = true;
    }

    /// The guest's memory is its own again; the host's target stays.
    fn reset(&mut self) {
        self.negotiated = 0;
        self.live = false;
        self.actual = 0;
        self.poison_val = 0;
        self.set.clear();
        self.set_known = true;
        self.reported = None;
        self.inflating = None;
        self.stats = Stats::default();
        self.hinting.reset();
    }

    fn queue_stopped(&mut self, queue: usize) {
        match self.roles.get(queue) {
            Some(Role::Stats) => self.stats.held = None,
            Some(Role::Reporting) => self.reported = None,
            Some(Role::Inflate) => self.inflating = None,
            // It cannot say any more which pages it uses again.
            Some(Role::Deflate) if self.live => self.set_known = false,
            Some(Role::Deflate | Role::Hint) | None => {}
        }
    }

    fn batch(&self, queue: usize) -> usize {
        if self.roles.get(queue) == Some(&Role::Hint) { HINT_BATCH } else { BATCH }
    }

    fn handle(&mut self, queue: usize, chain: Chain<'_>) -> Completion {
        match self.roles.get(queue) {
            Some(Role::Inflate) => return self.inflate(chain),
            Some(Role::Deflate) => self.deflate(chain),
            Some(Role::Stats) => {
                return self.stats.handle(chain, &self.mem, &mut self.telemetry);
            }
            Some(Role::Hint) => self.hinted(chain),
            Some(Role::Reporting) => return self.reported(chain),
            None => {}
        }
        Completion::Used(0)
    }

    fn config_news(&mut self) -> bool {
        std::mem::take(&mut self.rest_is_news)
    }

    fn state_bytes(&self, version: u32) -> u64 {
        self.set.saved_bytes(version)
    }

    fn state(&self, version: u32) -> BalloonState {
        self.save(version)
    }

    fn load(&mut self, mmio: &MmioStateV1, state: &BalloonState) -> Result<bool, Cause> {
        self.load_saved(mmio, state)?;
        Ok(self.hinting.field() != state.hinting.field)
    }

    /// The driver finds DONE, if it may hold hinted pages. Not at once after the guest runs: Linux
    /// takes all of its pages back with interrupts off, which touches memory that the host has not
    /// mapped for the guest yet.
    fn announce(&mut self) -> bool {
        self.hinting.field() == CMD_DONE
    }
}
