//! Which registers of CPUID guests get, and by which rule another host is held against them.
//!
//! Every register is one of these:
//!
//! - *features*: bits with names ([`super::features`]), less those that are [hidden](HIDDEN_BITS).
//!   Another host must
//!   have each that the guest has seen
//! - *a level* ([`LEVELS`]): a number within such a register of which another host must have at
//!   least as much
//! - *data* ([`is_data`]): what a guest may find different elsewhere, or what is compared in a way
//!   of its own: model,
//!   caches, topology, brand, the sizes of XSAVE areas
//!
//! All else is zero for guests, and refused if a peer's guest has it: nobody here can say what it
//! means.

use super::features::{Reg, WORDS};

/// A number of which more is better.
pub(super) struct Level {
    pub(super) leaf: u32,
    pub(super) index: u32,
    pub(super) reg: Reg,
    pub(super) mask: u32,
    pub(super) name: &'static str,
}

/// Levels start at bit 0 of their registers.
pub(super) const LEVELS: &[Level] =
    &[Level { leaf: 0x24, index: 0, reg: Reg::Ebx, mask: 0xFF, name: "AVX10 version" }];

/// Bits with names that guests do not get all the same: leaf, subleaf, register, bits.
const HIDDEN_BITS: &[(u32, u32, Reg, u32)] = &[
    // dtes64, monitor, ds_cpl, vmx, smx, est, tm2, pdcm
    (1, 0, Reg::Ecx, 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 15),
    // debug store, thermal monitor
    (1, 0, Reg::Edx, 1 << 21 | 1 << 29),
    // all but the one bit that KVM emulates, arat
    (6, 0, Reg::Eax, !(1 << 2)),
    // sgx, cqm, mpx, rdt_a, intel_pt
    (7, 0, Reg::Ebx, 1 << 2 | 1 << 12 | 1 << 14 | 1 << 15 | 1 << 25),
    // shadow stacks, tme, key locker, enqcmd, sgx_lc, pks
    (7, 0, Reg::Ecx, 1 << 7 | 1 << 13 | 1 << 23 | 1 << 29 | 1 << 30 | 1 << 31),
    // sgx_keys, uintr, hybrid, pconfig, arch_lbr, ibt, amx_bf16, amx_tile, amx_int8,
    // core_capabilities
    (
        7,
        0,
        Reg::Edx,
        1 << 1
            | 1 << 5
            | 1 << 15
            | 1 << 18
            | 1 << 19
            | 1 << 20
            | 1 << 22
            | 1 << 24
            | 1 << 25
            | 1 << 30,
    ),
    // arch_perfmon_ext, fred, amx_fp16, hreset
    (7, 1, Reg::Eax, 1 << 8 | 1 << 17 | 1 << 21 | 1 << 22),
    // intel_ppin
    (7, 1, Reg::Ebx, 1),
    // amx_complex, cet_sss
    (7, 1, Reg::Edx, 1 << 8 | 1 << 18),
    // xfd
    (0xD, 1, Reg::Eax, 1 << 4),
    // asynchronous page faults (three bits), kicks of halted vCPUs, page encryption, migration
    // control
    (0x4000_0001, 0, Reg::Eax, 1 << 4 | 1 << 7 | 1 << 10 | 1 << 14 | 1 << 16 | 1 << 17),
    // svm, extapic, ibs, skinit, wdt, lwp, nodeid_msr, perfctr_core, perfctr_nb, ptsc, perfctr_llc,
    // mwaitx
    (
        0x8000_0001,
        0,
        Reg::Ecx,
        1 << 2
            | 1 << 3
            | 1 << 10
            | 1 << 12
            | 1 << 13
            | 1 << 15
            | 1 << 19
            | 1 << 23
            | 1 << 24
            | 1 << 27
            | 1 << 28
            | 1 << 29,
    ),
    // invariant TSC
    (0x8000_0007, 0, Reg::Edx, 1 << 8),
    // rdpru, amd_ppin, cppc
    (0x8000_0008, 0, Reg::Ebx, 1 << 4 | 1 << 23 | 1 << 27),
];

/// Whether a register holds data: no features, but something that guests get.
pub(super) fn is_data(leaf: u32, index: u32, reg: Reg) -> bool {
    use Reg::{Eax, Ebx, Ecx, Edx};
    match leaf {
        // Highest leaf, vendor; cache descriptors, caches, topology.
        0 | 2 | 4 | 0xB | 0x1F => true,
        // Model; APIC id, cache line.
        1 => matches!(reg, Eax | Ebx),
        // Highest subleaf.
        7 => index == 0 && reg == Eax,
        // Components and sizes; sizes; size, place and alignment of one component.
        0xD => match index {
            0 => true,
            1 => reg == Ebx,
            _ => matches!(reg, Eax | Ebx | Ecx),
        },
        // Highest leaf, signature.
        0x4000_0000 => true,
        // Highest leaf, vendor; brand; caches.
        0x8000_0000 | 0x8000_0002..=0x8000_0006 | 0x8000_0019 => true,
        // Model; package.
        0x8000_0001 => matches!(reg, Eax | Ebx),
        // Address widths; topology.
        0x8000_0008 => matches!(reg, Eax | Ecx),
        // How wide the vector units are.
        0x8000_001A => reg == Eax,
        // AMD's caches and topology.
        0x8000_001D | 0x8000_001E => true,
        0xC000_0000 => matches!(reg, Eax | Ebx | Ecx | Edx),
        _ => false,
    }
}

/// The level in a register, if it has one.
pub(super) fn level(leaf: u32, index: u32, reg: Reg) -> Option<&'static Level> {
    LEVELS.iter().find(|l| (l.leaf, l.index, l.reg) == (leaf, index, reg))
}

/// The bits that guests may see set in a register.
pub(super) fn allowed(leaf: u32, index: u32, reg: Reg) -> u32 {
    if is_data(leaf, index, reg) {
        return u32::MAX;
    }
    let same = |other: (u32, u32, Reg)| other == (leaf, index, reg);
    let word = WORDS.iter().find(|w| same((w.leaf, w.index, w.reg))).map_or(0, |w| w.known());
    let hidden = HIDDEN_BITS.iter().filter(|h| same((h.0, h.1, h.2))).fold(0, |all, h| all | h.3);
    level(leaf, index, reg).map_or(0, |l| l.mask) | word & !hidden
}

/// Whether KVM tells the subleaves of a leaf apart, of those that guests get
/// (cpuid_function_is_indexed, arch/x86/kvm/cpuid.c).
pub(super) fn is_indexed(leaf: u32) -> bool {
    matches!(leaf, 4 | 7 | 0xB | 0xD | 0x1F | 0x24 | 0x8000_001D)
}
