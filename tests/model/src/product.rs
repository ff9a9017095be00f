//! The product's sources, with switchable mistakes and probes; see `build.rs`.
#![allow(warnings, missing_docs, clippy::all)]

include!(concat!(env!("OUT_DIR"), "/product.rs"));
