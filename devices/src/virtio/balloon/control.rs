//! What the VMM does with a balloon, from any thread.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use super::config::{BalloonConfig, Role};
use super::constants::*;
use super::device::Balloon;
use super::hinting::{HintError, HintRange, SeenGate};
use super::state::BalloonDeviceState;
use super::stats::BalloonStats;
use super::telemetry::BalloonTelemetry;
use crate::GuestMemory;
use crate::bus::BusDevice;
use crate::host::BalloonBackend;
use crate::interrupt::InterruptLine;
use crate::sync::TwoLane;
use crate::virtio::mmio::{MmioDevice, MmioError, MmioPort, Shared, Subscriber};

/// Words of a set that are looked at while the device's lock is held: some 100 µs.
const WORDS: usize = 1 << 15;

/// What a balloon says about itself, all of one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalloonFigures {
    /// What the guest is asked for, in pages of 4096 bytes.
    pub target_pages: u32,
    /// What the driver says it gave, in pages.
    pub actual_pages: u32,
    /// Negotiated feature bits, the transport's included; 0 without a driver.
    pub features: u64,
    /// Pages that [`BalloonHandle::ballooned`] names. `None` if it is not certain which are in the
    /// balloon.
    pub ballooned_pages: Option<u64>,
    /// The guest's last statistics.
    pub stats: BalloonStats,
    /// Counters.
    pub telemetry: BalloonTelemetry,
}

/// A balloon on its transport, shared between the bus, the event loop and whoever controls it.
/// Cheap to clone.
#[derive(Clone)]
pub struct BalloonHandle {
    device: Shared<Balloon>,
    // Apart from the device, so that waiting does not hold its lock.
    gate: Arc<SeenGate>,
}

impl Balloon {
    /// A balloon on its transport, after power on.
    pub fn create(
        cfg: BalloonConfig,
        mem: Arc<GuestMemory>,
        irq: Arc<dyn InterruptLine>,
        backend: Arc<dyn BalloonBackend>,
    ) -> Result<BalloonHandle, MmioError> {
        let device = MmioDevice::new(Self::new(&cfg, mem.clone(), backend), mem, irq)?;
        Ok(BalloonHandle::new(Arc::new(TwoLane::new(device))))
    }

    /// Builds the balloon as saved, or refuses. `cfg` must offer what the saved one offered; its
    /// target is ignored. The device comes paused: resume it after the interrupt controller was
    /// restored and when the guest may run. If the driver may hold hinted pages, the field shows
    /// DONE; [`Device::announce`](crate::device::Device::announce) tells it.
    pub fn restore(
        cfg: BalloonConfig,
        mem: Arc<GuestMemory>,
        irq: Arc<dyn InterruptLine>,
        backend: Arc<dyn BalloonBackend>,
        state: &BalloonDeviceState,
    ) -> Result<BalloonHandle, MmioError> {
        let balloon = Self::new(&cfg, mem.clone(), backend);
        let device = MmioDevice::restore(balloon, mem, irq, state)?;
        Ok(BalloonHandle::new(Arc::new(TwoLane::new(device))))
    }
}

impl BalloonHandle {
    /// For a balloon that the machine's list has
    /// ([`Devices::find`](crate::device::Devices::find)).
    pub fn new(device: Shared<Balloon>) -> Self {
        let gate = Arc::clone(&device.urgent().device().hinting.gate);
        Self { device, gate }
    }

    /// For `Bus::insert`, [`SLOT_LEN`](crate::virtio::mmio::regs::SLOT_LEN) bytes.
    pub fn bus_device(&self) -> Arc<Mutex<dyn BusDevice>> {
        MmioPort::shared(Arc::clone(&self.device))
    }

    /// For `EventManager::add_subscriber`.
    pub fn subscriber(&self) -> Subscriber<Balloon> {
        Subscriber::new(Arc::clone(&self.device))
    }

    /// The device behind its lock.
    pub fn device(&self) -> &Shared<Balloon> {
        &self.device
    }

    /// One eventfd per queue, in order: register each as ioeventfd on offset 0x50 with the index as
    /// 4-byte datamatch.
    pub fn queue_events(&self) -> Vec<Arc<EventFd>> {
        self.device.urgent().queue_events()
    }

