//! The virtio-mmio transport (virtio 1.3, section 4.2.2): registers, status machine, queues,
//! interrupts.
//!
//! The transport owns the queues and does everything that is the same for all devices: it pops
//! chains, hands them to the [`VirtioDevice`], puts them into the used ring and decides whether the
//! driver wants an interrupt. Nothing that the guest writes can make it panic; a register that is
//! written in a wrong state ignores it, and a ring that makes no sense sets DEVICE_NEEDS_RESET.
//!
//! # Kicks
//! A kick is an eventfd per queue ([`MmioDevice::queue_events`]): KVM signals it (an ioeventfd on
//! QueueNotify with the queue's index as datamatch), and so does a QueueNotify that arrives through
//! the bus. [`Subscriber`] waits for them in the event loop. A kick is never lost to a pause: when
//! it ends all queues are looked at once.

mod completions;
mod device;
mod port;
mod process;
mod registers;
pub mod regs;
mod saved;
mod state;
mod subscriber;

use std::io;
use std::sync::Arc;

use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::regs::status;
use super::{News, VirtioDevice};
use crate::GuestMemory;
use crate::device::Cause;
use crate::interrupt::{InterruptLine, Level};
use crate::sync::TwoLane;

use self::completions::Completions;
pub use self::completions::{Completer, Ticket};
pub use self::port::MmioPort;
pub use self::saved::{MmioStateV1, QueueStateV1, VirtioStateV1};
pub use self::subscriber::Subscriber;

/// Why a transport could not be built.
#[derive(Debug, thiserror::Error)]
pub enum MmioError {
    /// No eventfd.
    #[error("cannot make an eventfd")]
    EventFd(#[source] io::Error),
    /// The device asks for a queue size that is not a power of two up to 32768.
    #[error("bad queue size {0}")]
    QueueSize(u16),
    /// The saved state is of another kind of device.
    #[error("saved device has type {saved}, this one {own}")]
    DeviceType {
        /// In the state.
        saved: u32,
        /// Of the device.
        own: u32,
    },
    /// The saved device offered other features.
    #[error("saved device offers features {saved:#x}, this one {own:#x}")]
    Features {
        /// In the state.
        saved: u64,
        /// Of the device.
        own: u64,
    },
    /// Status and features of the saved state contradict each other.
    #[error("saved status {0:#x} is impossible")]
    Status(u32),
    /// The saved state has another number of queues.
    #[error("saved device has {saved} queues, this one {own}")]
    QueueCount {
        /// In the state.
        saved: usize,
        /// Of the device.
        own: usize,
    },
    /// A saved queue has a bad size or address, or lies outside RAM.
    #[error("saved queue {0} is invalid")]
    Queue(usize),
    /// The device refused its part of the state.
    #[error("device state is invalid")]
    Device(#[source] Cause),
}

/// What the driver takes back, and has when nothing is in flight any more; until then nothing
/// begins. See [`completions`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Withdrawal {
    /// The memory of a queue's requests.
    Queue,
    /// All: it resets the device.
    Device,
}

/// Whether the device works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pause {
    /// It does.
    No,
    /// It begins nothing; what is in flight still comes back.
    Draining,
    /// Nothing is in flight either, and nothing writes to guest memory.
    Still,
}

/// A virtio device behind its registers.
pub struct MmioDevice<D> {
    device: D,
    mem: Arc<GuestMemory>,
    line: Level,
    queues: Vec<Queue>,
    events: Vec<Arc<EventFd>>,
    completions: Arc<Completions>,
    withdrawal: Option<Withdrawal>,
    pause: Pause,
    /// The device is to announce itself on resume.
    announce_due: bool,
    status: u32,
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    interrupt_status: u32,
    config_generation: u32,
    interrupts: u64,
}

/// A device on its transport, shared between the bus, the event loop and its handle.
pub type Shared<D> = Arc<TwoLane<MmioDevice<D>>>;

impl<D: VirtioDevice> MmioDevice<D> {
    /// The device after power on.
    pub fn new(
        mut device: D,
        mem: Arc<GuestMemory>,
        irq: Arc<dyn InterruptLine>,
    ) -> Result<Self, MmioError> {
        let sizes = device.queue_sizes();
        let mut queues = Vec::with_capacity(sizes.len());
        let mut events = Vec::with_capacity(sizes.len());
        for size in sizes {
            queues.push(Queue::new(size).map_err(|_| MmioError::QueueSize(size))?);
            events.push(Arc::new(
                EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(MmioError::EventFd)?,
            ));
        }
        let completions = Arc::new(Completions::new().map_err(MmioError::EventFd)?);
        device.connect(Completer(completions.clone()));
        Ok(Self {
            device,
            mem,
            line: Level::new(irq),
            queues,
            events,
            completions,
            withdrawal: None,
            pause: Pause::No,
            announce_due: false,
            status: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            interrupt_status: 0,
            config_generation: 0,
            interrupts: 0,
        })
    }

    /// The device behind the registers.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The device behind the registers.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// One eventfd per queue; see the module's text.
    pub fn queue_events(&self) -> Vec<Arc<EventFd>> {
        self.events.clone()
    }

