//! What a VM needs before its first vCPU: interrupt controllers, timer, and the addresses that KVM keeps for itself.

use crate::boot::layout::{KVM_IDENTITY_MAP_ADDR, KVM_TSS_ADDR};
use kvm_bindings::{
    KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap, kvm_irqchip,
    kvm_pit_config,
};
use kvm_ioctls::VmFd;

/// KVM_CAP_PMU_CAPABILITY, include/uapi/linux/kvm.h
const CAP_PMU_CAPABILITY: u32 = 212;
/// KVM_PMU_CAP_DISABLE, include/uapi/linux/kvm.h
const PMU_CAP_DISABLE: u64 = 1;

/// A step that KVM refused.
#[derive(Debug, thiserror::Error)]
#[error("{what} failed")]
pub struct VmError {
    what: &'static str,
    #[source]
    source: kvm_ioctls::Error,
}

fn failed(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VmError {
    move |source| VmError { what, source }
}

/// Prepares a new VM: no PMU, in-kernel PIC, IOAPIC and local APICs, PIT. Call it once, before creating vCPUs.
///
/// The PIT is there only for kernels that do not use kvmclock and want to calibrate their TSC; with
/// hardware-reduced ACPI Linux leaves it alone.
pub fn prepare(vm: &VmFd) -> Result<(), VmError> {
    if vm.check_extension_raw(CAP_PMU_CAPABILITY.into()) as u64 & PMU_CAP_DISABLE != 0 {
        let mut cap = kvm_enable_cap { cap: CAP_PMU_CAPABILITY, ..Default::default() };
        cap.args[0] = PMU_CAP_DISABLE;
        vm.enable_cap(&cap).map_err(failed("KVM_CAP_PMU_CAPABILITY"))?;
    }
    vm.set_identity_map_address(KVM_IDENTITY_MAP_ADDR).map_err(failed("KVM_SET_IDENTITY_MAP_ADDR"))?;
    vm.set_tss_address(KVM_TSS_ADDR as usize).map_err(failed("KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP"))?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).map_err(failed("KVM_CREATE_PIT2"))?;
    mask_pic(vm)
}

/// Masks every input of both 8259s.
///
/// KVM routes GSIs 0 to 15 to the PIC as well as to the IOAPIC, and its PIC starts with nothing masked and vector
/// base 0. Linux with its null legacy PIC never programs it, so an early COM1 interrupt could otherwise arrive as
/// vector 4. A guest that does use the PIC begins by initialising it, which clears this.
fn mask_pic(vm: &VmFd) -> Result<(), VmError> {
    for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE] {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        vm.get_irqchip(&mut chip).map_err(failed("KVM_GET_IRQCHIP"))?;
        chip.chip.pic.imr = 0xFF;
        vm.set_irqchip(&chip).map_err(failed("KVM_SET_IRQCHIP"))?;
    }
    Ok(())
}
