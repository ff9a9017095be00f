//! Which MSRs belong to a vCPU's state, and how to read and write them.

use super::arch_caps::ARCH_CAPABILITIES;
use anyhow::{Context, anyhow, ensure};
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};
use std::collections::HashSet;

/// IA32_TIME_STAMP_COUNTER
pub(super) const TSC: u32 = 0x10;
/// IA32_TSC_DEADLINE
pub(super) const TSC_DEADLINE: u32 = 0x6E0;
/// Most entries in one ioctl; KVM takes 255 (MAX_IO_MSRS, arch/x86/kvm/x86.c).
const CHUNK: usize = 128;

/// MSRs that KVM_GET_MSR_INDEX_LIST does not name on every kernel, but that are state: MTRRs (SDM
/// volume 4, 2.1).
const MTRRS: [std::ops::RangeInclusive<u32>; 5] =
    [0x200..=0x20F, 0x250..=0x250, 0x258..=0x259, 0x268..=0x26F, 0x2FF..=0x2FF];
/// IA32_MCG_CAP: the low byte is the number of machine-check banks.
const MCG_CAP: u32 = 0x179;
/// First machine-check bank; each has four MSRs.
const MC0_CTL: u32 = 0x400;
/// KVM_MAX_MCE_BANKS, arch/x86/include/asm/kvm_host.h
const MAX_BANKS: u32 = 32;

/// Whether an MSR in KVM's list is none of a guest's state.
fn is_skipped(index: u32) -> bool {
    match index {
        // Saved apart, because their order matters.
        TSC | TSC_DEADLINE => true,
        // Part of the description that hosts agree on before anything is sent.
        ARCH_CAPABILITIES => true,
        // VMX capabilities: nested virtualisation is not offered, and they differ between hosts.
        0x480..=0x49F => true,
        // PMU and processor trace, not offered: fixed and general counters, PEBS, capabilities.
        0xC1..=0xC8 | 0x186..=0x18D | 0x309..=0x30C | 0x345 | 0x38D..=0x390 | 0x3F1 | 0x3F2 => true,
        0x4C1..=0x4C8 | 0x560..=0x58F | 0x600 => true,
        0xC001_0000..=0xC001_0007 | 0xC001_0200..=0xC001_020B | 0xC000_0300..=0xC000_0303 => true,
        // Hyper-V's range: no enlightenments are offered, and writing would turn them on.
        0x4000_0000..=0x4000_01FF => true,
        _ => false,
    }
}

/// The MSRs to save on this host, ascending. `vcpu` is any vCPU of the VM.
pub(super) fn saved_indices(kvm: &Kvm, vcpu: &VcpuFd) -> anyhow::Result<Vec<u32>> {
    let list = kvm.get_msr_index_list().context("cannot read the list of MSRs")?;
    let mut indices: Vec<u32> =
        list.as_slice().iter().copied().filter(|&i| !is_skipped(i)).collect();
    indices.extend(MTRRS.into_iter().flatten());
    let banks = read(vcpu, &[MCG_CAP])?.first().map_or(0, |m| m.data as u32 & 0xFF).min(MAX_BANKS);
    indices.extend(MC0_CTL..MC0_CTL + 4 * banks);
    indices.sort_unstable();
    indices.dedup();
    Ok(indices)
}

/// Reads those of `indices` that this vCPU has.
pub(super) fn read(vcpu: &VcpuFd, indices: &[u32]) -> anyhow::Result<Vec<kvm_msr_entry>> {
    let mut found = Vec::with_capacity(indices.len());
    for chunk in indices.chunks(CHUNK) {
        let mut rest = chunk;
        while !rest.is_empty() {
            let wanted: Vec<_> =
                rest.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
            let mut msrs = wrap(&wanted)?;
            let n = vcpu.get_msrs(&mut msrs).context("cannot read MSRs")?;
            found.extend(msrs.as_slice().iter().take(n));
            // KVM stops at the first that it does not have: leave that one out and go on behind it.
            rest = rest.get(n + 1..).unwrap_or_default();
        }
    }
    Ok(found)
}

