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
use super::error::StateError;
use super::msrs;
use kvm_bindings::{
    KVM_MP_STATE_SIPI_RECEIVED, Xsave, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// More MSRs than any kernel lists.
const MAX_MSRS: usize = 2048;
/// Larger than any XSAVE area.
const MAX_XSAVE: usize = 64 << 10;
/// Far more than a second of any TSC, and no overflow for centuries.
const TSC_FAR: u64 = 1 << 60;
/// The XSAVE area that every kernel has, bytes.
const XSAVE_BASE: usize = size_of::<kvm_xsave>();

fn get(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> StateError {
    move |source| StateError::Get { what, source }
}

fn set(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> StateError {
    move |source| StateError::Set { what, source }
}

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
    pub fn new(kvm: &Kvm, vm: &VmFd, vcpu: &VcpuFd) -> Result<Self, StateError> {
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
            self.lock_parked().entry(id).or_insert(reading);
        }
    }

    /// Call it before vCPUs run again.
    pub fn note_running(&self) {
        self.lock_parked().clear();
    }

    fn lock_parked(&self) -> MutexGuard<'_, BTreeMap<u32, TscReading>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads everything, the TSC as of the VM's clock at `clock_ns`. The vCPU is paused with no I/O
    /// outstanding; see the module's text for the order.
    pub fn save(
        &self,
        vm: &VmFd,
        vcpu: &VcpuFd,
        id: u32,
        clock_ns: u64,
    ) -> Result<VcpuStateV1, StateError> {
        let mp_state = vcpu.get_mp_state().map_err(get("mp_state"))?;
        let khz = vcpu.get_tsc_khz().map_err(get("the TSC frequency"))?;
        let parked = self.lock_parked().get(&id).copied();
        let deadline = msrs::read(vcpu, &[msrs::TSC_DEADLINE])?;
        Ok(VcpuStateV1 {
            id,
            tsc: clock::guest_tsc(clock_ns, khz, TscReading::read(vm, vcpu)?, parked),
            tsc_deadline: deadline.first().map_or(0, |m| m.data),
            regs: vcpu.get_regs().map_err(get("registers"))?,
            sregs: vcpu.get_sregs().map_err(get("system registers"))?,
            xcrs: vcpu.get_xcrs().map_err(get("XCRs"))?,
            xsave: self.get_xsave(vcpu)?,
            debug_regs: vcpu.get_debug_regs().map_err(get("debug registers"))?,
            lapic: vcpu.get_lapic().map_err(get("the local APIC"))?,
            msrs: msrs::read(vcpu, &self.msrs)?,
            mp_state,
            events: vcpu.get_vcpu_events().map_err(get("events"))?,
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
    ) -> Result<(), StateError> {
        state.check()?;
        let msrs = msrs::accepted(&state.msrs, &self.msrs)?;
        let cpuid = to.cpu.vcpu_cpuid(state.id, to.nr_vcpus).map_err(StateError::Cpuid)?;
        vcpu.set_cpuid2(&cpuid).map_err(set("CPUID"))?;
        if to.cpu.has_arch_capabilities() {
            msrs::write_one(vcpu, ARCH_CAPABILITIES, to.cpu.arch_capabilities)?;
        }
        set_tsc_khz(vcpu, to.cpu.tsc_khz)?;
        vcpu.set_sregs(&state.sregs).map_err(set("system registers"))?;
        vcpu.set_regs(&state.regs).map_err(set("registers"))?;
        // A CPU without XSAVE has none, and KVM then refuses even an empty set.
        if state.xcrs.nr_xcrs > 0 {
            vcpu.set_xcrs(&state.xcrs).map_err(set("XCRs"))?;
        }
        self.set_xsave(vcpu, &state.xsave)?;
        vcpu.set_debug_regs(&state.debug_regs).map_err(set("debug registers"))?;
        self.set_tsc(vcpu, TscReading { clock_ns: to.clock_ns, tsc: state.tsc }, to)?;
        msrs::write(vcpu, &msrs)?;
        vcpu.set_lapic(&state.lapic).map_err(set("local APIC"))?;
        if state.tsc_deadline != 0 {
            msrs::write_one(vcpu, msrs::TSC_DEADLINE, state.tsc_deadline)?;
        }
        vcpu.set_mp_state(state.mp_state).map_err(set("mp_state"))?;
        vcpu.set_vcpu_events(&state.events).map_err(set("events"))?;
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
    ) -> Result<(), StateError> {
        let mut restored = self.tsc_restored.lock().unwrap_or_else(PoisonError::into_inner);
        if !*restored {
            msrs::write_one(vcpu, msrs::TSC, saved.tsc.wrapping_add(TSC_FAR))?;
            *restored = true;
        }
        // As late as can be, so that what came before costs the guest no time.
        let clock_ns = ClockReading::read(to.vm)?.clock_ns;
        msrs::write_one(vcpu, msrs::TSC, saved.at(clock_ns, to.cpu.tsc_khz))
    }

    fn get_xsave(&self, vcpu: &VcpuFd) -> Result<Vec<u8>, StateError> {
        let mut area = self.new_xsave()?;
        if self.has_xsave2 {
            // SAFETY: the area has `xsave_len` bytes, which is at least what KVM_CAP_XSAVE2 said
            // that KVM writes; this process never asks arch_prctl for dynamic features, so that
            // size has not grown since.
            unsafe { vcpu.get_xsave2(&mut area) }.map_err(get("XSAVE state"))?;
        } else {
            let xsave = vcpu.get_xsave().map_err(get("XSAVE state"))?;
            // SAFETY: only the fixed part is changed, the length of the flexible part stays as
            // allocated.
            unsafe { area.as_mut_fam_struct() }.xsave.region = xsave.region;
        }
        let fixed = area.as_fam_struct_ref().xsave.region;
        Ok(fixed.iter().chain(area.as_slice()).flat_map(|word| word.to_le_bytes()).collect())
    }

    fn set_xsave(&self, vcpu: &VcpuFd, bytes: &[u8]) -> Result<(), StateError> {
        let mut area = self.new_xsave()?;
        let (bytes, rest) = bytes.split_at(bytes.len().min(self.xsave_len));
        if rest.iter().any(|&b| b != 0) {
            return Err(StateError::XsaveTooLarge {
                have: bytes.len() + rest.len(),
                max: self.xsave_len,
            });
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
        unsafe { vcpu.set_xsave2(&area) }.map_err(set("XSAVE state"))
    }

    fn new_xsave(&self) -> Result<Xsave, StateError> {
        let extra = (self.xsave_len - XSAVE_BASE) / 4;
        Xsave::new(extra).map_err(|_| StateError::Size { what: "XSAVE area", have: self.xsave_len })
    }
}

impl VcpuStateV1 {
    /// Bounds on what comes from a peer, before any of it reaches KVM.
    fn check(&self) -> Result<(), StateError> {
        for (what, have, good) in [
            ("MSR list", self.msrs.len(), self.msrs.len() <= MAX_MSRS),
            (
                "XSAVE area",
                self.xsave.len(),
                (XSAVE_BASE..=MAX_XSAVE).contains(&self.xsave.len())
                    && self.xsave.len().is_multiple_of(4),
            ),
        ] {
            if !good {
                return Err(StateError::Size { what, have });
            }
        }
        // KVM stores any number and wonders about it later, in the host's kernel log.
        if self.mp_state.mp_state > KVM_MP_STATE_SIPI_RECEIVED {
            return Err(StateError::MpState(self.mp_state.mp_state));
        }
        Ok(())
    }
}

/// Gives a vCPU a TSC frequency, if it has another one.
fn set_tsc_khz(vcpu: &VcpuFd, wanted: u32) -> Result<(), StateError> {
    let host = vcpu.get_tsc_khz().map_err(get("the TSC frequency"))?;
    if host == wanted || (wanted != 0 && vcpu.set_tsc_khz(wanted).is_ok()) {
        return Ok(());
    }
    Err(StateError::TscFrequency { wanted, host })
}

/// Tells the guest that it was stopped, so that its soft-lockup watchdogs start over
/// (KVM_KVMCLOCK_CTRL). Call it on each vCPU after a pause, before it runs again, on whichever
/// host; for a restored one after [`StateAccess::restore`].
pub fn note_pause(vcpu: &VcpuFd) -> Result<(), StateError> {
    match vcpu.kvmclock_ctrl() {
        // The guest does not use kvmclock.
        Err(e) if e.errno() == libc::EINVAL => Ok(()),
        other => other.map_err(set("pause notice")),
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
