//! The threads that do a disk's requests, side by side.
//!
//! # Invariants
//! - **A request is in one place**: in the queue of jobs, with a worker, or kept. The first two
//!   have a ticket, which is what a pause and a reset wait for; what is kept has none.
//! - **What is written is marked dirty, then its status is written, then it is completed.**
//! - **A worker that has ended with a request says so before it gives the ticket back**: who sees
//!   that nothing is in flight finds all that is kept, and is told of every free place.
//! - **While there is a hurry nothing begins**: the queue of jobs is empty, and what waits beneath
//!   ([`Disk::hurry`](super::disk::Disk::hurry)) comes back undone.
//! - **What nobody has to wait for is done where it is taken from the queue**: a small read of what
//!   the host has in memory. It is never in flight, so that nobody finds it half done; what of it
//!   was begun and turns out to need waiting is a job like any other.
//! - **What was put off is kept only while there is a hurry**: its end is what begins it again.
//!   What comes back later, since a pause gave up waiting, is a job again. So the disk beneath
//!   hears of a hurry after the pool, and of its end before.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::aligned::Aligned;
use super::config::{DEPTH, ID_BYTES};
use super::disk::{DiskError, cut, total};
use super::request::{Op, Request, status};
use super::state::KeptV1;
use crate::GuestMemory;
use crate::dma::Dma;
use crate::host::DiskFull;
use crate::virtio::mmio::Ticket;

/// Bytes read or written before anybody looks whether a pause waits.
const PIECE: usize = 4 << 20;
/// Requests that are done at the same time.
const WORKERS: usize = 4;
/// Bytes whose copying takes less than it takes to wake a worker and to hear of it again.
const AT_ONCE: usize = 128 << 10;

/// A request to be done.
pub(super) struct Job {
    pub(super) request: Request,
    pub(super) ticket: Ticket,
    /// The same request, to be kept.
    pub(super) chain: KeptV1,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    kept: Vec<KeptV1>,
    /// Jobs, and those with a worker.
    out: usize,
    /// Workers without work.
    idle: usize,
    /// Somebody wants to know of a free place.
    waiting: bool,
    hurry: bool,
    end: bool,
}

impl State {
    /// One less is out.
    fn ended(&mut self, freed: &EventFd) {
        self.out -= 1;
        if std::mem::take(&mut self.waiting) {
            // The only error is a counter that is about to overflow, which wakes the loop as well.
            let _ = freed.write(1);
        }
    }
}

/// What the workers share.
pub(super) struct Shared {
    pub(super) mem: Arc<GuestMemory>,
    pub(super) disk: Aligned,
    pub(super) id: String,
    pub(super) serial: String,
    pub(super) full: Arc<dyn DiskFull>,
    /// Every write is to be safe when it is completed.
    pub(super) write_through: AtomicBool,
    state: Mutex<State>,
    work: Condvar,
    /// A place is free.
    freed: Arc<EventFd>,
}

/// The threads. They end with it.
pub(super) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    pub(super) fn new(
        mem: Arc<GuestMemory>,
        disk: Aligned,
        names: (String, String),
        full: Arc<dyn DiskFull>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            mem,
            disk,
            id: names.0,
            serial: names.1,
            full,
            write_through: AtomicBool::new(false),
            state: Mutex::default(),
            work: Condvar::new(),
            freed: Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?),
        });
        let mut pool = Self { shared, workers: Vec::new() };
        for _ in 0..WORKERS {
            let shared = pool.shared.clone();
            let thread = wherry_threads::of_kind("disk");
            pool.workers.push(thread.spawn(move || shared.work())?);
        }
        Ok(pool)
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Becomes readable when there is a place again after [`has_room`](Self::has_room) said no.
    pub(super) fn freed(&self) -> &Arc<EventFd> {
        &self.shared.freed
    }

    /// Whether one more request may be taken.
    pub(super) fn has_room(&self) -> bool {
        let mut state = self.shared.lock();
        state.waiting = state.out + state.kept.len() >= DEPTH;
        !state.waiting
    }

    /// Does it at once if nobody has to wait for it. Returns the bytes written into the chain.
    pub(super) fn at_once(&self, request: Request) -> Result<u32, Request> {
        let (Op::Read(at), Some(data)) = (&request.op, &request.data) else { return Err(request) };
        let slices = data.slices();
        if total(&slices) > AT_ONCE || !self.shared.disk.read_now(*at, &slices) {
            return Err(request);
        }
        Ok(self.shared.finish(request, status::OK))
    }

    pub(super) fn submit(&self, job: Job) {
        let mut state = self.shared.lock();
        state.out += 1;
        state.jobs.push_back(job);
        let idle = state.idle > 0;
        // Without the lock, which is the first thing that a worker wants.
        drop(state);
        if idle {
            self.shared.work.notify_one();
        }
    }

    /// See the module's text. What has not begun is kept.
    pub(super) fn hurry(&self, on: bool) {
        if !on {
            self.shared.disk.disk().hurry(false);
        }
        let mut state = self.shared.lock();
        state.hurry = on;
        let jobs = if on { std::mem::take(&mut state.jobs) } else { VecDeque::new() };
        state.out -= jobs.len();
        let mut tickets = Vec::with_capacity(jobs.len());
        for Job { ticket, chain, .. } in jobs {
            state.kept.push(chain);
            tickets.push(ticket);
        }
        drop(state);
        tickets.into_iter().for_each(Ticket::put_back);
        if on {
            self.shared.disk.disk().hurry(true);
        }
    }

    /// What is kept. The device is paused.
    pub(super) fn kept(&self) -> Vec<KeptV1> {
        self.shared.lock().kept.clone()
    }

    /// What is kept, which then is not any more.
    pub(super) fn take_kept(&self) -> Vec<KeptV1> {
        std::mem::take(&mut self.shared.lock().kept)
    }

    pub(super) fn keep(&self, kept: Vec<KeptV1>) {
        self.shared.lock().kept = kept;
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.end = true;
        let idle = state.out == 0;
        drop(state);
        self.shared.work.notify_all();
        // Who is with a disk that hangs ends when that does, and nobody waits for it.
        if idle {
            self.workers.drain(..).for_each(|worker| drop(worker.join()));
        }
    }
}

