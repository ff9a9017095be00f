//! Tests of the guest's clocks on a simulated host, whose every call takes time.

use super::*;
use proptest::prelude::*;
use std::cell::Cell;

const KHZ: u32 = 2_000_000;
/// The TSC when the vCPU parked.
const START: u64 = 1 << 40;

/// A host with one paused vCPU.
struct Host {
    /// What the VM's clock shows.
    clock: Cell<u64>,
    /// The TSC when the vCPU was last touched, and when that was.
    last: Cell<TscReading>,
    /// Whether the TSC runs between two calls.
    stable: bool,
    /// What a call takes, nanoseconds.
    cost: u64,
}

impl Host {
    fn parked(stable: bool, cost: u64) -> Self {
        let last = TscReading { clock_ns: 1_000_000_000, tsc: START };
        Self { clock: Cell::new(last.clock_ns), last: Cell::new(last), stable, cost }
    }

    fn pass(&self, ns: u64) {
        self.clock.set(self.clock.get() + ns);
    }

    fn clock(&self) -> u64 {
        self.pass(self.cost);
        self.clock.get()
    }

    /// As KVM_GET_MSRS does: an unstable TSC goes on only within the call.
    fn tsc(&self) -> u64 {
        let from = if self.stable { self.last.get().clock_ns } else { self.clock.get() };
        self.pass(self.cost);
        let tsc = self.last.get().tsc + ticks(self.clock.get() - from, KHZ);
        self.last.set(TscReading { clock_ns: self.clock.get(), tsc });
        tsc
    }

    fn read(&self) -> TscReading {
        TscReading::between(|| Ok(self.clock()), || Ok(self.tsc())).unwrap()
    }
}

/// The TSC as saved is that of the instant at which the clock was read, for the last of many vCPUs
/// as for the first, and however long the pause was, to what a few calls take.
#[test]
fn neither_reading_nor_a_pause_costs_the_guest_time() {
    for stable in [true, false] {
        for vcpus in [1, 254] {
            for pause in [0, 3_000_000, 3_600_000_000_000] {
                let host = Host::parked(stable, 2_000);
                let parked = host.read();
                host.pass(pause);
                let clock_ns = host.clock();
                host.pass(vcpus * 200_000);
                let tsc = guest_tsc(clock_ns, KHZ, host.read(), Some(parked));
                assert!(tsc >= parked.tsc, "back from {} to {tsc}", parked.tsc);
                let right = START + ticks(clock_ns - 1_000_000_000, KHZ);
                // On an unstable host a pause that is too short to be told is lost.
                let error = if stable || pause > 0 { 20_000 } else { LATE + 20_000 };
                assert!(
                    tsc.abs_diff(right) <= ticks(error, KHZ),
                    "{stable} {vcpus} {pause}: {tsc} {right}"
                );
            }
        }
    }
}

#[test]
fn the_closest_pair_counts() {
    let (host, calls) = (Host::parked(true, 2_000), Cell::new(0));
    let slow = || {
        calls.set(calls.get() + 1);
        // The thread is not scheduled for a while in the midst of the first try.
        host.pass(if calls.get() == 1 { 40_000_000 } else { 0 });
        Ok(host.tsc())
    };
    let reading = TscReading::between(|| Ok(host.clock()), slow).unwrap();
    assert_eq!(calls.get(), 2);
    assert!(
        reading.tsc.abs_diff(START + ticks(reading.clock_ns - 1_000_000_000, KHZ))
            <= ticks(4_000, KHZ)
    );
}

#[test]
fn a_tsc_follows_the_clock_both_ways() {
    let reading = TscReading { clock_ns: 5_000, tsc: 1_000_000 };
    assert_eq!(reading.at(5_000, KHZ), 1_000_000);
    assert_eq!(reading.at(6_000, KHZ), 1_002_000);
    assert_eq!(reading.at(4_000, KHZ), 998_000);
    assert_eq!(TscReading { clock_ns: 0, tsc: u64::MAX }.at(1_000, KHZ), 1_999);
    let _ = TscReading { clock_ns: u64::MAX, tsc: u64::MAX }.at(0, u32::MAX);
}

const SECOND: u64 = 1_000_000_000;

#[test]
fn clocks_in_step_are_not_worth_a_word() {
    let connected = Duration::from_secs(5);
    for (source, here) in [(100 * SECOND, 101 * SECOND), (100 * SECOND, 105 * SECOND), (0, 0)] {
        assert_eq!(since(source, here, connected), (source, None));
    }
    let here = 100 * SECOND;
    assert_eq!(since(here + 5_000_000, here, connected), (here, None), "some milliseconds");
}

#[test]
fn clocks_that_differ_are_said_and_do_not_move_the_guests_time_far() {
    let (connected, here) = (Duration::from_secs(5), 100 * SECOND);
    let (from, warning) = since(here + 3 * SECOND, here, connected);
    assert_eq!((from, warning), (here, Some(ClockWarning::Behind(Duration::from_secs(3)))));
    let text = warning.unwrap().to_string();
    assert!(text.contains("3.0 s behind the source's") && text.contains("NTP"), "{text}");
    let (from, warning) = since(10 * SECOND, here, connected);
    assert_eq!((from, warning), (95 * SECOND, Some(ClockWarning::Ahead(Duration::from_secs(85)))));
    let text = warning.unwrap().to_string();
    assert!(text.contains("85.0 s ahead of the source's") && text.contains("NTP"), "{text}");
}

proptest! {
    /// Whatever a peer says: time goes on by no less than nothing and by no more than the migration
    /// took.
    #[test]
    fn time_passes_within_the_migration(source in any::<u64>(), here in any::<u64>(),
        ns in any::<u64>()) {
        let (from, _) = since(source, here, Duration::from_nanos(ns));
        prop_assert!(from <= here && here - from <= ns);
    }

    #[test]
    fn there_and_back_is_the_same(tsc in any::<u64>(), a in 0u64..1 << 62, b in 0u64..1 << 62) {
        let there = TscReading { clock_ns: b, tsc: TscReading { clock_ns: a, tsc }.at(b, KHZ) };
        prop_assert_eq!(there.at(a, KHZ), tsc);
    }
}
