//! Guest memory that somebody else than vm-memory's accessors writes: the kernel for a device.
//!
//! Nobody sees such writes: KVM's dirty log has those of the guest's CPUs, the bitmap of
//! [`GuestMemory`] those of its accessors. A [`Dma`] marks **all** its pages when it ends:
//! **after** whatever was written, and **whatever** came of it, since a request that failed may
//! have written part of them. A page that was marked before it is written may be harvested and sent
//! in between, and what is written then never is; one that is marked too often is only sent again.
//! So: write, drop the `Dma`, complete the chain.
//!
//! It keeps guest memory mapped for as long as it is there.

use std::sync::Arc;

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileSlice};

use crate::{GuestMemory, sys};

/// A range of guest memory: where, and how many bytes.
pub type Part = (GuestAddress, usize);

/// See the module's text.
pub struct Dma {
    mem: Arc<GuestMemory>,
    parts: Vec<Part>,
    written: bool,
}

impl Dma {
    /// Memory that is only read. `None`: not all of it is RAM.
    pub fn reads(mem: &Arc<GuestMemory>, parts: Vec<Part>) -> Option<Self> {
        let all_ram = parts.iter().all(|(at, len)| mem.get_slices(*at, *len).all(|s| s.is_ok()));
        all_ram.then(|| Self { mem: mem.clone(), parts, written: false })
    }

    /// Memory that may be written. `None`: not all of it is RAM.
    pub fn writes(mem: &Arc<GuestMemory>, parts: Vec<Part>) -> Option<Self> {
        let mut dma = Self::reads(mem, parts)?;
        dma.written = true;
        Some(dma)
    }

    /// The memory, in order. Writing to it is not tracked: that is what this type is for.
    pub fn slices(&self) -> Vec<VolatileSlice<'_>> {
        let slices = self.parts.iter().flat_map(|(at, len)| self.mem.get_slices(*at, *len));
        // All of it was RAM, and RAM stays.
        slices.flatten().map(|slice| sys::untracked(&slice)).collect()
    }

    fn mark(&self) {
        let slices = self.parts.iter().flat_map(|(at, len)| self.mem.get_slices(*at, *len));
        slices.flatten().for_each(|slice| slice.bitmap().mark_dirty(0, slice.len()));
    }
}

impl Drop for Dma {
    fn drop(&mut self) {
        if self.written {
            self.mark();
        }
    }
}
