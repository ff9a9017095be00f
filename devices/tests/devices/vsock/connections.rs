//! Connections both ways, and how they end.

use std::net::Shutdown;

use vm_memory::bitmap::Bitmap as _;
use vm_memory::{GuestMemoryBackend, MmapRegion};
use wherry_devices::virtio::mmio::regs::offset;
use wherry_devices::virtio::vsock::{LOCAL_PORTS, MAX_CONNECTIONS};

use super::*;

#[test]
fn config_space_says_the_guests_address() {
    let guest = Guest::cold();
    let config: Vec<u8> = (0..9).map(|at| guest.bench.read(offset::CONFIG + at, 1) as u8).collect();
    assert_eq!(config, [3, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(guest.bench.read(offset::CONFIG + u64::from(u32::MAX), 4), 0);
}

#[test]
fn a_client_is_connected_when_the_guest_accepts_and_bytes_go_both_ways() {
    let mut guest = Guest::up();
    let end = guest.peers.client(22);
    end.send(b"early");
    let (asked, _) = guest.packet();
    assert_eq!((asked.op, asked.dst_port, asked.buf_alloc), (op::REQUEST, 22, BUFFER as u32));
    assert_eq!(asked.src_port, *LOCAL_PORTS.start());
    assert_eq!((end.accepted(), end.unread()), (None, 5));
    let header = answer(&asked);
    guest.send(Header { op: op::RESPONSE, ..header }, &[]);
    assert_eq!(end.accepted(), Some(asked.src_port));
    let (data, bytes) = guest.packet();
    assert_eq!((data.op, &bytes[..]), (op::RW, &b"early"[..]));
    guest.send(header, b"hello");
    assert_eq!(end.take(), b"hello");
    // The next one has another port.
    let (_, other) = guest.client(22);
    assert_eq!(other.dst_port, asked.src_port + 1);
}

#[test]
fn a_client_for_a_port_where_nobody_listens_is_sent_away() {
    let mut guest = Guest::up();
    let end = guest.peers.client(22);
    let (asked, _) = guest.packet();
    guest.send(Header { op: op::RST, ..answer(&asked) }, &[]);
    assert!(end.closed() && end.accepted().is_none());
    assert_eq!(guest.ops(), NOTHING);
}

#[test]
fn without_a_driver_clients_are_sent_away() {
    let mut guest = Guest::cold();
    let end = guest.peers.client(22);
    guest.bench.run();
    assert!(end.closed());
    let mut guest = Guest::up();
    let (end, _) = guest.client(22);
    guest.bench.write(offset::STATUS, &[0; 4]);
    assert!(end.closed(), "a reset ends all");
}

#[test]
fn a_client_that_leaves_before_the_answer_is_forgotten() {
    let mut guest = Guest::up();
    let end = guest.peers.client(22);
    let (asked, _) = guest.packet();
    end.leave();
    assert_eq!(guest.ops(), [op::RST]);
    assert!(end.closed());
    // The answer comes too late.
    guest.send(Header { op: op::RESPONSE, ..answer(&asked) }, &[]);
    assert_eq!(guest.ops(), [op::RST]);
}

#[test]
fn the_guest_is_connected_to_who_listens() {
    let mut guest = Guest::up();
    let (end, header) = guest.connect(5000, 1234);
    guest.send(header, b"hello");
    assert_eq!(end.take(), b"hello");
    end.send(b"back");
    assert_eq!(guest.packet().1, b"back");
    guest.send(Header { op: op::REQUEST, ..super::header(5001, 1235) }, &[]);
    let (refused, _) = guest.packet();
    assert_eq!((refused.op, refused.src_port, refused.dst_port), (op::RST, 1235, 5001));
}

#[test]
fn when_the_host_ends_one_half_the_other_goes_on() {
    let mut guest = Guest::up();
    let (end, header) = guest.connect(5000, 1234);
    end.send(b"last");
    end.finish();
    let packets = guest.packets();
    assert_eq!(packets[0].1, b"last");
    assert_eq!((packets[1].0.op, packets[1].0.flags), (op::SHUTDOWN, ENDS_SENDING));
    guest.send(header, b"more");
    assert_eq!(end.take(), b"more");
    end.leave();
    let (ended, _) = guest.packet();
    assert_eq!((ended.op, ended.flags), (op::SHUTDOWN, ENDS_BOTH));
    // What the guest sends now goes nowhere, and the guest hears that it is through.
    guest.send(header, b"lost");
    guest.send(Header { op: op::CREDIT_REQUEST, ..header }, &[]);
    assert_eq!(guest.packet().0.fwd_cnt, 8);
    guest.send(Header { op: op::SHUTDOWN, flags: ENDS_BOTH, ..header }, &[]);
    assert_eq!(guest.ops(), [op::RST]);
}

#[test]
fn when_the_guest_ends_one_half_the_other_goes_on() {
    let mut guest = Guest::up();
    let (end, header) = guest.connect(5000, 1234);
    guest.send(header, b"last");
    guest.send(Header { op: op::SHUTDOWN, flags: ENDS_SENDING, ..header }, &[]);
    assert_eq!((end.take(), end.shut()), (b"last".to_vec(), vec![Shutdown::Write]));
    end.send(b"more");
    assert_eq!(guest.packet().1, b"more");
    guest.send(Header { op: op::SHUTDOWN, flags: ENDS_RECEIVING, ..header }, &[]);
    assert!(end.closed());
    assert_eq!(guest.ops(), [op::RST]);
    // Its ports are free again.
    guest.connect(5000, 1234);
}

#[test]
fn a_guest_that_takes_no_more_gets_no_more() {
    let mut guest = Guest::up();
    let (end, header) = guest.connect(5000, 1234);
    guest.send(Header { op: op::SHUTDOWN, flags: ENDS_RECEIVING, ..header }, &[]);
    assert_eq!(end.shut(), [Shutdown::Read]);
    end.send(b"no");
    assert_eq!((guest.ops(), end.unread()), (vec![], 2));
    guest.send(header, b"yes");
    assert_eq!(end.take(), b"yes");
}

#[test]
fn what_the_guest_sent_before_it_closed_arrives_whoever_is_slow() {
    for last in [op::SHUTDOWN, op::RST] {
        let mut guest = Guest::up();
        let (end, header) = guest.connect(5000, 1234);
        end.set_room(1);
        guest.send(header, b"abc");
        guest.send(Header { op: last, flags: ENDS_BOTH, ..header }, &[]);
        assert_eq!(end.take(), b"a");
        assert!(!end.closed() && !end.shut().contains(&Shutdown::Write));
        assert_eq!(guest.ops(), NOTHING, "it is told when it is so");
        if last == op::RST {
            // The guest has forgotten it, and may use its ports for another one.
            let (other, header) = guest.connect(5000, 1234);
            guest.send(header, b"new");
            assert_eq!(other.take(), b"new");
        }
        end.set_room(2);
        guest.bench.run();
        assert_eq!(end.take(), b"bc");
        assert!(end.closed());
        let told: &[u16] = if last == op::RST { &[] } else { &[op::RST] };
        assert_eq!(guest.ops(), told);
    }
}

#[test]
fn packets_to_the_guest_are_marked_dirty() {
    let mut guest = Guest::up();
    let (end, _) = guest.client(22);
    let mem = guest.bench.mem.clone();
    let bitmap = MmapRegion::bitmap(mem.find_region(GuestAddress(0)).unwrap());
    bitmap.reset();
    end.send(&[7; 900]);
    guest.bench.run();
    let at = |page: u64| bitmap.dirty_at((RX_AT + page * 4096) as usize);
    // Which of the 32 buffers it is in, the driver finds out.
    assert_eq!((0..16).filter(|page| at(*page)).count(), 1);
    assert_eq!(guest.packet().1, [7; 900]);
}

#[test]
fn there_are_only_so_many_connections_and_those_that_wait_come_in_when_there_is_room() {
    let mut guest = Guest::up();
    let mut all: Vec<_> = (0..MAX_CONNECTIONS).map(|_| guest.client(22)).collect();
    let late = [guest.peers.client(22), guest.peers.client(22)];
    assert_eq!((guest.ops(), guest.peers.waiting()), (vec![], 2));
    guest.peers.listen(7);
    guest.send(Header { op: op::REQUEST, ..header(5000, 7) }, &[]);
    assert_eq!(guest.ops(), [op::RST]);
    // One ends by the guest's word.
    let (end, header) = all.remove(0);
    guest.send(Header { op: op::RST, ..header }, &[]);
    assert!(end.closed());
    let (asked, _) = guest.packet();
    assert_eq!((asked.op, guest.peers.waiting()), (op::REQUEST, 1));
    // One that the host has left, and the guest holds, gives way.
    all[0].0.leave();
    assert_eq!(guest.ops(), [op::SHUTDOWN, op::RST, op::REQUEST]);
    assert!(guest.peers.waiting() == 0 && late.iter().all(|end| !end.closed()));
}
