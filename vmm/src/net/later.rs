//! A setting that takes its time, for somebody who must not wait.
//!
//! The kernel changes a tap's offloads with its lock of all networks (RTNL), which others may hold
//! for seconds, and a device asks for it with its own. So a thread does it, one at a time, and the
//! last value that was asked for is the one that stays. The thread lives as long as there is one.

use std::sync::{Arc, Mutex};

use crate::sync::lock;

/// Sets values of a kind.
pub struct Later<T>(Arc<Shared<T>>);

struct Shared<T> {
    set: Box<dyn Fn(T) + Send + Sync>,
    state: Mutex<State<T>>,
}

struct State<T> {
    /// Not yet begun.
    wanted: Option<T>,
    /// There is a thread.
    busy: bool,
}

impl<T: Send + 'static> Later<T> {
    /// With this.
    pub fn new(set: impl Fn(T) + Send + Sync + 'static) -> Self {
        let state = Mutex::new(State { wanted: None, busy: false });
        Self(Arc::new(Shared { set: Box::new(set), state }))
    }

    /// Sets this value soon, or another that is asked for before it is.
    pub fn set(&self, value: T) {
        let mut state = lock(&self.0.state);
        state.wanted = Some(value);
        if std::mem::replace(&mut state.busy, true) {
            return;
        }
        drop(state);
        let shared = self.0.clone();
        let thread = wherry_threads::of_kind("offloads");
        if thread.spawn(move || shared.work()).is_err() {
            // Better late than never.
            self.0.work();
        }
    }
}

impl<T> Shared<T> {
    fn work(&self) {
        loop {
            let mut state = lock(&self.state);
            let Some(value) = state.wanted.take() else {
                state.busy = false;
                return;
            };
            drop(state);
            (self.set)(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    /// Only so that a test that fails does not hang.
    const GUARD: Duration = Duration::from_secs(60);

    #[test]
    fn nobody_waits_and_the_last_value_stays() {
        let (begun, begins) = channel();
        let (go, gate) = channel();
        let gate = Mutex::new(gate);
        let later = Later::new(move |value| {
            begun.send(value).unwrap();
            // So long it takes.
            let _ = lock(&gate).recv_timeout(GUARD);
        });
        let next = || begins.recv_timeout(GUARD).unwrap();
        later.set(1);
        assert_eq!(next(), 1);
        // It is at work on the first.
        (2..5).for_each(|value| later.set(value));
        // A second thread would begin within this time, on any but the busiest machine.
        assert!(begins.recv_timeout(Duration::from_millis(200)).is_err(), "one at a time");
        go.send(()).unwrap();
        assert_eq!(next(), 4);
        go.send(()).unwrap();
        // And again, with another thread or the same.
        later.set(5);
        assert_eq!(next(), 5);
        go.send(()).unwrap();
    }
}
