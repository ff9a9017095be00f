//! Names of CPUID feature bits, as Linux prints them in /proc/cpuinfo
//! (arch/x86/include/asm/cpufeatures.h) and, for KVM's own leaf, as in
//! Documentation/virt/kvm/x86/cpuid.rst.

use kvm_bindings::kvm_cpuid_entry2;

/// An output register of CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reg {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Reg {
    pub(super) fn of(self, entry: &kvm_cpuid_entry2) -> u32 {
        match self {
            Self::Eax => entry.eax,
            Self::Ebx => entry.ebx,
            Self::Ecx => entry.ecx,
            Self::Edx => entry.edx,
        }
    }

    pub(super) fn of_mut(self, entry: &mut kvm_cpuid_entry2) -> &mut u32 {
        match self {
            Self::Eax => &mut entry.eax,
            Self::Ebx => &mut entry.ebx,
            Self::Ecx => &mut entry.ecx,
            Self::Edx => &mut entry.edx,
        }
    }

    /// All four.
    pub(super) const ALL: [Self; 4] = [Self::Eax, Self::Ebx, Self::Ecx, Self::Edx];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Eax => "eax",
            Self::Ebx => "ebx",
            Self::Ecx => "ecx",
            Self::Edx => "edx",
        }
    }
}

/// A register: leaf, subleaf, output.
pub(super) type Register = (u32, u32, Reg);

/// One register full of feature bits.
pub(super) struct Word {
    at: Register,
    /// Names from bit 0 up, separated by white space; bits after the last name have none.
    ///
    /// - `-`: a bit without a name. Guests do not get it.
    /// - `~` in front: guests do not get it either, though it has a name.
    /// - `!` in front: it does not have to be there on another host, because the guest's state or
    ///   the topology sets it, or because it only says that something is missing.
    names: &'static str,
}

impl Word {
    /// The word of a register, if it holds features.
    pub(super) fn at(register: Register) -> Option<&'static Self> {
        WORDS.iter().find(|word| word.at == register)
    }

    fn bits(&self, which: impl Fn(&str) -> bool) -> u32 {
        let names = self.names.split_whitespace().enumerate().filter(|(_, name)| which(name));
        names.fold(0, |mask, (bit, _)| mask | 1 << bit)
    }

    /// The bits that another host must have too.
    pub(super) fn required(&self) -> u32 {
        !self.bits(|name| name.starts_with('!'))
    }

    /// The bits that guests may get.
    pub(super) fn offered(&self) -> u32 {
        self.bits(|name| !name.starts_with(['-', '~']))
    }

    /// What to call a bit.
    pub(super) fn bit_name(&self, bit: u32) -> String {
        let (leaf, index, reg) = self.at;
        match self.names.split_whitespace().nth(bit as usize) {
            Some(name) if name != "-" => name.trim_start_matches(['!', '~']).to_owned(),
            _ => format!("cpuid {leaf:#x}.{index} {} bit {bit}", reg.name()),
        }
    }
}

const fn word(at: Register, names: &'static str) -> Word {
    Word { at, names }
}

