//! IA32_ARCH_CAPABILITIES: what a CPU says about holes in it, and about registers to stop them
//! with.
//!
//! A guest reads it once, when it boots, and then leaves out what it believes not to need. So on
//! another host all that it was promised must hold. KVM takes any value for a vCPU; what guests get
//! is decided here.

use anyhow::Context;
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::Kvm;

/// The MSR's number.
pub(super) const ARCH_CAPABILITIES: u32 = 0x10A;

/// What a bit says to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sense {
    /// "Not vulnerable", or "there is a remedy": another host must say so, too.
    Promise,
    /// "Vulnerable": a guest that was not told must not come to a host that says so.
    Warning,
    /// Nothing to guests: they do not get it.
    Hidden,
}

use Sense::{Hidden, Promise, Warning};

/// Bits with their names (SDM volume 4, 2.1; Linux, arch/x86/include/asm/msr-index.h).
///
/// Hidden are those whose registers KVM does not give to guests, and what only nested guests need.
const BITS: &[(u32, Sense, &str)] = &[
    (0, Promise, "RDCL_NO"),
    (1, Promise, "IBRS_ALL"),
    (2, Warning, "RSBA"),
    (3, Hidden, "SKIP_L1DFL_VMENTRY"),
    (4, Promise, "SSB_NO"),
    (5, Promise, "MDS_NO"),
    (6, Promise, "PSCHANGE_MC_NO"),
    (7, Promise, "TSX_CTRL_MSR"),
    (8, Promise, "TAA_NO"),
    (9, Hidden, "MCU_CONTROL"),
    (10, Hidden, "MISC_PACKAGE_CTLS"),
    (11, Hidden, "ENERGY_FILTERING_CTL"),
    (12, Hidden, "DOITM"),
    (13, Promise, "SBDR_SSDP_NO"),
    (14, Promise, "FBSDP_NO"),
    (15, Promise, "PSDP_NO"),
    (16, Hidden, "MCU_ENUMERATION"),
    (17, Promise, "FB_CLEAR"),
    (18, Hidden, "FB_CLEAR_CTRL"),
    (19, Warning, "RRSBA"),
    (20, Promise, "BHI_NO"),
    (21, Hidden, "XAPIC_DISABLE_STATUS"),
    (22, Hidden, "MCU_EXTENDED_SERVICE"),
    (23, Hidden, "OVERCLOCKING_STATUS"),
    (24, Promise, "PBRSB_NO"),
    (25, Hidden, "GDS_CTRL"),
    (26, Promise, "GDS_NO"),
    (27, Promise, "RFDS_NO"),
    (28, Promise, "RFDS_CLEAR"),
    (62, Promise, "ITS_NO"),
];

/// The numbers of the bits that are set.
pub(super) fn bits(word: u64) -> impl Iterator<Item = u32> {
    (0..64).filter(move |bit| word >> bit & 1 == 1)
}

/// All bits of one sense.
fn mask(sense: Sense) -> u64 {
    BITS.iter().filter(|b| b.1 == sense).fold(0, |all, b| all | 1 << b.0)
}

fn name(bit: u32) -> String {
    match BITS.iter().find(|b| b.0 == bit) {
        Some((_, _, name)) => (*name).to_owned(),
        None => format!("MSR {ARCH_CAPABILITIES:#x} bit {bit}"),
    }
}

/// What a guest gets of a value that a host has.
fn filter(host: u64) -> u64 {
    host & (mask(Promise) | mask(Warning))
}

/// What a new guest gets on this host; 0 if its KVM does not know the MSR.
pub(super) fn offered(kvm: &Kvm) -> anyhow::Result<u64> {
    const FAILED: &str = "cannot read the feature MSRs";
    let list = kvm.get_msr_feature_index_list().context(FAILED)?;
    if !list.as_slice().contains(&ARCH_CAPABILITIES) {
        return Ok(0);
    }
    let wanted = [kvm_msr_entry { index: ARCH_CAPABILITIES, ..Default::default() }];
    let mut msrs = Msrs::from_entries(&wanted).context(FAILED)?;
    kvm.get_msrs(&mut msrs).context(FAILED)?;
    Ok(filter(msrs.as_slice().first().map_or(0, |m| m.data)))
}

/// What a guest was told that does not hold on a host, by name; empty if all of it does.
pub(super) fn missing(guest: u64, host: u64) -> Vec<String> {
    let broken = guest & !mask(Warning) & !(host & mask(Promise));
    let unwarned = host & !guest & mask(Warning);
    let mut missing: Vec<String> = bits(broken).map(name).collect();
    missing.extend(bits(unwarned).map(|bit| format!("returns without {}", name(bit))));
    missing
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn promises_must_hold() {
        assert_eq!(missing(0b10_0001, 0b10_0001), [""; 0]);
        assert_eq!(missing(0b10_0001, 0b11_0011), [""; 0], "a better host");
        assert_eq!(missing(0b10_0001, 0), ["RDCL_NO", "MDS_NO"]);
        let missing = missing(1 << 7 | 1 << 8 | 1 << 20 | 1 << 26 | 1 << 27 | 1 << 62, 0);
        assert_eq!(missing, ["TSX_CTRL_MSR", "TAA_NO", "BHI_NO", "GDS_NO", "RFDS_NO", "ITS_NO"]);
    }

    #[test]
    fn warnings_count_the_other_way() {
        assert_eq!(missing(1 << 2 | 1 << 19, 0), [""; 0]);
        assert_eq!(missing(0, 1 << 2 | 1 << 19), ["returns without RSBA", "returns without RRSBA"]);
    }

    #[test]
    fn unknown_and_hidden_bits_are_refused_even_if_the_host_has_them() {
        assert_eq!(missing(1 << 40, !mask(Warning)), ["MSR 0x10a bit 40"]);
        assert_eq!(missing(1 << 18, !mask(Warning)), ["FB_CLEAR_CTRL"]);
        assert_eq!(filter(u64::MAX) & (1 << 40 | 1 << 18 | 1 << 3), 0);
    }

    proptest! {
        /// A guest can go back where it came from, and on to any host that promises as much and
        /// warns of no more.
        #[test]
        fn a_guest_can_go_where_nothing_is_lost(host in any::<u64>(), more in any::<u64>()) {
            let guest = filter(host);
            prop_assert!(missing(guest, host).is_empty());
            let better = (host | more & mask(Promise)) & !(more & mask(Warning));
            prop_assert!(missing(guest, better).is_empty());
            let worse = host & !(more & mask(Promise)) | more & mask(Warning);
            prop_assert_eq!(missing(guest, worse).is_empty(), filter(worse) == guest);
        }
    }
}
