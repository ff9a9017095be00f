//! What was measured.

use serde::{Deserialize, Serialize};

/// One piece of work, done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sample {
    /// Which VMM, and which way of doing it.
    pub vmm: String,
    pub work: String,
    /// Megabytes, requests or megabits in a second.
    pub rate: f64,
    /// CPU time of the VMM with vCPU and kernel threads: nanoseconds for a request or a KiB.
    pub cpu_ns: f64,
    /// Of that, what the guest itself had, as the kernel's clock ticks saw it.
    pub guest_share: f64,
}

/// What came out.
#[derive(Debug, Serialize, Deserialize)]
pub struct Results {
    pub qemu: String,
    pub kernel: String,
    pub samples: Vec<Sample>,
}
