//! What the sender and the hints' thread share memory by: std's primitives.
//!
//! Under `cfg(loom)` loom's, which try every order of accesses. Only
//! `tests/model/interleaved` is built so: a package of its own around these sources, beside which
//! the product and all dependencies are built as ever.

#[cfg(not(loom))]
pub(crate) use std::sync::{
    Condvar, Mutex,
    atomic::{AtomicBool, AtomicU64},
};

#[cfg(loom)]
pub(crate) use loom::sync::{
    Condvar, Mutex,
    atomic::{AtomicBool, AtomicU64},
};
