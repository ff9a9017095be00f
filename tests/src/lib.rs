//! Drives real guests through the `wherry` binary: start, talk over the serial console, migrate,
//! read the verdict.
//!
//! Used by the integration tests (`tests/tests/`), the demo and the benchmark. Knows the command
//! line and the guest's console protocol, nothing of Wherry's inside.

mod balloon;
pub mod cargo;
mod console;
pub mod debian;
pub mod docs;
mod guest;
pub mod hosts;
pub mod inject;
mod median;
mod mount;
pub mod needs;
mod proxy;
mod scratch;
pub mod terminal;
mod wait;

pub use balloon::{Balloon, note};
pub use console::{Console, Fields};
pub use guest::{Env, Guest, GuestOptions, MigrateError, SETTLE, migrate};
pub use median::median;
pub use mount::Mount;
pub use proxy::{Frame, Proxy, When};
pub use scratch::Scratch;
pub use wait::{BOOT, SOON, eventually, grows_to};

/// Result with any error; tests and tools only print it.
pub type Result<T> = anyhow::Result<T>;
