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
//! | `config_space` | the four fields |
//! | `ram` | what is RAM, and the exact set of ballooned pages |
//! | `inflate` | inflate and deflate queues |
//! | `stats` | statistics queue |
//! | `hinting` | hint queue and command id |
//! | `reporting` | reporting queue, and all discards |
//! | `control` | the handle |
//! | `state` | saving and restoring |

mod config_space;
pub mod constants;
mod control;
mod hinting;
mod inflate;
mod ram;
mod reporting;
mod state;
mod stats;
mod telemetry;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use virtio_queue::desc::split::Descriptor;

use self::constants::*;
use self::ram::{PageSet, Ram};
use self::stats::Stats;
use super::mmio::{MmioDevice, MmioError, MmioStateV1, regs};
use super::{Chain, Completion, VirtioDevice};
use crate::GuestMemory;
use crate::device::Kind;
use crate::interrupt::InterruptLine;
use crate::sync::TwoLane;

pub use self::control::{BalloonFigures, BalloonHandle, DoneGuard};
pub use self::hinting::{HintError, HintRange, HintState, HintStateV1, Hinting};
pub use self::ram::PageSetV1;
pub use self::state::{BalloonDeviceStateV1, BalloonStateError, BalloonStateV1};
pub use self::stats::BalloonStats;
pub use self::telemetry::BalloonTelemetry;

/// Chains of the hint queue in one batch. A hint may cost a system call and a look at 4 MiB of
/// memory.
const HINT_BATCH: usize = 16;
/// Chains of the other queues in one batch.
const BATCH: usize = 32;

/// Gives guest memory back to the host. The VMM implements it.
pub trait BalloonBackend: Send + Sync {
    /// Makes `len` bytes from `gpa` on read as zero and frees their memory; whole pages in one RAM
    /// region. The pages count as dirty afterwards. Called with the device locked.
    fn discard(&self, gpa: u64, len: u64) -> io::Result<()>;

    /// The time, which limits how long one request may keep the device locked.
    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// What the device offers. Both ends of a migration must offer the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonConfig {
    /// Target at start, in pages of 4096 bytes.
    pub target_pages: u32,
    /// Offer MUST_TELL_HOST. Without it [`BalloonHandle::ballooned`] stays empty.
    pub must_tell_host: bool,
    /// Offer DEFLATE_ON_OOM.
    pub deflate_on_oom: bool,
    /// Offer STATS_VQ.
    pub stats: bool,
    /// Offer FREE_PAGE_HINT.
    pub hinting: bool,
    /// Offer PAGE_POISON. A Linux guest that initialises its free memory gives up reporting without
    /// it.
    pub poison: bool,
    /// Offer PAGE_REPORTING.
    pub reporting: bool,
    /// Offer EVENT_IDX.
    pub event_idx: bool,
    /// Offer INDIRECT_DESC.
    pub indirect: bool,
    /// Further device feature bits (6 to 23) that change nothing here. Bit 6 is claimed by two
    /// rival proposals.
    pub experimental_features: u64,
}

impl Default for BalloonConfig {
    /// Everything, with an empty target: then the specification and all drivers agree on the
    /// numbers of the queues.
    fn default() -> Self {
        Self {
            target_pages: 0,
            must_tell_host: true,
            deflate_on_oom: true,
            stats: true,
            hinting: true,
            poison: true,
            reporting: true,
            event_idx: true,
            indirect: true,
            experimental_features: 0,
        }
    }
}

impl BalloonConfig {
    fn features(&self) -> u64 {
        [
            (self.must_tell_host, F_MUST_TELL_HOST),
            (self.stats, F_STATS_VQ),
            (self.deflate_on_oom, F_DEFLATE_ON_OOM),
            (self.hinting, F_FREE_PAGE_HINT),
            (self.poison, F_PAGE_POISON),
            (self.reporting, F_PAGE_REPORTING),
            (self.event_idx, regs::F_EVENT_IDX),
            (self.indirect, regs::F_INDIRECT_DESC),
        ]
        .into_iter()
        .filter(|(on, _)| *on)
        .fold(regs::F_VERSION_1 | (self.experimental_features & 0xff_ffc0), |all, (_, bit)| {
            all | bit
        })
    }

