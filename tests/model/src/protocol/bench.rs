//! The product's balloon, brought into the state that a step begins with, and its state afterwards.
//!
//! Building a device for each of millions of steps would take most of the time, so each thread
//! keeps one. Mistakes are made around it: in the state that it begins with, in the chain that it
//! is given, in what is handed on of the outcome.

use std::cell::RefCell;
use std::io;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Instant;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use wherry_devices::host::BalloonBackend;
use wherry_devices::virtio::balloon::constants::{CMD_DONE, CMD_STOP};
use wherry_devices::virtio::balloon::{
    Balloon, BalloonConfig, BalloonHandle, HintRange, HintState, Hinting,
};
use wherry_devices::virtio::{Completion, VirtioDevice};
use wherry_devices::{GuestMemory, InterruptLine};

use super::terms::{Chain, Mask};
use crate::mutant::{Mutant, on};

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

    /// Time stands still, however busy the machine is.
    fn now(&self) -> Instant {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        *START
    }
}

impl InterruptLine for NoHost {
    fn set(&self, _: bool) -> io::Result<()> {
        Ok(())
    }
}

/// What the engine does to the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum HintCall {
    Start,
    Rest,
    Stop,
    Done,
    /// The destination restores it.
    Restore,
}

struct Bench {
    mem: Arc<GuestMemory>,
    balloon: BalloonHandle,
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
    pub(super) hints: HintState,
    /// Blocks that reached the sink, in order.
    pub(super) blocks: Vec<Mask>,
    /// Length with which the chain goes back.
    pub(super) used: u32,
}

/// The product's device handles one chain.
pub(super) fn handle(hints: &HintState, sink: bool, chain: &Chain) -> Outcome {
    let (mut given, mut shown) = (*hints, *chain);
    match chain {
        Chain::Command(id) if *id > CMD_DONE && on(Mutant::StaleId) => given.saved.field = *id,
        Chain::Command(_) if on(Mutant::ReplayedId) => given.finished = false,
        Chain::Blocks(a, _) if on(Mutant::FirstSegment) => shown = Chain::Blocks(*a, 0),
        // Its bytes are zero.
        Chain::Tiny(_) if on(Mutant::CommandByLength) => shown = Chain::Command(CMD_STOP),
        _ => {}
    }
    let mut outcome = BENCH.with_borrow_mut(|bench| bench.handle(&given, sink, &shown));
    outcome.hints.saved.field = hints.saved.field;
    outcome.hints.finished |= hints.finished;
    outcome.used += u32::from(on(Mutant::UsedLength));
    outcome
}

/// The engine calls the device. Returns the new state, and whether there is a config interrupt.
pub(super) fn call(hints: &HintState, call: HintCall) -> (HintState, bool) {
    let mistaken_rest = call == HintCall::Rest && on(Mutant::RestBeforeAnnounced);
    let given = HintState { announced: hints.announced || mistaken_rest, ..*hints };
    let (mut after, changed) = with(&given, |hinting, sink| match call {
        HintCall::Start => hinting.start(sink).is_ok(),
        HintCall::Rest => hinting.rest(),
        HintCall::Stop => hinting.stop(),
        HintCall::Done => hinting.done(),
        HintCall::Restore => {
            let restored = Hinting::restore(hinting.state.saved);
            hinting.state = restored.unwrap_or_default().state;
            hinting.field() != hints.saved.field
        }
    });
    if mistaken_rest {
        after.announced = hints.announced;
    }
    if call == HintCall::Restore && on(Mutant::NoDone) {
        after.saved.field = hints.saved.field;
        return (after, false);
    }
    (after, changed)
}

/// The engine asks whether the driver takes its memory back: that, whether the driver is told to
/// look once more, and the new state.
pub(super) fn returned(hints: &HintState, seen: bool) -> (bool, bool, HintState) {
    let mut told = false;
    let (after, returned) = with(hints, |hinting, _| hinting.returned(seen, || told = true));
    (returned, told, after)
}

fn with<T>(
    hints: &HintState,
    f: impl FnOnce(&mut Hinting, Arc<dyn HintRange>) -> T,
) -> (HintState, T) {
    BENCH.with_borrow_mut(|bench| {
        let mut device = bench.balloon.device().urgent();
        let hinting = device.device_mut().hinting();
        (hinting.state, hinting.sink) = (*hints, None);
        let out = f(hinting, bench.as_sink.clone());
        (value(hinting), out)
    })
}

/// Its state, less what is for `rested` alone, which the model's engine does not ask.
fn value(hinting: &Hinting) -> HintState {
    HintState { owes_stop: false, ..hinting.state }
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
        let cfg = BalloonConfig::default();
        let balloon = Balloon::create(cfg, mem.clone(), Arc::new(NoHost), Arc::new(NoHost));
        let balloon = balloon.expect("a balloon");
        Self { mem, balloon, queue, avail: 0, as_sink: sink.clone(), sink }
    }

    fn handle(&mut self, hints: &HintState, sink: bool, chain: &Chain) -> Outcome {
        self.put(chain);
        let mem = self.mem.clone();
        let head = self.queue.iter(&*mem).expect("a ring").next().expect("the chain");
        let mut device = self.balloon.device().urgent();
        let balloon = device.device_mut();
        let sink = sink.then(|| self.as_sink.clone());
        (balloon.hinting().state, balloon.hinting().sink) = (*hints, sink);
        let done = balloon.handle(HINT_QUEUE, head);
        let used = match done {
            Completion::Used(len) => len,
            Completion::Part(_) | Completion::Held | Completion::Again | Completion::Wait => {
                u32::MAX
            }
        };
        let blocks = std::mem::take(&mut *self.sink.0.lock().unwrap());
        Outcome { hints: value(balloon.hinting()), blocks, used }
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
