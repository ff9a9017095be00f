//! The types through which the sender and the hints' thread share memory: std's.
//!
//! Under `cfg(loom)` they are loom's, which try every order of accesses. Only
//! `tests/model/interleaved`, a package of its own around these sources, is built with it; the
//! product and all dependencies are not.

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