/// How a request ended.
enum Done {
    With(u8),
    /// It did not, and is kept until there is room.
    Full,
    /// It did not, since somebody was in a hurry.
    PutOff,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.end {
                return None;
            }
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            state.idle += 1;
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    fn work(&self) {
        while let Some(job) = self.next() {
            match self.perform(&job.request.op, job.request.data.as_ref()) {
                Done::With(status) => {
                    let len = self.finish(job.request, status);
                    self.lock().ended(&self.freed);
                    job.ticket.complete(len);
                }
                Done::Full => self.keep(job, self.lock()),
                Done::PutOff => {
                    let mut state = self.lock();
                    if state.hurry {
                        self.keep(job, state);
                    } else {
                        state.jobs.push_back(job);
                    }
                }
            }
        }
    }

    /// Its data is marked when it was written, and before the driver is told.
    fn finish(&self, Request { data, answer, .. }: Request, status: u8) -> u32 {
        drop(data);
        answer.write(&self.mem, status);
        answer.len
    }

    fn keep(&self, Job { request, ticket, chain }: Job, mut state: MutexGuard<'_, State>) {
        state.kept.push(chain);
        state.ended(&self.freed);
        drop(state);
        // As above: part of it may have been read into memory.
        drop(request);
        ticket.put_back();
    }

    fn perform(&self, op: &Op, data: Option<&Dma>) -> Done {
        let writes = matches!(op, Op::Write(_) | Op::Zero(_));
        match self.on_disk(op, data) {
            Ok(()) => Done::With(status::OK),
            Err(DiskError::PutOff) => Done::PutOff,
            Err(DiskError::Full) if writes && self.full.disk_full(&self.id) => Done::Full,
            Err(_) => Done::With(status::IOERR),
        }
    }

    fn on_disk(&self, op: &Op, data: Option<&Dma>) -> Result<(), DiskError> {
        let slices = data.map(Dma::slices).unwrap_or_default();
        match op {
            Op::Read(at) => {
                return self.in_pieces(*at, &slices, |at, piece| self.disk.read(at, piece));
            }
            Op::Write(at) => {
                self.in_pieces(*at, &slices, |at, piece| self.disk.write(at, piece))?;
            }
            Op::Flush => return self.flush(),
            Op::Id => {
                // Zeros behind it, if there is room.
                let mut id = self.serial.clone().into_bytes();
                id.resize(ID_BYTES, 0);
                let mut rest = id.as_slice();
                for slice in cut(&slices, 0, ID_BYTES) {
                    slice.copy_from(rest);
                    rest = rest.get(slice.len()..).unwrap_or_default();
                }
                return Ok(());
            }
            Op::Discard(ranges) => {
                return ranges.iter().try_for_each(|range| {
                    self.may_go_on()?;
                    self.disk.discard(range.at, range.len)
                });
            }
            Op::Zero(ranges) => ranges.iter().try_for_each(|range| {
                self.may_go_on()?;
                self.disk.write_zeroes(range.at, range.len, range.unmap)
            })?,
        }
        if self.write_through.load(Ordering::SeqCst) { self.flush() } else { Ok(()) }
    }

    /// A guest chooses how large its requests are, and is not to choose how long a pause waits for
    /// them: one that was put off in the middle is done again from its beginning.
    fn in_pieces<'a>(
        &self,
        at: u64,
        slices: &[VolatileSlice<'a>],
        mut work: impl FnMut(u64, &[VolatileSlice<'a>]) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        let (len, mut done) = (total(slices), 0);
        while done < len {
            self.may_go_on()?;
            let piece = cut(slices, done, PIECE);
            work(at + done as u64, &piece)?;
            done += total(&piece).max(1);
        }
        Ok(())
    }

    /// Whether nobody waits until nothing is in flight.
    fn may_go_on(&self) -> Result<(), DiskError> {
        if self.lock().hurry { Err(DiskError::PutOff) } else { Ok(()) }
    }

    /// No room for what was written long ago is an error like any other: nobody has it any more.
    fn flush(&self) -> Result<(), DiskError> {
        self.disk.disk().flush().map_err(|e| match e {
            DiskError::Full => DiskError::Failed(io::ErrorKind::StorageFull.into()),
            e => e,
        })
    }
}
