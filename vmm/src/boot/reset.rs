//! What a machine does at a reset.

use super::kept::Carried;
use super::smbios::Firmware;

/// See the module's text.
#[derive(Debug, Clone, Default)]
pub struct Reset {
    /// It boots again. Otherwise the VM ends.
    pub boots: bool,
    /// Which machine it is, and what its systemd is told.
    pub firmware: Firmware,
    /// What it boots, as far as that came with it.
    pub carried: Carried,
    /// The kernel's path is another host's, from which the machine came.
    pub elsewhere: bool,
}
