//! What a host gives to its devices. The VMM implements it.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Instant;

use crate::GuestMemory;

/// All of it; each device asks for what it needs when it is built.
pub trait Host {
    /// Guest RAM.
    fn memory(&self) -> Arc<GuestMemory>;
    /// Where the guest's console output goes.
    fn console(&self) -> Box<dyn Write + Send>;
    /// Who is told that the guest ends itself.
    fn power(&self) -> Arc<dyn PowerSink>;
    /// Takes guest memory back.
    fn balloon(&self) -> Arc<dyn BalloonBackend>;
    /// Where random bytes come from. Never asked to wait.
    ///
    /// # Errors
    /// There is no source.
    fn entropy(&self) -> io::Result<Box<dyn Read + Send>>;
}

/// Told when the guest ends itself. Called on the vCPU thread that wrote the register, with the
/// device locked: set a flag and wake somebody, do not call back.
pub trait PowerSink: Send + Sync {
    /// The guest powered itself off.
    fn power_off(&self);
    /// The guest asked for a reset.
    fn reset(&self);
}

/// Gives guest memory back to the host.
pub trait BalloonBackend: Send + Sync {
    /// Makes `len` bytes from `gpa` on read as zero and frees their memory; whole pages in one RAM
    /// region. The pages count as dirty afterwards. Called with the device locked.
    fn discard(&self, gpa: u64, len: u64) -> io::Result<()>;

    /// The time, which limits how long one request may keep the device locked.
    fn now(&self) -> Instant {
        Instant::now()
    }
}
