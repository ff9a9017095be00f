//! A mutex with a fast lane.
//!
//! The event loop takes a device's lock again and again while it drains a queue, and an ordinary
//! mutex would let it win each time over a vCPU thread or the migration thread that only wants a
//! register or to stop hinting. Here the loop uses [`TwoLane::patient`], which lets everybody else
//! go first.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often the patient lane gives way (50 µs each) before it takes part in the race: it must not
/// starve either.
const GIVE_WAY: u32 = 20;

/// See the module's text.
pub struct TwoLane<T> {
    inner: Mutex<T>,
    urgent: AtomicUsize,
}

impl<T> TwoLane<T> {
    /// Wraps `value`.
    pub fn new(value: T) -> Self {
        Self { inner: Mutex::new(value), urgent: AtomicUsize::new(0) }
    }

    /// Locks for short work that somebody waits for.
    pub fn urgent(&self) -> MutexGuard<'_, T> {
        self.urgent.fetch_add(1, Ordering::Relaxed);
        let guard = self.lock();
        self.urgent.fetch_sub(1, Ordering::Relaxed);
        guard
    }

    /// Locks for one batch of background work, after those who wait in the urgent lane.
    pub fn patient(&self) -> MutexGuard<'_, T> {
        for _ in 0..GIVE_WAY {
            if self.urgent.load(Ordering::Relaxed) == 0 {
                break;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        self.lock()
    }

    // A panic while the lock was held ends that thread; the device's state is plain data that stays
    // usable.
    fn lock(&self) -> MutexGuard<'_, T> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
