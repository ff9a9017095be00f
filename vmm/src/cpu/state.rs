//! The complete state of a vCPU, to move it to another host.
//!
//! # Order
//!
//! Before saving, the vCPU must have left `KVM_RUN` with nothing half done: after an I/O or MMIO
//! exit the instruction completes only at the next `KVM_RUN`, so the thread re-enters with
//! `immediate_exit` set until it gets EINTR (Documentation/virt/kvm/api.rst, 5. The kvm_run
//! structure). All vCPUs must be out before the first is saved: one that runs can still send an IPI
//! to one that was saved.
//!
//! Saving reads `mp_state` first: KVM delivers a pending INIT or SIPI then, which changes
//! everything else. Events are read last, since reading them moves queued NMIs into the state that
//! is read.
//!
//! Restoring, each step before those that depend on it:
//!
//! 1. CPUID: decides which MSRs, CR4 bits and XSAVE components KVM accepts. It is the
//!    description's, and so is IA32_ARCH_CAPABILITIES
//! 2. TSC frequency: the TSC offset is computed from it
//! 3. SREGS: sets the APIC's mode, which is the format of the LAPIC page (APIC id in xAPIC or
//!    x2APIC form)
//! 4. REGS: drops pending exceptions, hence before events
//! 5. XCRs, XSAVE, debug registers
//! 6. TSC (see [`StateAccess::restore`]), then the other MSRs. The kvmclock MSRs make KVM write to
//!    guest memory: RAM must be complete, and the VM's clock set
//!    ([`super::vm_state::VmStateV1::restore_clock`])
//! 7. LAPIC, with its timer mode
//! 8. TSC deadline: KVM ignores it unless the LAPIC timer is in that mode, and compares it with the
//!    TSC
//! 9. `mp_state`: setting REGS and SREGS may have changed it
//! 10. events
//!
//! # Time
//!
//! A guest's time goes on while it is moved: kvmclock advances by the time since it was read on the
//! source, taken from the hosts' real-time clocks, and the TSC by the same span ([`super::clock`]).
//! So guest clocks show the right time on the destination without any help and timers that fell due
//! meanwhile fire at once. KVM gives all vCPUs one TSC offset if their values match within a
//! second, which they do, so TSCs stay in step and kvmclock stays stable. [`note_pause`] tells the
//! guest's watchdogs.

use super::arch_caps::ARCH_CAPABILITIES;
use super::clock::{self, ClockReading, TscReading};
use super::compat::CpuDescriptionV1;
use super::msrs;
use crate::sync::lock;
use anyhow::{Context, bail, ensure};
use kvm_bindings::{
    KVM_MP_STATE_SIPI_RECEIVED, Xsave, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Mutex;

/// More MSRs than any kernel lists.
const MAX_MSRS: usize = 2048;
/// Larger than any XSAVE area.
const MAX_XSAVE: usize = 64 << 10;
/// Far more than a second of any TSC, and no overflow for centuries.
const TSC_FAR: u64 = 1 << 60;
/// The XSAVE area that every kernel has, bytes.
const XSAVE_BASE: usize = size_of::<kvm_xsave>();

/// Everything about one vCPU, as it goes over the wire. Decode it with [`wherry_codec::decode`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VcpuStateV1 {
    /// vCPU id, which is its APIC id.
    pub id: u32,
    /// Guest TSC when the VM's clock was read ([`super::vm_state::VmStateV1::clock_ns`]).
    pub tsc: u64,
    /// IA32_TSC_DEADLINE, in guest TSC; 0: not armed.
    pub tsc_deadline: u64,
    /// General registers.
    pub regs: kvm_regs,
    /// Segments, control registers, EFER, APIC base.
    pub sregs: kvm_sregs,
    /// Extended control registers.
    pub xcrs: kvm_xcrs,
    /// XSAVE area in standard format, [`struct@kvm_xsave`] and what follows it.
    pub xsave: Vec<u8>,
    /// Debug registers.
    pub debug_regs: kvm_debugregs,
    /// All other MSRs that the vCPU has.
    pub msrs: Vec<kvm_msr_entry>,
    /// Local APIC page.
    pub lapic: kvm_lapic_state,
    /// Running, halted, waiting for SIPI.
    pub mp_state: kvm_mp_state,
    /// Exceptions, interrupts and NMIs that are being delivered.
    pub events: kvm_vcpu_events,
}

