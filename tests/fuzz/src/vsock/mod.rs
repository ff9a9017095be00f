//! A socket device on its transport, with the host's end that it has in the product, driven by a
//! guest and by programs of the host that do anything in any order.
//!
//! Each byte chooses an operation, the ones after it are its operands. Whatever was done: the
//! device's own state is taken by a new device, a migration that takes what is marked has RAM as it
//! is at the end, and a driver that begins again and a client get their bytes both ways. As long as
//! a guest keeps its rings in order, whatever its packets say: what a program reads is what the
//! other sent, from the beginning, in order; the guest is never sent more than it said that it has
//! room for; nothing goes to it after a move before it is told; and what is written to its memory
//! lies where it gave room.

mod host;
mod seeds;
mod streams;

use std::collections::BTreeMap;
use std::sync::Arc;

use wherry_devices::device::Spec;
use wherry_devices::virtio::vsock::constants::{
    EVENT, EVENT_BYTES, HEADER, HOST_CID, RX, TX, TYPE_STREAM, op as packet,
};
use wherry_devices::virtio::vsock::packet::Header;
use wherry_devices::virtio::vsock::{BUFFER as ROOM, KIND, LOCAL_PORTS, VsockOptions};

use self::host::{LISTENING, Peers};
use self::streams::{Reader, Streams};
use crate::bytes::Bytes;
use crate::driver::{Driver, NOWHERE};
use crate::guest::BUFFER;

pub(crate) use self::seeds::seeds;

const CID: u32 = 7;
const PLACES: [(u64, u64); 3] =
    [(BUFFER + 0x1_0000, 0xc00), (BUFFER, 0x1000), (BUFFER + 0x1_c000, 0x40)];
/// A port that only the driver at the end listens at.
const LAST: u32 = 77;

/// Operations.
mod op {
    pub(super) const UP: u8 = 2;
    pub(super) const SEND: u8 = 4;
    pub(super) const ROOM: u8 = 5;
    pub(super) const EVENT: u8 = 6;
    pub(super) const RUN: u8 = 7;
    pub(super) const CLIENT: u8 = 8;
    pub(super) const WRITE: u8 = 9;
    pub(super) const READ: u8 = 10;
    pub(super) const CLOSE: u8 = 11;
    pub(super) const MOVE: u8 = 12;
    pub(super) const FLOOD: u8 = 13;
    pub(super) const LISTEN: u8 = 14;
    pub(super) const NR: u8 = 17;
}

/// Ports of the guest and of the host.
type Ports = (u32, u32);

/// What the guest knows of a connection, and of those that had its ports before.
#[derive(Default)]
struct Known {
    /// The stream to the host that the next bytes are of.
    stream: Option<u32>,
    /// What the device may go by of what it was told of the guest's room: bytes, and bytes taken.
    said: Vec<(u32, u32)>,
    /// Bytes that were sent.
    sent: u32,
    /// Those since the connection was asked for or accepted, and those of them that the device has.
    since: u32,
    taken: u32,
    /// What the guest was told that the host has taken.
    forwarded: u32,
    /// `None`: there is no connection.
    reader: Option<Reader>,
}

/// A packet that the guest sends, as it says; it may be made otherwise.
struct Packet {
    ports: Ports,
    op: u16,
    flags: u32,
    /// Room, and bytes taken. `None`: as it is.
    room: Option<(u32, u32)>,
    len: u32,
    shape: u8,
}

struct Guest {
    driver: Driver,
    host: Arc<Peers>,
    to_host: Streams,
    to_guest: Streams,
    known: BTreeMap<Ports, Known>,
    /// Ports of connections that the host asked for.
    asked: Vec<Ports>,
    /// It has moved, and has not been told.
    moved: bool,
}

/// See the module's text.
pub fn vsock(data: &[u8]) {
    let mut input = Bytes(data);
    let host = Peers::new();
    let spec = Spec::new(&KIND, &VsockOptions { cid: CID }).expect("plain data");
    let mut guest = Guest {
        driver: Driver::new(spec, host.clone(), &PLACES),
        host,
        to_host: Streams::default(),
        to_guest: Streams::default(),
        known: BTreeMap::new(),
        asked: Vec::new(),
        moved: false,
    };
    while !input.is_empty() {
        guest.step(&mut input);
    }
    guest.move_on();
    guest.begin_again();
    guest.driver.at.end();
}

