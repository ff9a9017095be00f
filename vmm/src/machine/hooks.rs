//! What a machine needs from outside.

use std::sync::Arc;

use crate::console::Console;
use crate::net::Nets;

/// What a machine needs from its process.
#[derive(Clone)]
pub struct MachineHooks {
    /// Where COM1 goes.
    pub console: Console,
    /// What its network devices are connected to.
    pub nets: Nets,
    /// Told that the guest has ended itself, on any thread; must not wait.
    pub wake: Arc<dyn Fn() + Send + Sync>,
}
