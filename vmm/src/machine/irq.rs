//! Interrupts of emulated devices.

use std::io;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use wherry_devices::interrupt::InterruptLine;

/// A level-triggered line of the in-kernel interrupt controllers.
///
/// Set with `KVM_IRQ_LINE` and not with an irqfd on purpose: the call returns when the level is in
/// the controller's state. An irqfd may deliver from a worker later, and an interrupt on its way
/// there would be missing from a saved state.
pub struct KvmIrqLine {
    /// The machine.
    pub vm: Arc<VmFd>,
    /// Global system interrupt number.
    pub gsi: u32,
}

impl InterruptLine for KvmIrqLine {
    fn set(&self, high: bool) -> io::Result<()> {
        self.vm.set_irq_line(self.gsi, high).map_err(|e| io::Error::from_raw_os_error(e.errno()))
    }
}
