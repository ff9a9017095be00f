//! The guest's two clocks, kvmclock and its vCPUs' TSCs, read as one.
//!
//! The VM's clock is read once, and each vCPU's TSC is saved as of that instant: a guest that reads
//! the TSC itself must see it go on with kvmclock. What is known of a TSC is always a pair,
//! [`TscReading`], from which its value at any other time follows. That bridges
//!
//! - the time that reading many vCPUs takes, and so does the same on the other side;
//! - a host whose TSC is unstable. There KVM lets a guest's TSC go on from its last value whenever
//!   the vCPU is touched, and only running it catches up (kvm_arch_vcpu_load,
//!   arch/x86/kvm/x86.c): read during a pause it lacks the pause. So it is read when the vCPU has
//!   just parked, too.

use super::msrs;
use anyhow::Context;
use kvm_bindings::KVM_CLOCK_REALTIME;
use kvm_ioctls::{VcpuFd, VmFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Two readings of the clock this close to each other need no second try, nanoseconds.
const CLOSE: u64 = 50_000;
/// Tries to read clock and TSC close to each other.
const TRIES: usize = 3;
/// A TSC that is less behind than this, and than [`DRIFT`], has run on.
const LATE: u64 = 1_000_000;
/// The most by which a TSC and kvmclock drift apart: one part in so many.
const DRIFT: u64 = 2000;
/// Real-time clocks that differ by less are in step.
const IN_STEP: Duration = Duration::from_millis(100);

/// A VM's clock, and the host's real-time clock at the same instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockReading {
    /// kvmclock, nanoseconds.
    pub clock_ns: u64,
    /// Nanoseconds since 1970.
    pub realtime_ns: u64,
}

impl ClockReading {
    /// Now.
    pub fn read(vm: &VmFd) -> anyhow::Result<Self> {
        let clock = vm.get_clock().context("cannot read the clock")?;
        // With the flag KVM has read both at one instant (Linux 5.16, a host that runs on its TSC).
        let paired = clock.flags & KVM_CLOCK_REALTIME != 0;
        let realtime_ns = if paired { clock.realtime } else { realtime_ns() };
        Ok(Self { clock_ns: clock.clock, realtime_ns })
    }
}

/// A vCPU's TSC, and what the VM's clock showed then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TscReading {
    /// kvmclock, nanoseconds.
    pub clock_ns: u64,
    /// The TSC; it has 64 bits and wraps.
    pub tsc: u64,
}

impl TscReading {
    /// Now.
    pub(super) fn read(vm: &VmFd, vcpu: &VcpuFd) -> anyhow::Result<Self> {
        let clock = || ClockReading::read(vm).map(|c| c.clock_ns);
        let tsc = || Ok(msrs::read(vcpu, &[msrs::TSC])?.first().map_or(0, |m| m.data));
        Self::between(clock, tsc)
    }

    /// The TSC between two readings of the clock, as of their middle; the closest pair of a few.
    fn between(
        clock: impl Fn() -> anyhow::Result<u64>,
        tsc: impl Fn() -> anyhow::Result<u64>,
    ) -> anyhow::Result<Self> {
        let mut best = (u64::MAX, Self { clock_ns: 0, tsc: 0 });
        for _ in 0..TRIES {
            let (before, tsc, after) = (clock()?, tsc()?, clock()?);
            let apart = after.saturating_sub(before);
            if apart < best.0 {
                best = (apart, Self { clock_ns: before + apart / 2, tsc });
            }
            if best.0 <= CLOSE {
                break;
            }
        }
        Ok(best.1)
    }

    /// The TSC when the clock shows `clock_ns`, before or after this reading.
    pub(super) fn at(self, clock_ns: u64, khz: u32) -> u64 {
        let past = ticks(self.clock_ns.saturating_sub(clock_ns), khz);
        self.tsc.wrapping_add(ticks(clock_ns.saturating_sub(self.clock_ns), khz)).wrapping_sub(past)
    }
}

/// Ticks of a TSC of `khz` in so many nanoseconds, modulo 2^64.
fn ticks(ns: u64, khz: u32) -> u64 {
    (u128::from(ns) * u128::from(khz) / 1_000_000) as u64
}

/// A paused vCPU's TSC when the clock shows `clock_ns`, from a reading `now` and from one when it
/// had just `parked`.
///
/// A TSC that has run on since is taken as it is; one that has not stood still on an unstable host,
/// and the clock says where it should be. It never goes back behind what the guest may have seen.
pub(super) fn guest_tsc(
    clock_ns: u64,
    khz: u32,
    now: TscReading,
    parked: Option<TscReading>,
) -> u64 {
    let shown = now.at(clock_ns, khz);
    let Some(parked) = parked else { return shown };
    let expected = parked.at(clock_ns, khz);
    let pause = now.clock_ns.saturating_sub(parked.clock_ns);
    let allowed = ticks((pause / DRIFT).saturating_add(LATE), khz);
    match () {
        () if behind(shown, expected) > allowed => expected,
        () if behind(shown, parked.tsc) > 0 => parked.tsc,
        () => shown,
    }
}

/// By how many ticks one TSC is behind another, 0 if it is ahead: they wrap.
fn behind(tsc: u64, other: u64) -> u64 {
    let ticks = other.wrapping_sub(tsc);
    if ticks < 1 << 63 { ticks } else { 0 }
}

/// How far two hosts' real-time clocks are apart, as seen from the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClockWarning {
    /// The state comes from the future.
    #[error(
        "this host's real-time clock is at least {:.1} s behind the source's: the guest's time \
         stood \
         still while it moved; let NTP keep both hosts' clocks",
        .0.as_secs_f64()
    )]
    Behind(Duration),
    /// The state was read before the source even connected.
    #[error(
        "this host's real-time clock is at least {:.1} s ahead of the source's: the guest's time \
         went \
         on by no more than the migration took; let NTP keep both hosts' clocks",
        .0.as_secs_f64()
    )]
    Ahead(Duration),
}

/// The real time since which a guest's time has to be made up for, and a warning if the clocks of
/// the hosts cannot both be right.
///
/// `source_ns`: the source's clock when it read the guest's, which was after it had connected;
/// `here_ns`: this host's now; `connected`: how long ago that was. So no more time than that has
/// passed, and no less than none.
pub(super) fn since(
    source_ns: u64,
    here_ns: u64,
    connected: Duration,
) -> (u64, Option<ClockWarning>) {
    let earliest = here_ns.saturating_sub(u64::try_from(connected.as_nanos()).unwrap_or(u64::MAX));
    let behind = Duration::from_nanos(source_ns.saturating_sub(here_ns));
    let ahead = Duration::from_nanos(earliest.saturating_sub(source_ns));
    let warning = match () {
        () if behind > IN_STEP => Some(ClockWarning::Behind(behind)),
        () if ahead > IN_STEP => Some(ClockWarning::Ahead(ahead)),
        () => None,
    };
    (source_ns.clamp(earliest, here_ns), warning)
}

/// The host's real-time clock, nanoseconds since 1970; 0 if it stands before that.
pub(super) fn realtime_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

#[cfg(test)]
#[path = "clock_tests.rs"]
mod tests;
