//! What a machine does at a reset.

use super::smbios::Firmware;
use super::source::Sources;

/// See the module's text.
#[derive(Debug, Clone, Default)]
pub struct Reset {
    /// It boots again. Otherwise the VM ends.
    pub boots: bool,
    /// Which machine it is, and what its systemd is told.
    pub firmware: Firmware,
    /// What it boots, if that is not in its first disk.
    pub sources: Sources,
    /// The kernel's path is another host's, from which the machine came.
    pub elsewhere: bool,
}
