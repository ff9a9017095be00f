//! Memory of this process beside guest RAM.

use crate::process;

/// Its peak, and the part of it that is guest RAM.
#[derive(Clone, Copy)]
pub struct Peak {
    resident: u64,
    shared: u64,
}

/// So far. Guest RAM is all of its shared memory, and is not given back.
pub fn peak() -> Peak {
    let of = |field| process::memory(std::process::id(), field).unwrap_or(0);
    Peak { resident: of("VmHWM"), shared: of("RssShmem") }
}

impl Peak {
    /// What is not guest RAM, in MiB.
    pub fn beside(self) -> f64 {
        self.resident.saturating_sub(self.shared) as f64 / f64::from(1 << 20)
    }
}
