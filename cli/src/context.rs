//! What every command works with.

use wherry_vmm::control::{Client, ControlError, RuntimeDir};

use super::output::Output;

/// What commands work with.
pub struct Context {
    /// Where words go.
    pub out: Output,
    /// Where the sockets of VMs are.
    pub dir: RuntimeDir,
}

impl Context {
    /// A connection to a running VM.
    pub fn client(&self, name: &str) -> Result<Client, ControlError> {
        Client::connect(&self.dir, name)
    }
}