/// Every register that holds nothing but feature bits.
const WORDS: &[Word] = &[
    word(
        (1, 0, Reg::Ecx),
        "sse3 pclmulqdq ~dtes64 ~monitor ~ds_cpl ~vmx ~smx ~est ~tm2 ssse3 cid sdbg fma cx16 xtpr \
         ~pdcm - pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave !osxsave \
         avx f16c rdrand !hypervisor",
    ),
    word(
        (1, 0, Reg::Edx),
        "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - \
         ~dts acpi mmx fxsr sse sse2 ss !ht ~tm ia64 pbe",
    ),
    word((6, 0, Reg::Eax), "~dtherm ~ida arat"),
    word(
        (7, 0, Reg::Ebx),
        "fsgsbase tsc_adjust ~sgx bmi1 hle avx2 !fdp_excptn_only smep bmi2 erms invpcid rtm ~cqm \
         !zero_fcs_fds ~mpx ~rdt_a avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb \
         ~intel_pt avx512pf avx512er avx512cd sha_ni avx512bw avx512vl",
    ),
    word(
        (7, 0, Reg::Ecx),
        "prefetchwt1 avx512vbmi umip pku !ospke waitpkg avx512_vbmi2 ~shstk gfni vaes vpclmulqdq \
         avx512_vnni avx512_bitalg ~tme avx512_vpopcntdq - la57 - - - - - rdpid ~key_locker \
         bus_lock_detect cldemote - movdiri movdir64b ~enqcmd ~sgx_lc ~pks",
    ),
    word(
        (7, 0, Reg::Edx),
        "- ~sgx_keys avx512_4vnniw avx512_4fmaps fsrm ~uintr - - avx512_vp2intersect srbds_ctrl \
         md_clear rtm_always_abort - tsx_force_abort serialize ~hybrid_cpu tsxldtrk - ~pconfig \
         ~arch_lbr ~ibt - ~amx_bf16 avx512_fp16 ~amx_tile ~amx_int8 spec_ctrl intel_stibp \
         flush_l1d arch_capabilities ~core_capabilities spec_ctrl_ssbd",
    ),
    word(
        (7, 1, Reg::Eax),
        "sha512 sm3 sm4 rao_int avx_vnni avx512_bf16 lass cmpccxadd ~arch_perfmon_ext - fzrm fsrs \
         fsrc - - - - ~fred lkgs wrmsrns nmi_src ~amx_fp16 ~hreset avx_ifma - - lam msrlist - - - \
         movrs",
    ),
    word((7, 1, Reg::Ebx), "~intel_ppin"),
    word((7, 1, Reg::Ecx), "- - - - - msr_imm"),
    word(
        (7, 1, Reg::Edx),
        "- - - - avx_vnni_int8 avx_ne_convert - - ~amx_complex - avx_vnni_int16 - - - prefetchi - \
         - - ~cet_sss avx10",
    ),
    word((7, 2, Reg::Edx), "intel_psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no"),
    word((0xD, 1, Reg::Eax), "xsaveopt xsavec xgetbv1 xsaves ~xfd"),
    word((0x24, 0, Reg::Ebx), "- - - - - - - - - - - - - - - - avx10_128 avx10_256 avx10_512"),
    word(
        (0x4000_0001, 0, Reg::Eax),
        "kvmclock kvm_nopiodelay kvm_mmu kvmclock2 ~kvm_asyncpf kvm_steal_time kvm_pv_eoi \
         ~kvm_pv_unhalt - kvm_pv_tlb_flush ~kvm_asyncpf_vmexit kvm_pv_ipi kvm_poll_control \
         kvm_pv_sched_yield ~kvm_asyncpf_int kvm_msi_ext_dest_id ~kvm_hc_map_gpa_range \
         ~kvm_migration_control - - - - - - kvmclock_stable",
    ),
    word(
        (0x8000_0001, 0, Reg::Ecx),
        "lahf_lm !cmp_legacy ~svm ~extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw \
         ~ibs xop ~skinit ~wdt - ~lwp fma4 tce - ~nodeid_msr - tbm topoext ~perfctr_core \
         ~perfctr_nb - bpext ~ptsc ~perfctr_llc ~mwaitx",
    ),
    word(
        (0x8000_0001, 0, Reg::Edx),
        "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov pat pse36 - mp nx - \
         mmxext mmx fxsr fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    ),
    word((0x8000_0007, 0, Reg::Ebx), "overflow_recov succor - smca"),
    word((0x8000_0007, 0, Reg::Edx), "- - - - - - - - ~constant_tsc"),
    word(
        (0x8000_0008, 0, Reg::Ebx),
        "clzero irperf xsaveerptr - ~rdpru - - - - wbnoinvd - - ibpb - ibrs stibp - \
         stibp_always_on - ibrs_same_mode !efer_lmsle_mbz - - ~amd_ppin ssbd virt_ssbd ssb_no \
         ~cppc psfd btc_no ibpb_ret",
    ),
    word(
        (0x8000_0021, 0, Reg::Eax),
        "no_nested_data_bp wrmsr_xx_base_ns lfence_rdtsc - - verw_clear null_sel_clr_base - \
         autoibrs no_smm_ctl_msr - - - - - - - - - - - - - - - - - sbpb ibpb_brtype srso_no \
         srso_user_kernel_no",
    ),
    word((0x8000_0021, 0, Reg::Ecx), "- tsa_sq_no tsa_l1_no"),
    // VIA's and Zhaoxin's.
    word(
        (0xC000_0001, 0, Reg::Edx),
        "- - xstore xstore_en - - xcrypt xcrypt_en ace2 ace2_en phe phe_en pmm pmm_en",
    ),
];

/// Names of XCR0 state components (Intel SDM volume 1, 13.1).
pub(super) fn xcr0_name(bit: u32) -> String {
    let names =
        ["x87", "sse", "avx", "bndregs", "bndcsr", "opmask", "zmm_hi256", "hi16_zmm", "pt", "pkru"];
    names.get(bit as usize).map_or_else(|| format!("xcr0 bit {bit}"), |n| (*n).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(leaf: u32, index: u32, reg: Reg) -> &'static Word {
        Word::at((leaf, index, reg)).unwrap()
    }

    /// Spot checks against the manuals: a slip in a list shifts every later name.
    #[test]
    fn names_sit_at_their_bits() {
        for (leaf, index, reg, bit, name) in [
            (1, 0, Reg::Ecx, 20, "sse4_2"),
            (1, 0, Reg::Ecx, 31, "hypervisor"),
            (1, 0, Reg::Edx, 26, "sse2"),
            (1, 0, Reg::Edx, 28, "ht"),
            (7, 0, Reg::Ebx, 5, "avx2"),
            (7, 0, Reg::Ebx, 16, "avx512f"),
            (7, 0, Reg::Ebx, 31, "avx512vl"),
            (7, 0, Reg::Ecx, 16, "la57"),
            (7, 0, Reg::Ecx, 22, "rdpid"),
            (7, 0, Reg::Ecx, 31, "pks"),
            (7, 0, Reg::Edx, 10, "md_clear"),
            (7, 0, Reg::Edx, 20, "ibt"),
            (7, 0, Reg::Edx, 31, "spec_ctrl_ssbd"),
            (7, 1, Reg::Eax, 17, "fred"),
            (7, 1, Reg::Eax, 26, "lam"),
            (7, 1, Reg::Eax, 31, "movrs"),
            (7, 1, Reg::Ecx, 5, "msr_imm"),
            (7, 1, Reg::Edx, 19, "avx10"),
            (0x24, 0, Reg::Ebx, 18, "avx10_512"),
            (0x4000_0001, 0, Reg::Eax, 11, "kvm_pv_ipi"),
            (0x4000_0001, 0, Reg::Eax, 24, "kvmclock_stable"),
            (0x8000_0001, 0, Reg::Ecx, 22, "topoext"),
            (0x8000_0001, 0, Reg::Ecx, 29, "mwaitx"),
            (0x8000_0001, 0, Reg::Edx, 20, "nx"),
            (0x8000_0001, 0, Reg::Edx, 29, "lm"),
            (0x8000_0008, 0, Reg::Ebx, 12, "ibpb"),
            (0x8000_0008, 0, Reg::Ebx, 24, "ssbd"),
            (0x8000_0008, 0, Reg::Ebx, 30, "ibpb_ret"),
            (0x8000_0008, 0, Reg::Ebx, 20, "efer_lmsle_mbz"),
            (0x8000_0021, 0, Reg::Eax, 5, "verw_clear"),
            (0x8000_0021, 0, Reg::Eax, 8, "autoibrs"),
            (0x8000_0021, 0, Reg::Eax, 29, "srso_no"),
            (0x8000_0021, 0, Reg::Ecx, 2, "tsa_l1_no"),
            (0xC000_0001, 0, Reg::Edx, 13, "pmm_en"),
        ] {
            assert_eq!(find(leaf, index, reg).bit_name(bit), name);
        }
        assert!(WORDS.iter().all(|w| w.names.split_whitespace().count() <= 32));
        assert_eq!(find(7, 0, Reg::Ecx).bit_name(15), "cpuid 0x7.0 ecx bit 15");
    }

    #[test]
    fn dynamic_bits_are_not_required() {
        assert_eq!(find(1, 0, Reg::Ecx).required(), !(1 << 27 | 1 << 31));
        assert_eq!(find(7, 0, Reg::Ecx).required(), !(1 << 4));
    }
}
