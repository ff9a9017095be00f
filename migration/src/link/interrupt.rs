//! Reasons to leave a wait early.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::control::CancelToken;
use crate::error::Error;
use crate::sync::lock;

/// Reasons to leave a wait early. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    /// The user cancelled.
    pub cancel: CancelToken,
    /// The other half of the connection has seen its end.
    pub stop: Arc<AtomicBool>,
    /// The guest is paused, and has been for too long.
    pub limit: PauseLimit,
}

/// When something must be done.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    /// The time.
    pub until: Instant,
    /// How long that was from the start.
    pub time: Duration,
}

impl Deadline {
    /// So long from now; `None` if there is no such time.
    pub fn after(time: Duration) -> Option<Self> {
        Some(Self { until: Instant::now().checked_add(time)?, time })
    }

    fn extended(self, more: Duration) -> Option<Self> {
        let until = self.until.checked_add(more)?;
        Some(Self { until, time: self.time.saturating_add(more) })
    }

    pub(super) fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }
}

/// How long the guest may be paused before the hand-off, over all that is done meanwhile. A peer
/// that keeps moving bytes, however few, resets every other limit.
#[derive(Clone, Debug, Default)]
pub struct PauseLimit(Arc<Mutex<Option<Deadline>>>);

impl PauseLimit {
    /// The pause begins and may last for `time`.
    pub fn begin(&self, time: Duration) {
        *lock(&self.0) = Deadline::after(time);
    }

    /// So much more is to be sent in it than was known when it began.
    pub fn extend(&self, more: Duration) {
        let mut limit = lock(&self.0);
        *limit = limit.and_then(|limit| limit.extended(more));
    }

    /// It ends in time: there is no limit any more.
    pub fn lift(&self) {
        *lock(&self.0) = None;
    }

    /// `Err` once the time is over.
    pub fn check(&self) -> Result<(), Error> {
        match *lock(&self.0) {
            Some(limit) if limit.is_over() => Err(Error::PauseLimit(limit.time)),
            _ => Ok(()),
        }
    }
}

impl Interrupt {
    /// `Err` if there is a reason. A stop without a cancel is [`Error::Closed`]; who set it knows
    /// the true cause.
    pub fn check(&self) -> Result<(), Error> {
        if self.cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        if self.stop.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        self.limit.check()
    }
}
