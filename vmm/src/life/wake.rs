//! What wakes the run loop, and says whether the VM is to end.
//!
//! It has nothing else of the VM. A disk's thread has it, too, and behind a disk that hangs it
//! outlives the VM: it must not be the one to put that away.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::sync::lock;

#[derive(Default)]
struct Signal {
    poked: bool,
    killed: bool,
}

/// See the module's text.
#[derive(Default)]
pub struct Wake {
    signal: Mutex<Signal>,
    changed: Condvar,
}

impl Wake {
    /// Something happened. Never waits.
    pub fn poke(&self) {
        lock(&self.signal).poked = true;
        self.changed.notify_all();
    }

    /// The VM is to end. Never waits.
    pub fn kill(&self) {
        lock(&self.signal).killed = true;
        self.poke();
    }

    /// Whether it is.
    pub fn is_killed(&self) -> bool {
        lock(&self.signal).killed
    }

    /// Waits until something happened since this was last asked.
    pub fn wait(&self) {
        let mut signal = lock(&self.signal);
        while !std::mem::take(&mut signal.poked) {
            signal = self.changed.wait(signal).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for `time`, less if the VM is to end. Whether it is.
    pub fn killed_within(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        let mut signal = lock(&self.signal);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if signal.killed || left.is_zero() {
                return signal.killed;
            }
            let wait = self.changed.wait_timeout(signal, left);
            signal = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether something happened since this was last asked.
    #[cfg(test)]
    pub fn was_poked(&self) -> bool {
        std::mem::take(&mut lock(&self.signal).poked)
    }
}
