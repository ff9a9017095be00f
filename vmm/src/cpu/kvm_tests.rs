//! Smoke tests against this machine's /dev/kvm: every ioctl used here is issued once. They are
//! not run where there is no KVM; no guest code runs.

use super::arch_caps::ARCH_CAPABILITIES;
use super::clock::{ClockReading, TscReading};
use super::compat::{CpuDescriptionV1, missing_features};
use super::state::{Destination, StateAccess, VcpuStateV1, note_pause};
use super::vm_state::VmStateV1;
use super::{cpuid, msrs, regs, vm};
use crate::boot::layout::{MIB, ram_regions};
use crate::boot::loader::Entry;
use crate::kvm::open_kvm;
use kvm_bindings::{kvm_msr_entry, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use wherry_codec::{decode, encode};
use wherry_devices::GuestMemory;
use wherry_tests::needs::KVM;

/// A VM with RAM and vCPUs; fields drop in this order.
struct Machine {
    vcpus: Vec<VcpuFd>,
    vm: VmFd,
    kvm: Kvm,
    mem: GuestMemory,
}

impl Machine {
    /// `None` without a KVM.
    fn new(vcpus: u64) -> Option<Self> {
        let kvm = KVM.or_not_run(open_kvm())?;
        let vm = kvm.create_vm().unwrap();
        let ranges: Vec<_> =
            ram_regions(128 * MIB).iter().map(|&(a, l)| (GuestAddress(a), l as usize)).collect();
        let mem = GuestMemory::from_ranges(&ranges).unwrap();
        for (slot, region) in mem.iter().enumerate() {
            let region = kvm_userspace_memory_region {
                slot: slot as u32,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the mapping lives in `mem`, which is dropped after the VM.
            unsafe { vm.set_user_memory_region(region) }.unwrap();
        }
        vm::prepare(&vm).unwrap();
        let vcpus = (0..vcpus).map(|id| vm.create_vcpu(id).unwrap()).collect();
        Some(Self { vcpus, vm, kvm, mem })
    }

    fn access(&self) -> StateAccess {
        StateAccess::new(&self.kvm, &self.vm, &self.vcpus[0]).unwrap()
    }

    fn probe(&self) -> VcpuFd {
        self.kvm.create_vm().unwrap().create_vcpu(0).unwrap()
    }

    fn cpu(&self) -> CpuDescriptionV1 {
        CpuDescriptionV1::new(&self.kvm, &self.probe()).unwrap()
    }

    fn arch_capabilities(&self) -> Option<u64> {
        let msrs = msrs::read(&self.vcpus[0], &[ARCH_CAPABILITIES]).unwrap();
        msrs.first().map(|m| m.data)
    }

    fn boot(&self) {
        let (cpu, count) = (self.cpu(), self.vcpus.len() as u32);
        for (id, vcpu) in self.vcpus.iter().enumerate() {
            regs::init_vcpu(vcpu, &cpu, id as u32, count).unwrap();
        }
        let entry = Entry::Linux64 { rip: 16 * MIB, boot_params: 0x7000 };
        regs::setup_boot_vcpu(&self.vcpus[0], &self.mem, &entry).unwrap();
    }

    fn save(&self) -> (VmStateV1, Vec<VcpuStateV1>) {
        self.save_as_of(ClockReading::read(&self.vm).unwrap())
    }

    fn save_as_of(&self, clock: ClockReading) -> (VmStateV1, Vec<VcpuStateV1>) {
        let access = self.access();
        let save = |(id, v)| access.save(&self.vm, v, id, clock.clock_ns).unwrap();
        let vcpus = (0..).zip(&self.vcpus).map(save).collect();
        (VmStateV1::save(&self.vm, clock).unwrap(), vcpus)
    }

    fn to<'a>(&'a self, cpu: &'a CpuDescriptionV1, vm: &VmStateV1) -> Destination<'a> {
        let nr_vcpus = self.vcpus.len() as u32;
        Destination { cpu, nr_vcpus, vm: &self.vm, clock_ns: vm.clock_ns }
    }

    fn restore(&self, vm: &VmStateV1, vcpus: &[VcpuStateV1]) {
        self.restore_as_of(vm, vcpus, vm.clock_ns);
    }

    fn restore_as_of(&self, vm: &VmStateV1, vcpus: &[VcpuStateV1], clock_ns: u64) {
        let access = self.access();
        vm.restore_clock(&self.vm).unwrap();
        let cpu = self.cpu();
        let to = Destination { clock_ns, ..self.to(&cpu, vm) };
        for (vcpu, state) in self.vcpus.iter().zip(vcpus) {
            access.restore(vcpu, state, &to).unwrap();
            note_pause(vcpu).unwrap();
        }
        vm.restore_chips(&self.vm).unwrap();
    }
}

#[test]
fn both_entries_are_accepted() {
    let Some(machine) = Machine::new(1) else { return };
    machine.boot();
    let regs = machine.vcpus[0].get_regs().unwrap();
    assert_eq!((regs.rip, regs.rsi), (16 * MIB, 0x7000));
    let pvh = Entry::Pvh { rip: 16 * MIB, start_info: 0x6000 };
    regs::setup_boot_vcpu(&machine.vcpus[0], &machine.mem, &pvh).unwrap();
    let sregs = machine.vcpus[0].get_sregs().unwrap();
    assert_eq!((sregs.cr0 & 0x8000_0001, sregs.efer & 0x500, sregs.cs.db), (1, 0, 1));
}

#[test]
fn a_guest_has_no_more_than_its_host() {
    let Some(machine) = Machine::new(1) else { return };
    let template = cpuid::template(&machine.kvm).unwrap();
    let vcpu = cpuid::per_vcpu(&template, 0, 1).unwrap();
    let host = cpuid::host_supported(&machine.kvm).unwrap();
    assert_eq!(missing_features(vcpu.as_slice(), host.as_slice()), [""; 0]);
    let description = machine.cpu();
    description.check(&machine.kvm, &machine.probe()).unwrap();
    let first = CpuDescriptionV1 { cpuid: vcpu.as_slice().to_vec(), ..description };
    first.check(&machine.kvm, &machine.probe()).unwrap();
}

/// IA32_ARCH_CAPABILITIES is what the description says, at the start and after a move, whatever KVM
/// would give.
#[test]
fn what_is_said_about_holes_in_the_cpu_is_what_was_agreed() {
    let Some(machine) = Machine::new(1) else { return };
    machine.boot();
    let cpu = machine.cpu();
    let lie =
        CpuDescriptionV1 { arch_capabilities: cpu.arch_capabilities | 1 << 40, ..cpu.clone() };
    let refused = lie.check(&machine.kvm, &machine.probe()).unwrap_err().to_string();
    assert!(refused.contains("MSR 0x10a bit 40"), "{refused}");

    let (vm, mut vcpus) = machine.save();
    let arrived = Machine::new(1).unwrap();
    vm.restore_clock(&arrived.vm).unwrap();
    if cpu.has_arch_capabilities() {
        assert_eq!(machine.arch_capabilities(), Some(cpu.arch_capabilities));
        // A guest that was promised less than this host could is promised no more after it moved.
        let less = CpuDescriptionV1 { arch_capabilities: 0, ..cpu.clone() };
        let to = arrived.to(&less, &vm);
        arrived.access().restore(&arrived.vcpus[0], &vcpus[0], &to).unwrap();
        assert_eq!(arrived.arch_capabilities(), Some(0));
    } else {
        println!("skipped in part: this KVM gives vCPUs no IA32_ARCH_CAPABILITIES");
    }

    // Nor can the state smuggle it in.
    vcpus[0].msrs.push(kvm_msr_entry { index: ARCH_CAPABILITIES, data: 1, ..Default::default() });
    let other = Machine::new(1).unwrap();
    let to = other.to(&cpu, &vm);
    let refused = other.access().restore(&other.vcpus[0], &vcpus[0], &to).unwrap_err().to_string();
    assert!(refused.contains("0x10a"), "{refused}");
}

/// KVM keeps the bits of CPUID that follow the guest's registers, so they need not be moved.
#[test]
fn cpuid_is_the_same_after_a_move() {
    let Some(source) = Machine::new(2) else { return };
    source.boot();
    let mut sregs = source.vcpus[0].get_sregs().unwrap();
    sregs.cr4 |= 1 << 18;
    source.vcpus[0].set_sregs(&sregs).unwrap();
    let (vm, vcpus) = source.save();
    let destination = Machine::new(2).unwrap();
    destination.restore(&vm, &vcpus);
    for (before, after) in source.vcpus.iter().zip(&destination.vcpus) {
        let cpuid = |vcpu: &VcpuFd| vcpu.get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES).unwrap();
        assert_eq!(cpuid(before).as_slice(), cpuid(after).as_slice());
    }
}

/// Save, restore to another VM, save again: the second copy equals the first but for the running
/// clocks.
#[test]
fn state_survives_a_move() {
    let Some(source) = Machine::new(2) else { return };
    source.boot();
    let (vm, vcpus) = source.save();
    assert!(vcpus[0].msrs.len() > 10, "{} MSRs", vcpus[0].msrs.len());
    let bytes = encode(&vcpus[0]).unwrap();
    println!("{} MSRs, {} bytes", vcpus[0].msrs.len(), bytes.len());
    let vcpus: Vec<VcpuStateV1> =
        vcpus.iter().map(|s| decode(&encode(s).unwrap()).unwrap()).collect();
    let vm: VmStateV1 = decode(&encode(&vm).unwrap()).unwrap();

    let destination = Machine::new(2).unwrap();
    destination.restore(&vm, &vcpus);
    let (vm_after, vcpus_after) = destination.save();
    assert!(vm_after.clock_ns >= vm.clock_ns);
    assert_eq!(encode(&vm_after.ioapic).unwrap(), encode(&vm.ioapic).unwrap());
    assert_eq!(encode(&vm_after.pic_master).unwrap(), encode(&vm.pic_master).unwrap());
    for (mut after, before) in vcpus_after.into_iter().zip(vcpus) {
        assert!(after.tsc >= before.tsc, "the TSC went back from {} to {}", before.tsc, after.tsc);
        after.tsc = before.tsc;
        assert_eq!(after.msrs, before.msrs);
        assert_eq!(after, before);
    }
}

/// Each vCPU's TSC goes on with the clock, here and after a move: it is saved as of the clock that
/// is saved, and set as of the clock that has gone on since, each many seconds away. Not a matter
/// of microseconds: this host may be busy. How exact it is, the simulated host's tests say.
#[test]
fn the_tscs_go_with_the_clock() {
    let Some(source) = Machine::new(2) else { return };
    source.boot();
    let khz = source.cpu().tsc_khz;
    let before: Vec<_> =
        source.vcpus.iter().map(|v| TscReading::read(&source.vm, v).unwrap()).collect();
    const LATER: u64 = 100_000_000_000;
    let mut clock = ClockReading::read(&source.vm).unwrap();
    clock.clock_ns += LATER;
    let (vm, vcpus) = source.save_as_of(clock);
    let destination = Machine::new(2).unwrap();
    let gone_on = VmStateV1 { clock_ns: vm.clock_ns + LATER, ..vm.clone() };
    destination.restore_as_of(&gone_on, &vcpus, vm.clock_ns);
    let probe = source.probe();
    msrs::write_one(&probe, msrs::TSC, 1 << 60).unwrap();
    let settable = msrs::read(&probe, &[msrs::TSC]).unwrap()[0].data >= 1 << 60;
    if !settable {
        println!("skipped in part: this KVM does not set TSCs");
    }
    for (id, (before, saved)) in before.iter().zip(&vcpus).enumerate() {
        let after = TscReading::read(&destination.vm, &destination.vcpus[id]).unwrap();
        let after = settable.then_some((after.clock_ns, after.tsc));
        for (clock_ns, tsc) in [(vm.clock_ns, saved.tsc)].into_iter().chain(after) {
            let off = before.at(clock_ns, khz).abs_diff(tsc) / u64::from(khz);
            assert!(off < 10_000, "vCPU {id} is off by {off} ms");
        }
    }
}

#[test]
fn hostile_state_is_an_error() {
    let Some(source) = Machine::new(1) else { return };
    source.boot();
    let (vm, vcpus) = source.save();
    let refused = |change: fn(&mut VcpuStateV1)| {
        let mut state = vcpus[0].clone();
        change(&mut state);
        let machine = Machine::new(1).unwrap();
        let cpu = machine.cpu();
        let to = machine.to(&cpu, &vm);
        machine.access().restore(&machine.vcpus[0], &state, &to).unwrap_err().to_string()
    };
    assert!(refused(|s| s.sregs.cr4 = u64::MAX).contains("system registers"));
    assert!(refused(|s| s.xsave.resize(16384, 0xFF)).contains("XSAVE"));
    assert!(
        refused(|s| (s.msrs[0].index, s.msrs[0].data) = (0xDEAD_BEEF, 1)).contains("0xdeadbeef")
    );
    // KVM itself would take one twice.
    assert!(refused(|s| s.msrs.push(s.msrs[0])).contains("twice"));
    assert!(refused(|s| s.mp_state.mp_state = 99).contains("mp_state"));
    assert!(refused(|s| s.events.flags = u32::MAX).contains("events"));
    let late = VmStateV1 { clock_ns: u64::MAX, ..vm.clone() };
    assert!(late.restore_clock(&source.vm).unwrap_err().to_string().contains("clock"));
    let mut swapped = vm.clone();
    swapped.ioapic.chip_id = 7;
    assert!(swapped.restore_chips(&source.vm).is_err());
}
