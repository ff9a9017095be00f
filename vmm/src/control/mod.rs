//! How a running VM is found and controlled: by name, through a Unix socket in the runtime folder.
//!
//! The machine implements [`VmControl`]; [`Server`] offers it to clients on threads of its own.
//! Nothing that a client does or fails to do (silence, floods, half a request, not reading answers,
//! vanishing) reaches the machine's threads: the server never calls the machine while it waits for
//! a client, and never waits for a client from within a call of the machine.
//!
//! ```text
//! let claim = RuntimeDir::from_env()?.claim(name)?;   // the name is ours, or NameInUse
//! let vm: Arc<dyn VmControl> = …;
//! signals::forward_to(&vm);                          // SIGTERM and SIGINT call vm.kill()
//! let server = Server::start(claim, vm)?;            // from now on `wherry info NAME` works
//! …run…
//! drop(server);                                      // last answers go out; socket and lock go
//! ```

mod client;
mod figures;
mod line;
mod places;
mod protocol;
mod runtime;
mod server;
pub mod signals;
#[cfg(test)]
mod tests;
mod updates;

use std::os::unix::net::UnixStream;

use serde_json::Value;

pub use client::Client;
pub use figures::{DiskInfo, MigrationCounts, NetInfo};
pub use places::Place;
pub use protocol::*;
pub use runtime::{NameClaim, RuntimeDir, check_name};
pub use server::{MAX_CLIENTS, Server};

/// What the control server needs from the machine. Every method may be called from any thread at
/// any time, also several at once, and returns when the thing is done. Methods other than
/// [`migrate`](VmControl::migrate) take seconds at most.
pub trait VmControl: Send + Sync {
    /// Describes the VM. Must work in every state; what migrations were is filled in by the server.
    fn info(&self) -> Info;

    /// Stops the vCPUs. Pausing what is paused succeeds.
    fn pause(&self) -> Result<(), ControlError>;

    /// Lets the vCPUs run. `force` also after a migration with unknown outcome.
    fn resume(&self, force: bool) -> Result<(), ControlError>;

    /// Presses the ACPI power button; returns at once, whether or not the guest reacts.
    fn stop(&self) -> Result<(), ControlError>;

    /// Ends the VM as soon as possible; the machine's run function then returns. May return before
    /// that.
    fn kill(&self);

    /// Sets the balloon's target in bytes.
    fn balloon_set(&self, target_bytes: u64) -> Result<(), ControlError>;

    /// The balloon's statistics and counters.
    fn balloon_stats(&self) -> Result<BalloonInfo, ControlError>;

    /// Migrates and returns the report, or why the guest is still here
    /// ([`ErrorCode::MigrationFailed`], [`ErrorCode::Cancelled`]) or possibly not
    /// ([`ErrorCode::MigrationUnknown`]). `tell` takes updates and never blocks. The server calls
    /// it once at a time.
    fn migrate(
        &self,
        request: &MigrateRequest,
        tell: &mut dyn FnMut(Update),
    ) -> Result<Value, ControlError>;

    /// Asks the migration under way to stop; returns at once. After the hand-off it has no effect.
    fn migrate_cancel(&self) -> Result<(), ControlError>;

    /// Whether [`attach_console`](VmControl::attach_console) would work.
    fn check_console(&self) -> Result<(), ControlError> {
        Ok(())
    }

    /// Connects a client to the serial console. The machine owns the stream (blocking, no timeouts
    /// set) from here on, must not be held up by a client that does not read, and shuts the stream
    /// down when the guest ends.
    fn attach_console(&self, client: UnixStream) -> Result<(), ControlError>;
}
