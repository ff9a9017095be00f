//! What is fuzzed, as ordinary functions of bytes.
//!
//! A target panics if what it looks at is wrong, be it for its own oracle or for an assertion in
//! the product. `fuzz/` calls the targets from cargo-fuzz; `tests/corpus.rs` calls them on the
//! stable toolchain, with the kept inputs (`fuzz/corpus/TARGET/`) and with random changes of them.
//! The inputs are made by `examples/seeds.rs` with the product's own encoders, so that they can be
//! made again when a format changes; what a fuzzer finds is added by hand.

mod balloon;
mod blk;
mod bytes;
mod config;
mod control;
mod driver;
mod frames;
mod guest;
mod kernel;
mod machine;
mod net;
mod ports;
mod rng;
mod rootfs;
pub mod seeds;
mod sessions;
mod stream;
mod trace;
mod vsock;
mod wire;

pub use balloon::balloon;
pub use blk::blk;
pub use bytes::Rng;
pub use config::config;
pub use control::control;
pub use kernel::kernel;
pub use machine::machine;
pub use net::net;
pub use ports::{power, serial};
pub use rng::rng;
pub use rootfs::{NO_MEMORY, boots, limit_memory, rootfs};
pub use sessions::{destination, source};
pub use stream::stream;
pub use trace::trace;
pub use vsock::vsock;
pub use wire::wire;

use std::sync::atomic::Ordering;

/// A target.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, which is that of its corpus, too.
    pub name: &'static str,
    /// Takes one input.
    pub run: fn(&[u8]),
    /// Random inputs for a test that should take about two seconds.
    pub cases: u32,
}

/// Sources and destinations of this process that came to the end of a migration.
pub fn moved() -> (u32, u32) {
    (sessions::LEFT.load(Ordering::Relaxed), sessions::ARRIVED.load(Ordering::Relaxed))
}

/// All targets.
pub const TARGETS: [Target; 17] = [
    Target { name: "balloon", run: balloon, cases: 6000 },
    Target { name: "blk", run: blk, cases: 300 },
    Target { name: "net", run: net, cases: 1000 },
    Target { name: "vsock", run: vsock, cases: 60 },
    Target { name: "rng", run: rng, cases: 800 },
    Target { name: "stream", run: stream, cases: 2000 },
    Target { name: "serial", run: serial, cases: 2000 },
    Target { name: "power", run: power, cases: 3000 },
    Target { name: "wire", run: wire, cases: 20_000 },
    Target { name: "destination", run: destination, cases: 1000 },
    Target { name: "source", run: source, cases: 200 },
    Target { name: "machine", run: machine, cases: 5000 },
    Target { name: "trace", run: trace, cases: 2000 },
    Target { name: "kernel", run: kernel, cases: 1000 },
    Target { name: "control", run: control, cases: 300 },
    Target { name: "config", run: config, cases: 500 },
    Target { name: "rootfs", run: rootfs, cases: 4000 },
];
