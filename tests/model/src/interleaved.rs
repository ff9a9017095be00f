//! The product's bitmap, round and hints on loom's primitives; see `build.rs`.
#![allow(warnings, missing_docs, clippy::all)]

include!(concat!(env!("OUT_DIR"), "/interleaved.rs"));

// What these files need of the rest of the engine touches no shared memory.
pub use crate::product::engine::{error, wire};
/// The report of a round, of the product's own.
pub mod report {
    pub use crate::product::engine::report::*;
}
