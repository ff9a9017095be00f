//! One connection: what has ended, what is owed to the guest, and how much either side takes.
//!
//! Bytes from the guest are in the connection until the host has taken them, and there are never
//! more than [`BUFFER`]: that is what the guest is told. Bytes for the guest are not kept: they are
//! read from the host when the guest has room for them, by its own word. So a reader that is slow
//! holds up its writer and nobody else.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::Shutdown;

use super::constants::*;
use crate::host::Stream;

/// Bytes from the guest that a connection holds at most.
pub const BUFFER: usize = 64 << 10;

/// Ports that a connection has at its ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports {
    /// The guest's.
    pub guest: u32,
    /// The host's.
    pub host: u32,
}

/// Counters of both directions (section 5.10.6.3). All of them wrap.
#[derive(Debug, Clone, Copy, Default)]
pub struct Credit {
    /// Bytes from the guest.
    received: u32,
    /// Those that the host has taken.
    pub forwarded: u32,
    /// Those that the guest knows the host to have taken.
    told: u32,
    /// Bytes to the guest.
    sent: u32,
    /// Bytes that the guest has room for.
    peer_alloc: u32,
    /// Bytes that its reader has taken.
    peer_forwarded: u32,
}

impl Credit {
    /// Bytes that the guest takes now. One that lies takes none.
    fn for_guest(self) -> usize {
        let under_way = self.sent.wrapping_sub(self.peer_forwarded);
        self.peer_alloc.saturating_sub(under_way) as usize
    }

    /// Whether the guest, for all that it knows, has room for less than half, and there is more.
    fn is_to_be_told(self) -> bool {
        let seen = self.received.wrapping_sub(self.told) as usize;
        self.forwarded != self.told && seen > BUFFER / 2
    }
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// A client of the host waits for the guest's answer. `asked`: the guest knows.
    Asking { asked: bool },
    /// The guest waits for the answer.
    Answering,
    /// Bytes flow.
    Up,
    /// Nothing flows any more; the guest is to be told.
    Dead,
}

/// What the guest is told next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Word {
    pub op: u16,
    pub flags: u32,
    /// Bytes behind it.
    pub len: usize,
}

/// What is left of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// It goes on.
    All,
    /// What the guest sent before the end is still on its way; its ports are free.
    Bytes,
    /// Nothing.
    Nothing,
}

/// See the module's text.
pub struct Connection {
    pub ports: Ports,
    phase: Phase,
    stream: Option<Box<dyn Stream>>,
    pub credit: Credit,
    /// From the guest, for the host.
    outgoing: VecDeque<u8>,
    /// What the guest has ended, and what of it the host's end knows.
    guest_ended: u32,
    passed_on: u32,
    /// The guest knows of it no more.
    forgotten: bool,
    /// What the host has ended, and what of it the guest knows.
    host_ended: u32,
    told_ended: u32,
    /// The host may have bytes.
    readable: bool,
    /// The guest wants to know how much room there is.
    credit_wanted: bool,
    /// It is in the queue of those that have something for the guest.
    pub queued: bool,
}

impl Connection {
    /// A client of the host is to be connected to the guest's port.
    pub fn to_guest(ports: Ports, stream: Box<dyn Stream>) -> Self {
        Self::new(ports, stream, Phase::Asking { asked: false })
    }

    /// The guest has been connected to the host's port.
    pub fn to_host(ports: Ports, stream: Box<dyn Stream>) -> Self {
        Self::new(ports, stream, Phase::Answering)
    }

    fn new(ports: Ports, stream: Box<dyn Stream>, phase: Phase) -> Self {
        Self {
            ports,
            phase,
            stream: Some(stream),
            credit: Credit::default(),
            outgoing: VecDeque::new(),
            guest_ended: 0,
            passed_on: 0,
            forgotten: false,
            host_ended: 0,
            told_ended: 0,
            readable: true,
            credit_wanted: false,
            queued: false,
        }
    }

    /// It ends here and now, and the guest is told.
    pub fn kill(&mut self) {
        self.phase = Phase::Dead;
        self.stream = None;
        self.outgoing = VecDeque::new();
    }

    /// Whether only the guest still holds it.
    pub fn is_forsaken(&self) -> bool {
        self.phase == Phase::Up && self.stream.is_none()
    }

    /// What every packet of the guest says.
    pub fn hear(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        (self.credit.peer_alloc, self.credit.peer_forwarded) = (buf_alloc, fwd_cnt);
    }

    /// A packet of the guest's with nothing behind it. Returns what is left.
    pub fn obey(&mut self, op: u16, flags: u32) -> Left {
        match (op, self.phase) {
            (op::RST, _) => return self.abandoned(),
            (_, Phase::Dead) => {}
            (op::RESPONSE, Phase::Asking { asked: true }) => {
                self.phase = Phase::Up;
                let told = self.stream.as_mut().map(|stream| stream.accepted(self.ports.host));
                if !matches!(told, Some(Ok(()))) {
                    self.kill();
                }
            }
            (op::SHUTDOWN, Phase::Up | Phase::Answering) => {
                self.guest_ended |= flags & ENDS_BOTH;
                self.settle();
            }
            (op::CREDIT_UPDATE, Phase::Up | Phase::Answering) => {}
            (op::CREDIT_REQUEST, Phase::Up | Phase::Answering) => self.credit_wanted = true,
            _ => self.kill(),
        }
        Left::All
    }

    /// The guest has forgotten it.
    fn abandoned(&mut self) -> Left {
        if self.phase != Phase::Up || self.outgoing.is_empty() {
            return Left::Nothing;
        }
        (self.guest_ended, self.forgotten) = (ENDS_BOTH, true);
        self.settle()
    }

