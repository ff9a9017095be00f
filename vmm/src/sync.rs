//! Locks that a panic on another thread does not close.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks. For plain data that is whole at any time, so that a panic elsewhere has spoiled nothing.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
