//! A network device on its transport, driven by a guest that does anything in any order, with a
//! host whose frames have any header.
//!
//! Each byte chooses an operation, the ones after it are its operands. Whatever was done: a paused
//! device touches no frame; what is sent is a frame whose header makes sense; offloads are set that
//! go together; the device's own state is taken by a new device; and a migration that takes what is
//! marked has RAM as it is at the end.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use wherry_devices::device::Spec;
use wherry_devices::host::{Frames, HostFd, Offloads};
use wherry_devices::virtio::net::constants::{ETHERNET, HEADER, MAX_FRAME};
use wherry_devices::virtio::net::{KIND, NetOptions};

use crate::bytes::Bytes;
use crate::guest::{self, BUFFER, Backend};

/// Size of the rings.
const SIZE: u16 = 64;

/// Operations, for seeds.
mod op {
    pub const UP: u8 = 2;
    pub const CHAIN: u8 = 4;
    pub const FRAME: u8 = 5;
    pub const RUN: u8 = 6;
    pub const HARVEST: u8 = 7;
    pub const MOVE: u8 = 8;
    pub const ANNOUNCE: u8 = 9;
    pub const NR: u8 = 11;
}

/// Frames both ways, a command, and a move.
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let up = |without: u32| [&[op::UP][..], &without.to_le_bytes()].concat();
    // A chain of one buffer: queue, shape, place, bytes, length.
    let chain = |queue, shape, place, first: [u8; 12], len: u16| {
        [&[op::CHAIN, queue, shape, place][..], &first, &len.to_le_bytes()].concat()
    };
    let room = |place, len| chain(0, 4, place, [0; 12], len);
    let large = [1, 1, 54, 0, 180, 5, 34, 0, 16, 0, 0, 0];
    let frame = |first: [u8; 12], len: u16| [&[op::FRAME][..], &first, &len.to_le_bytes()].concat();
    let command = chain(2, 1 | 8, 29, [5, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0], 10);
    let all = [
        room(1, 200),
        frame([0; 12], 100),
        vec![op::RUN],
        chain(1, 0, 20, [0; 12], 100),
        chain(1, 0, 24, large, 0xf00),
        [command, vec![30, 1, 0]].concat(),
        vec![op::RUN, op::HARVEST],
        frame(large, 3000),
        room(2, 1000),
        room(3, 1500),
        vec![op::RUN],
        room(4, 1500),
        vec![op::RUN, op::MOVE, op::ANNOUNCE, op::RUN],
        frame([0; 12], 60),
        room(5, 80),
        vec![op::RUN],
    ]
    .concat();
    vec![
        ("all", [up(0), all.clone()].concat()),
        ("plain", [up(0xffff), all.clone()].concat()),
        ("one-chain", [up(1 << 15), all.clone(), up(0), all].concat()),
    ]
}

#[derive(Default)]
struct Seen {
    coming: VecDeque<Vec<u8>>,
    paused: bool,
}

/// The frames, and a descriptor that has news when there is one more.
#[derive(Clone)]
struct Wire(Arc<Mutex<Seen>>, Arc<UnixStream>);

impl Wire {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap()
    }
}

impl Frames for Wire {
    fn read(&mut self, frame: &mut [u8]) -> io::Result<usize> {
        let mut seen = self.seen();
        assert!(!seen.paused, "a paused device reads");
        let next = seen.coming.pop_front().ok_or(ErrorKind::WouldBlock)?;
        frame[..next.len()].copy_from_slice(&next);
        Ok(next.len())
    }
    fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        assert!(!self.seen().paused, "a paused device writes");
        assert!((HEADER + ETHERNET..=MAX_FRAME).contains(&frame.len()), "{}", frame.len());
        let (flags, gso) = (frame[0], frame[1]);
        assert!(matches!(gso, 0 | 1 | 4 | 0x81 | 0x84) && flags & !3 == 0, "{flags:#x}, {gso:#x}");
        assert!(gso == 0 || (flags & 1 != 0 && frame[4..6] != [0; 2]), "segments of what?");
        Ok(())
    }
    fn can_offload(&self) -> bool {
        true
    }
    fn set_offloads(&mut self, Offloads { csum, tso4, tso6, ecn }: Offloads) -> io::Result<()> {
        assert!((csum || !(tso4 || tso6)) && (tso4 || tso6 || !ecn));
        Ok(())
    }
    fn fd(&self) -> HostFd {
        self.1.clone()
    }
}

impl Backend for Wire {
    fn net(&self) -> Box<dyn Frames> {
        Box::new(self.clone())
    }
    fn paused(&self, on: bool) {
        self.seen().paused = on;
    }
}

struct Guest {
    at: guest::Guest,
    wire: Wire,
    news: UnixStream,
}

/// See the module's text.
pub fn net(data: &[u8]) {
    let mut input = Bytes(data);
    let mut guest = Guest::new();
    while !input.is_empty() {
        guest.step(&mut input);
    }
    guest.move_on();
    guest.at.end();
}

impl Guest {
    fn new() -> Self {
        let options = NetOptions { mac: [2, 0, 0, 0, 0, 1], mtu: Some(1500), offloads: true };
        let spec = Spec::new(&KIND, &options).expect("plain data");
        let (news, told) = UnixStream::pair().expect("sockets");
        news.set_nonblocking(true).expect("a socket");
        let wire = Wire(Arc::default(), Arc::new(told));
        // Nothing is ever in flight.
        let at = guest::Guest::new(spec, Arc::new(wire.clone()), (3, SIZE), Duration::ZERO);
        Self { at, wire, news }
    }

    fn step(&mut self, input: &mut Bytes<'_>) {
        match input.u8() % op::NR {
            what @ (0 | 1 | 3) => self.at.disorder(what, input),
            op::UP => self.at.bring_up(!input.u32(), true),
            op::CHAIN => self.chain(input),
            op::FRAME => {
                let (head, len) = (input.array::<12>(), usize::from(input.u16()));
                let mut frame = head.to_vec();
                frame.resize(len.min(MAX_FRAME), 0x5a);
                self.wire.seen().coming.push_back(frame);
                // Full of news is as good.
                let _ = self.news.write(&[1]);
            }
            op::RUN => self.at.turn(),
            op::HARVEST => self.at.harvest(),
            op::MOVE => self.move_on(),
            op::ANNOUNCE => self.at.devices.announce(),
            _ => self.at.rest(),
        }
    }

    /// A chain of up to three buffers, whose first holds bytes of the input.
    fn chain(&mut self, input: &mut Bytes<'_>) {
        let queue = usize::from(input.u8() % 3);
        let (shape, first) = (input.u8(), self.at.avail[queue] % (SIZE / 4) * 4);
        let mut buffers = Vec::new();
        for nth in 0..1 + (shape & 3).min(2) {
            let at = match input.u8() {
                0 => input.u64(),
                page => BUFFER + u64::from(page) * 0x300,
            };
            if nth == 0 {
                self.at.put(at, &input.array::<12>());
            }
            buffers.push((at, input.u16().into(), shape & 1 << (2 + nth) != 0));
        }
        self.at.chain(queue, first, &buffers);
    }

    fn move_on(&mut self) {
        self.at.move_on();
        self.at.turn();
    }
}