    /// Causes of interrupts since the device was made.
    pub fn interrupts(&self) -> u64 {
        self.interrupts
    }

    /// Whether the driver is up: DRIVER_OK, and neither side has given up.
    pub fn live(&self) -> bool {
        self.status & (status::DRIVER_OK | status::NEEDS_RESET | status::FAILED)
            == status::DRIVER_OK
    }

    /// Acknowledged features, once negotiation ended well, else 0.
    pub fn negotiated(&self) -> u64 {
        if self.status & status::FEATURES_OK != 0 { self.driver_features } else { 0 }
    }

    /// Stops or resumes the processing of queues. When `set_paused(true)` returns nothing is being
    /// consumed, and nothing will be; what is in flight still is
    /// ([`Device::pause`](crate::device::Device::pause) waits for that). On resume all queues are
    /// kicked, and a restored device sets its interrupt line.
    pub fn set_paused(&mut self, paused: bool) {
        let pause = match paused {
            false => Pause::No,
            true if self.completions.is_settled() => Pause::Still,
            true => Pause::Draining,
        };
        let was = std::mem::replace(&mut self.pause, pause);
        self.hurry();
        if was != Pause::No && !paused {
            self.kick_all();
            self.update_line();
            self.device.resumed();
            if std::mem::take(&mut self.announce_due) {
                self.announce();
            }
        }
    }

    /// Whether nothing is in flight. If so, the event loop has been told of all that was.
    pub fn idle(&self) -> bool {
        self.completions.is_idle()
    }

    /// Whether it is paused: nothing begins that would write to guest memory.
    pub fn paused(&self) -> bool {
        self.pause != Pause::No
    }

    /// The guest has arrived and runs here; if it does not, this is put off until it does.
    pub fn announce(&mut self) {
        if self.paused() {
            self.announce_due = true;
        } else if self.device.announce() {
            self.config_changed();
        }
    }

    /// A descriptor of the host has news. While paused they are left alone: resuming looks at
    /// everything.
    fn host_ready(&mut self, nth: usize) {
        if self.paused() {
            return;
        }
        match self.device.host_ready(nth) {
            News::Nothing => {}
            News::Queue(queue) => self.kick(queue),
            News::Queues => self.kick_all(),
            News::Config => self.config_changed(),
            News::All => {
                self.config_changed();
                self.kick_all();
            }
        }
    }

    /// A ticket for a chain that the device held.
    pub(crate) fn ticket(&self, queue: usize, head: u16) -> Ticket {
        Completer(self.completions.clone()).take(queue, head)
    }

    /// Tells the driver that config space changed: a new generation, and an interrupt if it is
    /// live.
    pub fn config_changed(&mut self) {
        self.config_generation = self.config_generation.wrapping_add(1);
        if self.status & status::DRIVER_OK != 0 {
            self.raise(regs::INT_CONFIG);
        }
    }

    pub(crate) fn kick(&self, queue: usize) {
        if let Some(event) = self.events.get(queue) {
            // The only error is a counter that is about to overflow, which is as good a kick as
            // any.
            let _ = event.write(1);
        }
    }

    fn kick_all(&self) {
        (0..self.events.len()).for_each(|queue| self.kick(queue));
    }

    fn raise(&mut self, cause: u32) {
        self.interrupts += 1;
        self.interrupt_status |= cause;
        self.update_line();
    }

    /// The line is high while there is a cause that the driver has not acknowledged.
    fn update_line(&mut self) {
        // A line that cannot be set is the VMM's trouble, which it knows; the next change tries
        // again.
        let _ = self.line.set(self.interrupt_status != 0);
    }

    /// Something the driver did leaves the device without a way on (section 2.1.2).
    pub(crate) fn needs_reset(&mut self) {
        if self.status & status::NEEDS_RESET == 0 {
            self.status |= status::NEEDS_RESET;
            self.config_changed();
        }
    }

    fn withdraw(&mut self, what: Withdrawal) {
        if !self.completions.is_idle_or_tells() {
            self.withdrawal = self.withdrawal.max(Some(what));
            self.hurry();
        } else if what == Withdrawal::Device {
            self.reset();
        }
    }

    /// Lets the driver have what it waits for, if nothing is in flight any more.
    fn settle(&mut self) {
        if self.withdrawal.is_none() || !self.completions.is_idle() {
            return;
        }
        match self.withdrawal.take() {
            Some(Withdrawal::Device) => self.reset(),
            _ => self.kick_all(),
        }
        self.hurry();
    }

    /// Tells the device whether somebody waits until nothing is in flight.
    fn hurry(&mut self) {
        let on = self.paused() || self.withdrawal.is_some();
        self.device.hurry(on);
    }

    fn reset(&mut self) {
        self.withdrawal = None;
        self.status = 0;
        self.driver_features = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.queue_sel = 0;
        self.interrupt_status = 0;
        self.update_line();
        self.queues.iter_mut().for_each(QueueT::reset);
        self.device.reset();
        self.completions.take_done();
        self.config_generation = self.config_generation.wrapping_add(1);
        // Nobody waits for what was in flight any more.
        self.hurry();
    }
}
