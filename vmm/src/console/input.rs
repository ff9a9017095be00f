//! Waiting with input: for room in the port, and for clients to leave.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

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
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tell(&self) {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        *turn = turn.wrapping_add(1);
        self.changed.notify_all();
    }

    /// Waits for the next turn after `seen`, [`LOOK`] at most; says whether it came.
    pub(super) fn wait(&self, seen: u64) -> bool {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = self.changed.wait_timeout_while(turn, LOOK, |turn| *turn == seen);
        *wait.unwrap_or_else(PoisonError::into_inner).0 != seen
    }
}

fn poll_for_end(stream: &UnixStream, timeout: i32) -> i16 {
    let mut fd = libc::pollfd { fd: stream.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: `fd` is a valid pollfd that outlives the call.
    unsafe { libc::poll(&mut fd, 1, timeout) };
    fd.revents & (libc::POLLHUP | libc::POLLERR)
}

/// Whether the peer is gone altogether (having shut down only its sending side, it may still read).
pub(super) fn hung_up(stream: &UnixStream) -> bool {
    poll_for_end(stream, 0) != 0
}

pub(super) fn wait_until_hung_up(stream: &UnixStream) {
    while poll_for_end(stream, -1) == 0 {}
}
