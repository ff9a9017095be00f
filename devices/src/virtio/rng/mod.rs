//! The entropy device (virtio 1.3, section 5.4): fills what the driver sends with random bytes.
//!
//! It keeps nothing: what is saved of it is its transport.

use std::io::{self, Read};
use std::sync::Arc;

use rustix::rand::{GetRandomFlags, getrandom};
use vm_memory::Bytes;

use super::mmio::{MmioDevice, MmioStateV1, regs};
use super::{Chain, Completion, VirtioDevice};
use crate::GuestMemory;
use crate::device::{Cause, Kind};

/// Device id (section 5).
pub const DEVICE_ID: u32 = 4;
/// Size of the only queue. Linux has one request out at a time.
pub const QUEUE_SIZE: u16 = 64;
/// Most bytes for one request: nobody waits for more while the device is locked.
pub const MAX_REQUEST: usize = 64 << 10;
/// Most descriptors taken from one chain.
const MAX_CHAIN: usize = 2 * QUEUE_SIZE as usize;
/// Bytes taken from the source at once.
const PIECE: usize = 4 << 10;
/// Chains in one batch.
const BATCH: usize = 4;

/// The host's kernel as a source, by getrandom(2): it needs no file. It waits only while the host
/// itself starts.
pub struct OsEntropy;

impl Read for OsEntropy {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        Ok(getrandom(bytes, GetRandomFlags::empty())?)
    }
}

/// The kind.
pub static KIND: Kind = Kind {
    name: "virtio-rng",
    id: "rng",
    options: 1,
    states: &[(2, 1)],
    virtio: true,
    build: |build| {
        let () = build.options()?;
        let source = build.host.entropy().map_err(|e| build.refuse(e))?;
        MmioDevice::build(&build, Rng { mem: build.host.memory(), source })
    },
};

/// The device behind the transport.
pub struct Rng {
    mem: Arc<GuestMemory>,
    source: Box<dyn Read + Send>,
}

impl Rng {
    /// Fills the device-writable part of a chain, in order. Returns how many bytes of it were
    /// filled: fewer than it has if it is too long, leaves RAM, or the source fails.
    fn fill(&mut self, chain: Chain<'_>) -> usize {
        let mut filled = 0;
        let mut piece = [0; PIECE];
        for desc in chain.take(MAX_CHAIN).filter(|desc| desc.is_write_only()) {
            let end = filled + (desc.len() as usize).min(MAX_REQUEST - filled);
            let mut at = desc.addr();
            while filled < end {
                let Some(part) = piece.get_mut(..PIECE.min(end - filled)) else { return filled };
                if self.source.read_exact(part).is_err() || self.mem.write_slice(part, at).is_err()
                {
                    return filled;
                }
                filled += part.len();
                at.0 = at.0.saturating_add(part.len() as u64);
            }
        }
        filled
    }
}

impl VirtioDevice for Rng {
    type State = ();

    fn device_type(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        regs::F_VERSION_1 | regs::F_EVENT_IDX | regs::F_INDIRECT_DESC
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn reset(&mut self) {}

    fn batch(&self, _queue: usize) -> usize {
        BATCH
    }

    fn handle(&mut self, _queue: usize, chain: Chain<'_>) -> Completion {
        // At most MAX_REQUEST.
        Completion::Used(self.fill(chain) as u32)
    }

    fn state(&self, _: u32) {}

    fn load(&mut self, _mmio: &MmioStateV1, _state: &()) -> Result<bool, Cause> {
        Ok(false)
    }
}
