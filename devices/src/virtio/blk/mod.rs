//! The block device (virtio 1.3, section 5.2): a disk, read and written byte for byte.
//!
//! The event loop takes requests from the queue and checks them ([`request`]); workers do them, and
//! complete them when they are through ([`pool`]). A slow disk holds nobody up but who waits for
//! it; what is in the host's memory is read by the loop itself. No more than [`DEPTH`] requests are
//! taken, the others stay in the queue.
//!
//! # Pauses
//! A pause waits for what a worker has begun. What has not begun, waits for its turn
//! ([`throttle`]), or found no room on the host, comes back undone, is kept, and begins again on
//! resume, here or where the guest has arrived ([`state`]). So neither a limit nor a full host
//! holds up a pause; a disk that hangs does, until its deadline.
//!
//! # A host without room
//! Who can pause the machine is told, and the request is kept. Nobody there: it fails.

mod aligned;
mod config;
pub mod disk;
mod file;
mod pool;
pub mod request;
mod state;
mod throttle;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::mmio::{Completer, MmioDevice, MmioStateV1, regs};
use super::{Chain, Completion, HostFd, News, VirtioDevice, descriptors};
use crate::GuestMemory;
use crate::device::{Build, BuildError, Built, Cause, Kind};

use self::aligned::Aligned;
pub use self::config::{
    DEPTH, DiskOptions, DiskRefused, ID_BYTES, MAX_CHAIN, MAX_DISCARD, MAX_RANGES, MAX_ZEROES,
    QUEUE_SIZE, SECTOR, SEG_MAX, feature,
};
pub use self::disk::{Disk, DiskError};
pub use self::file::FileDisk;
use self::pool::{Job, Pool};
use self::request::{Refused, parse};
pub use self::state::{BlkStateV1, DescV1, KeptV1};
pub use self::throttle::{Limits, Throttled};

/// Device id (section 5).
pub const DEVICE_ID: u32 = 2;
/// Chains in one batch.
const BATCH: usize = DEPTH;

/// The kind. A machine has as many as it likes.
pub static KIND: Kind = Kind {
    name: "virtio-blk",
    id: "disk0",
    options: 1,
    states: &[(2, 1)],
    virtio: true,
    build: |build| Blk::build(&build),
};

/// The device behind the transport.
pub struct Blk {
    options: DiskOptions,
    mem: Arc<GuestMemory>,
    pool: Pool,
    completer: Option<Completer>,
    /// The driver stopped the queue: nothing of it may be given back any more.
    stopped: bool,
}

impl Blk {
    fn build(build: &Build<'_>) -> Result<Built, BuildError> {
        let options: DiskOptions = build.options()?;
        let disk = build.host.disk(&build.spec.id).map_err(|e| build.refuse(e))?;
        options.check(&*disk).map_err(|e| build.refuse(e))?;
        let (mem, full) = (build.host.memory(), build.host.disk_full());
        let names = (build.spec.id.clone(), options.serial.clone());
        let pool = Pool::new(mem.clone(), Aligned::new(disk), names, full);
        let pool = pool.map_err(|e| build.refuse(e))?;
        let device = Self { options, mem, pool, completer: None, stopped: false };
        MmioDevice::build(build, device)
    }

    /// Bytes written into the chain, or nothing yet.
    fn begin(&self, chain: KeptV1) -> Option<u32> {
        match parse(&self.mem, &self.options, &chain.descs) {
            Err(Refused::Mute) => Some(0),
            Err(Refused::With(answer, status)) => {
                answer.write(&self.mem, status);
                Some(answer.len)
            }
            Ok(request) => {
                let request = match self.pool.at_once(request) {
                    Ok(len) => return Some(len),
                    Err(request) => request,
                };
                // There is one as soon as there is a driver.
                let ticket = self.completer.as_ref()?.take(0, chain.head);
                self.pool.submit(Job { request, ticket, chain });
                None
            }
        }
    }
}

impl VirtioDevice for Blk {
    type State = BlkStateV1;

    fn device_type(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        self.options.features()
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        let space = self.options.space();
        let from = usize::try_from(offset).ok().and_then(|offset| space.get(offset..));
        data.iter_mut().zip(from.unwrap_or_default()).for_each(|(to, from)| *to = *from);
    }

    fn negotiated(&mut self, features: u64) {
        // A driver that does not flush takes every write for safe (section 5.2.6.2).
        let through = features & feature::FLUSH == 0;
        self.pool.shared().write_through.store(through, Ordering::SeqCst);
    }

    fn activate(&mut self) {
        // A queue that was stopped before the driver was live is one all the same.
        self.stopped = false;
    }

    fn reset(&mut self) {
        self.pool.take_kept();
        self.stopped = false;
    }

    fn batch(&self, _queue: usize) -> usize {
        BATCH
    }

    fn queue_stopped(&mut self, _queue: usize) {
        self.pool.take_kept();
        self.stopped = true;
    }

    fn handle(&mut self, _queue: usize, chain: Chain<'_>) -> Completion {
        if !self.pool.has_room() {
            return Completion::Wait;
        }
        let head = chain.head_index();
        let (descs, complete) = descriptors(chain, MAX_CHAIN);
        if !complete {
            return Completion::Used(0);
        }
        let descs = descs.iter().map(DescV1::from).collect();
        self.begin(KeptV1 { head, descs }).map_or(Completion::Held, Completion::Used)
    }

    fn hurry(&mut self, on: bool) {
        self.pool.hurry(on);
        if self.stopped {
            // Also what came back since the driver stopped the queue.
            self.pool.take_kept();
        }
        if on {
            return;
        }
        for chain in self.pool.take_kept() {
            let head = chain.head;
            if let Some(len) = self.begin(chain)
                && let Some(completer) = &self.completer
            {
                completer.take(0, head).complete(len);
            }
        }
    }

    fn state_bytes(&self, _: u32) -> u64 {
        let descs: usize = self.pool.kept().iter().map(|kept| kept.descs.len()).sum();
        (descs * size_of::<DescV1>()) as u64
    }

    fn state(&self, _: u32) -> BlkStateV1 {
        BlkStateV1 { kept: self.pool.kept() }
    }

    fn load(&mut self, mmio: &MmioStateV1, state: &BlkStateV1) -> Result<bool, Cause> {
        if !state.possible(mmio) {
            return Err("its requests are impossible".into());
        }
        if mmio.status & regs::status::FEATURES_OK != 0 {
            self.negotiated(mmio.driver_features);
        }
        self.pool.keep(state.kept.clone());
        Ok(false)
    }

    fn connect(&mut self, completer: Completer) {
        self.completer = Some(completer);
    }

    fn host_fds(&self) -> Vec<HostFd> {
        vec![self.pool.freed().clone()]
    }

    fn host_ready(&mut self, _nth: usize) -> News {
        let _ = self.pool.freed().read();
        News::Queue(0)
    }
}