    /// Whether the guest may send so many bytes.
    pub fn takes(&self, len: usize) -> bool {
        self.phase == Phase::Up
            && self.guest_ended & ENDS_SENDING == 0
            && len <= BUFFER - self.outgoing.len()
    }

    /// Bytes of the guest, which it may send.
    pub fn take(&mut self, mut bytes: &[u8]) {
        self.credit.received = self.credit.received.wrapping_add(bytes.len() as u32);
        if self.outgoing.is_empty() {
            let done = self.put(bytes);
            bytes = bytes.get(done..).unwrap_or_default();
        }
        self.outgoing.extend(bytes);
        self.settle();
    }

    /// Gives bytes to the host. Returns how many it has taken: all, if it takes nothing ever again.
    fn put(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let takes = self.host_ended & ENDS_RECEIVING == 0;
            let Some(stream) = self.stream.as_mut().filter(|_| takes) else {
                done = bytes.len();
                break;
            };
            match stream.write(rest) {
                Ok(0) => self.host_ended |= ENDS_RECEIVING,
                Ok(n) => done += n.min(rest.len()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.host_ended |= ENDS_RECEIVING,
            }
        }
        self.credit.forwarded = self.credit.forwarded.wrapping_add(done as u32);
        done
    }

    /// The host's end has news. `gone`: there is nobody any more. Returns what is left.
    pub fn news(&mut self, gone: bool) -> Left {
        self.readable = true;
        match self.phase {
            Phase::Asking { asked: false } if gone => return Left::Nothing,
            Phase::Asking { .. } if gone => self.kill(),
            _ if gone => self.host_ended |= ENDS_RECEIVING,
            _ => {}
        }
        self.settle()
    }

    /// Passes on what can be, and ends what has ended. Returns what is left.
    pub fn settle(&mut self) -> Left {
        let mut outgoing = std::mem::take(&mut self.outgoing);
        while !outgoing.is_empty() {
            let (first, _) = outgoing.as_slices();
            match self.put(first) {
                0 => break,
                done => drop(outgoing.drain(..done)),
            }
        }
        self.outgoing = outgoing;
        let through = if self.outgoing.is_empty() { ENDS_BOTH } else { ENDS_RECEIVING };
        let ended = self.guest_ended & through & !self.passed_on;
        if let Some(stream) = &mut self.stream {
            if ended & ENDS_SENDING != 0 {
                stream.shutdown(Shutdown::Write);
            }
            if ended & ENDS_RECEIVING != 0 {
                stream.shutdown(Shutdown::Read);
            }
        }
        self.passed_on |= ended;
        match (self.passed_on, self.forgotten) {
            (ENDS_BOTH, true) => Left::Nothing,
            (ENDS_BOTH, false) => {
                self.kill();
                Left::All
            }
            (_, true) => Left::Bytes,
            _ => Left::All,
        }
    }

    /// Whether the guest is to be told something, if it has room for bytes.
    pub fn has_word(&self) -> bool {
        match self.phase {
            _ if self.forgotten => false,
            Phase::Asking { asked } => !asked,
            Phase::Answering | Phase::Dead => true,
            Phase::Up => {
                self.may_read()
                    || self.host_ended != self.told_ended
                    || self.credit_wanted
                    || self.credit.is_to_be_told()
            }
        }
    }

    fn may_read(&self) -> bool {
        self.readable
            && self.stream.is_some()
            && self.host_ended & ENDS_SENDING == 0
            && self.guest_ended & ENDS_RECEIVING == 0
            && self.credit.for_guest() > 0
    }

    /// What the guest is told next; bytes of the host are read into `room`. `None`: nothing. After
    /// [`op::RST`] nothing is left of it.
    pub fn word(&mut self, room: &mut [u8]) -> Option<Word> {
        let word = |op| Some(Word { op, flags: 0, len: 0 });
        match self.phase {
            _ if self.forgotten => return None,
            Phase::Asking { asked: false } => {
                self.phase = Phase::Asking { asked: true };
                return word(op::REQUEST);
            }
            Phase::Asking { .. } => return None,
            Phase::Answering => {
                self.phase = Phase::Up;
                return word(op::RESPONSE);
            }
            Phase::Dead => return word(op::RST),
            Phase::Up => {}
        }
        if let Some(len) = self.read(room) {
            return Some(Word { op: op::RW, flags: 0, len });
        }
        if self.host_ended != self.told_ended {
            self.told_ended = self.host_ended;
            if self.host_ended == ENDS_BOTH {
                self.stream = None;
                // Nobody takes them.
                self.settle();
            }
            return Some(Word { op: op::SHUTDOWN, flags: self.told_ended, len: 0 });
        }
        let credit = std::mem::take(&mut self.credit_wanted) || self.credit.is_to_be_told();
        if credit { word(op::CREDIT_UPDATE) } else { None }
    }

    /// Bytes of the host, if there are some. Notes its end.
    fn read(&mut self, room: &mut [u8]) -> Option<usize> {
        while self.may_read() {
            let most = room.len().min(self.credit.for_guest());
            let (Some(stream), Some(room)) = (&mut self.stream, room.get_mut(..most)) else {
                break;
            };
            match stream.read(room) {
                Ok(0) => self.host_ended |= ENDS_SENDING,
                Ok(n) => {
                    let n = n.min(most);
                    self.credit.sent = self.credit.sent.wrapping_add(n as u32);
                    return Some(n);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(_) => self.host_ended = ENDS_BOTH,
            }
        }
        None
    }

    /// What the guest is told with every packet: the room for its bytes, and how many have been
    /// taken.
    pub fn tell(&mut self) -> (u32, u32) {
        self.credit.told = self.credit.forwarded;
        (BUFFER as u32, self.credit.forwarded)
    }
}
