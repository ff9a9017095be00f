//! Tests of the devices through their public interface: registers, rings in guest memory, and the
//! VMM's handle.
//!
//! Tests whose names start with an id (`h8_…`) cover that line of the balloon's checklist;
//! docs/balloon-checklist.md has the table.

mod blk;
mod bugs;
mod conformance;
mod console;
mod driver;
mod golden;
mod hint_end;
mod hinting;
mod hostile;
mod identity;
mod inflate;
mod net;
mod peers;
mod ports;
mod reporting;
mod rng;
mod state;
mod stats;
mod transport;
mod vsock;
mod wire;
