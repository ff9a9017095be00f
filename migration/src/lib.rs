//! Wherry's live-migration engine: wire protocol, rounds, hint accounting.
#![forbid(unsafe_code)]

pub mod bitmap;
pub mod traits;
