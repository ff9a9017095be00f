//! The types through which the sender and the hints' thread share memory: std's.
//!
//! Under `cfg(loom)` they are loom's, which try every order of accesses. Only
//! `tests/model/interleaved`, a package of its own around these sources, is built with it; the
//! product and all dependencies are not.
//!
//! [`lock`] is for std's mutexes, which everything else shares.

use std::sync::{MutexGuard, PoisonError};

#[cfg(not(loom))]
pub(crate) use std::sync::{
    Condvar, Mutex,
    atomic::{AtomicBool, AtomicU64},
};

/// Locks, whoever panicked with the lock in hand: what is behind it is whole at all times.
pub fn lock<T>(mutex: &std::sync::Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(loom)]
pub(crate) use loom::sync::{
    Condvar, Mutex,
    atomic::{AtomicBool, AtomicU64},
};
