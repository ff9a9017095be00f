//! What a run costs, and CPU time of this process.

use std::io;
use std::time::Duration;

use serde::Serialize;

/// What one run took.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Run {
    /// CPU time of the source, in seconds.
    pub source_cpu_s: f64,
    /// CPU time of the destination, in seconds.
    pub destination_cpu_s: f64,
    /// From the source's first byte until it knows that all is there, in seconds.
    pub wall_s: f64,
    /// Bytes on the wire.
    pub wire_bytes: u64,
}

/// User and system time so far, of all threads, those that have ended included.
pub fn cpu() -> io::Result<Duration> {
    // SAFETY: all zeroes is a value of this plain structure.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is ours and of the type that the call fills.
    if unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let time = |t: libc::timeval| {
        Duration::from_secs(t.tv_sec as u64) + Duration::from_micros(t.tv_usec as u64)
    };
    Ok(time(usage.ru_utime) + time(usage.ru_stime))
}
