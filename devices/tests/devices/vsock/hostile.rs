//! Drivers and saved states that lie.

use wherry_codec::{decode, encode};
use wherry_devices::device::Saved;
use wherry_devices::virtio::mmio::VirtioStateV1;
use wherry_devices::virtio::mmio::regs::status;
use wherry_devices::virtio::vsock::{EventBufferV1, VsockStateV1};

use super::*;

/// Whether everything still works.
fn fine(mut guest: Guest) {
    assert!(guest.bench.read(0x70, 4) as u32 & status::NEEDS_RESET == 0);
    let (end, header) = guest.client(99);
    guest.send(header, b"x");
    assert_eq!(end.take(), b"x");
}

#[test]
fn packets_that_belong_to_nothing_are_refused_and_refusals_are_not() {
    let mut guest = Guest::up();
    let lost = header(1, 2);
    for op in [op::RESPONSE, op::SHUTDOWN, op::RW, op::CREDIT_UPDATE, op::CREDIT_REQUEST, 0, 99] {
        guest.send(Header { op, ..lost }, &[]);
        let (refusal, _) = guest.packet();
        assert_eq!((refusal.op, refusal.src_port, refusal.dst_port), (op::RST, 2, 1));
    }
    guest.send(Header { op: op::RST, ..lost }, &[]);
    // Of another address, which is nobody.
    guest.send(Header { src_cid: 4, op: op::REQUEST, ..lost }, &[]);
    guest.send(Header { src_cid: CID | 1 << 32, op: op::REQUEST, ..lost }, &[]);
    assert_eq!(guest.ops(), NOTHING);
    // Of another kind than streams.
    guest.peers.listen(2);
    let at = TX_AT + u64::from(guest.driver.next(TX)) * 256;
    guest.put(at, &Header { kind: 2, op: op::REQUEST, ..lost }.bytes());
    guest.driver.chain(&guest.bench, TX, &[out(at, HEADER as u32)]).unwrap();
    guest.bench.run();
    let used = guest.driver.take_used(&guest.bench);
    let (.., head, _) = used.into_iter().find(|(queue, ..)| *queue == RX).unwrap();
    let bytes = guest.get(RX_AT + u64::from(head) * 256, HEADER);
    let refusal = Header::read(bytes.first_chunk().unwrap());
    assert_eq!((refusal.kind, refusal.op), (2, op::RST));
    fine(guest);
}

#[test]
fn what_breaks_the_rules_ends_the_connection() {
    let breaks: [(&str, Header, usize); 7] = [
        ("request again", Header { op: op::REQUEST, ..header(0, 0) }, 0),
        ("response again", Header { op: op::RESPONSE, ..header(0, 0) }, 0),
        ("no such operation", Header { op: 0, ..header(0, 0) }, 0),
        ("no such operation", Header { op: 8, ..header(0, 0) }, 0),
        ("no such operation", Header { op: u16::MAX, ..header(0, 0) }, 0),
        ("more than it has", header(0, 0), 1),
        ("more than there is room for", header(0, 0), BUFFER + 1),
    ];
    for (what, packet, len) in breaks {
        let mut guest = Guest::up();
        let (end, ports) = guest.connect(5000, 1234);
        let (src_port, dst_port) = (ports.src_port, ports.dst_port);
        let packet = Header { src_port, dst_port, len: len as u32, ..packet };
        guest.put(TX_AT, &packet.bytes());
        guest.driver.chain(&guest.bench, TX, &[out(TX_AT, HEADER as u32)]).unwrap();
        assert_eq!(guest.ops(), [op::RST], "{what}");
        assert!(end.closed(), "{what}");
        fine(guest);
    }
}

#[test]
fn a_guest_that_sends_more_than_there_is_room_for_is_cut_off() {
    let mut guest = Guest::up();
    let (end, header) = guest.connect(5000, 1234);
    end.set_room(0);
    for _ in 0..BUFFER / 512 {
        guest.send(header, &[1; 512]);
    }
    assert_eq!(guest.ops(), NOTHING, "it was told of no room");
    assert!(!end.closed());
    guest.send(header, &[1]);
    assert_eq!(guest.ops(), [op::RST]);
    assert!(end.closed());
    fine(guest);
}

#[test]
fn a_guest_that_lies_about_its_room_hurts_itself() {
    for (buf_alloc, fwd_cnt) in [(0, 0), (0, 1), (100, 101), (1000, u32::MAX / 2), (0, u32::MAX)] {
        let mut guest = Guest::up();
        let (end, header) = guest.connect(5000, 1234);
        end.send(&[1; 100]);
        assert_eq!(guest.packet().1.len(), 100);
        guest.send(Header { op: op::CREDIT_UPDATE, buf_alloc, fwd_cnt, ..header }, &[]);
        end.send(&[1; 100]);
        assert_eq!((guest.ops(), end.unread()), (vec![], 100), "{buf_alloc}, {fwd_cnt}");
        guest.send(Header { op: op::CREDIT_UPDATE, fwd_cnt: 100, ..header }, &[]);
        assert_eq!(guest.packet().1.len(), 100);
        fine(guest);
    }
}

