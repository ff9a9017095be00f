//! What frames may leave to the other side.

use wherry_devices::host::Offloads;

use super::*;

const NONE: Offloads = Offloads { csum: false, tso4: false, tso6: false, ecn: false };
const ALL: Offloads = Offloads { csum: true, tso4: true, tso6: true, ecn: true };

fn set(bits: u64) -> Vec<u8> {
    [&CTRL_GUEST_OFFLOADS_SET[..], &bits.to_le_bytes()].concat()
}

/// What the host is set to since the last time.
fn told(wire: &Wire) -> Vec<Offloads> {
    std::mem::take(&mut wire.seen().offloads)
}

#[test]
fn the_host_is_told_what_was_negotiated_and_nothing_is_left_after_a_reset() {
    let mut guest = Guest::up();
    assert_eq!(told(&guest.wire), [NONE, ALL]);
    let some = !(feature::GUEST_TSO6 | feature::GUEST_ECN);
    guest.probe_for(some);
    assert_eq!(told(&guest.wire), [NONE, Offloads { csum: true, tso4: true, ..NONE }]);
    guest.probe_for(!feature::GUEST_CSUM);
    assert_eq!(told(&guest.wire), [NONE, NONE], "segments need checksums");
}

#[test]
fn the_host_is_told_again_after_a_move() {
    let guest = Guest::up();
    let there = Wire::new();
    let mut moved = guest.moved_to(there.clone());
    assert_eq!(told(&there), [ALL], "before it runs");
    moved.resume();
    // What the driver chose last counts, there as well.
    assert_eq!(moved.command(&set(feature::GUEST_CSUM)), CTRL_OK);
    let csum = Offloads { csum: true, ..NONE };
    assert_eq!(told(&there), [csum]);
    let third = Wire::new();
    let mut moved = moved.moved_to(third.clone());
    assert_eq!(told(&third), [csum]);
    moved.resume();
    assert_eq!(moved.command(&set(feature::GUEST_OFFLOADS)), CTRL_OK);
    assert_eq!(told(&third), [ALL]);
}

#[test]
fn a_driver_that_is_not_up_brings_nothing_along() {
    let guest = Guest::up();
    guest.bench.write(offset::STATUS, &[0; 4]);
    let there = Wire::new();
    guest.moved_to(there.clone());
    assert_eq!(told(&there), [NONE]);
}

#[test]
fn what_was_not_agreed_on_is_refused() {
    let mut guest = Guest::up_on(Wire::new(), !feature::GUEST_TSO6);
    told(&guest.wire);
    for bits in [feature::GUEST_TSO6, u64::MAX, 1 << 10, 1 << 63, feature::CSUM] {
        assert_eq!(guest.command(&set(bits)), CTRL_ERR, "{bits:#x}");
    }
    assert_eq!(guest.command(&set(0)[..9]), CTRL_ERR);
    assert_eq!(guest.command(&[&set(0)[..], &[0]].concat()), CTRL_ERR);
    assert_eq!(told(&guest.wire), []);
    let mut guest = Guest::up_on(Wire::new(), !feature::CTRL_GUEST_OFFLOADS);
    assert_eq!(guest.command(&set(feature::GUEST_CSUM)), CTRL_ERR);
}

#[test]
fn a_network_without_offloads_offers_none() {
    let guest = Guest::up_on(Wire::plain(), u64::MAX);
    guest.bench.write(offset::DEVICE_FEATURES_SEL, &[0; 4]);
    let offered = guest.bench.read(offset::DEVICE_FEATURES, 4);
    let any = feature::GUEST_OFFLOADS | feature::HOST_OFFLOADS | feature::CTRL_GUEST_OFFLOADS;
    assert_eq!(offered & any, 0);
    assert_eq!(told(&guest.wire), [NONE, NONE]);
}

#[test]
fn a_frame_that_leaves_more_to_the_guest_than_it_takes_does_not_reach_it() {
    let mut guest = Guest::up_on(Wire::new(), !feature::GUEST_CSUM);
    let head = guest.add(RX, &[inb(FROM, 200)]);
    let mut left = frame(60, 1);
    left[0] = HDR_NEEDS_CSUM;
    guest.wire.send(left);
    let mut looked_at = frame(60, 2);
    looked_at[0] = HDR_DATA_VALID;
    guest.wire.send(looked_at);
    guest.bench.run();
    assert_eq!(guest.used(), [(RX, head, 72)]);
    assert_eq!(guest.get(FROM, 72), got(frame(60, 2), 1), "and it does not hear of checksums");
}
