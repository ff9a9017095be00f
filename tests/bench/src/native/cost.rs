//! What a run costs, and CPU time of this process.

use std::io;
use std::time::Duration;

use serde::Serialize;

/// What one run took.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Run {
    /// CPU time of the source, in seconds.
    pub source_cpu_s: f64,
    /// The part of it that the thread took on which the engine runs, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine_cpu_s: Option<f64>,
    /// CPU time of the destination, in seconds.
    pub destination_cpu_s: f64,
    /// From the source's first byte until it knows that all is there, in seconds.
    pub wall_s: f64,
    /// Bytes on the wire.
    pub wire_bytes: u64,
}

/// User and system time of this process so far, of all threads, those that have ended included.
pub fn cpu() -> io::Result<Duration> {
    usage(libc::RUSAGE_SELF)
}

/// The same of this thread alone.
pub fn thread_cpu() -> io::Result<Duration> {
    usage(libc::RUSAGE_THREAD)
}

fn usage(whose: libc::c_int) -> io::Result<Duration> {
    // SAFETY: all zeroes is a value of this plain structure.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is ours and of the type that the call fills.
    if unsafe { libc::getrusage(whose, &mut usage) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let time = |t: libc::timeval| {
        Duration::from_secs(t.tv_sec as u64) + Duration::from_micros(t.tv_usec as u64)
    };
    Ok(time(usage.ru_utime) + time(usage.ru_stime))
}
