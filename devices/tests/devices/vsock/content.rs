//! Whatever comes in whatever pieces, and however slow the readers are: what one side sends the
//! other gets, in order and once, and nobody sends more than the other has room for.

use proptest::prelude::*;

use super::*;
use crate::peers::End;

#[derive(Debug, Clone)]
enum Step {
    /// The host sends so many bytes.
    HostSends(usize, usize),
    /// The host has room for so many.
    HostTakes(usize, usize),
    /// A program of the guest reads so many.
    GuestReads(usize, usize),
    /// The guest sends, as far as it may.
    GuestSends(usize, usize),
    /// Paused, and on.
    Rest,
}

const CONNECTIONS: usize = 3;

fn step() -> impl Strategy<Value = Step> {
    let one = 0..CONNECTIONS;
    prop_oneof![
        4 => (one.clone(), 1usize..3000).prop_map(|(n, len)| Step::HostSends(n, len)),
        3 => (one.clone(), 0usize..40_000).prop_map(|(n, len)| Step::HostTakes(n, len)),
        4 => (one.clone(), 1usize..3000).prop_map(|(n, len)| Step::GuestReads(n, len)),
        6 => (one, 1usize..980).prop_map(|(n, len)| Step::GuestSends(n, len)),
        1 => Just(Step::Rest),
    ]
}

/// The guest's end of a connection, as Linux keeps it.
struct Socket {
    end: End,
    header: Header,
    buf_alloc: u32,
    /// What came and was not read; all that was read; all that was sent.
    unread: Vec<u8>,
    read: Vec<u8>,
    sent: Vec<u8>,
    peer_alloc: u32,
    peer_forwarded: u32,
    /// The host's side: all that was sent, all that came.
    host_sent: Vec<u8>,
    host_got: Vec<u8>,
    ended: bool,
}

impl Socket {
    fn header(&self) -> Header {
        Header { buf_alloc: self.buf_alloc, fwd_cnt: self.read.len() as u32, ..self.header }
    }

    fn may_send(&self) -> usize {
        let under_way = (self.sent.len() as u32).wrapping_sub(self.peer_forwarded);
        self.peer_alloc.saturating_sub(under_way) as usize
    }
}

struct Run {
    guest: Guest,
    sockets: Vec<Socket>,
    nth: u8,
}

impl Run {
    fn new(rooms: [u32; CONNECTIONS]) -> Self {
        let mut guest = Guest::up();
        let mut sockets = Vec::new();
        for (nth, buf_alloc) in rooms.into_iter().enumerate() {
            let (end, header) = match nth {
                0 => guest.connect(5000, 1234),
                _ => guest.client(20 + nth as u32),
            };
            sockets.push(Socket {
                end,
                header,
                buf_alloc,
                unread: vec![],
                read: vec![],
                sent: vec![],
                peer_alloc: BUFFER as u32,
                peer_forwarded: 0,
                host_sent: vec![],
                host_got: vec![],
                ended: false,
            });
            let one = sockets.last().unwrap();
            guest.send(Header { op: op::CREDIT_UPDATE, ..one.header() }, &[]);
        }
        Self { guest, sockets, nth: 0 }
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        self.nth = self.nth.wrapping_add(1);
        (0..len).map(|at| (at as u8).wrapping_mul(31) ^ self.nth).collect()
    }

    fn collect(&mut self) {
        for (header, bytes) in self.guest.packets() {
            let ours = |one: &&mut Socket| {
                (one.header.src_port, one.header.dst_port) == (header.dst_port, header.src_port)
            };
            let one = self.sockets.iter_mut().find(ours).expect("a packet of nobody");
            (one.peer_alloc, one.peer_forwarded) = (header.buf_alloc, header.fwd_cnt);
            assert_eq!(header.buf_alloc, BUFFER as u32);
            assert!(!one.ended, "more after the end");
            match header.op {
                op::RW => one.unread.extend(bytes),
                op::CREDIT_UPDATE => {}
                op::SHUTDOWN => one.ended = true,
                op => panic!("{op}"),
            }
            assert!(one.unread.len() <= one.buf_alloc as usize, "more than there is room for");
        }
        for one in &mut self.sockets {
            one.host_got.extend(one.end.take());
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::HostSends(nth, len) => {
                let bytes = self.bytes(len);
                let one = &mut self.sockets[nth];
                one.end.send(&bytes);
                one.host_sent.extend(bytes);
            }
            Step::HostTakes(nth, len) => self.sockets[nth].end.set_room(len),
            Step::GuestReads(nth, len) => {
                let one = &mut self.sockets[nth];
                let len = len.min(one.unread.len());
                one.read.extend(one.unread.drain(..len));
                let header = Header { op: op::CREDIT_UPDATE, ..one.header() };
                self.guest.send(header, &[]);
            }
            Step::GuestSends(nth, len) => {
                let bytes = self.bytes(len.min(self.sockets[nth].may_send()));
                if !bytes.is_empty() {
                    self.sockets[nth].sent.extend(&bytes);
                    self.guest.send(self.sockets[nth].header(), &bytes);
                }
            }
            Step::Rest => {
                self.guest.pause();
                self.guest.resume();
            }
        }
        self.collect();
    }

    /// Everybody reads all.
    fn drain(&mut self) {
        for nth in 0..CONNECTIONS {
            self.sockets[nth].end.set_room(usize::MAX);
            self.sockets[nth].end.finish();
        }
        for _ in 0..20_000 {
            let left = |one: &Socket| !one.ended || !one.unread.is_empty();
            let Some(nth) = self.sockets.iter().position(left) else { break };
            self.step(&Step::GuestReads(nth, 3000));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn bytes_arrive_in_order_and_once(
        rooms in prop::array::uniform3(64u32..5000),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut run = Run::new(rooms);
        steps.iter().for_each(|step| run.step(step));
        run.drain();
        for one in &run.sockets {
            prop_assert!(one.read == one.host_sent, "to the guest");
            prop_assert!(one.host_got == one.sent, "to the host");
            prop_assert!(one.ended);
        }
    }

    #[test]
    fn a_guest_that_fills_a_slow_reader_never_waits_for_ever(
        takes in prop::collection::vec(1usize..20_000, 20..60),
    ) {
        let mut run = Run::new([5000; CONNECTIONS]);
        run.step(&Step::HostTakes(0, 0));
        for room in takes {
            while run.sockets[0].may_send() > 0 {
                run.step(&Step::GuestSends(0, 980));
            }
            let before = run.sockets[0].host_got.len();
            run.step(&Step::HostTakes(0, room));
            let one = &run.sockets[0];
            prop_assert_eq!(one.host_got.len(), before + room.min(one.sent.len() - before));
            // All of it was taken: so there must be room, of which the guest knows.
            if one.sent.len() == one.host_got.len() {
                prop_assert!(one.may_send() > 0);
            }
        }
    }
}
