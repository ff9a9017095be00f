//! Threads that say of which kind they are before they do anything else.
//!
//! A process that wants something of each of its threads, such as that it gives up what its kind
//! does not need, says so once, with [`on_start`]. Whoever starts a thread says its kind and knows
//! nothing of that. In a process that says nothing these are threads like others.

#![forbid(unsafe_code)]

use std::io;
use std::sync::OnceLock;
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

/// What each thread begins with.
static FIRST: OnceLock<fn(&'static str)> = OnceLock::new();

/// Threads that are started from now on call this with their kind before anything else. Only the
/// first call counts.
pub fn on_start(first: fn(kind: &'static str)) {
    let _ = FIRST.set(first);
}

fn begin(kind: &'static str) {
    if let Some(first) = FIRST.get() {
        first(kind);
    }
}

/// A thread to be started.
#[must_use]
pub struct Thread {
    kind: &'static str,
    name: String,
}

/// One of this kind, which is also its name.
pub fn of_kind(kind: &'static str) -> Thread {
    Thread { kind, name: kind.into() }
}

impl Thread {
    /// Another name: those of its kind are told apart by it.
    pub fn named(self, name: String) -> Self {
        Self { name, ..self }
    }

    /// Starts it.
    ///
    /// # Errors
    /// The host has no room for one more.
    pub fn spawn<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        let kind = self.kind;
        Builder::new().name(self.name).spawn(move || {
            begin(kind);
            work()
        })
    }

    /// Starts it; it ends before the scope does.
    ///
    /// # Errors
    /// As for [`spawn`](Self::spawn).
    pub fn spawn_scoped<'scope, T: Send + 'scope>(
        self,
        scope: &'scope Scope<'scope, '_>,
        work: impl FnOnce() -> T + Send + 'scope,
    ) -> io::Result<ScopedJoinHandle<'scope, T>> {
        let kind = self.kind;
        Builder::new().name(self.name).spawn_scoped(scope, move || {
            begin(kind);
            work()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local!(static KIND: Cell<&'static str> = const { Cell::new("") });

    #[test]
    fn a_thread_says_its_kind_before_it_does_anything() {
        on_start(|kind| KIND.set(kind));
        let seen = || (KIND.get(), std::thread::current().name().map(str::to_owned));
        let name = |name: &str| Some(name.to_owned());
        let one = of_kind("lane").spawn(seen).unwrap().join().unwrap();
        assert_eq!(one, ("lane", name("lane")));
        let two = std::thread::scope(|scope| {
            let lane = of_kind("lane").named("lane-2".into()).spawn_scoped(scope, seen);
            lane.unwrap().join().unwrap()
        });
        assert_eq!(two, ("lane", name("lane-2")));
    }
}