impl Guest {
    fn step(&mut self, input: &mut Bytes<'_>) {
        match input.u8() % op::NR {
            what @ (0 | 1 | 3) => self.driver.disorder(what, input),
            op::UP => self.bring_up(!input.u32()),
            op::SEND => {
                let (ports, op) = (self.ports(input), u16::from(input.u8() % 9));
                let (flags, room) = (u32::from(input.u8()), room_said(input));
                let (len, shape) = (u32::from(input.u16() % 0xf00), input.u8());
                self.send(&Packet { ports, op, flags, room, len, shape });
            }
            op::ROOM => self.room(input.u16(), input.u8()),
            op::EVENT => {
                let len = u32::from(input.u8() % 16);
                self.driver.give(EVENT, |at| vec![(at, len, true)]);
            }
            op::RUN => self.run(),
            op::CLIENT => self.client(input),
            op::WRITE => self.host.send(input.u8(), input.u16().into(), &mut self.to_guest),
            op::READ => {
                self.read(input.u8(), input.u16().into());
            }
            op::CLOSE => self.host.close(input.u8(), input.u8()),
            op::MOVE => self.move_on(),
            op::FLOOD => {
                let (ports, times, shape) = (self.ports(input), input.u8() % 96, input.u8());
                for _ in 0..times {
                    let (op, flags, room) = (packet::RW, 0, None);
                    self.send(&Packet { ports, op, flags, room, len: 0xeff, shape });
                    if shape & 0x40 == 0 {
                        self.room(200, 0);
                    }
                    self.run();
                }
            }
            op::LISTEN => self.host.listen(input.pick(&LISTENING), input.u8() & 1 != 0),
            15 => self.driver.at.harvest(),
            _ => self.driver.at.rest(),
        }
    }

    /// Those that the host asked for, the latest first, or some of the guest's own.
    fn ports(&self, input: &mut Bytes<'_>) -> Ports {
        match usize::from(input.u8()) {
            nth @ 0..128 => {
                let mut asked = self.asked.iter().rev().cycle();
                asked.nth(nth).copied().unwrap_or((1000, *LOCAL_PORTS.start()))
            }
            nth => (2000 + (nth as u32 >> 4 & 3), 4 + (nth as u32 & 3)),
        }
    }

    fn client(&mut self, input: &mut Bytes<'_>) {
        let (nth, port) = (input.u8(), 1000 + u32::from(input.u8() % 4));
        let (says, sense) = match nth {
            0 => ("CONNECT\n".to_owned(), false),
            1 => ("HELLO 1000\n".to_owned(), false),
            2 => ("CONNECT 4294967296\n".to_owned(), false),
            3 => ("CONNECT 1000 ".repeat(9), false),
            _ => (format!("CONNECT {port}\n"), true),
        };
        self.host.client(&says, sense, &mut self.to_guest);
    }

    /// What was before is gone.
    fn bring_up(&mut self, wanted: u32) {
        if !self.driver.orderly {
            // What they sent and got since is nobody's.
            self.host.leave();
        }
        self.driver.bring_up(wanted);
        self.known.clear();
        self.asked.clear();
        self.moved = false;
    }

    fn room(&mut self, len: u16, shape: u8) {
        let len = u32::from(len % 0xb00);
        self.driver.give(RX, |at| match shape % 8 {
            1 => vec![(at, 20, true), (at + 20, len, true)],
            2 => vec![(at, 64, false), (at + 64, len, true)],
            3 => vec![(at, 44, true), (NOWHERE, len, true)],
            4 => vec![(at, 50, true), (at + 64, 1, true), (at + 80, len, true)],
            _ => vec![(at, len, true)],
        });
    }

    fn send(&mut self, packet: &Packet) {
        let Packet { ports, op, flags, room, len, shape } = *packet;
        let known = self.known.entry(ports).or_default();
        let taken = known.reader.as_ref().map_or(0, |reader| reader.at as u32);
        let (buf_alloc, fwd_cnt) = room.unwrap_or((64 << 10, taken));
        let mut header = Header {
            src_cid: CID.into(),
            dst_cid: HOST_CID,
            src_port: ports.0,
            dst_port: ports.1,
            len,
            kind: TYPE_STREAM,
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        };
        match shape % 16 {
            9 => header.src_cid = 8,
            10 => header.dst_cid = 3,
            11 => header.kind = 2,
            12 => header.len = len + 1,
            13 => header.len = len / 2,
            14 => header.len = u32::MAX,
            _ => {}
        }
        let (whole, there) = (shape % 16 != 8, shape % 16 != 15);
        let (all, head) = (HEADER as u32 + len, HEADER as u32);
        let given = self.driver.give(TX, |at| match shape >> 5 & 1 {
            _ if !whole => vec![(at, head - 4, false)],
            _ if !there => vec![(at, head, false), (NOWHERE, len, false)],
            0 => vec![(at, all, false)],
            _ => {
                let (first, second) = (20, head + len / 2);
                let rest = (at + u64::from(second), all - second, false);
                vec![(at, first, false), (at + 20, second - first, false), rest]
            }
        });
        let Some(at) = given else { return };
        // Of a connection, whatever it says.
        let heard = whole && !matches!(shape % 16, 9..12);
        if heard && matches!(op, packet::REQUEST | packet::RESPONSE) {
            (known.stream, known.since) = (None, 0);
        }
        let stream = *known.stream.get_or_insert_with(|| self.to_host.open());
        let bytes = self.to_host.next(stream, len as usize);
        self.driver.put(at, &[&header.bytes()[..], &bytes].concat());
        if heard {
            known.said.push((buf_alloc, fwd_cnt));
        }
        // Of one that promises more than there is, nothing comes.
        if heard && there && op == packet::RW && header.len <= len {
            self.to_host.sent(stream, header.len as usize);
            known.sent += header.len;
            known.since += header.len;
        }
    }