    /// Drivers number only the queues that exist.
    fn roles(&self) -> Vec<Role> {
        [
            (true, Role::Inflate),
            (true, Role::Deflate),
            (self.stats, Role::Stats),
            (self.hinting, Role::Hint),
            (self.reporting, Role::Reporting),
        ]
        .into_iter()
        .filter_map(|(on, role)| on.then_some(role))
        .collect()
    }
}

/// What a queue is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Stats,
    Hint,
    Reporting,
}

/// The device behind the transport.
pub struct Balloon {
    mem: Arc<GuestMemory>,
    ram: Ram,
    backend: Arc<dyn BalloonBackend>,
    features: u64,
    roles: Vec<Role>,
    /// Acknowledged features, 0 before FEATURES_OK.
    negotiated: u64,
    live: bool,
    discard_allowed: bool,
    num_pages: u32,
    actual: u32,
    poison_val: u32,
    set: PageSet,
    /// No deflate request was lost; see `inflate`.
    set_known: bool,
    /// Bytes of the report at hand that were dealt with before its time was up. `None`: it is a new
    /// one.
    reported: Option<u64>,
    /// Pages of the inflate request at hand that the host does not have yet. `None`: it is a new
    /// one.
    inflating: Option<Vec<u64>>,
    stats: Stats,
    hinting: Hinting,
    telemetry: BalloonTelemetry,
}

impl Balloon {
    /// A balloon on its transport, after power on.
    pub fn create(
        cfg: BalloonConfig,
        mem: Arc<GuestMemory>,
        irq: Arc<dyn InterruptLine>,
        backend: Arc<dyn BalloonBackend>,
    ) -> Result<BalloonHandle, MmioError> {
        let balloon = Self::new(cfg, Arc::clone(&mem), backend);
        let device = MmioDevice::new(balloon, mem, irq)?;
        Ok(BalloonHandle::new(Arc::new(TwoLane::new(device))))
    }

    fn new(cfg: BalloonConfig, mem: Arc<GuestMemory>, backend: Arc<dyn BalloonBackend>) -> Self {
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
            telemetry: BalloonTelemetry::default(),
        }
    }

    /// Hinting, for who has the device without a driver or an engine: the model checker.
    pub fn hinting(&mut self) -> &mut Hinting {
        &mut self.hinting
    }

    fn role_index(&self, role: Role) -> Option<usize> {
        self.roles.iter().position(|r| *r == role)
    }

    fn telemetry(&self) -> BalloonTelemetry {
        BalloonTelemetry { ballooned_pages: self.set.count(), ..self.telemetry.clone() }
    }

    /// Whether the set holds exactly the pages that the guest does not use.
    fn certain(&self) -> bool {
        self.set_known && self.negotiated & F_MUST_TELL_HOST != 0
    }

    fn ballooned(&self) -> Vec<(u64, u64)> {
        if self.certain() { self.set.ranges() } else { Vec::new() }
    }
}

/// All descriptors of a chain, and whether the chain was complete. It is not if it has none, is too
/// long, loops, or leads out of its table.
fn descriptors(chain: Chain<'_>) -> (Vec<Descriptor>, bool) {
    let descs: Vec<_> = chain.take(MAX_CHAIN).collect();
    let complete = descs.last().is_some_and(|last| !last.has_next());
    (descs, complete)
}

/// The kind.
pub static KIND: Kind = Kind {
    name: "virtio-balloon",
    id: "balloon",
    options: 1,
    version: 1,
    virtio: true,
    build: |build| {
        let config = build.options()?;
        let balloon = Balloon::new(config, build.host.memory(), build.host.balloon());
        let device = MmioDevice::build(&build, balloon)?;
        build.handles.balloon = Some(BalloonHandle::new(device.clone()));
        Ok(MmioDevice::built(device))
    },
};

impl VirtioDevice for Balloon {
    type State = BalloonStateV1;

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
            Some(Role::Stats) => return self.statistics(chain),
            Some(Role::Hint) => self.hinted(chain),
            Some(Role::Reporting) => return self.reported(chain),
            None => {}
        }
        Completion::Used(0)
    }

    fn state(&self) -> BalloonStateV1 {
        self.save()
    }

    fn load(
        &mut self,
        mmio: &MmioStateV1,
        state: &BalloonStateV1,
    ) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
        self.load_saved(mmio, state)?;
        Ok(self.hinting.field() != state.hinting.field)
    }

    /// The driver finds DONE, if it may hold hinted pages.
    fn announce(&mut self) -> bool {
        self.hinting.field() == CMD_DONE
    }
}
