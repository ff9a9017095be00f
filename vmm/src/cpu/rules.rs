//! Which registers of CPUID guests get, and by which rule another host is held against them.
//!
//! Every register is one of these:
//!
//! - *features*: bits with names ([`super::features`]). Another host must have each that the guest
//!   has seen
//! - *a level* ([`level`]): a number within such a register of which another host must have at
//!   least as much
//! - *data* ([`is_data`]): what a guest may find different elsewhere, or what is compared in a way
//!   of its own: model, caches, topology, brand, the sizes of XSAVE areas
//!
//! All else is zero for guests, and refused if a peer's guest has it: nobody here can say what it
//! means.

use super::features::{Reg, Register, Word};

/// A number of which more is better. It starts at bit 0 of its register.
pub(super) struct Level {
    at: Register,
    pub(super) mask: u32,
    pub(super) name: &'static str,
}

const LEVELS: &[Level] = &[Level { at: (0x24, 0, Reg::Ebx), mask: 0xFF, name: "AVX10 version" }];

/// Whether a register holds data: no features, but something that guests get.
pub(super) fn is_data((leaf, index, reg): Register) -> bool {
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
pub(super) fn level(register: Register) -> Option<&'static Level> {
    LEVELS.iter().find(|level| level.at == register)
}

/// The bits that guests may see set in a register.
pub(super) fn allowed(register: Register) -> u32 {
    if is_data(register) {
        return u32::MAX;
    }
    level(register).map_or(0, |l| l.mask) | Word::at(register).map_or(0, Word::offered)
}

/// Whether KVM tells the subleaves of a leaf apart, of those that guests get
/// (cpuid_function_is_indexed, arch/x86/kvm/cpuid.c).
pub(super) fn is_indexed(leaf: u32) -> bool {
    matches!(leaf, 4 | 7 | 0xB | 0xD | 0x1F | 0x24 | 0x8000_001D)
}
