//! Drivers, hosts and peers that lie.

use wherry_codec::{decode, encode};
use wherry_devices::device::Saved;
use wherry_devices::virtio::mmio::VirtioStateV1;
use wherry_devices::virtio::mmio::regs::{self, status};
use wherry_devices::virtio::net::{NetOptions, NetStateV1, QUEUE_SIZE};

use super::*;
use crate::driver::PAGE;

fn needs_reset(guest: &Guest) -> bool {
    guest.bench.read(offset::STATUS, 4) as u32 & status::NEEDS_RESET != 0
}

#[test]
fn a_chain_without_room_for_a_header_comes_back_empty_and_takes_no_frame() {
    let mut guest = Guest::up();
    guest.wire.send(frame(60, 1));
    for bufs in [&[inb(FROM, 11)][..], &[out(FROM, 100)], &[inb(FROM, 0), inb(FROM, 5)]] {
        let head = guest.add(RX, bufs);
        assert_eq!(guest.used(), [(RX, head, 0)]);
    }
    assert_eq!(guest.wire.seen().reads, 0);
    let head = guest.add(RX, &[out(FROM, 9), inb(FROM, 72)]);
    assert_eq!(guest.used(), [(RX, head, 72)]);
}

#[test]
fn a_frame_ends_where_the_drivers_memory_does() {
    let mut guest = Guest::up();
    for (bufs, len) in [
        (&[inb(END - 40, 40), inb(END, 100)][..], 40),
        (&[inb(u64::MAX - 8, 100)], 0),
        (&[inb(END, u32::MAX), inb(FROM, u32::MAX)], 0),
    ] {
        guest.wire.send(frame(60, 1));
        let head = guest.add(RX, bufs);
        assert_eq!(guest.used(), [(RX, head, len)]);
    }
    // In the second of two chains.
    guest.wire.send(frame(60, 1));
    let heads = [inb(FROM, 30), inb(END, 100)].map(|buf| guest.add(RX, &[buf]));
    assert_eq!(guest.used(), [(RX, heads[0], 30), (RX, heads[1], 0)]);
    assert_eq!(guest.get(FROM + 10, 2), [2, 0]);
    guest.wire.send(frame(60, 2));
    let head = guest.add(RX, &[inb(FROM, 72)]);
    assert_eq!(guest.used(), [(RX, head, 72)], "it goes on");
    assert!(!needs_reset(&guest));
}

#[test]
fn a_frame_that_no_ring_full_of_crumbs_holds_is_lost_and_the_next_arrives() {
    let mut guest = Guest::up();
    guest.wire.send(frame(MAX_FRAME - HEADER, 1));
    for _ in 1..QUEUE_SIZE {
        guest.add(RX, &[inb(FROM, 12)]);
    }
    assert!(guest.used().is_empty() && !guest.bench.turn(), "one may come, and the device rests");
    guest.driver.chain(&guest.bench, RX, &[inb(FROM, 12)]).unwrap();
    let turns = (0..1000).take_while(|_| guest.bench.turn()).count();
    assert!(turns < 1000 && guest.used().is_empty(), "it rests again");
    guest.wire.send(frame(60, 2));
    guest.bench.run();
    assert_eq!(guest.used().len(), 6);
    assert!(!needs_reset(&guest));
}

#[test]
fn a_frame_is_not_spread_over_thousands_of_crumbs() {
    let mut guest = Guest::up();
    let crumbs = [inb(FROM, 1); 256];
    for _ in 0..3 {
        guest.driver.indirect(&guest.bench, FROM + PAGE, &crumbs).unwrap();
    }
    guest.wire.send(frame(700, 1));
    guest.bench.run();
    assert!(guest.used().is_empty() && !needs_reset(&guest), "lost");
    guest.wire.send(frame(400, 2));
    guest.bench.run();
    assert_eq!(guest.used().iter().map(|used| used.2).collect::<Vec<_>>(), [256, 156]);
}

#[test]
fn a_frame_that_a_driver_at_rest_has_no_room_for_does_not_hold_up_others_for_ever() {
    for features in [u64::MAX, !regs::F_EVENT_IDX] {
        let mut guest = Guest::up_on(Wire::new(), features);
        let at = |nth| FROM + nth * PAGE;
        let heads = [0, 1, 2].map(|nth| guest.add(RX, &[inb(at(nth), 100)]));
        guest.wire.send(frame(1000, 1));
        guest.bench.run();
        assert!(guest.used().is_empty() && !guest.bench.turn(), "it waits for room");
        guest.wire.send(frame(60, 2));
        guest.bench.run();
        // A driver that has not looked yet is about to make room: it is waited for.
        for nth in 3..6 {
            guest.wire.send(frame(if nth == 3 { 1000 } else { 60 }, nth));
            guest.bench.run();
        }
        assert_eq!(guest.used(), [(RX, heads[0], 72)]);
        assert_eq!(guest.get(at(0), 72), got(frame(60, 2), 1));
        let cause = guest.bench.read(offset::INTERRUPT_STATUS, 4) as u32;
        guest.bench.write(offset::INTERRUPT_ACK, &cause.to_le_bytes());
        // It has not.
        guest.wire.send(frame(60, 6));
        guest.bench.run();
        assert_eq!(guest.used(), [(RX, heads[1], 72), (RX, heads[2], 72)]);
        assert_eq!(guest.get(at(1), 72), got(frame(60, 4), 1));
        assert_eq!(guest.get(at(2), 72), got(frame(60, 5), 1));
    }
}