#[test]
fn refusals_for_a_guest_without_room_are_bounded_and_none_is_lost() {
    let mut guest = Guest::cold();
    guest.driver.probe(&guest.bench);
    let (mut taken, all) = (0, 300);
    for port in 0..all {
        guest.send(Header { op: op::REQUEST, ..header(1, port) }, &[]);
        taken += guest.driver.take_used(&guest.bench).len();
    }
    assert_eq!(taken, 256, "the others wait");
    (0..32).for_each(|_| guest.give_room());
    let ports: Vec<_> = guest.packets().iter().map(|(header, _)| header.src_port).collect();
    assert_eq!(ports, (0..all).collect::<Vec<_>>());
}

#[test]
fn bytes_that_cannot_be_written_end_their_connection() {
    let mut guest = Guest::cold();
    guest.driver.probe(&guest.bench);
    guest.give_room();
    let (end, _) = guest.client(22);
    // The room after the next is behind the end of RAM.
    guest.driver.chain(&guest.bench, RX, &[inb((1 << 20) - 50, 500)]).unwrap();
    end.send(&[1; 1400]);
    assert_eq!(guest.ops(), [op::RW, op::RST]);
    assert!(end.closed());
    fine(guest);
}

#[test]
fn useless_chains_come_back() {
    let mut guest = Guest::cold();
    guest.driver.probe(&guest.bench);
    let bench = &guest.bench;
    let mut heads = Vec::new();
    for (queue, bufs) in [
        (RX, vec![out(RX_AT, 1000)]),
        (RX, vec![inb(RX_AT, HEADER as u32)]),
        (TX, vec![inb(TX_AT, 1000)]),
        (TX, vec![out(TX_AT, HEADER as u32 - 1)]),
        (TX, vec![out((1 << 20) - 4, 1000)]),
        (TX, vec![out(u64::MAX - 4, 1000)]),
        (EVENT, vec![inb(EVENT_AT, 3)]),
        (EVENT, vec![out(EVENT_AT, 4)]),
    ] {
        heads.push((queue, guest.driver.chain(bench, queue, &bufs).unwrap(), 0));
    }
    guest.bench.run();
    let mut used = guest.driver.take_used(&guest.bench);
    used.sort_unstable();
    heads.sort_unstable();
    assert_eq!(used, heads);
    // An event that cannot be written is none; the next buffer has it.
    guest.driver.chain(&guest.bench, EVENT, &[inb(1 << 20, 4)]).unwrap();
    guest.give_event_buffer();
    guest.bench.run();
    let mut moved = guest.moved();
    moved.resume();
    let lens: Vec<_> = moved.driver.take_used(&moved.bench).iter().map(|used| used.2).collect();
    assert_eq!(lens, [0, 4]);
}

/// Why a saved state is refused, after `lie` had it.
fn refused(guest: &Guest, lie: impl Fn(&mut VirtioStateV1<VsockStateV1>)) -> String {
    let (saved, ram) = guest.bench.save();
    let mut state = decode(&saved.bytes).unwrap();
    lie(&mut state);
    let saved = Saved { bytes: encode(&state).unwrap(), ..saved };
    let built = Bench::with_vsock(&options(), Peers::new(), &ram[..RAM], Some(&saved));
    let error = built.err().expect("a lie that is believed");
    let source = std::error::Error::source(&error).unwrap();
    let cause = source.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}: {source}{cause}")
}

#[test]
fn a_state_that_cannot_be_is_refused() {
    let guest = Guest::up();
    for port in [0, (1 << 30) - 1, 1 << 31, u32::MAX] {
        let why = refused(&guest, |state| state.device.next_port = port);
        assert!(why.contains("cannot restore `vsock`") && why.contains("no port"), "{why}");
    }
    let why = refused(&guest, |state| state.device.resets_sent = 1000);
    assert!(why.contains("more events than"), "{why}");
    let bad = EventBufferV1 { head: QUEUE_SIZE, at: 0 };
    let why = refused(&guest, |state| state.device.events.push(bad));
    assert!(why.contains("cannot have"), "{why}");
    let one = EventBufferV1 { head: 0, at: 0 };
    let why = refused(&guest, |state| state.device.events = vec![one; 257]);
    assert!(why.contains("cannot have"), "{why}");
    let why = refused(&guest, |state| state.mmio.status &= !status::DRIVER_OK);
    assert!(why.contains("not up"), "{why}");
    for cid in [0, 1, 2, u32::MAX] {
        let options = VsockOptions { cid };
        let error = Bench::with_vsock(&options, Peers::new(), &[0; RAM], None).err().unwrap();
        assert!(error.to_string().contains("cannot build `vsock`"));
    }
}
