//! The network between source and destination: the loopback of a network namespace of our own, with
//! a token bucket on it.
//!
//! So every VMM gets the same link and need not be believed to keep its own cap. Without the rights
//! to do so, each VMM's own cap is used, and the entry says so.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

const CONGESTION_CONTROL: &str = "/proc/sys/net/ipv4/tcp_congestion_control";

/// The link of this process and all that it starts.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    own: bool,
}

impl Link {
    /// Moves this process into a new network namespace, if it may.
    pub fn new() -> Self {
        // SAFETY: a number is all that it takes; only this process's view of the network changes,
        // before any thread is started.
        let own = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0 && loopback_up().is_ok();
        Self { own }
    }

    /// Has TCP send as fast as the other end takes it, if this is a namespace of our own. Returns
    /// the congestion control that is used then, as far as the kernel says.
    ///
    /// BBR, the default of some hosts, paces: the kernel starts a timer for every 64 KiB. On a
    /// loopback, which has no queue to keep short, that doubles what a copy costs.
    pub fn unpaced(self) -> Option<String> {
        if self.own {
            // Every kernel has it, and every namespace may use it.
            let _ = std::fs::write(CONGESTION_CONTROL, "reno");
        }
        Some(std::fs::read_to_string(CONGESTION_CONTROL).ok()?.trim().to_owned())
    }

    /// Sets the rate in bytes a second. Returns who has to keep it: `tc`, `vmm`, or nobody.
    pub fn shape(self, rate: Option<u64>) -> Option<&'static str> {
        let Some(rate) = rate else {
            let _ = self.own.then(|| tc(&["del", "dev", "lo", "root"]));
            return None;
        };
        // A bucket of 10 ms: timers need not be exact, and one packet (64 KiB on the loopback)
        // fits.
        let (bits, burst) = ((rate * 8).to_string(), (rate / 100).max(128 << 10).to_string());
        let set = [
            "replace", "dev", "lo", "root", "tbf", "rate", &bits, "burst", &burst, "latency",
            "100ms",
        ];
        Some(if self.own && tc(&set) { "tc" } else { "vmm" })
    }
}

fn tc(args: &[&str]) -> bool {
    Command::new("tc").arg("qdisc").args(args).output().is_ok_and(|out| out.status.success())
}

fn loopback_up() -> io::Result<()> {
    // SAFETY: plain numbers; the descriptor is owned below.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just created and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which lives through the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A TCP port of the loopback that is free now.
pub fn free_port() -> io::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
