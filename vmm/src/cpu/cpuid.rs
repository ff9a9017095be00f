//! The CPUID that guests get: what KVM supports on this host, less what cannot be moved to another
//! host.
//!
//! Left out, with the reason:
//!
//! - VMX, SVM, SGX, SEV, key locker: state that is not saved, or that belongs to the host
//! - the PMU (leaf 0xA, AMD's core counters and PerfMonV2, PDCM, IBS, LBR, processor trace):
//!   counters of one CPU model
//! - AMX: wants a permission from the host kernel per process, and 8 KiB more state; MPX: gone from
//!   the kernel
//! - CET and FRED: state that KVM_GET_MSRS does not reach on every kernel
//! - MONITOR/MWAIT: KVM does not let the guest use it
//! - the invariant-TSC bit: with it Linux prefers the bare TSC to kvmclock, and then a host with
//!   another frequency that cannot scale it is out of reach. Without it the guest uses kvmclock,
//!   which carries over everywhere.
//! - leaves 0x15, 0x16 and 0x40000010 (frequencies): kvmclock says the TSC frequency, TSC-deadline
//!   mode needs no other
//! - asynchronous page faults: worthwhile only where the host swaps, and one in flight would have
//!   to be finished on another host
//! - `pv_unhalt`: a kick of a vCPU that is about to halt is a flag within KVM that userspace cannot
//!   read, and a guest that moves in between would wait for it for ever
//! - all that [`super::rules`] has no rule for
//!
//! Topology: one socket, one core per vCPU, one thread per core; APIC id = vCPU id.

use super::features::Reg;
use super::rules;
use anyhow::Context;
use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::{Cap, Kvm};

/// Leaf 1 ECX: x2APIC, TSC deadline timer, hypervisor.
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: EBX has the number of APIC ids.
const HTT: u32 = 1 << 28;
/// Leaf 6 EAX: the APIC timer does not stop in idle states.
const ARAT: u32 = 1 << 2;
/// Leaf 0x80000001 ECX on AMD: more than one core.
const CMP_LEGACY: u32 = 1 << 1;
/// XCR0 components that guests may have: x87, SSE, AVX, AVX-512 (three), PKRU.
const XCR0_ALLOWED: u32 = 0b10_1110_0111;
/// XSAVE legacy area and header, bytes.
const XSAVE_MIN: u32 = 576;

/// All that KVM and Wherry can give a guest on this host. Migration compares with this
/// ([`super::compat`]).
pub fn host_supported(kvm: &Kvm) -> anyhow::Result<CpuId> {
    let mut cpuid =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("KVM_GET_SUPPORTED_CPUID failed")?;
    // The in-kernel local APIC offers these, but older kernels leave them to userspace to announce.
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            1 => entry.ecx |= X2APIC | HYPERVISOR | if deadline { TSC_DEADLINE } else { 0 },
            6 => entry.eax |= ARAT,
            _ => {}
        }
    }
    Ok(cpuid)
}

/// The CPUID of a guest that starts on this host, before [`per_vcpu`] gives it an identity.
pub fn template(kvm: &Kvm) -> anyhow::Result<CpuId> {
    filter(host_supported(kvm)?.as_slice())
}

fn filter(supported: &[kvm_cpuid_entry2]) -> anyhow::Result<CpuId> {
    let mut entries = supported.to_vec();
    for entry in &mut entries {
        for reg in Reg::ALL {
            *reg.of_mut(entry) &= rules::allowed((entry.function, entry.index, reg));
        }
        if entry.function == 0x8000_0008 {
            // Widths of physical and linear addresses; that of a hypervisor's guest concerns only
            // firmware.
            entry.eax &= 0xFFFF;
        }
    }
    // A leaf that is not there reads as zero, too. Leaf 0xD's subleaves are counted by what it
    // lists.
    entries.retain(|e| Reg::ALL.iter().any(|&r| rules::allowed((e.function, e.index, r)) != 0));
    limit_xsave(&mut entries);
    raise_basic_limit(&mut entries, 0xB);
    to_cpuid(&entries)
}

/// The CPUID of vCPU `id` (its APIC id) of `count` vCPUs.
pub fn per_vcpu(template: &CpuId, id: u32, count: u32) -> anyhow::Result<CpuId> {
    let topology = Topology { id, count };
    let amd = is_amd(template.as_slice());
    let has = |leaf| template.as_slice().iter().any(|e| e.function == 0 && e.eax >= leaf);
    let (has_b, has_1f) = (has(0xB), has(0x1F));
    let is_extended = |e: &&kvm_cpuid_entry2| e.function != 0xB && e.function != 0x1F;
    let mut entries: Vec<_> = template.as_slice().iter().filter(is_extended).copied().collect();
    for entry in &mut entries {
        topology.apply(entry, amd);
    }
    for (leaf, present) in [(0xB, has_b), (0x1F, has_1f)] {
        if present {
            entries.extend(topology.extended_leaf(leaf));
        }
    }
    to_cpuid(&entries)
}

