//! Waiting with input for room in the port.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::sync::lock;

/// How often one who waits for room looks whether its source is still there.
const LOOK: Duration = Duration::from_secs(1);

/// Counts the times that there was room again.
#[derive(Default)]
pub(super) struct Room {
    turn: Mutex<u64>,
    changed: Condvar,
}

impl Room {
    /// Take it before trying: room that is made in between is not missed.
    pub(super) fn turn(&self) -> u64 {
        *lock(&self.turn)
    }

    pub(super) fn tell(&self) {
        let mut turn = lock(&self.turn);
        *turn = turn.wrapping_add(1);
        self.changed.notify_all();
    }

    /// Waits for the next turn after `seen`, [`LOOK`] at most; says whether it came.
    pub(super) fn wait(&self, seen: u64) -> bool {
        let turn = lock(&self.turn);
        let wait = self.changed.wait_timeout_while(turn, LOOK, |turn| *turn == seen);
        *wait.unwrap_or_else(PoisonError::into_inner).0 != seen
    }
}