/// Writes all of `entries`, in order.
///
/// A write that KVM refuses is no error if the register holds the value already, or if it was zero
/// and this host's KVM does not know the register: some are read-only, and newer kernels list more.
pub(super) fn write(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> anyhow::Result<()> {
    for chunk in entries.chunks(CHUNK) {
        let mut rest = chunk;
        while !rest.is_empty() {
            let n = vcpu.set_msrs(&wrap(rest)?).context("KVM refuses the saved MSRs")?;
            let Some(refused) = rest.get(n) else { break };
            let current = read(vcpu, &[refused.index])?.first().map_or(0, |m| m.data);
            if current != refused.data {
                return Err(cannot_be(refused.index, refused.data));
            }
            rest = &rest[n + 1..];
        }
    }
    Ok(())
}

/// Of a peer's MSRs, those to be written here: each must be one of `listed` (ascending), and there
/// only once.
///
/// One that is not listed here is left out if it holds zero (newer kernels list more), and refused
/// otherwise.
pub(super) fn accepted(
    entries: &[kvm_msr_entry],
    listed: &[u32],
) -> anyhow::Result<Vec<kvm_msr_entry>> {
    let mut seen = HashSet::new();
    let mut accepted = Vec::with_capacity(entries.len());
    for &kvm_msr_entry { index, data, .. } in entries {
        ensure!(seen.insert(index), "the saved state has MSR {index:#x} twice");
        if listed.binary_search(&index).is_ok() {
            accepted.push(kvm_msr_entry { index, data, ..Default::default() });
        } else if data != 0 {
            return Err(cannot_be(index, data));
        }
    }
    Ok(accepted)
}

/// One entry by itself.
pub(super) fn write_one(vcpu: &VcpuFd, index: u32, data: u64) -> anyhow::Result<()> {
    write(vcpu, &[kvm_msr_entry { index, data, ..Default::default() }])
}

fn cannot_be(index: u32, value: u64) -> anyhow::Error {
    anyhow!("KVM refuses MSR {index:#x} = {value:#x}; the hosts' CPUs or kernels differ too much")
}

fn wrap(entries: &[kvm_msr_entry]) -> anyhow::Result<Msrs> {
    Msrs::from_entries(entries).context("the MSR list has an impossible length")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_state_is_not_skipped() {
        // SYSENTER_CS, PAT, SPEC_CTRL, STAR, KERNEL_GS_BASE, TSC_AUX, XSS, kvmclock (both), steal
        // time, MTRR default
        for index in [
            0x174,
            0x277,
            0x48,
            0xC000_0081,
            0xC000_0102,
            0xC000_0103,
            0xDA0,
            0x4B56_4D00,
            0x4B56_4D01,
            0x4B56_4D03,
            0x2FF,
        ] {
            assert!(!is_skipped(index), "{index:#x}");
        }
        for index in [TSC, TSC_DEADLINE, ARCH_CAPABILITIES, 0x480, 0xC1, 0x4000_0000] {
            assert!(is_skipped(index), "{index:#x}");
        }
    }

    #[test]
    fn only_listed_msrs_are_taken_from_a_peer() {
        let msr = |index, data| kvm_msr_entry { index, data, ..Default::default() };
        let listed = [0x174, 0x277];
        let taken = accepted(&[msr(0x277, 6), msr(0x10A, 0), msr(0x174, 0)], &listed).unwrap();
        assert_eq!(taken, [msr(0x277, 6), msr(0x174, 0)]);
        for index in [ARCH_CAPABILITIES, TSC, 0x4000_0000, 0xDEAD_BEEF] {
            let refused =
                accepted(&[msr(0x277, 6), msr(index, 1)], &listed).unwrap_err().to_string();
            assert!(refused.contains(&format!("{index:#x}")), "{refused}");
        }
        let twice = accepted(&[msr(0x277, 6), msr(0x277, 7)], &listed).unwrap_err().to_string();
        assert!(twice.contains("0x277") && twice.contains("twice"), "{twice}");
    }
}
