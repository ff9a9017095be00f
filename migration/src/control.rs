//! Cancelling a migration, and the one moment from which it can no longer be cancelled.
//!
//! Invariant: [`CancelToken::cancel`] and the hand-off exclude each other. Both are one
//! compare-exchange on the same atomic, so either the cancel wins and HandOff is never sent, or the
//! commit wins and the canceller is told that it came too late.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::sync::lock;

const OPEN: u8 = 0;
const CANCELLED: u8 = 1;
const COMMITTED: u8 = 2;

#[derive(Debug, Default)]
struct Inner {
    state: AtomicU8,
    lock: Mutex<()>,
    changed: Condvar,
}

/// Cancels one migration attempt, from any thread. Clones are the same token; use a new one for
/// each attempt.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<Inner>);

impl CancelToken {
    /// A token that nobody has cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the migration to stop. Returns whether it can still be stopped: `false` once the
    /// hand-off has begun.
    pub fn cancel(&self) -> bool {
        let won = self.turn(CANCELLED);
        let _guard = lock(&self.0.lock);
        self.0.changed.notify_all();
        won
    }

    /// Whether [`cancel`](Self::cancel) was called in time.
    pub fn is_cancelled(&self) -> bool {
        self.0.state.load(Ordering::Acquire) == CANCELLED
    }

    /// The hand-off begins; from here on cancelling has no effect. `false` if the token was
    /// cancelled before.
    pub(crate) fn commit(&self) -> bool {
        self.turn(COMMITTED)
    }

    /// Sleeps for `time`, less if cancelled.
    pub(crate) fn sleep(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut guard = lock(&self.0.lock);
        while !self.is_cancelled() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let woken = self.0.changed.wait_timeout(guard, left);
            guard = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn turn(&self, to: u8) -> bool {
        let state = &self.0.state;
        match state.compare_exchange(OPEN, to, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(now) => now == to,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancel_and_commit_exclude_each_other() {
        let token = CancelToken::new();
        assert!(token.commit() && !token.cancel() && !token.is_cancelled());
        let token = CancelToken::new();
        assert!(token.cancel() && token.cancel() && !token.commit() && token.is_cancelled());
    }

    #[test]
    fn cancelling_wakes_a_sleeper() {
        let token = CancelToken::new();
        let other = token.clone();
        let start = Instant::now();
        let sleeper = std::thread::spawn(move || other.sleep(Duration::from_secs(30)));
        assert!(token.cancel());
        sleeper.join().unwrap();
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}
