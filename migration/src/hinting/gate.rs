//! Who hints is inside; who ends an epoch closes the door and waits.
//!
//! # Invariant
//! After [`Gate::close`] returned nobody is inside, and nobody gets in. The gate is one atomic: a
//! closed flag and the number of those inside. Who enters adds one, and looks at the flag *in the
//! value that it replaced*. So it either entered before the close and is waited for, or it sees the
//! flag and leaves.

use std::sync::PoisonError;
use std::sync::atomic::Ordering::SeqCst;

use crate::sync::{AtomicU64, Condvar, Mutex};

const CLOSED: u64 = 1 << 63;

/// Lets hints in until it is closed.
#[derive(Debug, Default)]
pub struct Gate {
    state: AtomicU64,
    lock: Mutex<()>,
    empty: Condvar,
}

impl Gate {
    /// Enters for the life of the returned pass; `None` if the gate is closed.
    pub fn enter(&self) -> Option<Pass<'_>> {
        let before = self.state.fetch_add(1, SeqCst);
        let pass = Pass(self);
        (before & CLOSED == 0).then_some(pass)
    }

    /// Closes the gate and waits (asleep) until everyone who entered has left. Idempotent.
    pub fn close(&self) {
        self.state.fetch_or(CLOSED, SeqCst);
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while self.state.load(SeqCst) != CLOSED {
            guard = self.empty.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Whether [`close`](Self::close) has begun.
    pub fn is_closed(&self) -> bool {
        self.state.load(SeqCst) & CLOSED != 0
    }
}

/// Someone inside a [`Gate`]; leaves when dropped.
#[derive(Debug)]
pub struct Pass<'a>(&'a Gate);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.0.state.fetch_sub(1, SeqCst) == CLOSED | 1 {
            // The lock orders this notification after the closer's look at the count: without it
            // the wakeup could fall between its look and its sleep.
            let _guard = self.0.lock.lock().unwrap_or_else(PoisonError::into_inner);
            self.0.empty.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use super::*;

    #[test]
    fn closing_waits_for_those_inside_and_refuses_the_rest() {
        let gate = Arc::new(Gate::default());
        let pass = gate.enter().unwrap();
        let closed = Arc::new(AtomicBool::new(false));
        let (gate2, closed2) = (gate.clone(), closed.clone());
        let closer = std::thread::spawn(move || {
            gate2.close();
            closed2.store(true, SeqCst);
        });
        while !gate.is_closed() {
            std::thread::yield_now();
        }
        assert!(gate.enter().is_none());
        std::thread::sleep(Duration::from_millis(20));
        assert!(!closed.load(SeqCst), "closed with a hint inside");
        drop(pass);
        closer.join().unwrap();
        gate.close();
    }
}
