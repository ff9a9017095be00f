//! As `loom::sync::atomic`. `SeqCst` tells the gate's accesses from all others.

pub use loom::sync::atomic::{AtomicBool, Ordering};

use Ordering::{Acquire, Relaxed, Release, SeqCst};

use crate::{Mutant, on};

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