    /// Stops (when this returns nothing is being consumed) or resumes the queues. Idempotent. Pause
    /// after the vCPUs and before the state is taken; resume before the vCPUs, after the interrupt
    /// controller was restored.
    pub fn set_paused(&self, paused: bool) {
        self.device.urgent().set_paused(paused);
    }

    /// Whether the guest's driver is up and well.
    pub fn live(&self) -> bool {
        self.device.urgent().live()
    }

    /// The whole state, in its newest version. Take it while paused.
    pub fn state(&self) -> BalloonDeviceState {
        self.device.urgent().state(super::KIND.state_for(u16::MAX))
    }

    /// Counters.
    pub fn telemetry(&self) -> BalloonTelemetry {
        self.device.urgent().device().telemetry()
    }

    /// Everything there is to tell, of one moment: while the guest inflates, figures asked for one
    /// by one would not agree.
    pub fn figures(&self) -> BalloonFigures {
        let device = self.device.urgent();
        let balloon = device.device();
        BalloonFigures {
            target_pages: balloon.num_pages,
            actual_pages: balloon.actual,
            features: device.negotiated(),
            ballooned_pages: balloon.certain().then(|| balloon.set.count()),
            stats: balloon.stats.last.clone(),
            telemetry: balloon.telemetry(),
        }
    }

    /// Asks the guest for a balloon of `pages` (4096 bytes each). False, and nothing has changed,
    /// while paused: what is saved is not changed by the host.
    pub fn set_target(&self, pages: u32) -> bool {
        let mut device = self.device.urgent();
        if device.paused() {
            return false;
        }
        if std::mem::replace(&mut device.device_mut().num_pages, pages) != pages {
            device.config_changed();
        }
        true
    }

    /// What the driver says it gave, in pages. Its word only; see [`ballooned`](Self::ballooned).
    pub fn actual(&self) -> u32 {
        self.device.urgent().device().actual
    }

    /// The pages in the balloon as (guest address, bytes), ascending, each range in one region.
    /// These need not be sent in a migration: the driver says so before it uses one again. Empty if
    /// that is not certain (MUST_TELL_HOST was not negotiated, or a deflate request could not be
    /// read).
    pub fn ballooned(&self) -> Vec<(u64, u64)> {
        let mut set = self.device.urgent().device().set.another();
        let certain = self.ballooned_words(|word, pages| {
            set.put(word, pages);
        });
        if certain { set.ranges() } else { Vec::new() }
    }

    /// The same as words of 64 pages, ascending, without a copy: `each(word, pages)`, page *n* of
    /// all RAM at bit `n % 64` of word `n / 64`, the regions one after another without gaps. It
    /// costs by what is in the balloon. The guest may inflate and deflate meanwhile; each word is
    /// of some time during the call. False: it is not certain which these are, whatever was named.
    #[must_use]
    pub fn ballooned_words(&self, mut each: impl FnMut(usize, u64)) -> bool {
        let mut from = Some(0);
        while let Some(start) = from {
            let device = self.device.urgent();
            if !device.device().certain() {
                return false;
            }
            // A few at a time: nobody is to wait long for the device.
            let mut words = device.device().set.words_from(start);
            words.by_ref().take(WORDS).for_each(|(word, pages)| each(word, pages));
            from = words.next().map(|(word, _)| word);
        }
        true
    }

    /// Allows or forbids giving memory to the host: forbid it during post-copy, background
    /// snapshots, or while pages are pinned. Inflating goes on, without effect on the host's
    /// memory. When this returns no discard is under way.
    pub fn set_discard_allowed(&self, allowed: bool) {
        self.device.urgent().device_mut().discard_allowed = allowed;
    }

    /// Asks the guest for new statistics. False if that is impossible now: no driver, the last
    /// request is still open, or paused: a request is written to guest memory, where nothing must
    /// be written that a migration would miss.
    pub fn request_stats(&self) -> bool {
        let mut device = self.device.urgent();
        let Some(queue) =
            device.device().role_index(Role::Stats).filter(|_| device.live() && !device.paused())
        else {
            return false;
        };
        match device.device_mut().stats.held.take() {
            Some(head) => {
                device.ticket(queue, head).complete(0);
                device.finish_completed();
                true
            }
            None => false,
        }
    }

    /// The last statistics.
    pub fn stats(&self) -> BalloonStats {
        self.device.urgent().device().stats.last.clone()
    }

