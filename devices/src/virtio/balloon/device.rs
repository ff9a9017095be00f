//! The balloon itself: what all of its queues share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::config::{BalloonConfig, Role};
use super::constants::F_MUST_TELL_HOST;
use super::hinting::Hinting;
use super::ram::Ram;
use super::set::PageSet;
use super::stats::Stats;
use super::telemetry::BalloonTelemetry;
use crate::GuestMemory;
use crate::host::BalloonBackend;

/// How long one chain may keep the device's lock: nobody who waits for it, for a register or to
/// pause, is to wait for more than 10 ms.
const CHAIN_TIME: Duration = Duration::from_millis(5);

/// The device behind the transport.
pub struct Balloon {
    pub(super) mem: Arc<GuestMemory>,
    pub(super) ram: Ram,
    pub(super) backend: Arc<dyn BalloonBackend>,
    pub(super) features: u64,
    pub(super) roles: Vec<Role>,
    /// Acknowledged features, 0 before FEATURES_OK.
    pub(super) negotiated: u64,
    pub(super) live: bool,
    pub(super) discard_allowed: bool,
    pub(super) num_pages: u32,
    pub(super) actual: u32,
    pub(super) poison_val: u32,
    pub(super) set: PageSet,
    /// No deflate request was lost; see `inflate`.
    pub(super) set_known: bool,
    /// Bytes of the report at hand that were dealt with before its time was up. `None`: it is a new
    /// one.
    pub(super) reported: Option<u64>,
    /// Pages of the inflate request at hand that the host does not have yet. `None`: it is a new
    /// one.
    pub(super) inflating: Option<Vec<u64>>,
    pub(super) stats: Stats,
    pub(super) hinting: Hinting,
    /// The driver was asked to rest, and has yet to be told that config space changed.
    pub(super) rest_is_news: bool,
    pub(super) telemetry: BalloonTelemetry,
}

impl Balloon {
    pub(super) fn new(
        cfg: &BalloonConfig,
        mem: Arc<GuestMemory>,
        backend: Arc<dyn BalloonBackend>,
    ) -> Self {
        let ram = Ram::new(&mem);
        Self {
            mem,
            set: PageSet::new(ram.clone()),
            ram,
            backend,
            features: cfg.features(),
            roles: cfg.roles(),
            negotiated: 0,
            live: false,
            discard_allowed: true,
            num_pages: cfg.target_pages,
            actual: 0,
            poison_val: 0,
            set_known: true,
            reported: None,
            inflating: None,
            stats: Stats::default(),
            hinting: Hinting::default(),
            rest_is_news: false,
            telemetry: BalloonTelemetry::default(),
        }
    }

    /// Hinting, for who has the device without a driver or an engine: the model checker.
    pub fn hinting(&mut self) -> &mut Hinting {
        &mut self.hinting
    }

    pub(super) fn role_index(&self, role: Role) -> Option<usize> {
        self.roles.iter().position(|r| *r == role)
    }

    /// When a chain that begins now has to give up the device's lock.
    pub(super) fn chain_ends(&self) -> Instant {
        self.backend.now() + CHAIN_TIME
    }

    pub(super) fn telemetry(&self) -> BalloonTelemetry {
        BalloonTelemetry { ballooned_pages: self.set.count(), ..self.telemetry.clone() }
    }

    /// Whether the set holds exactly the pages that the guest does not use.
    pub(super) fn certain(&self) -> bool {
        self.set_known && self.negotiated & F_MUST_TELL_HOST != 0
    }
}