/// What a vCPU's state is restored to.
#[derive(Debug, Clone, Copy)]
pub struct Destination<'a> {
    /// What was agreed on with the source.
    pub cpu: &'a CpuDescriptionV1,
    /// Number of vCPUs of the VM.
    pub nr_vcpus: u32,
    /// The VM, whose clock is set ([`super::vm_state::VmStateV1::restore_clock`]) and runs.
    pub vm: &'a VmFd,
    /// What that clock showed when the TSCs were saved: that of the state.
    pub clock_ns: u64,
}

/// What saving and restoring has to know about this host; one for all vCPUs of a VM.
#[derive(Debug)]
pub struct StateAccess {
    msrs: Vec<u32>,
    /// Bytes that KVM reads and writes as XSAVE area.
    xsave_len: usize,
    /// KVM_GET_XSAVE2 exists.
    has_xsave2: bool,
    /// A vCPU of this VM has had its TSC restored.
    tsc_restored: Mutex<bool>,
    /// By vCPU: its TSC since when it does not run.
    parked: Mutex<BTreeMap<u32, TscReading>>,
}

impl StateAccess {
    /// Asks KVM; `vcpu` is any vCPU of `vm`.
    pub fn new(kvm: &Kvm, vm: &VmFd, vcpu: &VcpuFd) -> anyhow::Result<Self> {
        // The capability's value is the length of the area, at least that of kvm_xsave (api.rst,
        // KVM_GET_XSAVE2).
        let xsave2 = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        Ok(Self {
            msrs: msrs::saved_indices(kvm, vcpu)?,
            xsave_len: xsave2.max(XSAVE_BASE).next_multiple_of(4),
            has_xsave2: xsave2 > 0,
            tsc_restored: Mutex::new(false),
            parked: Mutex::default(),
        })
    }

    /// Call it as soon as a vCPU has parked: see [`super::clock`] for why.
    pub fn note_parked(&self, vm: &VmFd, vcpu: &VcpuFd, id: u32) {
        // Without it the TSC is taken as it is when the state is saved.
        if let Ok(reading) = TscReading::read(vm, vcpu) {
            lock(&self.parked).entry(id).or_insert(reading);
        }
    }

    /// Call it before vCPUs run again.
    pub fn note_running(&self) {
        lock(&self.parked).clear();
    }

    /// Reads everything, the TSC as of the VM's clock at `clock_ns`. The vCPU is paused with no I/O
    /// outstanding; see the module's text for the order.
    pub fn save(
        &self,
        vm: &VmFd,
        vcpu: &VcpuFd,
        id: u32,
        clock_ns: u64,
    ) -> anyhow::Result<VcpuStateV1> {
        let mp_state = vcpu.get_mp_state().context("cannot read mp_state")?;
        let khz = vcpu.get_tsc_khz().context("cannot read the TSC frequency")?;
        let parked = lock(&self.parked).get(&id).copied();
        let deadline = msrs::read(vcpu, &[msrs::TSC_DEADLINE])?;
        Ok(VcpuStateV1 {
            id,
            tsc: clock::guest_tsc(clock_ns, khz, TscReading::read(vm, vcpu)?, parked),
            tsc_deadline: deadline.first().map_or(0, |m| m.data),
            regs: vcpu.get_regs().context("cannot read registers")?,
            sregs: vcpu.get_sregs().context("cannot read system registers")?,
            xcrs: vcpu.get_xcrs().context("cannot read XCRs")?,
            xsave: self.get_xsave(vcpu)?,
            debug_regs: vcpu.get_debug_regs().context("cannot read debug registers")?,
            lapic: vcpu.get_lapic().context("cannot read the local APIC")?,
            msrs: msrs::read(vcpu, &self.msrs)?,
            mp_state,
            events: vcpu.get_vcpu_events().context("cannot read events")?,
        })
    }