    fn run(&mut self) {
        self.driver.at.turn();
        self.host.let_in(&mut self.to_guest);
        if !self.driver.orderly {
            return;
        }
        for event in self.driver.back(EVENT) {
            assert!(event.is_empty() || event == [0; EVENT_BYTES as usize], "{event:?}");
            assert!(event.is_empty() || self.moved, "the guest is told twice");
            self.moved &= event.is_empty();
        }
        for bytes in self.driver.back(RX).into_iter().filter(|bytes| !bytes.is_empty()) {
            assert!(!self.moved, "it has not been told that it has moved");
            let (header, payload) = bytes.split_first_chunk().expect("a header");
            let header = Header::read(header);
            assert_eq!(header.len as usize, payload.len(), "{header:?}");
            self.hear(&header, payload);
        }
        for bytes in self.driver.back(TX) {
            assert!(bytes.is_empty(), "what is sent is only read");
        }
        if self.driver.is_idle(TX) {
            // The device has heard them all.
            for known in self.known.values_mut() {
                known.said.drain(..known.said.len().saturating_sub(1));
                known.taken = known.since;
            }
        }
        self.driver.check();
    }

    /// A packet to the guest.
    fn hear(&mut self, header: &Header, payload: &[u8]) {
        let Header { src_port, dst_port, op, flags, buf_alloc, fwd_cnt, .. } = *header;
        if op == packet::RST && buf_alloc == 0 {
            // The refusal of anything.
            assert!(payload.is_empty());
            return;
        }
        let from_whom = (header.src_cid, header.dst_cid, header.kind);
        assert_eq!(from_whom, (HOST_CID, CID.into(), TYPE_STREAM), "{header:?}");
        assert_eq!((buf_alloc as usize, flags & !3), (ROOM, 0), "{header:?}");
        assert!(payload.is_empty() == (op != packet::RW), "{header:?}");
        let ports = (dst_port, src_port);
        let known = self.known.entry(ports).or_default();
        match op {
            packet::REQUEST | packet::RESPONSE => {
                known.reader = Some(Reader::default());
                (known.forwarded, known.taken) = (0, 0);
            }
            // It may be that of another one, which never was answered.
            packet::RST => (known.reader, known.forwarded) = (None, 0),
            _ => {
                let reader = known.reader.as_mut().expect("a connection");
                let under_way = |taken: u32| (reader.at as u32).wrapping_sub(taken);
                let room =
                    known.said.iter().map(|(all, taken)| all.saturating_sub(under_way(*taken)));
                let room = room.max().unwrap_or(0);
                assert!(payload.len() <= room as usize, "{header:?}, and room for {room}");
                reader.take(&mut self.to_guest, payload);
            }
        }
        // Of a connection that lives it has taken all; what the host has not taken it holds.
        let held = known.taken.saturating_sub(fwd_cnt) as usize;
        assert!(op == packet::RST || held <= ROOM, "{header:?}, and {held} bytes");
        assert!((known.forwarded..=known.sent).contains(&fwd_cnt), "{header:?}, {}", known.sent);
        known.forwarded = fwd_cnt;
        if op == packet::REQUEST {
            assert!(LOCAL_PORTS.contains(&src_port), "{header:?}");
            self.asked.push(ports);
        }
    }

    /// Returns what came of the stream so far.
    fn read(&mut self, nth: u8, most: usize) -> usize {
        self.host.read(nth, most, Some(&mut self.to_host).filter(|_| self.driver.orderly))
    }

    fn move_on(&mut self) {
        self.run();
        self.driver.at.move_on();
        self.moved = true;
    }

    /// A driver that begins again and a client get their bytes both ways.
    fn begin_again(&mut self) {
        const LEN: usize = 3000;
        self.host.leave();
        self.bring_up(u32::MAX);
        self.host.client(&format!("CONNECT {LAST}\n"), true, &mut self.to_guest);
        self.host.send(0, LEN, &mut self.to_guest);
        let mut last = None;
        for _ in 0..40 {
            (0..8).for_each(|_| self.room(1000, 0));
            self.run();
            for ports in std::mem::take(&mut self.asked) {
                let wanted = ports.0 == LAST;
                let say = |op, len| Packet { ports, op, flags: 0, room: None, len, shape: 0 };
                self.send(&say(if wanted { packet::RESPONSE } else { packet::RST }, 0));
                if wanted {
                    self.send(&say(packet::RW, LEN as u32));
                    last = Some(ports);
                }
            }
        }
        let reader = last.and_then(|ports| self.known.get(&ports)?.reader.as_ref());
        assert_eq!(reader.map(|reader| reader.at), Some(LEN), "bytes to a driver in order");
        assert_eq!(self.read(0, 1 << 16), LEN, "bytes of a driver in order");
    }
}

fn room_said(input: &mut Bytes<'_>) -> Option<(u32, u32)> {
    match input.u8() {
        0..128 => None,
        128..192 => Some((input.u16().into(), input.u16().into())),
        _ => Some((input.u32(), input.u32())),
    }
}
