//! The product's balloon, brought into the state that a step begins with, and its state afterwards.
//!
//! Building a device for each of millions of steps would take most of the time, so each thread
//! keeps one.

use std::cell::RefCell;
use std::io;
use std::sync::{Arc, Mutex};

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::{Chain, Mask};
use crate::product::devices::GuestMemory;
use crate::product::devices::virtio::balloon::{
    Balloon, BalloonBackend, HintCall, HintRange, HintingProbe,
};
use crate::product::devices::virtio::{Completion, VirtioDevice};

const MEMORY: usize = 1 << 20;
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
/// Bytes of commands.
const WORDS: u64 = 0x4000;
/// The model's page 0.
const PAGES: u64 = 0x8_0000;
const PAGE: u64 = 4096;
/// The hint queue's number when everything is offered.
const HINT_QUEUE: usize = 3;
const SIZE: u16 = 16;

#[derive(Default)]
struct Collect(Mutex<Vec<Mask>>);

impl HintRange for Collect {
    fn range(&self, gpa: u64, len: u64) {
        let pages = (0..len / PAGE).fold(0, |all, n| all | 1 << ((gpa - PAGES) / PAGE + n));
        self.0.lock().unwrap().push(pages);
    }
}

struct NoHost;

impl BalloonBackend for NoHost {
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}

struct Bench {
    mem: Arc<GuestMemory>,
    balloon: Balloon,
    queue: Queue,
    avail: u16,
    sink: Arc<Collect>,
    as_sink: Arc<dyn HintRange>,
}

thread_local! {
    static BENCH: RefCell<Bench> = RefCell::new(Bench::new());
}

/// What came of a chain.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) hints: HintingProbe,
    /// Blocks that reached the sink, in order.
    pub(super) blocks: Vec<Mask>,
    /// Length with which the chain goes back.
    pub(super) used: u32,
}

/// The product's device handles one chain.
pub(super) fn handle(hints: &HintingProbe, sink: bool, chain: &Chain) -> Outcome {
    BENCH.with_borrow_mut(|bench| bench.handle(hints, sink, chain))
}

/// The engine calls the device. Returns the new state, and whether there is a config interrupt.
pub(super) fn call(hints: &HintingProbe, call: HintCall) -> (HintingProbe, bool) {
    BENCH.with_borrow_mut(|bench| {
        bench.balloon.probe_become(hints, None);
        let changed = bench.balloon.probe_call(call, &bench.as_sink);
        (bench.balloon.probe(), changed)
    })
}

/// The engine asks whether the driver takes its memory back: that, whether the driver is told to
/// look once more, and the new state.
pub(super) fn returned(hints: &HintingProbe, seen: bool) -> (bool, bool, HintingProbe) {
    BENCH.with_borrow_mut(|bench| {
        bench.balloon.probe_become(hints, None);
        let (returned, told) = bench.balloon.probe_returned(seen);
        (returned, told, bench.balloon.probe())
    })
}

impl Bench {
    fn new() -> Self {
        let mem = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory"));
        let mut queue = Queue::new(SIZE).expect("a queue");
        queue.set_size(SIZE);
        queue.set_desc_table_address(Some(DESC as u32), Some(0));
        queue.set_avail_ring_address(Some(AVAIL as u32), Some(0));
        queue.set_used_ring_address(Some(USED as u32), Some(0));
        queue.set_ready(true);
        let sink = Arc::<Collect>::default();
        let balloon = Balloon::probe_new(mem.clone(), Arc::new(NoHost));
        Self { mem, balloon, queue, avail: 0, as_sink: sink.clone(), sink }
    }

    fn handle(&mut self, hints: &HintingProbe, sink: bool, chain: &Chain) -> Outcome {
        self.put(chain);
        self.balloon.probe_become(hints, sink.then(|| self.as_sink.clone()));
        let mem = self.mem.clone();
        let head = self.queue.iter(&*mem).expect("a ring").next().expect("the chain");
        let done = self.balloon.handle(HINT_QUEUE, head);
        let used = match done {
            Completion::Used(len) => len,
            Completion::Held | Completion::Again => u32::MAX,
        };
        let blocks = std::mem::take(&mut *self.sink.0.lock().unwrap());
        Outcome { hints: self.balloon.probe(), blocks, used }
    }

    /// Makes a chain available.
    fn put(&mut self, chain: &Chain) {
        let block = |pages: Mask| {
            let first = u64::from(pages.trailing_zeros());
            (PAGES + first * PAGE, pages.count_ones() * PAGE as u32, true)
        };
        let descs = match *chain {
            Chain::Command(id) => {
                self.write(WORDS, &id.to_le_bytes());
                vec![(WORDS, 4, false)]
            }
            Chain::Blocks(a, 0) => vec![block(a)],
            Chain::Blocks(a, b) => vec![block(a), block(b)],
            Chain::Tiny(page) => vec![(block(page).0, 4, true)],
        };
        let last = descs.len() - 1;
        for (n, (addr, len, writable)) in (0u16..).zip(descs) {
            let more = usize::from(n) < last;
            let flags = u16::from(more) | if writable { 2 } else { 0 };
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&addr.to_le_bytes());
            bytes[8..12].copy_from_slice(&len.to_le_bytes());
            bytes[12..14].copy_from_slice(&flags.to_le_bytes());
            bytes[14..].copy_from_slice(&(n + 1).to_le_bytes());
            self.write(DESC + 16 * u64::from(n), &bytes);
        }
        self.write(AVAIL + 4 + 2 * u64::from(self.avail % SIZE), &0u16.to_le_bytes());
        self.avail = self.avail.wrapping_add(1);
        self.write(AVAIL + 2, &self.avail.to_le_bytes());
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.mem.write_slice(bytes, GuestAddress(at)).expect("the model's memory");
    }
}