    /// Writes everything to a new vCPU that has never run and has the id `state.id`.
    ///
    /// What its CPU can do and its TSC's frequency come from the description that was checked
    /// against this host, and from nowhere else. On an error the vCPU is of no further use.
    pub fn restore(
        &self,
        vcpu: &VcpuFd,
        state: &VcpuStateV1,
        to: &Destination<'_>,
    ) -> anyhow::Result<()> {
        state.check()?;
        let msrs = msrs::accepted(&state.msrs, &self.msrs)?;
        let cpuid =
            to.cpu.vcpu_cpuid(state.id, to.nr_vcpus).context("cannot give a vCPU its CPUID")?;
        vcpu.set_cpuid2(&cpuid).context("KVM refuses the saved CPUID")?;
        if to.cpu.has_arch_capabilities() {
            msrs::write_one(vcpu, ARCH_CAPABILITIES, to.cpu.arch_capabilities)?;
        }
        set_tsc_khz(vcpu, to.cpu.tsc_khz)?;
        vcpu.set_sregs(&state.sregs).context("KVM refuses the saved system registers")?;
        vcpu.set_regs(&state.regs).context("KVM refuses the saved registers")?;
        // A CPU without XSAVE has none, and KVM then refuses even an empty set.
        if state.xcrs.nr_xcrs > 0 {
            vcpu.set_xcrs(&state.xcrs).context("KVM refuses the saved XCRs")?;
        }
        self.set_xsave(vcpu, &state.xsave)?;
        vcpu.set_debug_regs(&state.debug_regs).context("KVM refuses the saved debug registers")?;
        self.set_tsc(vcpu, TscReading { clock_ns: to.clock_ns, tsc: state.tsc }, to)?;
        msrs::write(vcpu, &msrs)?;
        vcpu.set_lapic(&state.lapic).context("KVM refuses the saved local APIC")?;
        if state.tsc_deadline != 0 {
            msrs::write_one(vcpu, msrs::TSC_DEADLINE, state.tsc_deadline)?;
        }
        vcpu.set_mp_state(state.mp_state).context("KVM refuses the saved mp_state")?;
        vcpu.set_vcpu_events(&state.events).context("KVM refuses the saved events")?;
        // It may move on without having run here.
        self.note_parked(to.vm, vcpu, state.id);
        Ok(())
    }

    /// Sets the TSC: the first vCPU's exactly, the others' in step with it.
    ///
    /// KVM takes a write that lies within a second of what another vCPU's TSC should show as an
    /// attempt to synchronise, and gives this vCPU the same offset (kvm_synchronize_tsc,
    /// arch/x86/kvm/x86.c). That is wanted between the vCPUs of a VM. But before Linux 6.8 it
    /// happens to the first write too, against the TSCs that started at zero when the VM was
    /// created: a guest that is barely older than the VM that it moves into would see its TSC go
    /// back. So the first vCPU's TSC is sent far away first.
    fn set_tsc(
        &self,
        vcpu: &VcpuFd,
        saved: TscReading,
        to: &Destination<'_>,
    ) -> anyhow::Result<()> {
        let mut restored = lock(&self.tsc_restored);
        if !*restored {
            msrs::write_one(vcpu, msrs::TSC, saved.tsc.wrapping_add(TSC_FAR))?;
            *restored = true;
        }
        // As late as can be, so that what came before costs the guest no time.
        let clock_ns = ClockReading::read(to.vm)?.clock_ns;
        msrs::write_one(vcpu, msrs::TSC, saved.at(clock_ns, to.cpu.tsc_khz))
    }

