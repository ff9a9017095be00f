//! Whether a guest that runs on one host can go on on another.
//!
//! The guest keeps the CPUID that it started with, so every feature in it must exist on the
//! destination. What is missing is said by name, before any memory is sent.

use super::arch_caps::{self, ARCH_CAPABILITIES, bits};
use super::cpuid::{self, host_supported, vendor};
use super::features::{Reg, Register, Word, xcr0_name};
use super::{msrs, rules};
use anyhow::Context;
use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

/// Difference of TSC frequencies that KVM itself tolerates (its module parameter
/// tsc_tolerance_ppm).
const TSC_TOLERANCE_PPM: u64 = 250;

/// What a source tells about its guest's CPUs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CpuDescriptionV1 {
    /// CPUID, before [`cpuid::per_vcpu`] gives each vCPU its identity.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// IA32_ARCH_CAPABILITIES as the guest sees it; 0 without that MSR.
    pub arch_capabilities: u64,
    /// TSC frequency that the guest sees, kHz.
    pub tsc_khz: u32,
}

/// Most names in one message; a peer could make it list thousands.
const MAX_NAMES: usize = 50;

fn list(names: &[String]) -> String {
    let shown = names.get(..MAX_NAMES).unwrap_or(names).join(", ");
    match names.len().saturating_sub(MAX_NAMES) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

impl CpuDescriptionV1 {
    /// What a new guest gets on this host. `probe` is a vCPU without a purpose.
    pub fn new(kvm: &Kvm, probe: &VcpuFd) -> anyhow::Result<Self> {
        let cpuid = cpuid::template(kvm)?.as_slice().to_vec();
        let tsc_khz = tsc_khz(probe)?;
        let mut new = Self { cpuid, arch_capabilities: 0, tsc_khz };
        if new.has_arch_capabilities() {
            new.arch_capabilities = arch_caps::offered(kvm)?;
            if !new.can_be_told(probe) {
                // A KVM that lists the MSR, but gives vCPUs none.
                new.cpuid
                    .iter_mut()
                    .filter(|e| (e.function, e.index) == (7, 0))
                    .for_each(|e| e.edx &= !(1 << 29));
                new.arch_capabilities = 0;
            }
        }
        Ok(new)
    }

    /// Whether KVM gives a vCPU the agreed IA32_ARCH_CAPABILITIES.
    fn can_be_told(&self, probe: &VcpuFd) -> bool {
        let cpuid = self.vcpu_cpuid(0, 1);
        cpuid.is_ok_and(|c| probe.set_cpuid2(&c).is_ok())
            && msrs::write_one(probe, ARCH_CAPABILITIES, self.arch_capabilities).is_ok()
    }

    /// CPUID of vCPU `id` of `count`.
    pub fn vcpu_cpuid(&self, id: u32, count: u32) -> anyhow::Result<CpuId> {
        cpuid::per_vcpu(&cpuid::to_cpuid(&self.cpuid)?, id, count)
    }

    /// Whether the guest has the MSR.
    pub(super) fn has_arch_capabilities(&self) -> bool {
        entry(&self.cpuid, 7, 0).is_some_and(|e| e.edx & 1 << 29 != 0)
    }

    /// Refuses if this host cannot offer what the guest has seen. `probe` is a vCPU without a
    /// purpose.
    pub fn check(&self, kvm: &Kvm, probe: &VcpuFd) -> anyhow::Result<()> {
        let missing =
            self.missing(kvm, probe).context("cannot find out what this host supports")?;
        if !missing.is_empty() {
            let list = list(&missing);
            anyhow::bail!(
                "this host's CPU or KVM lacks {list}; move the guest to a host with these"
            );
        }
        Ok(())
    }

    fn missing(&self, kvm: &Kvm, probe: &VcpuFd) -> anyhow::Result<Vec<String>> {
        let (host, host_khz) = (host_supported(kvm)?, tsc_khz(probe)?);
        if let Some(problem) = list_problem(&self.cpuid) {
            return Ok(vec![problem]);
        }
        let mut missing = missing_features(&self.cpuid, host.as_slice());
        missing.extend(arch_caps::missing(self.arch_capabilities, arch_caps::offered(kvm)?));
        missing.extend(tsc_problem(self.tsc_khz, host_khz, kvm.check_extension(Cap::TscControl)));
        if missing.is_empty() {
            match (self.has_arch_capabilities(), self.arch_capabilities) {
                (false, 0) => {}
                (false, _) => {
                    missing.push("IA32_ARCH_CAPABILITIES without its bit in CPUID".into())
                }
                (true, _) if self.can_be_told(probe) => {}
                (true, caps) => missing.push(format!("IA32_ARCH_CAPABILITIES of {caps:#x}")),
            }
        }
        Ok(missing)
    }
}

fn tsc_khz(vcpu: &VcpuFd) -> anyhow::Result<u32> {
    vcpu.get_tsc_khz().context("cannot read the TSC frequency")
}

/// What `source` has and `host` has not, by name; empty if the guest can run.
pub fn missing_features(source: &[kvm_cpuid_entry2], host: &[kvm_cpuid_entry2]) -> Vec<String> {
    let mut missing = Vec::new();
    if vendor(source) != vendor(host) {
        let name = |v: [u8; 12]| v.escape_ascii().to_string();
        missing.push(format!("a {} CPU (it has {})", name(vendor(source)), name(vendor(host))));
    }
    for e in source {
        for reg in Reg::ALL {
            let theirs = entry(host, e.function, e.index).map_or(0, |h| reg.of(h));
            missing.extend(register_problems((e.function, e.index, reg), reg.of(e), theirs));
        }
    }
    missing.extend(xsave_problems(source, host));
    missing.extend(address_problems(source, host));
    missing.dedup();
    missing
}

/// One register by its rule ([`super::rules`]): the guest's value and the host's.
fn register_problems(register: Register, guest: u32, host: u32) -> Vec<String> {
    if rules::is_data(register) {
        return Vec::new();
    }
    let mut problems = Vec::new();
    let level = rules::level(register);
    if let Some(level) = level {
        let (guest, host) = (guest & level.mask, host & level.mask);
        if guest > host {
            problems.push(format!("{} {guest} (it has {host})", level.name));
        }
    }
    let Some(word) = Word::at(register) else {
        if guest != 0 {
            let (leaf, index, reg) = register;
            problems.push(format!("cpuid {leaf:#x}.{index} {}", reg.name()));
        }
        return problems;
    };
    let here = (host | !word.required()) & rules::allowed(register);
    let lacking = guest & !here & !level.map_or(0, |l| l.mask);
    problems.extend(bits(lacking.into()).map(|bit| word.bit_name(bit)));
    problems
}

/// What is wrong with a list of entries as such. KVM takes the first entry that fits, and one that
/// is not marked as a subleaf fits any: the comparison must not look at another than the guest
/// will.
fn list_problem(entries: &[kvm_cpuid_entry2]) -> Option<String> {
    if entries.len() > KVM_MAX_CPUID_ENTRIES {
        return Some(format!("room for {} CPUID entries", entries.len()));
    }
    entries.iter().enumerate().find_map(|(at, e)| {
        let flags = if rules::is_indexed(e.function) { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
        let twice = entries[..at].iter().any(|o| (o.function, o.index) == (e.function, e.index));
        let what = format!("cpuid {:#x}.{}", e.function, e.index);
        match () {
            () if e.flags != flags || (flags == 0 && e.index != 0) => {
                Some(format!("{what} in this form"))
            }
            () if twice => Some(format!("{what} twice")),
            () => None,
        }
    })
}

fn entry(entries: &[kvm_cpuid_entry2], leaf: u32, index: u32) -> Option<&kvm_cpuid_entry2> {
    entries.iter().find(|e| (e.function, e.index) == (leaf, index))
}

/// Leaf 0xD: the components, and that each has the same size and place (Intel and AMD differ),
/// since saved XSAVE state and the guest's own XSAVE areas follow that layout.
fn xsave_problems(source: &[kvm_cpuid_entry2], host: &[kvm_cpuid_entry2]) -> Vec<String> {
    let mask = |entries| {
        let leaf = entry(entries, 0xD, 0);
        leaf.map_or(0, |e| u64::from(e.edx) << 32 | u64::from(e.eax))
    };
    let (theirs, ours) = (mask(source), mask(host));
    let lacking = bits(theirs & !ours).map(|bit| format!("XSAVE state {}", xcr0_name(bit)));
    let place = |entries, bit| entry(entries, 0xD, bit).map(|e| (e.eax, e.ebx, e.ecx));
    let moved = bits(theirs & ours & !0b11).filter(|&bit| place(source, bit) != place(host, bit));
    let moved = moved.map(|bit| format!("the same XSAVE layout of {}", xcr0_name(bit)));
    lacking.chain(moved).collect()
}

/// Leaf 0x80000008 EAX: widths of physical and linear addresses.
fn address_problems(source: &[kvm_cpuid_entry2], host: &[kvm_cpuid_entry2]) -> Vec<String> {
    let width = |entries, shift: u32| {
        entry(entries, 0x8000_0008, 0).map_or(36u32, |e| (e.eax >> shift) & 0xFF)
    };
    [(0, "physical"), (8, "linear")]
        .iter()
        .filter(|&&(shift, _)| width(source, shift) > width(host, shift))
        .map(|&(shift, name)| {
            format!("{}-bit {name} addresses (it has {})", width(source, shift), width(host, shift))
        })
        .collect()
}

/// Whether a guest's TSC frequency can be had. Without scaling in hardware KVM can make a TSC
/// faster (by catching up at every entry), never slower.
fn tsc_problem(guest_khz: u32, host_khz: u32, scaling: bool) -> Option<String> {
    let (guest, host) = (u64::from(guest_khz), u64::from(host_khz));
    let reachable =
        scaling || guest >= host || (host - guest) * 1_000_000 <= host * TSC_TOLERANCE_PPM;
    (!reachable).then(|| {
        format!("TSC scaling (the guest's TSC has {guest_khz} kHz, this host's {host_khz} kHz)")
    })
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

    fn change(
        function: u32,
        index: u32,
        f: impl Fn(&mut kvm_cpuid_entry2),
    ) -> Vec<kvm_cpuid_entry2> {
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
        let other =
            change(0, 0, |e| (e.ebx, e.edx, e.ecx) = (0x6874_7541, 0x6974_6E65, 0x444D_4163));
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
        let long = list(&vec!["x".into(); 1000]);
        assert!(long.ends_with("x, x and 950 more"), "{long}");
    }

    /// KVM would look at another entry than the comparison does.
    #[test]
    fn ambiguous_entries_are_refused() {
        let marked = |mut e: kvm_cpuid_entry2| {
            e.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
            e
        };
        let (one, seven) = (leaf(1, 0, [0; 4]), marked(leaf(7, 0, [0; 4])));
        assert_eq!(list_problem(&[one, seven, marked(leaf(7, 1, [0; 4]))]), None);
        for (entries, problem) in [
            (vec![one, one], "cpuid 0x1.0 twice"),
            (vec![seven, seven], "cpuid 0x7.0 twice"),
            (vec![leaf(7, 0, [0; 4])], "cpuid 0x7.0 in this form"),
            (vec![leaf(1, 3, [0; 4])], "cpuid 0x1.3 in this form"),
            (vec![marked(one)], "cpuid 0x1.0 in this form"),
            (vec![one; 257], "room for 257 CPUID entries"),
        ] {
            assert_eq!(list_problem(&entries).as_deref(), Some(problem));
        }
    }

    fn with(more: &[kvm_cpuid_entry2]) -> Vec<kvm_cpuid_entry2> {
        [&cpu()[..], more].concat()
    }

    /// What a guest has seen and what the host has, in one register that is no plain word of
    /// Intel's.
    #[test]
    fn every_register_with_features_is_compared() {
        for (function, index, has, lacks, name) in [
            (0x24, 0, [0, 2 | 7 << 16, 0, 0], [0, 1 | 7 << 16, 0, 0], "AVX10 version 2 (it has 1)"),
            (0x24, 0, [0, 1 | 7 << 16, 0, 0], [0, 1 | 3 << 16, 0, 0], "avx10_512"),
            (7, 1, [0, 0, 1 << 5, 0], [0; 4], "msr_imm"),
            (7, 2, [0, 0, 0, 1 << 5], [0; 4], "mcdt_no"),
            (0x8000_0007, 0, [0, 1, 0, 0], [0; 4], "overflow_recov"),
            (0x8000_0021, 0, [0, 0, 2, 0], [0, 0, 4, 0], "tsa_sq_no"),
            (0x8000_0021, 0, [1 << 5, 0, 0, 0], [0; 4], "verw_clear"),
            (0xC000_0001, 0, [0, 0, 0, 1 << 2], [0; 4], "xstore"),
        ] {
            let (guest, host) =
                (with(&[leaf(function, index, has)]), with(&[leaf(function, index, lacks)]));
            assert_eq!(missing_features(&guest, &host), [name]);
            assert_eq!(missing_features(&guest, &guest), [""; 0]);
        }
    }

    /// Nobody knows what they mean, so nobody can say that they mean the same on both hosts.
    #[test]
    fn unknown_leaves_and_bits_are_refused_even_if_the_host_has_them() {
        for (function, index, regs, name) in [
            (0x29, 0, [0, 1, 0, 0], "cpuid 0x29.0 ebx"),
            (0x14, 0, [1, 0, 0, 0], "cpuid 0x14.0 eax"),
            (0x24, 1, [0, 0, 4, 0], "cpuid 0x24.1 ecx"),
            (7, 3, [0, 0, 0, 1], "cpuid 0x7.3 edx"),
            (0x8000_0021, 0, [0, 7, 0, 0], "cpuid 0x80000021.0 ebx"),
            (0x8000_0021, 0, [1 << 4, 0, 0, 0], "cpuid 0x80000021.0 eax bit 4"),
            (0x4000_0003, 0, [1, 0, 0, 0], "cpuid 0x40000003.0 eax"),
        ] {
            let both = with(&[leaf(function, index, regs)]);
            assert_eq!(missing_features(&both, &both), [name]);
        }
    }

    #[test]
    fn what_guests_never_get_is_refused_even_if_the_host_has_it() {
        let both = change(1, 0, |e| e.ecx |= 1 << 5);
        assert_eq!(missing_features(&both, &both), ["vmx"]);
        let both = change(0x4000_0001, 0, |e| e.eax |= 1 << 7);
        assert_eq!(missing_features(&both, &both), ["kvm_pv_unhalt"]);
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
