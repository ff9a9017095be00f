//! Wherry's devices.
//!
//! This crate knows guest memory, interrupts and eventfds; it knows neither KVM nor the migration
//! protocol. The VMM implements [`InterruptLine`] and [`Host`](host::Host), builds each device as
//! its [`Kind`](device::Kind) says, puts it on a [`Bus`] and runs the event loop.
//!
//! # Wiring
//!
//! ```
//! use std::{io, sync::{Arc, Mutex}};
//! use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};
//! use vm_memory::GuestAddress;
//! use wherry_devices::host::BalloonBackend;
//! use wherry_devices::virtio::balloon::{Balloon, BalloonConfig, HintRange};
//! use wherry_devices::{Bus, GuestMemory, InterruptLine, serial::Serial};
//!
//! struct Gsi(u32); // KVM_IRQ_LINE
//! impl InterruptLine for Gsi {
//!     fn set(&self, _high: bool) -> io::Result<()> { Ok(()) }
//! }
//! struct Ram; // fallocate(PUNCH_HOLE), and mark the pages dirty
//! impl BalloonBackend for Ram {
//!     fn discard(&self, _gpa: u64, _len: u64) -> io::Result<()> { Ok(()) }
//! }
//! struct Sink; // the migration engine's hints
//! impl HintRange for Sink {
//!     fn range(&self, _gpa: u64, _len: u64) {}
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mem = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), 16 << 20)])?);
//! let balloon = Balloon::create(BalloonConfig::default(), mem, Arc::new(Gsi(16)), Arc::new(Ram))?;
//!
//! let (mut ports, mut mmio) = (Bus::new(), Bus::new());
//! let serial = Serial::new(Arc::new(Gsi(4)), Box::new(io::stdout()));
//! ports.insert(0x3f8, 8, Arc::new(Mutex::new(serial)))?;
//! mmio.insert(0xd000_0000, 0x1000, balloon.bus_device())?;
//! for (_index, _event) in balloon.queue_events().iter().enumerate() {
//!     // KVM: register_ioevent(event, Mmio(0xd000_0000 + 0x50), index as u32)
//! }
//! let mut event_loop: EventManager<Box<dyn MutEventSubscriber + Send>> = EventManager::new()?;
//! event_loop.add_subscriber(Box::new(balloon.subscriber()));
//!
//! // Migration, from any thread:
//! if balloon.hints_available() {
//!     let _done = balloon.done_guard(); // DONE is published however this scope ends
//!     let _id = balloon.hint_start(Arc::new(Sink))?;
//!     balloon.hint_stop(); // no call into the sink is under way or follows
//! }
//! // Pausing: first the vCPUs, then the devices, then their state. Resuming: the other way round.
//! balloon.set_paused(true);
//! let _state = balloon.state();
//! balloon.set_paused(false);
//! # Ok(())
//! # }
//! ```
//!
//! # Locks
//! A device has one lock ([`sync::TwoLane`]). A vCPU holds it for one register, the event loop for
//! one batch of one queue. Backend, sink and interrupt line are called with the lock held: they
//! must not call back into the device.

// But for `sys`, which gives guest memory to the kernel.
#![deny(unsafe_code, clippy::print_stderr)]

pub mod bus;
pub mod device;
pub mod dma;
pub mod host;
pub mod interrupt;
pub mod kinds;
pub mod power;
pub mod serial;
pub mod sync;
mod sys;
pub mod virtio;
pub mod written;

pub use bus::{Bus, BusDevice, BusError};
pub use interrupt::InterruptLine;

/// Guest RAM. Every write of the VMM into it (used rings, device DMA) is marked in [`Written`];
/// KVM's dirty log does not see those. Devices share it as `Arc<GuestMemory>`.
///
/// [`Written`]: written::Written
pub type GuestMemory = vm_memory::GuestMemoryMmap<written::Written>;
