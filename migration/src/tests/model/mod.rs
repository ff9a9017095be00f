//! A model guest: memory, dirty log, balloon driver and an oracle that knows what every page must
//! be.
//!
//! Two ways to run it. *Scripted*: at every call of the engine into the model the guest does the
//! next operations of a script, on the engine's own thread, so that any interleaving at the
//! granularity of these calls is reproducible. *Threaded*: other threads call [`Model::act`] while
//! the engine works.

mod machine;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use super::ops::Op;
use crate::traits::*;

/// A deliberate mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mutation {
    /// Hints are taken at their word although memory was not protected when the id was published.
    PublishBeforeProtect,
    /// Hints of an id are honoured in the next round, as if the rounds shared one to-send bitmap
    /// and the epoch were not closed between them.
    HintAfterClose,
    /// The VMM's own writes are not in the dirty set.
    VmmWrites,
    /// The destination runs as soon as it is loaded.
    RunBeforeHandOff,
    /// A bit of this page is wrong in what is first read of it.
    FlipPage(u64),
    /// This page is counted as sent and does not arrive.
    DropPage(u64),
}

#[derive(Default)]
pub(super) struct Inner {
    data: Vec<u8>,
    populated: Vec<bool>,
    dirty: Vec<bool>,
    log_on: bool,
    used: Vec<bool>,
    /// Hinted by the driver and held until DONE.
    held: Vec<bool>,
    ballooned: Vec<bool>,
    /// Hinted while in use and not written since: the guest's own fault.
    lied: Vec<bool>,
    /// Ever hinted, ballooned or reported: only such pages may differ.
    excused: Vec<bool>,
    queue: VecDeque<(u64, u64, u64)>,
    id: u64,
    /// The driver has this id and hints under it.
    driver_id: Option<u64>,
    sink: Option<Arc<dyn HintSink>>,
    old_sinks: Vec<Arc<dyn HintSink>>,
    paused: bool,
    script: VecDeque<Op>,
    stamp: u64,
}

/// A call of the engine at which a scenario goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Trigger {
    /// The log is about to be turned on.
    LogOn,
    /// Holes are about to be asked for.
    Walk,
    /// The first id has just been published.
    Published,
    /// The balloon's pages are about to be asked for.
    Ballooned,
    /// The first page is about to be read.
    FirstRead,
    /// The first page has just been read.
    FirstReadDone,
    /// The first harvest is about to be made.
    Harvest,
    /// And has just been made.
    HarvestDone,
    /// The first page of round two is about to be read.
    ReadInRoundTwo,
    /// HandOff is about to be sent.
    HandOver,
}

type Work = Box<dyn FnOnce() + Send>;

/// The guest and its machine.
pub(super) struct Model {
    pub(super) pages: u64,
    zeroing: bool,
    per_call: usize,
    /// A mistake that is made in its migrations.
    mutation: Mutex<Option<Mutation>>,
    pub(super) inner: Mutex<Inner>,
    delivery: Mutex<()>,
    /// Inside a call of the sink: no further hints, there is one device thread.
    hinting: AtomicBool,
    pub(super) done: AtomicU64,
    /// How often holes were asked for, and how often while the guest was paused.
    pub(super) walks: [AtomicU64; 2],
    pub(super) panic_at_read: AtomicBool,
    /// Turning the log on takes so many milliseconds.
    pub(super) slow_log: AtomicU64,
    /// How often a pause was prepared.
    pub(super) prepared: AtomicU64,
    /// It does not let go of what a destination needs.
    pub(super) keeps: AtomicBool,
    /// It says what it boots at a reset: one file.
    pub(super) boots: AtomicBool,
    /// What it says of its state's size.
    pub(super) state_bytes: AtomicU64,
    /// Its state is filled up to this size.
    pub(super) least_state: AtomicU64,
    /// What the guest does at certain calls, once each.
    triggers: Mutex<Vec<(Trigger, Vec<Op>)>>,
    /// What takes a call's time, once.
    during: Mutex<Option<(Trigger, Work)>>,
    harvests: AtomicU64,
    /// The last published command is one that hints run under.
    pub(super) hinting_published: AtomicBool,
    /// After this id the driver goes away.
    pub(super) last_id: AtomicU64,
    /// The driver never says that it is through.
    pub(super) endless: AtomicBool,
    /// The guest writes what it frees.
    pub(super) poisons: AtomicBool,
}