#[test]
fn what_is_no_frame_is_not_sent() {
    let mut guest = Guest::up();
    let mut gso = frame(60, 1);
    gso[..2].copy_from_slice(&[HDR_NEEDS_CSUM, GSO_TCPV4]);
    let mut start = frame(60, 1);
    (start[0], start[6]) = (HDR_NEEDS_CSUM, 59);
    for bad in [&[][..], &frame(13, 1), &frame(0, 0)[..11], &gso, &start] {
        guest.transmit(bad);
    }
    for bufs in [
        &[out(FROM, 72), out(END, 1)][..],
        &[out(u64::MAX - 1, 72)],
        &[out(FROM, MAX_FRAME as u32), out(FROM, 1)],
        &[out(FROM, u32::MAX), out(FROM, u32::MAX)],
        &[inb(FROM, 72)],
    ] {
        let head = guest.add(TX, bufs);
        assert_eq!(guest.used(), [(TX, head, 0)]);
    }
    assert_eq!(guest.wire.take(), [] as [Vec<u8>; 0]);
    guest.transmit(&frame(60, 2));
    let longest = frame(MAX_FRAME - HEADER, 3);
    guest.transmit(&longest);
    assert!(guest.wire.take() == [frame(60, 2), longest]);
}

#[test]
fn what_is_no_command_is_refused() {
    let mut guest = Guest::up();
    for command in [&[][..], &[3], &[3, 1], &[3, 0, 0], &[0, 0, 1], &[255; 600], &[4, 0, 1, 0]] {
        assert_eq!(guest.command(command), CTRL_ERR, "{command:?}");
    }
    // Without room for an answer nothing is done.
    guest.put(FROM, &[&CTRL_GUEST_OFFLOADS_SET[..], &[0; 8]].concat());
    let before = guest.wire.seen().offloads.len();
    for bufs in [&[out(FROM, 10)][..], &[out(FROM, 10), inb(FROM, 0)]] {
        let head = guest.add(CTRL, bufs);
        assert_eq!(guest.used(), [(CTRL, head, 0)]);
    }
    assert_eq!(guest.wire.seen().offloads.len(), before);
    let head = guest.add(CTRL, &[out(END, 10), inb(FROM + PAGE, 1)]);
    assert_eq!((guest.used(), guest.get(FROM + PAGE, 1)), (vec![(CTRL, head, 1)], vec![CTRL_ERR]));
    let head = guest.add(CTRL, &[out(FROM, 10), inb(END, 1)]);
    assert_eq!(guest.used(), [(CTRL, head, 0)]);
}

/// Why a saved state is refused, after `lie` had it.
fn refused(guest: &Guest, wire: Wire, lie: impl Fn(&mut VirtioStateV1<NetStateV1>)) -> String {
    let (saved, ram) = guest.bench.save();
    let mut state = decode(&saved.bytes).unwrap();
    lie(&mut state);
    let saved = Saved { bytes: encode(&state).unwrap(), ..saved };
    let built = Bench::with_net(wire, &ram[..RAM], Some(&saved));
    let error = built.err().expect("a lie that is believed");
    let source = std::error::Error::source(&error).unwrap();
    let cause = source.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}: {source}{cause}")
}

#[test]
fn a_state_that_contradicts_itself_or_this_host_is_refused() {
    let guest = Guest::up_on(Wire::new(), !(feature::GUEST_TSO6 | feature::GUEST_ANNOUNCE));
    for bits in [feature::GUEST_TSO6, feature::CSUM, 1 << 63] {
        let why = refused(&guest, Wire::new(), |state| state.device.guest_offloads = bits);
        assert!(why.contains("cannot restore `net0`") && why.contains("not agreed"), "{why}");
    }
    let why = refused(&guest, Wire::new(), |state| state.device.announce = true);
    assert!(why.contains("does not know how"), "{why}");
    // Nothing was agreed on with a driver that is not up.
    let why = refused(&guest, Wire::new(), |state| state.mmio.status &= !status::DRIVER_OK);
    assert!(why.contains("not agreed"), "{why}");
    let poor = Wire::new();
    poor.seen().plain = true;
    let why = refused(&guest, poor, |_| ());
    assert!(why.contains("this host's has none"), "{why}");
}

#[test]
fn an_impossible_network_is_refused() {
    let fine = NetOptions { mac: [2, 0, 0, 0, 0, 1], mtu: Some(68), offloads: true };
    fine.check().unwrap();
    for mac in [[0; 6], [0xff; 6], [1, 0, 0, 0, 0, 1]] {
        NetOptions { mac, ..fine.clone() }.check().unwrap_err();
    }
    NetOptions { mtu: Some(67), ..fine }.check().unwrap_err();
    let wire = Wire::new();
    wire.seen().mtu = Some(1);
    let error = Bench::with_net(wire, &[0; RAM], None).err().unwrap();
    assert!(error.to_string().contains("cannot build `net0`"));
}