/// Converts entries, for instance from a saved state, to what KVM takes.
pub fn to_cpuid(entries: &[kvm_cpuid_entry2]) -> anyhow::Result<CpuId> {
    CpuId::from_entries(entries).with_context(|| {
        let have = entries.len();
        format!("CPUID has {have} entries, more than the {KVM_MAX_CPUID_ENTRIES} that KVM takes")
    })
}

/// Whether the vendor is AMD or Hygon, whose topology leaves differ from Intel's.
fn is_amd(entries: &[kvm_cpuid_entry2]) -> bool {
    let vendor = vendor(entries);
    vendor == *b"AuthenticAMD" || vendor == *b"HygonGenuine"
}

/// The twelve letters of leaf 0; zeros if there is no such leaf.
pub(super) fn vendor(entries: &[kvm_cpuid_entry2]) -> [u8; 12] {
    let mut name = [0; 12];
    if let Some(leaf) = entries.iter().find(|e| e.function == 0) {
        for (part, reg) in name.chunks_exact_mut(4).zip([leaf.ebx, leaf.edx, leaf.ecx]) {
            part.copy_from_slice(&reg.to_le_bytes());
        }
    }
    name
}

/// Drops XSAVE components that are not allowed and corrects the area's size (SDM volume 1, 13.2).
fn limit_xsave(entries: &mut Vec<kvm_cpuid_entry2>) {
    let component = |index: u32| index < 32 && XCR0_ALLOWED >> index & 1 == 1;
    entries.retain(|e| e.function != 0xD || e.index < 2 || component(e.index));
    let ends = entries
        .iter()
        .filter(|e| e.function == 0xD && e.index >= 2)
        .map(|e| e.eax.saturating_add(e.ebx));
    let size = ends.max().unwrap_or(0).max(XSAVE_MIN);
    for entry in entries.iter_mut().filter(|e| e.function == 0xD && e.index == 0) {
        entry.eax &= XCR0_ALLOWED;
        entry.edx = 0;
        // EBX is the size for the current XCR0, which KVM keeps up to date; ECX that for all
        // components.
        entry.ecx = size;
    }
}

/// Makes leaves up to `leaf` reachable.
fn raise_basic_limit(entries: &mut [kvm_cpuid_entry2], leaf: u32) {
    for entry in entries.iter_mut().filter(|e| e.function == 0) {
        entry.eax = entry.eax.max(leaf);
    }
}

/// One socket, `count` cores of one thread each; this is core `id`.
struct Topology {
    id: u32,
    count: u32,
}

impl Topology {
    /// Bits of an APIC id that number the cores.
    fn core_bits(&self) -> u32 {
        self.ids().trailing_zeros()
    }

    /// APIC ids set aside for the socket: a power of two.
    fn ids(&self) -> u32 {
        self.count.clamp(1, 1 << 15).next_power_of_two()
    }

    fn apply(&self, entry: &mut kvm_cpuid_entry2, amd: bool) {
        match entry.function {
            1 => {
                entry.ebx =
                    entry.ebx & 0x0000_FFFF | self.ids().min(255) << 16 | (self.id & 0xFF) << 24;
                set(&mut entry.edx, HTT, self.count > 1);
            }
            // Intel: cores per package, and who shares the cache.
            4 if entry.eax & 0x1F != 0 => {
                let cores = (self.ids() - 1).min(63);
                entry.eax = entry.eax & 0x3FFF | self.sharers(entry.eax) << 14 | cores << 26;
            }
            0x8000_0001 if amd => set(&mut entry.ecx, CMP_LEGACY, self.count > 1),
            // AMD: number of cores less one, and bits of the APIC id for them.
            0x8000_0008 if amd => {
                entry.ecx = entry.ecx & !0xF0FF
                    | (self.count - 1).min(255)
                    | self.core_bits().min(15) << 12;
            }
            0x8000_001D if amd && entry.eax & 0x1F != 0 => {
                entry.eax = entry.eax & 0x3FFF | self.sharers(entry.eax) << 14;
            }
            // AMD: APIC id; core id, one thread per core; node 0 of one.
            0x8000_001E if amd => {
                (entry.eax, entry.ebx, entry.ecx, entry.edx) = (self.id, self.id & 0xFF, 0, 0);
            }
            _ => {}
        }
    }

    /// Other ids that share a cache: the last level is common, the others belong to one core.
    fn sharers(&self, cache: u32) -> u32 {
        let level = cache >> 5 & 7;
        if level >= 3 { (self.ids() - 1).min(0xFFF) } else { 0 }
    }

    /// Leaf 0xB or 0x1F: threads, cores, end.
    fn extended_leaf(&self, function: u32) -> [kvm_cpuid_entry2; 3] {
        let level = |index: u32, shift: u32, number: u32, kind: u32| kvm_cpuid_entry2 {
            function,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: number,
            ecx: index | kind << 8,
            edx: self.id,
            ..Default::default()
        };
        [level(0, 0, 1, 1), level(1, self.core_bits(), self.count, 2), level(2, 0, 0, 0)]
    }
}

fn set(word: &mut u32, bits: u32, on: bool) {
    *word = if on { *word | bits } else { *word & !bits };
}

#[cfg(test)]
#[path = "cpuid_tests.rs"]
mod tests;
