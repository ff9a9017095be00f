//! How much an image may take.

use std::time::Duration;

/// What reading an image may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a kernel.
    pub kernel: u64,
    /// Bytes of an initrd.
    pub initrd: u64,
    /// Bytes of address space of the process that reads.
    pub memory: u64,
    /// Seconds of CPU time of that process. An image can waste nothing else.
    pub cpu_seconds: u64,
    /// How long it may take, waiting for a slow disk included.
    pub deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            kernel: 64 << 20,
            initrd: 512 << 20,
            memory: 256 << 20,
            cpu_seconds: 30,
            deadline: Duration::from_secs(60),
        }
    }
}
