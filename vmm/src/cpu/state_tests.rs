//! Tests of the vCPU state that need no KVM.

use super::*;
use proptest::prelude::*;
use wherry_codec::{CodecError, decode, encode};

fn sample() -> VcpuStateV1 {
    VcpuStateV1 {
        id: 3,
        tsc: 1000,
        tsc_deadline: 0,
        regs: kvm_regs { rip: 0x1000, ..Default::default() },
        sregs: kvm_sregs::default(),
        xcrs: kvm_xcrs::default(),
        xsave: vec![7; XSAVE_BASE],
        debug_regs: kvm_debugregs::default(),
        msrs: vec![kvm_msr_entry { index: 0x277, data: 6, ..Default::default() }],
        lapic: kvm_lapic_state::default(),
        mp_state: kvm_mp_state::default(),
        events: kvm_vcpu_events::default(),
    }
}

#[test]
fn encoding_round_trips() {
    let bytes = encode(&sample()).unwrap();
    assert_eq!(decode::<VcpuStateV1>(&bytes).unwrap(), sample());
    assert!(decode::<VcpuStateV1>(&bytes[..bytes.len() - 1]).is_err());
    // Shorten `regs` by one byte and say so: kvm-bindings would fill it up with a zero.
    let at = encode(&(3u32, 0u64, 0u64)).unwrap().len();
    let mut short = bytes.clone();
    short[at] -= 1;
    short.remove(at + 8 + short[at] as usize);
    assert!(matches!(decode::<VcpuStateV1>(&short), Err(CodecError::NotCanonical)));
}

#[test]
fn impossible_lengths_are_refused() {
    let with = |change: fn(&mut VcpuStateV1)| {
        let mut state = sample();
        change(&mut state);
        state.check().is_err()
    };
    assert!(!with(|_| {}));
    assert!(with(|s| s.xsave.truncate(100)));
    assert!(with(|s| s.xsave.push(0)));
    assert!(with(|s| s.xsave.resize(1 << 20, 0)));
    assert!(with(|s| s.mp_state.mp_state = 5));
    assert!(with(|s| s.msrs.resize(5000, Default::default())));
}

proptest! {
    /// Damage is refused or decodes to something that encodes to the same bytes; nothing panics.
    #[test]
    fn damaged_state_never_panics(at in 0usize..7000, value in any::<u8>(),
        cut in any::<prop::sample::Index>()) {
        let mut bytes = encode(&sample()).unwrap();
        if let Some(byte) = bytes.get_mut(at) {
            *byte = value;
        }
        let _ = decode::<VcpuStateV1>(&bytes).map(|s| s.check());
        let _ = decode::<VcpuStateV1>(&bytes[..cut.index(bytes.len())]);
    }
}
