//! Tests of the CPUID that guests get, on made-up hosts and on this one.

use super::super::compat::{CpuDescriptionV1, missing_features};
use super::*;
use proptest::prelude::*;
use wherry_codec::{decode, encode};

fn leaf(function: u32, index: u32, regs: [u32; 4]) -> kvm_cpuid_entry2 {
    let [eax, ebx, ecx, edx] = regs;
    kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
}

/// An AMD-like host with everything set that is to be hidden.
fn host() -> Vec<kvm_cpuid_entry2> {
    vec![
        leaf(0, 0, [0xD, 0x6874_7541, 0x444D_4163, 0x6974_6E65]),
        leaf(1, 0, [0xA20F10, 0x0710_0800, u32::MAX, u32::MAX]),
        leaf(4, 0, [0x21 | 0x7 << 26, 0, 0, 0]),
        leaf(4, 3, [0x63 | 0x7 << 26, 0, 0, 0]),
        leaf(6, 0, [0xFF, 2, 1, 0]),
        leaf(7, 0, [1, u32::MAX, u32::MAX, u32::MAX]),
        leaf(0xA, 0, [0x0730_0404, 0, 0, 0x603]),
        leaf(0xD, 0, [0x602E7, 0, 11008, 0]),
        leaf(0xD, 1, [0x1F, 0, 0x1900, 0]),
        leaf(0xD, 2, [256, 576, 0, 0]),
        leaf(0xD, 9, [8, 2432, 0, 0]),
        leaf(0xD, 11, [16, 0, 1, 0]),
        leaf(0xD, 18, [8192, 2816, 6, 0]),
        leaf(0x24, 0, [1, 0xF07_0002, 0, 0]),
        leaf(0x24, 1, [0, 0, 4, 0]),
        leaf(0x29, 0, [0, 1, 0, 0]),
        leaf(0x4000_0000, 0, [0x4000_0001, 0x4B4D_564B, 0x564B_4D56, 0x4D]),
        leaf(0x4000_0001, 0, [0x0100_7EFB, 0, 0, 0]),
        leaf(0x8000_0000, 0, [0x8000_0021, 0, 0, 0]),
        leaf(0x8000_0001, 0, [0, 0, u32::MAX, u32::MAX]),
        leaf(0x8000_0007, 0, [0, 0, 0, 0x100]),
        leaf(0x8000_0008, 0, [0x3030, 0, 0x4007, 0]),
        leaf(0x8000_000A, 0, [1, 8, 0, 0]),
        leaf(0x8000_001D, 3, [0x163, 0, 0, 0]),
        leaf(0x8000_001E, 0, [0, 0x100, 0, 0]),
    ]
}

fn get(cpuid: &CpuId, function: u32, index: u32) -> Option<[u32; 4]> {
    let entry = cpuid.as_slice().iter().find(|e| (e.function, e.index) == (function, index))?;
    Some([entry.eax, entry.ebx, entry.ecx, entry.edx])
}

#[test]
fn what_cannot_move_is_hidden() {
    let cpuid = filter(&host()).unwrap();
    let [_, _, ecx, _] = get(&cpuid, 1, 0).unwrap();
    assert_eq!(ecx & (1 << 5 | 1 << 3 | 1 << 15), 0, "vmx, monitor, pdcm");
    assert_ne!(ecx & (HYPERVISOR | X2APIC | TSC_DEADLINE), 0);
    assert_eq!(get(&cpuid, 0xA, 0), None);
    assert_eq!(get(&cpuid, 0x8000_000A, 0), None);
    assert_eq!(get(&cpuid, 0x29, 0), None);
    assert_eq!(get(&cpuid, 0x24, 0), Some([0, 7 << 16 | 2, 0, 0]));
    assert_eq!(get(&cpuid, 0x24, 1), None);
    assert_eq!(get(&cpuid, 0x8000_0007, 0), Some([0; 4]));
    assert_eq!(get(&cpuid, 6, 0), Some([ARAT, 0, 0, 0]));
    let [_, _, _, edx] = get(&cpuid, 7, 0).unwrap();
    assert_eq!(edx & (1 << 20 | 1 << 22 | 1 << 24 | 1 << 25), 0, "ibt, amx");
    let [eax, ..] = get(&cpuid, 0x4000_0001, 0).unwrap();
    assert_eq!(eax & (1 << 4 | 1 << 10 | 1 << 14), 0, "async page faults");
    assert_eq!(eax & 1 << 7, 0, "kicks of halted vCPUs");
    assert_eq!(eax & (1 << 3 | 1 << 24), 1 << 3 | 1 << 24, "kvmclock stays");
    assert!(get(&cpuid, 0x4000_0000, 0).is_some(), "so does the signature");
}

