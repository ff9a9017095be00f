//! A disk that takes its time: so many bytes and requests per second.

use std::num::NonZeroU64;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vm_memory::VolatileSlice;

use super::disk::{Disk, DiskError, total};

/// How far ahead of its rate a disk may be: what was not used in this time is used at once.
const BURST: Duration = Duration::from_millis(500);
/// The longest time that one request is worth. Less than a rate of 1 per second makes of it.
const MOST: Duration = Duration::from_secs(3600);

/// Most per second. `None`: as many as there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes read and written.
    pub bytes: Option<NonZeroU64>,
    /// Requests of any kind.
    pub ops: Option<NonZeroU64>,
}

/// A token bucket, as the time when it is full again. A request goes through while the bucket is
/// not empty, however large it is; the next ones wait for what it took too much.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    rate: NonZeroU64,
    full_at: Instant,
}

impl Bucket {
    /// How long it is until there is something in it.
    fn wait(&self, now: Instant) -> Duration {
        self.full_at.saturating_duration_since(now).saturating_sub(BURST)
    }

    fn take(&mut self, now: Instant, tokens: u64) {
        let nanos = u128::from(tokens) * 1_000_000_000 / u128::from(self.rate.get());
        let worth = u64::try_from(nanos).map_or(MOST, Duration::from_nanos).min(MOST);
        self.full_at = self.full_at.max(now) + worth;
    }
}

struct State {
    bytes: Option<Bucket>,
    ops: Option<Bucket>,
    hurry: bool,
}

/// See the module's text.
pub struct Throttled<D> {
    disk: D,
    state: Mutex<State>,
    changed: Condvar,
}

impl<D: Disk> Throttled<D> {
    /// The same disk with limits.
    pub fn new(disk: D, limits: Limits) -> Self {
        let bucket = |rate| Bucket { rate, full_at: Instant::now() };
        let (bytes, ops) = (limits.bytes.map(bucket), limits.ops.map(bucket));
        let state = Mutex::new(State { bytes, ops, hurry: false });
        Self { disk, state, changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for its turn.
    fn turn(&self, bytes: u64) -> Result<(), DiskError> {
        let mut state = self.lock();
        loop {
            if state.hurry {
                return Err(DiskError::PutOff);
            }
            let now = Instant::now();
            let buckets = [&state.bytes, &state.ops];
            let wait = buckets.into_iter().flatten().map(|b| b.wait(now)).max().unwrap_or_default();
            if wait.is_zero() {
                state.bytes.iter_mut().for_each(|bucket| bucket.take(now, bytes));
                state.ops.iter_mut().for_each(|bucket| bucket.take(now, 1));
                return Ok(());
            }
            let woken = self.changed.wait_timeout(state, wait);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl<D: Disk> Disk for Throttled<D> {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read_only(&self) -> bool {
        self.disk.read_only()
    }

    fn alignment(&self) -> u64 {
        self.disk.alignment()
    }

    fn read(&self, at: u64, into: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        self.turn(total(into) as u64)?;
        self.disk.read(at, into)
    }

    fn write(&self, at: u64, from: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        self.turn(total(from) as u64)?;
        self.disk.write(at, from)
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.turn(0)?;
        self.disk.flush()
    }

    fn discard(&self, at: u64, len: u64) -> Result<(), DiskError> {
        self.turn(0)?;
        self.disk.discard(at, len)
    }

    fn write_zeroes(&self, at: u64, len: u64, unmap: bool) -> Result<(), DiskError> {
        self.turn(0)?;
        self.disk.write_zeroes(at, len, unmap)
    }

    fn hurry(&self, on: bool) {
        self.lock().hurry = on;
        self.changed.notify_all();
        self.disk.hurry(on);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(rate: u64, now: Instant) -> Bucket {
        Bucket { rate: NonZeroU64::new(rate).unwrap(), full_at: now }
    }

    #[test]
    fn a_bucket_gives_its_rate_and_what_it_saved_up() {
        let start = Instant::now();
        let mut bucket = bucket(1000, start);
        let (mut now, mut taken) = (start, 0);
        while taken < 10_000 {
            now += bucket.wait(now);
            bucket.take(now, 100);
            taken += 100;
        }
        // The last one goes while what is saved up (500) is not used up.
        assert_eq!(now - start, Duration::from_millis(9900) - BURST);
        now += Duration::from_secs(3600);
        let at_once =
            std::iter::from_fn(|| bucket.wait(now).is_zero().then(|| bucket.take(now, 100)));
        assert_eq!(at_once.count(), 6, "an hour is no better than {BURST:?}");
    }

    #[test]
    fn a_request_larger_than_the_bucket_goes_through_and_the_next_waits() {
        let now = Instant::now();
        let mut bucket = bucket(10, now);
        assert!(bucket.wait(now).is_zero());
        bucket.take(now, 100);
        assert_eq!(bucket.wait(now), Duration::from_secs(10) - BURST);
        bucket.take(now, u64::MAX);
        assert_eq!(bucket.wait(now), Duration::from_secs(10) + MOST - BURST);
    }
}