impl Model {
    /// A guest whose even words are in use, whose odd words are free with content (or zero), and
    /// whose last quarter was never touched.
    pub(super) fn new(pages: u64, zeroing: bool, script: Vec<Op>) -> Arc<Self> {
        let n = pages as usize;
        let mut inner = Inner {
            data: vec![0; n * PAGE_SIZE],
            populated: vec![false; n],
            dirty: vec![false; n],
            used: vec![false; n],
            held: vec![false; n],
            ballooned: vec![false; n],
            lied: vec![false; n],
            excused: vec![false; n],
            id: 1,
            script: script.into(),
            ..Inner::default()
        };
        for page in 0..pages * 3 / 4 {
            inner.write(page, page % 9 == 0, true);
            inner.used[page as usize] = page / 64 % 2 == 0;
        }
        Arc::new(Self {
            pages,
            zeroing,
            per_call: 2,
            mutation: Mutex::default(),
            inner: Mutex::new(inner),
            delivery: Mutex::new(()),
            hinting: AtomicBool::new(false),
            done: AtomicU64::new(0),
            walks: Default::default(),
            panic_at_read: AtomicBool::new(false),
            slow_log: AtomicU64::new(0),
            prepared: AtomicU64::new(0),
            keeps: AtomicBool::new(false),
            boots: AtomicBool::default(),
            state_bytes: AtomicU64::new(0),
            least_state: AtomicU64::new(0),
            triggers: Mutex::default(),
            during: Mutex::default(),
            harvests: AtomicU64::new(0),
            hinting_published: AtomicBool::new(false),
            last_id: AtomicU64::new(u64::MAX),
            endless: AtomicBool::default(),
            poisons: AtomicBool::default(),
        })
    }

    pub(super) fn vm(self: &Arc<Self>) -> SourceVm {
        SourceVm {
            ram: self.clone(),
            log: self.clone(),
            hints: Some(self.clone()),
            machine: self.clone(),
        }
    }

    /// Makes this mistake, or none, from now on.
    pub(super) fn mutate(&self, mutation: Option<Mutation>) {
        *self.mutation.lock().unwrap() = mutation;
    }

    pub(super) fn mutation(&self) -> Option<Mutation> {
        *self.mutation.lock().unwrap()
    }

    pub(super) fn paused(&self) -> bool {
        self.inner.lock().unwrap().paused
    }

    pub(super) fn log_on(&self) -> bool {
        self.inner.lock().unwrap().log_on
    }

    /// At this call the guest does these operations, once.
    pub(super) fn on(&self, trigger: Trigger, ops: Vec<Op>) {
        self.triggers.lock().unwrap().push((trigger, ops));
    }

    /// This call takes as long as that does, once.
    #[allow(dead_code)] // For tests of time, which crate wherry-trace has not.
    pub(super) fn during(&self, trigger: Trigger, work: impl FnOnce() + Send + 'static) {
        *self.during.lock().unwrap() = Some((trigger, Box::new(work)));
    }

    fn fire(&self, trigger: Trigger) {
        let during = self.during.lock().unwrap().take_if(|(at, _)| *at == trigger);
        if let Some((_, work)) = during {
            work();
        }
        let mut triggers = self.triggers.lock().unwrap();
        let Some(at) = triggers.iter().position(|(t, _)| *t == trigger) else {
            return;
        };
        let (_, ops) = triggers.remove(at);
        drop(triggers);
        for op in ops {
            self.act(op);
        }
    }

    /// The engine calls: the guest does something meanwhile.
    fn hook(&self) {
        for _ in 0..self.per_call {
            let mut inner = self.inner.lock().unwrap();
            let in_sink = self.hinting.load(SeqCst);
            match inner.script.front() {
                Some(Op::Deliver | Op::Lie(..) | Op::Stale(..)) if in_sink => return,
                _ => {}
            }
            let Some(op) = inner.script.pop_front() else {
                return;
            };
            drop(inner);
            self.act(op);
        }
    }

