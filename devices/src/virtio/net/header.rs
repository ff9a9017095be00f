//! The header in front of a frame: what one side may leave to the other.
//!
//! Both ways it comes from somebody who is not believed: the guest, for whom the host's kernel
//! would act on it, and the host, whose queue may still have frames from before the driver changed
//! its mind.

use super::constants::*;
use crate::host::Offloads;

/// What frames to the guest may leave to it.
pub fn to_guest(bits: u64) -> Offloads {
    offloads(
        bits,
        [feature::GUEST_CSUM, feature::GUEST_TSO4, feature::GUEST_TSO6, feature::GUEST_ECN],
    )
}

/// What frames from the guest may leave to the host.
pub fn to_host(features: u64) -> Offloads {
    offloads(features, [feature::CSUM, feature::HOST_TSO4, feature::HOST_TSO6, feature::HOST_ECN])
}

/// Segments need checksums of their own, and ECN is of segments (section 5.1.3.1).
fn offloads(bits: u64, [csum, tso4, tso6, ecn]: [u64; 4]) -> Offloads {
    let has = |bit| bits & bit != 0;
    let (tso4, tso6) = (has(csum) && has(tso4), has(csum) && has(tso6));
    Offloads { csum: has(csum), tso4, tso6, ecn: (tso4 || tso6) && has(ecn) }
}

/// Makes the header of a frame fit to be passed on. `false`: the frame is not, since its header
/// leaves more to who gets it than was agreed, or contradicts itself.
pub fn check(frame: &mut [u8], allowed: Offloads) -> bool {
    let Some((header, body)) = frame.split_first_chunk_mut::<HEADER>() else { return false };
    let [flags, gso, h0, h1, s0, s1, c0, c1, o0, o1, count @ ..] = header;
    let word = |low: &u8, high: &u8| usize::from(u16::from_le_bytes([*low, *high]));
    *count = [0; 2];
    *flags &= HDR_NEEDS_CSUM | if allowed.csum { HDR_DATA_VALID } else { 0 };
    let needs_csum = *flags & HDR_NEEDS_CSUM != 0;
    // Two bytes at csum_offset from csum_start.
    if needs_csum && !(allowed.csum && word(c0, c1) + word(o0, o1) + 2 <= body.len()) {
        return false;
    }
    let agreed = match *gso & !GSO_ECN {
        GSO_NONE => return *gso == GSO_NONE,
        GSO_TCPV4 => allowed.tso4,
        GSO_TCPV6 => allowed.tso6,
        _ => false,
    };
    let ecn = *gso & GSO_ECN == 0 || allowed.ecn;
    agreed && ecn && needs_csum && word(s0, s1) > 0 && word(h0, h1) <= body.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Offloads = Offloads { csum: true, tso4: true, tso6: true, ecn: true };

    /// A frame of 100 bytes behind the header.
    fn frame(flags: u8, gso: u8, [header, size, start, offset]: [u16; 4]) -> Vec<u8> {
        let words = [header, size, start, offset, 0xffff].map(u16::to_le_bytes);
        [&[flags, gso][..], &words.concat(), &[7; 100]].concat()
    }

    #[test]
    fn what_was_agreed_passes_and_the_rest_does_not() {
        let fine = |allowed, flags, gso, words| check(&mut frame(flags, gso, words), allowed);
        let none = Offloads::default();
        let csum = Offloads { csum: true, ..none };
        assert!(fine(none, 0, 0, [0; 4]) && fine(none, 0, 0, [0xffff; 4]));
        assert!(fine(csum, 1, 0, [0, 0, 34, 64]) && !fine(none, 1, 0, [0, 0, 34, 16]));
        assert!(!fine(ALL, 1, 0, [0, 0, 34, 65]) && !fine(ALL, 1, 0, [0, 0, 0xffff, 0xffff]));
        for (gso, allowed) in
            [(1, Offloads { tso4: true, ..csum }), (4, Offloads { tso6: true, ..csum })]
        {
            let words = [54, 1448, 34, 16];
            assert!(fine(allowed, 1, gso, words) && !fine(csum, 1, gso, words));
            assert!(!fine(allowed, 1, 5 - gso, words), "the other one");
            assert!(!fine(allowed, 1, gso | 0x80, words) && fine(ALL, 1, gso | 0x80, words));
            assert!(!fine(allowed, 0, gso, words), "segments without checksums");
            assert!(!fine(allowed, 1, gso, [54, 0, 34, 16]), "segments of no bytes");
            assert!(!fine(allowed, 1, gso, [101, 1448, 34, 16]), "a header longer than the frame");
        }
        for gso in [2, 3, 5, 6, 0x7f, 0x80, 0xff] {
            assert!(!fine(ALL, 1, gso, [54, 1448, 34, 16]), "{gso}");
        }
        assert!(!check(&mut [0; HEADER - 1], ALL) && check(&mut [0; HEADER], none));
    }

    #[test]
    fn what_nobody_agreed_on_is_taken_out() {
        let mut frame = frame(0xfe, 0, [0; 4]);
        assert!(check(&mut frame, ALL));
        assert_eq!((frame[0], &frame[10..12]), (HDR_DATA_VALID, &[0, 0][..]));
        assert!(check(&mut frame, Offloads::default()));
        assert_eq!(frame[0], 0);
    }

    #[test]
    fn segments_need_checksums_and_ecn_needs_segments() {
        use feature::*;
        assert_eq!(to_guest(u64::MAX), ALL);
        assert_eq!(to_host(u64::MAX), ALL);
        assert_eq!(
            to_guest(GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | HOST_OFFLOADS),
            Offloads::default()
        );
        let csum = Offloads { csum: true, ..Offloads::default() };
        assert_eq!(to_guest(GUEST_CSUM | GUEST_ECN), csum);
        assert_eq!(to_host(CSUM | HOST_ECN), csum);
        assert_eq!(to_host(CSUM | HOST_TSO6), Offloads { tso6: true, ..csum });
    }
}