#[test]
fn the_xsave_area_shrinks_with_its_components() {
    let cpuid = filter(&host()).unwrap();
    assert_eq!(get(&cpuid, 0xD, 0), Some([0x2E7, 0, 2440, 0]));
    assert_eq!(get(&cpuid, 0xD, 1), Some([0xF, 0, 0, 0]));
    assert!(get(&cpuid, 0xD, 9).is_some());
    assert_eq!(get(&cpuid, 0xD, 11), None);
    assert_eq!(get(&cpuid, 0xD, 18), None);
}

#[test]
fn every_vcpu_has_its_own_ids() {
    let template = filter(&host()).unwrap();
    for count in [1u32, 2, 3, 8, 64, 254] {
        let ids = count.next_power_of_two();
        for id in [0, count - 1] {
            let cpuid = per_vcpu(&template, id, count).unwrap();
            let [_, ebx, _, edx] = get(&cpuid, 1, 0).unwrap();
            assert_eq!((ebx >> 24, ebx >> 16 & 0xFF), (id, ids.min(255)));
            assert_eq!(edx & HTT != 0, count > 1);
            assert_eq!(get(&cpuid, 0xB, 0), Some([0, 1, 0x100, id]));
            assert_eq!(get(&cpuid, 0xB, 1), Some([ids.trailing_zeros(), count, 0x201, id]));
            assert_eq!(get(&cpuid, 0xB, 2), Some([0, 0, 2, id]));
            assert_eq!(get(&cpuid, 0x1F, 0), None);
            assert_eq!(get(&cpuid, 0x8000_001E, 0), Some([id, id, 0, 0]));
            let [_, _, ecx, _] = get(&cpuid, 0x8000_0008, 0).unwrap();
            assert_eq!(ecx, (count - 1) | ids.trailing_zeros() << 12);
            let [l1, ..] = get(&cpuid, 4, 0).unwrap();
            let [l3, ..] = get(&cpuid, 4, 3).unwrap();
            assert_eq!((l1 >> 14 & 0xFFF, l3 >> 14 & 0xFFF), (0, ids - 1));
            assert_eq!(l1 >> 26, (ids - 1).min(63));
        }
    }
}

#[test]
fn an_empty_host_does_no_harm() {
    let cpuid = filter(&[]).unwrap();
    assert!(per_vcpu(&cpuid, 0, 1).unwrap().as_slice().is_empty());
    let refused = to_cpuid(&[kvm_cpuid_entry2::default(); 300]).unwrap_err().to_string();
    assert!(refused.contains("300 entries"), "{refused}");
}

proptest! {
    /// Whatever a host's CPUID says, its guest can stay; the description arrives as it was sent;
    /// and any bit that the guest was not given is refused.
    #[test]
    fn guests_of_any_host_can_be_moved(
        leaves in prop::collection::btree_map(
            (
                prop::sample::select(vec![
                    0u32, 1, 2, 4, 6, 7, 0xB, 0xD, 0x14, 0x1D, 0x1E, 0x1F, 0x24, 0x29, 0x4000_0000,
                    0x4000_0001,
                    0x8000_0000, 0x8000_0001, 0x8000_0007, 0x8000_0008, 0x8000_001F, 0x8000_0021,
                    0xC000_0001,
                ]),
                0u32..3,
            ),
            any::<[u32; 4]>(),
            0..40,
        ),
        arch_capabilities in any::<u64>(),
        tsc_khz in any::<u32>(),
        bit in 0u32..32,
    ) {
        let host: Vec<_> = leaves.into_iter().map(|((f, i), regs)| leaf(f, i, regs)).collect();
        let cpuid = filter(&host).unwrap().as_slice().to_vec();
        prop_assert_eq!(missing_features(&cpuid, &host), [""; 0]);
        for at in 0..cpuid.len() {
            for reg in Reg::ALL {
                let mut more = cpuid.clone();
                *reg.of_mut(&mut more[at]) |= 1 << bit;
                let allowed = rules::allowed((more[at].function, more[at].index, reg));
                let hidden = allowed >> bit & 1 == 0;
                prop_assert!(!hidden || !missing_features(&more, &host).is_empty());
            }
        }
        let description = CpuDescriptionV1 { cpuid, arch_capabilities, tsc_khz };
        let arrived: CpuDescriptionV1 = decode(&encode(&description).unwrap()).unwrap();
        prop_assert_eq!(arrived, description);
    }
}
