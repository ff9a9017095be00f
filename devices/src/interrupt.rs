//! How a device asks for the guest's attention.

use std::io;
use std::sync::Arc;

/// One level-triggered interrupt line (a GSI). The VMM implements it.
pub trait InterruptLine: Send + Sync {
    /// Sets the line's level. When this returns the interrupt controller has it, so that an
    /// interrupt raised before the controller's state is saved is part of that state.
    fn set(&self, high: bool) -> io::Result<()>;
}

/// A device's end of its line: only changes are passed on.
///
/// The line is high while the device has a cause that the guest has not taken, and not only when
/// it gets one: an interrupt controller that is masked at that moment would forget an edge.
pub(crate) struct Level {
    line: Arc<dyn InterruptLine>,
    /// What the controller was told last; unknown at first and after an error.
    told: Option<bool>,
}

impl Level {
    pub(crate) fn new(line: Arc<dyn InterruptLine>) -> Self {
        Self { line, told: None }
    }

    pub(crate) fn set(&mut self, high: bool) -> io::Result<()> {
        if self.told != Some(high) {
            self.told = None;
            self.line.set(high)?;
            self.told = Some(high);
        }
        Ok(())
    }
}
