//! Inputs to begin with.

use wherry_devices::virtio::vsock::constants::op as packet;

use super::op;

const UP: [u8; 5] = [op::UP, 0, 0, 0, 0];
const EVENTS: [u8; 4] = [op::EVENT, 8, op::EVENT, 8];
const RUN: [u8; 1] = [op::RUN];
const MOVE: [u8; 1] = [op::MOVE];
/// Ports of a connection: the latest that the host asked for, and one of the guest's own.
const ASKED: u8 = 0;
const OWN: u8 = 0x81;

/// Room for three packets.
fn room() -> Vec<u8> {
    [[op::ROOM, 0, 3, 0], [op::ROOM, 0, 4, 1], [op::ROOM, 0, 2, 4]].concat()
}

fn send(ports: u8, what: u16, flags: u8, len: u16, shape: u8) -> Vec<u8> {
    let len = len.to_le_bytes();
    vec![op::SEND, ports, what as u8, flags, 0, len[0], len[1], shape]
}

/// A packet of a guest that has room for 100 bytes.
fn narrow(ports: u8, what: u16) -> Vec<u8> {
    vec![op::SEND, ports, what as u8, 0, 128, 100, 0, 0, 0, 0, 0, 0]
}

fn host(what: u8, nth: u8, len: u16) -> Vec<u8> {
    [&[what, nth][..], &len.to_le_bytes()].concat()
}

/// From either side, both ways, lies, ends, and moves.
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let begin = [&UP[..], &EVENTS, &room()].concat();
    let client = [&[op::CLIENT, 9, 0][..], &RUN].concat();
    let accept = [send(ASKED, packet::RESPONSE, 0, 0, 0), RUN.to_vec()].concat();
    let connect = [send(OWN, packet::REQUEST, 0, 0, 0), RUN.to_vec()].concat();
    let talk = |ports| {
        let there = [host(op::WRITE, 0, 500), room(), RUN.to_vec()].concat();
        let back = [send(ports, packet::RW, 0, 300, 0x20), RUN.to_vec()].concat();
        [there, back, host(op::READ, 0, 1000)].concat()
    };
    let asked = [&begin[..], &client, &accept, &talk(ASKED)].concat();
    let own = [&begin[..], &connect, &talk(OWN)].concat();
    let flood = |times, shape| vec![op::FLOOD, OWN, times, shape];
    let large = host(op::READ, 0, u16::MAX);
    let end = |flags| [send(OWN, packet::SHUTDOWN, flags, 0, 0), room(), RUN.to_vec()].concat();
    let close = |how| [vec![op::CLOSE, 0, how], room(), RUN.to_vec()].concat();
    let lies: Vec<u8> = (8..16)
        .flat_map(|shape| [connect.clone(), send(OWN, packet::RW, 0, 90, shape)].concat())
        .collect();
    let refused: Vec<u8> = (0..40)
        .flat_map(|nth| [send(0x80 | nth, packet::RW, 0, 9, 0), RUN.to_vec()].concat())
        .collect();
    let nonsense = (0..4).flat_map(|nth| [op::CLIENT, nth, 0]).collect::<Vec<_>>();
    let on = [&room()[..], &RUN, &EVENTS, &RUN].concat();
    let how_much = [send(OWN, packet::CREDIT_REQUEST, 0, 0, 0), room(), RUN.to_vec()].concat();
    let written = [host(op::WRITE, 0, 500), room(), RUN.to_vec(), room(), RUN.to_vec()].concat();
    // It is sent before the host takes more, and comes after what waits.
    let last = [send(OWN, packet::RW, 0, 300, 0), large.clone(), RUN.to_vec()].concat();
    let small = narrow(ASKED, packet::RESPONSE);
    vec![
        ("asked", asked.clone()),
        ("own", own.clone()),
        (
            "moved",
            [&asked[..], &MOVE, &on, &client, &accept, &talk(ASKED), &MOVE, &MOVE, &on].concat(),
        ),
        ("reset", [&own[..], &UP, &own].concat()),
        ("flood", [&own[..], &flood(95, 0), &how_much, &large].concat()),
        ("narrow", [&begin[..], &client, &small, &RUN, &written].concat()),
        ("behind", [&own[..], &flood(45, 0), &last, &large, &RUN, &large, &RUN, &large].concat()),
        (
            "slow",
            [&own[..], &flood(60, 0x20), &large, &RUN, &large, &flood(30, 0), &large].concat(),
        ),
        ("guest-ends", [&own[..], &end(1), &end(2), &own, &end(3), &large].concat()),
        (
            "host-ends",
            [&own[..], &close(0), &close(1), &own, &close(2), &asked, &close(2)].concat(),
        ),
        (
            "forgotten",
            [
                &own[..],
                &flood(55, 0),
                &send(OWN, packet::RST, 0, 0, 0),
                &RUN,
                &large,
                &connect,
                &large,
            ]
            .concat(),
        ),
        ("lies", [&begin[..], &lies, &RUN, &room(), &RUN].concat()),
        ("refused", [&begin[..], &refused, &room(), &RUN].concat()),
        ("nonsense", [&begin[..], &nonsense, &RUN, &host(op::READ, 0, 9)].concat()),
        ("nobody", [&begin[..], &[op::LISTEN, 1, 0], &connect, &room(), &RUN].concat()),
    ]
}