    /// Does one operation, unless the guest is paused.
    pub(super) fn act(&self, op: Op) {
        let mut guard = self.inner.lock().unwrap();
        let inner = &mut *guard;
        if inner.paused {
            return;
        }
        let clip = |f: u64, n: u64| f.min(self.pages)..(f + n).min(self.pages);
        match op {
            Op::Write(page) => inner.write(page, false, true),
            Op::WriteNoise(page) => inner.write_noise(page),
            Op::WriteZero(page) => inner.write(page, true, true),
            Op::VmmWrite(page) => {
                if inner.used[page as usize] {
                    inner.write(page, false, self.mutation() != Some(Mutation::VmmWrites));
                }
            }
            Op::Free(first, nr) => {
                for page in clip(first, nr) {
                    if !inner.ballooned[page as usize] {
                        inner.used[page as usize] = false;
                    }
                }
            }
            Op::Hint(first, nr) => {
                let Some(id) = inner.driver_id else { return };
                let range = clip(first, nr);
                let free = |p: u64, i: &Inner| {
                    let p = p as usize;
                    !i.used[p] && !i.held[p] && !i.ballooned[p]
                };
                if range.is_empty() || !range.clone().all(|p| free(p, inner)) {
                    return;
                }
                for page in range.clone() {
                    if self.zeroing {
                        inner.write(page, true, true);
                        inner.used[page as usize] = false;
                    }
                    inner.held[page as usize] = true;
                    inner.excused[page as usize] = true;
                }
                inner.queue.push_back((id, range.start, range.end - range.start));
            }
            Op::Shrink(first, nr) => {
                for page in clip(first, nr) {
                    inner.held[page as usize] = false;
                }
            }
            Op::Deliver => {
                drop(guard);
                self.deliver();
            }
            Op::Lie(first, nr) => {
                let Some(sink) = inner.sink.clone() else { return };
                for page in clip(first, nr) {
                    inner.lied[page as usize] = true;
                    inner.excused[page as usize] = true;
                }
                drop(guard);
                let _order = self.delivery.lock().unwrap();
                if self.inner.lock().unwrap().sink.is_none() {
                    return;
                }
                self.hint(&sink, first, nr);
            }
            Op::Stale(first, nr) => {
                let sinks = inner.old_sinks.clone();
                drop(guard);
                for sink in sinks {
                    self.hint(&sink, first, nr);
                }
            }
            Op::Inflate(first, nr) => {
                for page in clip(first, nr) {
                    let p = page as usize;
                    if !inner.used[p] && !inner.held[p] {
                        inner.ballooned[p] = true;
                        inner.excused[p] = true;
                        inner.discard(page);
                    }
                }
            }
            Op::Deflate(first, nr) => {
                for page in clip(first, nr) {
                    inner.ballooned[page as usize] = false;
                }
            }
            Op::Report(first, nr) => {
                for page in clip(first, nr) {
                    let p = page as usize;
                    if !inner.used[p] && !inner.held[p] {
                        inner.excused[p] = true;
                        inner.discard(page);
                    }
                }
            }
        }
    }

    fn deliver(&self) {
        let _order = self.delivery.lock().unwrap();
        let mut inner = self.inner.lock().unwrap();
        let Some((id, first, nr)) = inner.queue.pop_front() else {
            return;
        };
        let sink = match &inner.sink {
            Some(sink) if id == inner.id => sink.clone(),
            _ => return,
        };
        drop(inner);
        self.hint(&sink, first, nr);
    }

    fn hint(&self, sink: &Arc<dyn HintSink>, first: u64, nr: u64) {
        self.hinting.store(true, SeqCst);
        sink.hint(first, nr);
        self.hinting.store(false, SeqCst);
    }

    /// Compares a paused guest with what arrived. `Err` names the first wrong page.
    pub(super) fn compare(&self, dest: &[u8]) -> Result<(), String> {
        let mut inner = self.inner.lock().unwrap();
        // Sinks hold the log, which is this model: kept, no model would ever be freed.
        inner.old_sinks.clear();
        inner.sink = None;
        assert!(inner.paused && dest.len() == inner.data.len());
        for page in 0..self.pages as usize {
            let range = page * PAGE_SIZE..(page + 1) * PAGE_SIZE;
            if inner.data[range.clone()] == dest[range] {
                continue;
            }
            if inner.used[page] && !inner.lied[page] {
                return Err(format!("page {page} is in use and lost"));
            }
            if !inner.excused[page] {
                return Err(format!("page {page} was never hinted and differs"));
            }
        }
        Ok(())
    }
}

impl Inner {
    fn write(&mut self, page: u64, zero: bool, logged: bool) {
        self.stamp += 1;
        let stamp = if zero { 0 } else { self.stamp };
        let p = page as usize;
        if self.ballooned[p] {
            return;
        }
        let range = p * PAGE_SIZE..(p + 1) * PAGE_SIZE;
        self.data[range.clone()].fill(0);
        // In the middle, so that looking at the start of a page is not enough.
        self.data[range.start + 2048..range.start + 2056].copy_from_slice(&stamp.to_le_bytes());
        self.populated[p] = true;
        self.used[p] = true;
        self.held[p] = false;
        self.lied[p] = false;
        if self.log_on && logged {
            self.dirty[p] = true;
        }
    }

    fn write_noise(&mut self, page: u64) {
        self.write(page, false, true);
        let p = page as usize;
        if self.ballooned[p] {
            return;
        }
        let mut seed = self.stamp;
        for word in self.data[p * PAGE_SIZE..(p + 1) * PAGE_SIZE].chunks_exact_mut(8) {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            word.copy_from_slice(&(seed ^ seed >> 29).to_le_bytes());
        }
    }

    fn discard(&mut self, page: u64) {
        let p = page as usize;
        self.data[p * PAGE_SIZE..(p + 1) * PAGE_SIZE].fill(0);
        self.populated[p] = false;
        // As the VMM marks what it discards.
        self.dirty[p] |= self.log_on;
    }
}
