//! The socket device (virtio 1.3, section 5.10).

mod connections;
mod content;
mod hostile;
mod moves;

use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use wherry_devices::virtio::vsock::constants::*;
use wherry_devices::virtio::vsock::packet::Header;
use wherry_devices::virtio::vsock::{BUFFER, VsockOptions};

use crate::conformance::virtio::Driver;
use crate::conformance::{Bench, RAM};
use crate::driver::{inb, out};
use crate::peers::Peers;

/// The guest's address.
const CID: u64 = 3;
/// Room for packets to the guest and from it, 256 bytes for each head, and for events.
const RX_AT: u64 = 0xC_0000;
const TX_AT: u64 = 0xD_0000;
const EVENT_AT: u64 = 0xE_0000;
/// Bytes of a buffer for packets to the guest: each chain has one.
const ROOM: u32 = 1024;

/// A machine and its driver.
struct Guest {
    bench: Bench,
    driver: Driver,
    peers: Peers,
}

/// No operation.
const NOTHING: [u16; 0] = [];

type Packet = (Header, Vec<u8>);

impl Guest {
    /// With a driver that has room for packets and events.
    fn up() -> Self {
        let mut guest = Self::cold();
        guest.driver.probe(&guest.bench);
        (0..32).for_each(|_| guest.give_room());
        (0..2).for_each(|_| guest.give_event_buffer());
        guest.bench.run();
        guest
    }

    /// Before its driver comes up.
    fn cold() -> Self {
        let peers = Peers::new();
        let bench = Bench::with_vsock(&options(), peers.clone(), &[0; RAM], None).unwrap();
        bench.devices.resume();
        Self { bench, driver: Driver::default(), peers }
    }

    /// Elsewhere, not running yet.
    fn moved(&self) -> Self {
        let (saved, ram) = self.bench.save();
        let peers = Peers::new();
        let bench =
            Bench::with_vsock(&options(), peers.clone(), &ram[..RAM], Some(&saved)).unwrap();
        bench.devices.after_restore().unwrap();
        Self { bench, driver: self.driver.clone(), peers }
    }

    /// Room for one packet, 1024 bytes in two pieces.
    fn give_room(&mut self) {
        let at = RX_AT + u64::from(self.driver.next(RX)) * 256;
        let bufs = [inb(at, 50), inb(at + 50, ROOM - 50)];
        self.driver.chain(&self.bench, RX, &bufs).unwrap();
    }

    fn give_event_buffer(&mut self) {
        let at = EVENT_AT + u64::from(self.driver.next(EVENT)) * 256;
        self.driver.chain(&self.bench, EVENT, &[inb(at, 4)]).unwrap();
    }

    /// A packet from the guest. It must come back.
    fn send(&mut self, header: Header, payload: &[u8]) {
        let at = TX_AT + u64::from(self.driver.next(TX)) * 256;
        let header = Header { len: payload.len() as u32, ..header };
        self.put(at, &[&header.bytes(), payload].concat());
        let end = HEADER as u32 + payload.len() as u32;
        // In pieces that are not those of the packet.
        let bufs = [out(at, 7), out(at + 7, 40), out(at + 47, end.saturating_sub(47))];
        let nr = if end > 47 { 3 } else { 2 };
        self.driver.chain(&self.bench, TX, &bufs[..nr]).unwrap();
        self.bench.run();
    }

    /// The packets that came, and room for as many more. Events are given back, too.
    fn take(&mut self) -> (Vec<Packet>, u32) {
        self.bench.run();
        let (mut packets, mut events) = (Vec::new(), 0);
        for (queue, head, len) in self.driver.take_used(&self.bench) {
            match queue {
                // What did not fit.
                RX if len == 0 => {}
                RX => {
                    let bytes = self.get(RX_AT + u64::from(head) * 256, len as usize);
                    let (header, payload) = bytes.split_first_chunk().unwrap();
                    let header = Header::read(header);
                    assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
                    assert_eq!((header.kind, header.len), (TYPE_STREAM, payload.len() as u32));
                    packets.push((header, payload.to_vec()));
                    self.give_room();
                }
                EVENT => {
                    assert_eq!(self.get(EVENT_AT + u64::from(head) * 256, 4), [0; 4]);
                    assert_eq!(len, 4);
                    events += 1;
                    self.give_event_buffer();
                }
                _ => assert_eq!(len, 0),
            }
        }
        self.bench.run();
        (packets, events)
    }

    /// The packets that came, one after the other until there is no more.
    fn packets(&mut self) -> Vec<Packet> {
        let mut all = Vec::new();
        loop {
            let (packets, events) = self.take();
            assert_eq!(events, 0);
            if packets.is_empty() {
                return all;
            }
            all.extend(packets);
        }
    }

    /// The only packet that came.
    fn packet(&mut self) -> Packet {
        let mut packets = self.packets();
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets.remove(0)
    }

    /// Operations of the packets that came.
    fn ops(&mut self) -> Vec<u16> {
        self.packets().iter().map(|(header, _)| header.op).collect()
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.bench.mem.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.bench.mem.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    fn pause(&self) {
        self.bench.devices.pause(Instant::now() + Duration::from_secs(60)).unwrap();
    }

    fn resume(&mut self) {
        self.bench.devices.resume();
        self.bench.run();
    }

    /// A client of the host's is connected to the guest's port. Returns the header that its packets
    /// answer.
    fn client(&mut self, port: u32) -> (crate::peers::End, Header) {
        let end = self.peers.client(port);
        let (asked, _) = self.packet();
        assert_eq!((asked.op, asked.dst_port), (op::REQUEST, port));
        let header = answer(&asked);
        self.send(Header { op: op::RESPONSE, ..header }, &[]);
        assert_eq!(end.accepted(), Some(asked.src_port));
        (end, header)
    }

    /// The guest is connected to the host's port, where somebody listens.
    fn connect(&mut self, from: u32, to: u32) -> (crate::peers::End, Header) {
        self.peers.listen(to);
        let header = header(from, to);
        self.send(Header { op: op::REQUEST, ..header }, &[]);
        assert_eq!(self.packet().0.op, op::RESPONSE);
        let (port, end) = self.peers.arrived().remove(0);
        assert_eq!(port, to);
        (end, header)
    }
}

fn options() -> VsockOptions {
    VsockOptions { cid: CID as u32 }
}

/// A packet from the guest's port to the host's, from one who has much room.
fn header(from: u32, to: u32) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: from,
        dst_port: to,
        kind: TYPE_STREAM,
        op: op::RW,
        buf_alloc: 256 << 10,
        ..Header::default()
    }
}

/// A packet back.
fn answer(packet: &Header) -> Header {
    header(packet.dst_port, packet.src_port)
}
