//! How a device asks for the guest's attention.

use std::io;

/// One edge-triggered interrupt line (a GSI). The VMM implements it.
pub trait InterruptLine: Send + Sync {
    /// Raises and lowers the line. When this returns the edge is latched in the interrupt controller, so that an
    /// interrupt raised before the controller's state is saved is part of that state.
    fn pulse(&self) -> io::Result<()>;
}
