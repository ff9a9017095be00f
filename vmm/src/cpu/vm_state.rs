//! State that belongs to the VM and not to one vCPU: its clock, and the interrupt controllers and
//! timer in KVM.
//!
//! Order: read the clock first ([`super::clock`]), then the vCPUs; save the rest once all vCPUs are
//! out and the devices have drained, so that no interrupt is on its way. Restoring comes in two
//! parts around the vCPUs:
//!
//! 1. [`VmStateV1::restore_clock`]: the vCPUs' TSCs follow it, and writing their kvmclock MSRs uses
//!    it
//! 2. the vCPUs ([`super::state`])
//! 3. [`VmStateV1::restore_chips`]: the IOAPIC delivers at once what was pending in it, and that
//!    must land in the restored local APICs; before them it would be overwritten

use super::clock::{self, ClockReading, ClockWarning, realtime_ns};
use anyhow::{Context, ensure};
use kvm_bindings::{
    KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    kvm_clock_data, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::{Cap, VmFd};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The highest kvmclock that is taken from a peer, nanoseconds.
const MAX_CLOCK: u64 = 1 << 62;

/// The VM's state as it goes over the wire. Decode it with [`wherry_codec::decode`].
#[derive(Clone, Serialize, Deserialize)]
pub struct VmStateV1 {
    /// kvmclock, nanoseconds.
    pub clock_ns: u64,
    /// The source's real-time clock when `clock_ns` was read, nanoseconds since 1970.
    pub realtime_ns: u64,
    /// First 8259.
    pub pic_master: kvm_irqchip,
    /// Second 8259.
    pub pic_slave: kvm_irqchip,
    /// IOAPIC.
    pub ioapic: kvm_irqchip,
    /// 8254, if the VM has one.
    pub pit: Option<kvm_pit_state2>,
}

impl VmStateV1 {
    /// Reads everything but the clock, which was read before the vCPUs, since their TSCs go with
    /// it.
    pub fn save(vm: &VmFd, clock: ClockReading) -> anyhow::Result<Self> {
        Ok(Self {
            clock_ns: clock.clock_ns,
            realtime_ns: clock.realtime_ns,
            pic_master: get_chip(vm, KVM_IRQCHIP_PIC_MASTER)?,
            pic_slave: get_chip(vm, KVM_IRQCHIP_PIC_SLAVE)?,
            ioapic: get_chip(vm, KVM_IRQCHIP_IOAPIC)?,
            pit: get_pit(vm)?,
        })
    }

    /// Holds the source's real-time clock against this host's, `connected` after the source did,
    /// before anything was paused. The guest's time will go on by no more than that, and not back.
    /// Returns what to tell the operator if the clocks differ.
    pub fn bound_clock(&mut self, connected: Duration) -> Option<ClockWarning> {
        let (from, warning) = clock::since(self.realtime_ns, realtime_ns(), connected);
        self.realtime_ns = from;
        warning
    }

    /// Sets kvmclock to where it would be had it run on: by the downtime so far as the hosts'
    /// real-time clocks tell it, and not at all if this host's is behind the source's.
    pub fn restore_clock(&self, vm: &VmFd) -> anyhow::Result<()> {
        // Centuries; and far from where KVM's arithmetic would wrap.
        let have = self.clock_ns;
        ensure!(have <= MAX_CLOCK, "the saved clock has an impossible value, {have:#x}");
        // The capability's value is the set of flags that KVM_SET_CLOCK may use.
        let flags = vm.check_extension_int(Cap::AdjustClock).max(0) as u32 & KVM_CLOCK_REALTIME;
        let data = if flags != 0 {
            kvm_clock_data {
                clock: self.clock_ns,
                realtime: self.realtime_ns,
                flags,
                ..Default::default()
            }
        } else {
            let elapsed = realtime_ns().saturating_sub(self.realtime_ns);
            kvm_clock_data { clock: self.clock_ns.saturating_add(elapsed), ..Default::default() }
        };
        vm.set_clock(&data).context("KVM refuses the saved clock")
    }

    /// Writes PIC, IOAPIC and PIT to a VM whose vCPUs have been restored.
    pub fn restore_chips(&self, vm: &VmFd) -> anyhow::Result<()> {
        for (chip, id) in [
            (&self.pic_master, KVM_IRQCHIP_PIC_MASTER),
            (&self.pic_slave, KVM_IRQCHIP_PIC_SLAVE),
            (&self.ioapic, KVM_IRQCHIP_IOAPIC),
        ] {
            let have = chip.chip_id;
            ensure!(have == id, "the saved interrupt controller {id} has the number {have}");
            vm.set_irqchip(chip).context("KVM refuses the saved interrupt controller")?;
        }
        if let Some(pit) = &self.pit {
            vm.set_pit2(pit).context("KVM refuses the saved PIT")?;
        }
        Ok(())
    }
}

fn get_chip(vm: &VmFd, chip_id: u32) -> anyhow::Result<kvm_irqchip> {
    let mut chip = kvm_irqchip { chip_id, ..Default::default() };
    vm.get_irqchip(&mut chip).context("cannot read an interrupt controller")?;
    Ok(chip)
}

fn get_pit(vm: &VmFd) -> anyhow::Result<Option<kvm_pit_state2>> {
    match vm.get_pit2() {
        Ok(pit) => Ok(Some(pit)),
        // There is none.
        Err(e) if e.errno() == libc::ENXIO => Ok(None),
        Err(e) => Err(e).context("cannot read the PIT"),
    }
}