    /// Bytes that the guest's statistics last called free.
    pub fn guest_free_bytes(&self) -> Option<u64> {
        self.stats().get(STAT_FREE_MEMORY)
    }

    /// Whether the driver is up, negotiated free page hinting, and runs: one that stands still
    /// cannot hint.
    pub fn hints_available(&self) -> bool {
        hints_available(&self.device.urgent())
    }

    /// Whether the driver negotiated page poisoning: Linux does if it poisons, or zeroes, each page
    /// that it frees.
    pub fn poisons(&self) -> bool {
        self.device.urgent().negotiated() & F_PAGE_POISON != 0
    }

    /// Publishes a new id and passes the driver's hints to `sink`, which replaces an earlier one.
    /// Returns the id.
    pub fn hint_start(&self, sink: Arc<dyn HintRange>) -> Result<u32, HintError> {
        let mut device = self.device.urgent();
        if !hints_available(&device) {
            return Err(HintError::NotAvailable);
        }
        let id = device.device_mut().hinting.start(sink)?;
        device.config_changed();
        Ok(id)
    }

    /// Publishes STOP, so that the driver lets the guest do other work; hints that are on their way
    /// still reach the sink. The next [`hint_start`](Self::hint_start) lets it go on. False, and
    /// nothing was done, if the driver is through or has not begun.
    pub fn hint_rest(&self) -> bool {
        let mut device = self.device.urgent();
        let asked = device.device_mut().hinting.rest();
        if asked {
            device.config_changed();
        }
        asked
    }

    /// After [`hint_rest`](Self::hint_rest): whether the driver has stopped and its last hint has
    /// reached the sink.
    pub fn hint_rested(&self) -> bool {
        self.device.urgent().device().hinting.rested()
    }

    /// Publishes STOP. When this returns no call into the sink is under way, none follows, and the
    /// sink is dropped. Idempotent. Do not call it from the sink.
    pub fn hint_stop(&self) {
        let mut device = self.device.urgent();
        if device.device_mut().hinting.stop() {
            device.config_changed();
        }
    }

    /// Publishes DONE, if the driver may hold hinted pages: it takes them back. Implies
    /// [`hint_stop`](Self::hint_stop). Idempotent.
    pub fn hint_done(&self) {
        let mut device = self.device.urgent();
        if device.device_mut().hinting.done() {
            device.config_changed();
        }
    }

    /// After [`hint_done`](Self::hint_done): whether the driver takes its memory back before it can
    /// see another id. Ask again and again: it may take the driver any time.
    pub fn hint_returned(&self) -> bool {
        let mut device = self.device.urgent();
        // A driver's commands are in its queue before it looks again: so first whether it looked,
        // then what it said.
        let seen = device.device().hinting.gate.seen();
        let queue = device.device().role_index(Role::Hint);
        if device.paused() || queue.is_some_and(|queue| device.process_queue(queue)) {
            return false;
        }
        let mut remind = false;
        let returned = device.device_mut().hinting.returned(seen, || remind = true);
        if remind {
            device.config_changed();
        }
        returned
    }

    /// A guard that calls [`hint_done`](Self::hint_done) when it is dropped.
    pub fn done_guard(&self) -> DoneGuard {
        DoneGuard(self.clone())
    }

    /// Whether the driver sent STOP for the id that was last published: it has no more pages to
    /// hint.
    pub fn hint_finished(&self) -> bool {
        self.device.urgent().device().hinting.finished()
    }

    /// Whether the driver has read free_page_hint_cmd_id since it was last published (by start,
    /// stop or done).
    pub fn hint_id_seen(&self) -> bool {
        self.gate.seen()
    }

    /// Waits until [`hint_id_seen`](Self::hint_id_seen), at most for `timeout`, without the
    /// device's lock. Returns early, with false, if the driver resets the device.
    pub fn wait_id_seen(&self, timeout: Duration) -> bool {
        self.gate.wait(timeout)
    }
}

fn hints_available(device: &MmioDevice<Balloon>) -> bool {
    device.live() && !device.paused() && device.negotiated() & F_FREE_PAGE_HINT != 0
}

/// Publishes DONE when dropped: a guest never stays without the pages it hinted, however a
/// migration ends.
#[must_use = "dropping the guard publishes DONE at once"]
pub struct DoneGuard(BalloonHandle);

impl Drop for DoneGuard {
    fn drop(&mut self) {
        self.0.hint_done();
    }
}
