//! loom's primitives for the engine (`migration/src/sync.rs`), each right unless a mistake is made.
//!
//! A mistake in the order of accesses is made here, below the engine's code, which stays as it is:
//! what it asks for in one step is done in two, or with less order than it asked for. `SeqCst`
//! tells the gate's accesses from all others.

use std::ops::{Deref, DerefMut};
use std::sync::{LockResult, PoisonError};

use loom::sync::atomic::Ordering::{self, Acquire, Relaxed, Release, SeqCst};

use crate::{Mutant, on};

pub use loom::sync::atomic::AtomicBool;

/// See the module's text.
#[derive(Debug, Default)]
pub struct AtomicU64(loom::sync::atomic::AtomicU64);

/// As those of std.
#[allow(missing_docs)]
impl AtomicU64 {
    pub fn new(value: u64) -> Self {
        Self(loom::sync::atomic::AtomicU64::new(value))
    }

    pub fn load(&self, order: Ordering) -> u64 {
        let value = self.0.load(order);
        if order == SeqCst && on(Mutant::GateDoesNotWait) {
            // Whether it is closed, as if nobody were inside.
            return value & 1 << 63;
        }
        value
    }

    pub fn store(&self, value: u64, order: Ordering) {
        self.0.store(value, order);
    }

    pub fn swap(&self, value: u64, order: Ordering) -> u64 {
        if on(Mutant::TakeInTwoSteps) {
            let before = self.0.load(Acquire);
            self.0.store(value, Release);
            return before;
        }
        self.0.swap(value, order)
    }

    pub fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        if order == SeqCst && on(Mutant::GateLooksFirst) {
            let before = self.0.load(order);
            self.0.fetch_add(value, order);
            return before;
        }
        self.0.fetch_add(value, order)
    }

    pub fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
        self.0.fetch_sub(value, if on(Mutant::LeavesRelaxed) { Relaxed } else { order })
    }

    pub fn fetch_or(&self, value: u64, order: Ordering) -> u64 {
        self.0.fetch_or(value, order)
    }

    pub fn fetch_and(&self, value: u64, order: Ordering) -> u64 {
        let before = self.0.fetch_and(value, order);
        // As if all bits had been there.
        if on(Mutant::CountsUnclaimed) { u64::MAX } else { before }
    }

    pub fn fetch_min(&self, value: u64, order: Ordering) -> u64 {
        self.0.fetch_min(value, order)
    }

    pub fn fetch_max(&self, value: u64, order: Ordering) -> u64 {
        self.0.fetch_max(value, order)
    }
}

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
