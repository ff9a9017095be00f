//! What a VM needs before its first vCPU: interrupt controllers, timer, and the addresses that KVM
//! keeps for itself.

use crate::boot::layout::{HIGH_RAM_START, KVM_IDENTITY_MAP_ADDR, KVM_TSS_ADDR, LOW_RAM_MAX};
use anyhow::Context;
use kvm_bindings::{
    KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap,
    kvm_irqchip, kvm_pit_config,
};
use kvm_ioctls::{Kvm, VmFd};

/// KVM_CAP_PMU_CAPABILITY, include/uapi/linux/kvm.h
const CAP_PMU_CAPABILITY: u32 = 212;
/// KVM_PMU_CAP_DISABLE, include/uapi/linux/kvm.h
const PMU_CAP_DISABLE: u64 = 1;

/// Refuses RAM that would end beyond the host's last physical address. A host that does not say
/// where that is refuses nothing.
pub fn check_addresses(kvm: &Kvm, ram_bytes: u64) -> anyhow::Result<()> {
    let cpuid = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).ok();
    let leaf = cpuid.as_ref().and_then(|c| c.as_slice().iter().find(|e| e.function == 0x8000_0008));
    match leaf.map_or(0, |entry| entry.eax & 0xFF) {
        0 => Ok(()),
        bits => addressable(ram_bytes, bits),
    }
}

fn addressable(ram_bytes: u64, bits: u32) -> anyhow::Result<()> {
    let end = 1u64.checked_shl(bits).unwrap_or(u64::MAX);
    // What does not fit below the 32-bit hole lies above it.
    let most_bytes = if end > HIGH_RAM_START {
        end - (HIGH_RAM_START - LOW_RAM_MAX)
    } else {
        end.min(LOW_RAM_MAX)
    };
    anyhow::ensure!(
        ram_bytes <= most_bytes,
        "{} MiB of guest RAM are too many: the {bits}-bit physical addresses of this host's CPU \
         have room for {} MiB",
        ram_bytes >> 20,
        most_bytes >> 20
    );
    Ok(())
}

/// Prepares a new VM: no PMU, in-kernel PIC, IOAPIC and local APICs, PIT. Call it once, before
/// creating vCPUs.
///
/// The PIT is there only for kernels that do not use kvmclock and want to calibrate their TSC; with
/// hardware-reduced ACPI Linux leaves it alone.
pub fn prepare(vm: &VmFd) -> anyhow::Result<()> {
    if vm.check_extension_raw(CAP_PMU_CAPABILITY.into()) as u64 & PMU_CAP_DISABLE != 0 {
        let mut cap = kvm_enable_cap { cap: CAP_PMU_CAPABILITY, ..Default::default() };
        cap.args[0] = PMU_CAP_DISABLE;
        vm.enable_cap(&cap).context("KVM_CAP_PMU_CAPABILITY failed")?;
    }
    vm.set_identity_map_address(KVM_IDENTITY_MAP_ADDR)
        .context("KVM_SET_IDENTITY_MAP_ADDR failed")?;
    vm.set_tss_address(KVM_TSS_ADDR as usize).context("KVM_SET_TSS_ADDR failed")?;
    vm.create_irq_chip().context("KVM_CREATE_IRQCHIP failed")?;
    let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(pit).context("KVM_CREATE_PIT2 failed")?;
    mask_pic(vm)
}

/// Masks every input of both 8259s.
///
/// KVM routes GSIs 0 to 15 to the PIC as well as to the IOAPIC, and its PIC starts with nothing
/// masked and vector base 0. Linux with its null legacy PIC never programs it, so an early COM1
/// interrupt could otherwise arrive as vector 4. A guest that does use the PIC begins by
/// initialising it, which clears this.
fn mask_pic(vm: &VmFd) -> anyhow::Result<()> {
    for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE] {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        vm.get_irqchip(&mut chip).context("KVM_GET_IRQCHIP failed")?;
        chip.chip.pic.imr = 0xFF;
        vm.set_irqchip(&chip).context("KVM_SET_IRQCHIP failed")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_ends_where_the_addresses_end() {
        const GIB: u64 = 1 << 30;
        for (bits, most) in
            [(31, 2 * GIB), (32, 3 * GIB), (36, 63 * GIB), (39, 511 * GIB), (64, u64::MAX - GIB)]
        {
            addressable(most, bits).unwrap();
            let refused = addressable(most + 1, bits).unwrap_err().to_string();
            assert!(refused.contains(&format!("room for {} MiB", most >> 20)), "{bits}: {refused}");
        }
        let text = addressable(64 * GIB, 36).unwrap_err().to_string();
        assert!(
            text.contains("65536 MiB of guest RAM") && text.contains("room for 64512 MiB"),
            "{text}"
        );
    }
}
