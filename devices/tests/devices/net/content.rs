//! Whatever comes in whatever pieces: frames arrive whole, in order, and each once.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Bytes of the longest frame, and one more.
const LONGEST: usize = 600;

#[derive(Debug, Clone)]
enum Step {
    /// A frame of this length for the guest.
    Come(usize),
    /// Room for frames: buffers of one chain.
    Room(Vec<u32>),
    /// A frame from the guest in pieces of these lengths.
    Send(Vec<u32>),
    /// Paused, and on.
    Rest,
    /// To another host on the same network.
    Move,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (14..LONGEST).prop_map(Step::Come),
        6 => prop::collection::vec(16u32..256, 1..4).prop_map(Step::Room),
        3 => prop::collection::vec(26u32..400, 1..4).prop_map(Step::Send),
        1 => Just(Step::Rest),
        1 => Just(Step::Move),
    ]
}

/// Chains that the driver has out at most: as many as its rings have room for, of each queue.
const MOST: usize = 60;

struct Run {
    guest: Guest,
    /// Chains that are out, by head.
    room: BTreeMap<u32, Vec<u32>>,
    came: Vec<Vec<u8>>,
    arrived: Vec<Vec<u8>>,
    moves: usize,
    /// How often there was news while the driver had too little room for some frames.
    presses: usize,
}

impl Run {
    /// A chain has four buffers of 256 bytes.
    fn at(head: u32, nth: usize) -> u64 {
        FROM + u64::from(head) * 256 + nth as u64 * 256
    }

    fn room(&mut self, lens: &[u32]) {
        if self.room.len() >= MOST {
            return;
        }
        let head = self.guest.driver.next(RX);
        let bufs: Vec<_> =
            lens.iter().enumerate().map(|(nth, len)| inb(Self::at(head, nth), *len)).collect();
        assert_eq!(self.guest.add(RX, &bufs), head);
        self.room.insert(head, lens.to_vec());
    }

    fn send(&mut self, lens: &[u32]) {
        let at = 0xE_0000;
        let frame = frame(lens.iter().sum::<u32>() as usize - HEADER, lens[0] as u8);
        self.guest.put(at, &frame);
        let starts = lens.iter().scan(at, |at, len| {
            *at += u64::from(*len);
            Some(out(*at - u64::from(*len), *len))
        });
        let bufs: Vec<_> = starts.collect();
        self.guest.wire.take();
        self.guest.add(TX, &bufs);
        assert_eq!(self.guest.wire.take(), [frame]);
    }

    fn collect(&mut self) {
        let mut parts = self.guest.used().into_iter().filter(|used| used.0 == RX);
        while let Some((_, head, len)) = parts.next() {
            let mut frame = self.take(head, len);
            let chains = u16::from_le_bytes([frame[10], frame[11]]);
            for _ in 1..chains {
                let (_, head, len) = parts.next().expect("a frame whose rest is missing");
                frame.extend(self.take(head, len));
            }
            frame[NUM_BUFFERS..HEADER].fill(0);
            self.arrived.push(frame);
        }
    }

    fn take(&mut self, head: u32, mut len: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (nth, room) in self.room.remove(&head).unwrap().into_iter().enumerate() {
            bytes.extend(self.guest.get(Self::at(head, nth), room.min(len) as usize));
            len -= room.min(len);
        }
        bytes
    }

    fn step(&mut self, step: &Step) {
        let room: u32 = self.room.values().flatten().sum();
        let tight = room > 0 && (room as usize) < HEADER + LONGEST;
        self.presses += usize::from(tight && matches!(step, Step::Come(_) | Step::Rest));
        match step {
            Step::Come(len) => {
                let frame = frame(*len, self.came.len() as u8);
                self.came.push(frame.clone());
                self.guest.wire.send(frame);
            }
            Step::Room(lens) => self.room(lens),
            Step::Send(lens) => self.send(lens),
            Step::Rest => {
                self.guest.pause();
                self.guest.resume();
            }
            Step::Move => {
                self.guest = self.guest.moved_to(self.guest.wire.clone());
                self.guest.resume();
                self.moves += 1;
            }
        }
        self.guest.bench.run();
        self.collect();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn frames_arrive_whole_in_order_and_once(steps in prop::collection::vec(step(), 1..80)) {
        let (guest, room) = (Guest::up(), BTreeMap::new());
        let mut run = Run { guest, room, came: vec![], arrived: vec![], moves: 0, presses: 0 };
        steps.iter().for_each(|step| run.step(step));
        for _ in 0..2 * steps.len() {
            run.step(&Step::Room(vec![255; 3]));
        }
        // A move loses the frame that the device has in its hands, and so does one that comes
        // while a driver at rest has no room for the one before.
        let (came, arrived) = (run.came, run.arrived);
        prop_assert!(arrived.len() + run.moves + run.presses >= came.len());
        let mut left = came.iter();
        for frame in &arrived {
            prop_assert!(left.any(|one| one == frame), "damaged, doubled or out of order");
        }
    }
}
