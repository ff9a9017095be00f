//! loom's primitives for the engine (`migration/src/sync.rs`), each right unless a mistake is made.
//!
//! A mistake in the order of accesses is made here, below the engine's code, which stays as it is:
//! what it asks for in one step is done in two, or with less order than it asked for.

use std::ops::{Deref, DerefMut};
use std::sync::{LockResult, PoisonError};

use crate::{Mutant, on};

pub mod atomic;

/// See the module's text.
#[derive(Debug, Default)]
pub struct Mutex<T>(loom::sync::Mutex<T>);

/// Holds a [`Mutex`] until it is dropped.
#[derive(Debug)]
pub struct MutexGuard<'a, T> {
    mutex: &'a Mutex<T>,
    held: Option<loom::sync::MutexGuard<'a, T>>,
}

impl<T> Mutex<T> {
    /// As that of std.
    pub fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        Ok(self.held())
    }

    fn held(&self) -> MutexGuard<'_, T> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        MutexGuard { mutex: self, held: Some(held) }
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.held.as_deref().expect("held until it is dropped")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.held.as_deref_mut().expect("held until it is dropped")
    }
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Condvar(loom::sync::Condvar);

impl Condvar {
    /// As that of std.
    pub fn wait<'a, T>(&self, mut guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        if on(Mutant::LostWakeup) {
            // As if who notifies did not take the lock: it gets in between look and sleep.
            drop(guard.held.take());
            guard = guard.mutex.held();
        }
        let held = guard.held.take().expect("held until it is dropped");
        guard.held = Some(self.0.wait(held).unwrap_or_else(PoisonError::into_inner));
        Ok(guard)
    }

    /// As that of std.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}