    fn get_xsave(&self, vcpu: &VcpuFd) -> anyhow::Result<Vec<u8>> {
        let mut area = self.new_xsave()?;
        if self.has_xsave2 {
            // SAFETY: the area has `xsave_len` bytes, which is at least what KVM_CAP_XSAVE2 said
            // that KVM writes; this process never asks arch_prctl for dynamic features, so that
            // size has not grown since.
            unsafe { vcpu.get_xsave2(&mut area) }.context("cannot read XSAVE state")?;
        } else {
            let xsave = vcpu.get_xsave().context("cannot read XSAVE state")?;
            // SAFETY: only the fixed part is changed, the length of the flexible part stays as
            // allocated.
            unsafe { area.as_mut_fam_struct() }.xsave.region = xsave.region;
        }
        let fixed = area.as_fam_struct_ref().xsave.region;
        Ok(fixed.iter().chain(area.as_slice()).flat_map(|word| word.to_le_bytes()).collect())
    }

    fn set_xsave(&self, vcpu: &VcpuFd, bytes: &[u8]) -> anyhow::Result<()> {
        let mut area = self.new_xsave()?;
        let (bytes, rest) = bytes.split_at(bytes.len().min(self.xsave_len));
        if rest.iter().any(|&b| b != 0) {
            let (have, max) = (bytes.len() + rest.len(), self.xsave_len);
            bail!("the saved XSAVE area has {have} bytes, this host's only {max}");
        }
        // What the source did not have stays zero, which is the initial state of a component.
        let mut words = bytes.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]]));
        // SAFETY: only the fixed part is changed, the length of the flexible part stays as
        // allocated.
        let region = &mut unsafe { area.as_mut_fam_struct() }.xsave.region;
        region.iter_mut().zip(&mut words).for_each(|(slot, word)| *slot = word);
        area.as_mut_slice().iter_mut().zip(&mut words).for_each(|(slot, word)| *slot = word);
        // SAFETY: the area has `xsave_len` bytes, which is at least what KVM_CAP_XSAVE2 said that
        // KVM reads (and at least kvm_xsave, which it reads without that capability).
        unsafe { vcpu.set_xsave2(&area) }.context("KVM refuses the saved XSAVE state")
    }

    fn new_xsave(&self) -> anyhow::Result<Xsave> {
        let extra = (self.xsave_len - XSAVE_BASE) / 4;
        Xsave::new(extra).context("this host's XSAVE area has an impossible length")
    }
}

impl VcpuStateV1 {
    /// Bounds on what comes from a peer, before any of it reaches KVM.
    fn check(&self) -> anyhow::Result<()> {
        let (msrs, xsave) = (self.msrs.len(), self.xsave.len());
        ensure!(msrs <= MAX_MSRS, "the saved MSR list has an impossible length, {msrs}");
        let possible = (XSAVE_BASE..=MAX_XSAVE).contains(&xsave) && xsave.is_multiple_of(4);
        ensure!(possible, "the saved XSAVE area has an impossible length, {xsave}");
        // KVM stores any number and wonders about it later, in the host's kernel log.
        let mp_state = self.mp_state.mp_state;
        let exists = mp_state <= KVM_MP_STATE_SIPI_RECEIVED;
        ensure!(exists, "the saved mp_state, {mp_state}, does not exist");
        Ok(())
    }
}

/// Gives a vCPU a TSC frequency, if it has another one.
fn set_tsc_khz(vcpu: &VcpuFd, wanted: u32) -> anyhow::Result<()> {
    let host = vcpu.get_tsc_khz().context("cannot read the TSC frequency")?;
    if host == wanted || (wanted != 0 && vcpu.set_tsc_khz(wanted).is_ok()) {
        return Ok(());
    }
    bail!(
        "this host cannot give the guest a TSC of {wanted} kHz; its own has {host} kHz and cannot \
         be scaled"
    )
}

/// Tells the guest that it was stopped, so that its soft-lockup watchdogs start over
/// (KVM_KVMCLOCK_CTRL). Call it on each vCPU after a pause, before it runs again, on whichever
/// host; for a restored one after [`StateAccess::restore`].
pub fn note_pause(vcpu: &VcpuFd) -> anyhow::Result<()> {
    match vcpu.kvmclock_ctrl() {
        // The guest does not use kvmclock.
        Err(e) if e.errno() == libc::EINVAL => Ok(()),
        other => other.context("KVM refuses the pause notice"),
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
