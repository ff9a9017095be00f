//! Virtio 1.3: the MMIO transport and the devices behind it.

pub mod balloon;
pub mod blk;
pub mod mmio;
pub mod net;
pub mod rng;
pub mod vsock;

use serde::{Serialize, de::DeserializeOwned};
use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;

use self::mmio::{Completer, MmioStateV1};
use crate::GuestMemory;
use crate::device::Cause;
pub use crate::host::HostFd;

/// One chain of descriptors, as the transport hands it to the device.
pub type Chain<'a> = DescriptorChain<&'a GuestMemory>;

/// The first `most` descriptors of a chain, and whether that is all of it. It is not if it has
/// none, is longer, loops, or leads out of its table.
pub(crate) fn descriptors(chain: Chain<'_>, most: usize) -> (Vec<Descriptor>, bool) {
    let descs: Vec<_> = chain.take(most).collect();
    let complete = descs.last().is_some_and(|last| !last.has_next());
    (descs, complete)
}

/// What became of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completion {
    /// Give it back to the driver, with this many bytes written into its device-writable part.
    Used(u32),
    /// The same, but together with those that follow it, up to the next that is used: the driver
    /// sees them all at once. If it has no more of them for now, all are handed over once more,
    /// when it has ([`VirtioDevice::undone`]).
    Part(u32),
    /// The device keeps it: it has a [`Ticket`](mmio::Ticket) for it, or saves it.
    Held,
    /// The device has used up its time: hand it over once more, after others had the lock.
    Again,
    /// The device has nothing for it yet: hand it over once more when one of its host descriptors
    /// has news, or after a kick.
    Wait,
}

/// Whether a driver may have more chains for what those that it has out do not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum More {
    /// It may.
    Maybe,
    /// It has seen all that was used, and is not at work on the queue.
    Unlikely,
    /// The queue is full.
    Never,
}

/// What news of the host call for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Nothing.
    Nothing,
    /// A look at this queue: its chains are handed over as if the driver had kicked.
    Queue(usize),
    /// The same for all of them.
    Queues,
    /// The driver is to read config space.
    Config,
    /// Both: all of them, and config space.
    All,
}

/// What the transport needs from a device. Everything is called with the device's lock held.
pub trait VirtioDevice: Send {
    /// What is saved of it beside the transport.
    type State: Serialize + DeserializeOwned;

    /// Device id (virtio 1.3, section 5).
    fn device_type(&self) -> u32;
    /// Offered feature bits, transport bits included.
    fn features(&self) -> u64;
    /// The largest size of each queue; its length is the number of queues.
    fn queue_sizes(&self) -> Vec<u16>;
    /// The driver reads config space at an offset in bytes. `data` comes zeroed; what lies past the
    /// layout stays so.
    fn read_config(&mut self, _offset: u64, _data: &mut [u8]) {}
    /// The driver writes config space. What is read-only or past the layout is ignored.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// Feature negotiation ended well (FEATURES_OK): these are acknowledged.
    fn negotiated(&mut self, _features: u64) {}
    /// The driver is live (DRIVER_OK).
    fn activate(&mut self) {}
    /// Back to the state after power on, except for what the host set.
    fn reset(&mut self);
    /// Most chains of this queue to handle before the lock is given up.
    fn batch(&self, queue: usize) -> usize;
    /// The driver stopped this queue: what the device holds of it is gone. Only a reset starts it
    /// again.
    fn queue_stopped(&mut self, _queue: usize) {}
    /// One chain of a live queue. Nothing in it may be trusted.
    fn handle(&mut self, queue: usize, chain: Chain<'_>) -> Completion;
    /// Whether chains have changed config space, which the driver is to be told, once. Asked after
    /// they were handled.
    fn config_news(&mut self) -> bool {
        false
    }
    /// So many parts since the last chain that was used count for nothing: they come again. Returns
    /// whether the device has given up what they were for, and looks at them for something else.
    fn undone(&mut self, _queue: usize, _parts: usize, _more: More) -> bool {
        false
    }
    /// It is no longer paused.
    fn resumed(&mut self) {}

    /// As [`Device::state_bytes`](crate::device::Device::state_bytes).
    fn state_bytes(&self, _version: u32) -> u64 {
        0
    }
    /// What is saved, in this version of [`Kind::states`](crate::device::Kind::states). The device
    /// is paused.
    fn state(&self, version: u32) -> Self::State;
    /// Becomes as saved, with the transport as saved in `mmio`. Returns whether config space is not
    /// as it was saved.
    ///
    /// # Errors
    /// The state cannot be, or not here.
    fn load(&mut self, mmio: &MmioStateV1, state: &Self::State) -> Result<bool, Cause>;
    /// The guest has arrived and runs here. Returns whether the driver is to read config space.
    fn announce(&mut self) -> bool {
        false
    }

    /// For chains that are answered from elsewhere. Called once, at first.
    fn connect(&mut self, _completer: Completer) {}
    /// Whether somebody waits until nothing is in flight: a pause, or a driver that takes its
    /// memory back. Then what has not begun is better [put back](mmio::Ticket::put_back); when it
    /// is over, it begins again. Nothing else begins meanwhile. Told again and again.
    fn hurry(&mut self, _on: bool) {}
    /// Descriptors whose becoming readable [`host_ready`](Self::host_ready) is told of.
    fn host_fds(&self) -> Vec<HostFd> {
        Vec::new()
    }
    /// One of them has become readable. Not called while paused: see [`resumed`](Self::resumed).
    fn host_ready(&mut self, _nth: usize) -> News {
        News::Nothing
    }
}
