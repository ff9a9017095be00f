//! Whether a guest that runs on one host can go on on another.
//!
//! The guest keeps the CPUID that it started with, so every feature in it must exist on the destination. What is
//! missing is said by name, before any memory is sent.

use super::cpuid::{CpuidError, host_supported, vendor};
use super::features::{WORDS, xcr0_name};
use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::{Cap, Kvm};
use serde::{Deserialize, Serialize};

/// Difference of TSC frequencies that KVM itself tolerates (its module parameter tsc_tolerance_ppm).
const TSC_TOLERANCE_PPM: u64 = 250;

/// What a source tells about its guest's CPUs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CpuDescriptionV1 {
    /// CPUID of the first vCPU.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// TSC frequency that the guest sees, kHz.
    pub tsc_khz: u32,
}

/// Why a guest cannot run here.
#[derive(Debug, thiserror::Error)]
pub enum CompatError {
    /// This host lacks features that the guest has seen.
    #[error("this host's CPU or KVM lacks {}; move the guest to a host with these", .0.join(", "))]
    Missing(Vec<String>),
    /// KVM did not say what it supports.
    #[error("cannot find out what this host supports")]
    Cpuid(#[source] CpuidError),
}

impl CpuDescriptionV1 {
    /// Refuses if this host cannot offer what the guest has seen. `host_khz` is this host's TSC frequency in kHz
    /// (KVM_GET_TSC_KHZ on a new vCPU).
    pub fn check(&self, kvm: &Kvm, host_khz: u32) -> Result<(), CompatError> {
        let host = host_supported(kvm).map_err(CompatError::Cpuid)?;
        let mut missing = missing_features(&self.cpuid, host.as_slice());
        missing.extend(tsc_problem(self.tsc_khz, host_khz, kvm.check_extension(Cap::TscControl)));
        if missing.is_empty() { Ok(()) } else { Err(CompatError::Missing(missing)) }
    }
}

/// What `source` has and `host` has not, by name; empty if the guest can run.
pub fn missing_features(source: &[kvm_cpuid_entry2], host: &[kvm_cpuid_entry2]) -> Vec<String> {
    let mut missing = Vec::new();
    if vendor(source) != vendor(host) {
        let name = |v: [u8; 12]| String::from_utf8_lossy(&v).into_owned();
        missing.push(format!("a {} CPU (it has {})", name(vendor(source)), name(vendor(host))));
    }
    for word in WORDS {
        let value = |entries| entry(entries, word.leaf, word.index).map_or(0, |e| word.reg.of(e));
        let lacking = value(source) & !value(host) & word.required();
        missing.extend(bits(lacking).map(|bit| word.bit_name(bit)));
    }
    missing.extend(xsave_problems(source, host));
    missing.extend(address_problems(source, host));
    missing.dedup();
    missing
}

fn entry(entries: &[kvm_cpuid_entry2], leaf: u32, index: u32) -> Option<&kvm_cpuid_entry2> {
    entries.iter().find(|e| (e.function, e.index) == (leaf, index))
}

fn bits(word: u32) -> impl Iterator<Item = u32> {
    (0..32).filter(move |bit| word >> bit & 1 == 1)
}

/// Leaf 0xD: the components, and that each has the same size and place (Intel and AMD differ), since saved XSAVE
/// state and the guest's own XSAVE areas follow that layout.
fn xsave_problems(source: &[kvm_cpuid_entry2], host: &[kvm_cpuid_entry2]) -> Vec<String> {
    let mask = |entries, high: bool| {
        entry(entries, 0xD, 0).map_or(0, |e: &kvm_cpuid_entry2| if high { e.edx } else { e.eax })
    };
    let mut problems = Vec::new();
    let low = mask(source, false);
    problems.extend(bits(low & !mask(host, false)).map(|b| format!("XSAVE state {}", xcr0_name(b))));
    problems.extend(
        bits(mask(source, true) & !mask(host, true)).map(|b| format!("XSAVE state {}", xcr0_name(b + 32))),
    );
    for bit in bits(low & mask(host, false)).filter(|&b| b >= 2) {
        let place = |entries| entry(entries, 0xD, bit).map(|e| (e.eax, e.ebx));
        if place(source) != place(host) {
            problems.push(format!("the same XSAVE layout of {}", xcr0_name(bit)));
        }
    }
    problems
}

/// Leaf 0x80000008 EAX: widths of physical and linear addresses.
fn address_problems(source: &[kvm_cpuid_entry2], host: &[kvm_cpuid_entry2]) -> Vec<String> {
    let width =
        |entries, shift: u32| entry(entries, 0x8000_0008, 0).map_or(36u32, |e| (e.eax >> shift) & 0xFF);
    [(0, "physical"), (8, "linear")]
        .iter()
        .filter(|&&(shift, _)| width(source, shift) > width(host, shift))
        .map(|&(shift, name)| {
            format!("{}-bit {name} addresses (it has {})", width(source, shift), width(host, shift))
        })
        .collect()
}

/// Whether a guest's TSC frequency can be had. Without scaling in hardware KVM can make a TSC faster (by catching up
/// at every entry), never slower.
fn tsc_problem(guest_khz: u32, host_khz: u32, scaling: bool) -> Option<String> {
    let (guest, host) = (u64::from(guest_khz), u64::from(host_khz));
    let reachable = scaling || guest >= host || (host - guest) * 1_000_000 <= host * TSC_TOLERANCE_PPM;
    (!reachable)
        .then(|| format!("TSC scaling (the guest's TSC has {guest_khz} kHz, this host's {host_khz} kHz)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, regs: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = regs;
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn cpu() -> Vec<kvm_cpuid_entry2> {
        vec![
            leaf(0, 0, [0xD, 0x756E_6547, 0x6C65_746E, 0x4965_6E69]),
            leaf(1, 0, [0, 0, 1 << 20 | 1 << 27 | 1 << 31, 1 << 26 | 1 << 28]),
            leaf(7, 0, [0, 1 << 5, 0, 0]),
            leaf(0xD, 0, [7, 832, 832, 0]),
            leaf(0xD, 2, [256, 576, 0, 0]),
            leaf(0x4000_0001, 0, [1 << 3 | 1 << 24, 0, 0, 0]),
            leaf(0x8000_0008, 0, [0x302E, 0, 0, 0]),
        ]
    }

    fn change(function: u32, index: u32, f: impl Fn(&mut kvm_cpuid_entry2)) -> Vec<kvm_cpuid_entry2> {
        let mut entries = cpu();
        entries.iter_mut().filter(|e| (e.function, e.index) == (function, index)).for_each(f);
        entries
    }

    #[test]
    fn the_same_cpu_is_fine_and_so_is_a_better_one() {
        assert_eq!(missing_features(&cpu(), &cpu()), [""; 0]);
        let better = change(7, 0, |e| e.ebx |= 1 << 16);
        assert_eq!(missing_features(&cpu(), &better), [""; 0]);
        assert_eq!(missing_features(&better, &cpu()), ["avx512f"]);
    }

    #[test]
    fn missing_features_are_named() {
        let lesser = change(1, 0, |e| e.ecx = 0);
        assert_eq!(missing_features(&cpu(), &lesser), ["sse4_2"], "dynamic bits do not count");
        let lesser = change(7, 0, |e| e.ebx = 0);
        assert_eq!(missing_features(&cpu(), &lesser), ["avx2"]);
        let lesser = change(0x4000_0001, 0, |e| e.eax = 0);
        assert_eq!(missing_features(&cpu(), &lesser), ["kvmclock2", "kvmclock_stable"]);
        let lesser = change(0x8000_0008, 0, |e| e.eax = 0x3027);
        assert_eq!(missing_features(&cpu(), &lesser), ["46-bit physical addresses (it has 39)"]);
        let other = change(0, 0, |e| (e.ebx, e.edx, e.ecx) = (0x6874_7541, 0x6974_6E65, 0x444D_4163));
        assert_eq!(missing_features(&cpu(), &other), ["a GenuineIntel CPU (it has AuthenticAMD)"]);
    }

    #[test]
    fn xsave_is_compared_by_component_and_place() {
        let lesser = change(0xD, 0, |e| e.eax = 3);
        assert_eq!(missing_features(&cpu(), &lesser), ["XSAVE state avx"]);
        let moved = change(0xD, 2, |e| e.ebx = 640);
        assert_eq!(missing_features(&cpu(), &moved), ["the same XSAVE layout of avx"]);
    }

    #[test]
    fn a_hostile_description_is_only_refused() {
        let empty = missing_features(&[], &cpu());
        assert_eq!(empty.len(), 1, "{empty:?}");
        let all: Vec<_> = [1, 7, 0xD, 0x8000_0008].map(|l| leaf(l, 0, [u32::MAX; 4])).to_vec();
        assert!(missing_features(&all, &cpu()).len() > 50);
    }

    #[test]
    fn tsc_frequencies() {
        assert!(tsc_problem(2_000_000, 2_000_000, false).is_none());
        assert!(tsc_problem(2_000_000, 2_000_400, false).is_none());
        assert!(tsc_problem(2_000_000, 2_100_000, false).is_some());
        assert!(tsc_problem(2_100_000, 2_000_000, false).is_none());
        assert!(tsc_problem(2_000_000, 3_000_000, true).is_none());
    }
}
