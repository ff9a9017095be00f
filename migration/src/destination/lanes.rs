//! Receiving memory over several connections at once.
//!
//! Each data connection has a thread that reads frames, checks them as the first connection's
//! are checked and writes memory.
//!
//! # Invariants
//! - *Rounds stay in order*: whoever reads a Sync, a thread here or the first connection's, waits
//!   until it was read on all connections; only then does anybody read on. So what precedes a Sync
//!   on any connection is applied before what follows it on any other.
//! - *Nobody writes memory behind the state's back*: before the first frame of verification or
//!   state is acted upon, all threads here have ended ([`Lanes::finish`]). A thread ends when its
//!   connection does, and that is in order only right after a Sync.
//!
//! A thread that fails says why and raises the stop flag, which ends the first connection's reading
//! within a tick.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::config::DestinationConfig;
use crate::error::Error;
use crate::link::{FrameReader, Interrupt};
use crate::sync::lock;
use crate::traits::GuestRam;
use crate::transport::{Connections, TICK, Transport, TransportError, WriteHalf};
use crate::wire::version::Agreed;
use crate::wire::{self, FEATURE_LZ4, Join, Kind, MAX_STREAMS, SyncPoint, WireError};

use super::door::{Door, Heard, greet};
use super::memory::Memory;

/// The threads of all data connections.
pub(super) struct Lanes {
    threads: Vec<JoinHandle<()>>,
    barrier: Arc<Barrier>,
}

/// Where the threads and the first connection meet.
pub(super) struct Barrier {
    state: Mutex<State>,
    changed: Condvar,
    interrupt: Interrupt,
    /// Threads, and the first connection's.
    nr: u32,
    /// Pages with content of this round, and bytes of all, that came over data connections.
    pages: AtomicU64,
    bytes: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Syncs read, on all connections together. Each is waited at, so no connection is two ahead of
    /// another.
    arrived: u64,
    /// Threads that are through.
    ended: u32,
    /// Why the first thread that failed did.
    failure: Option<Error>,
}

impl Barrier {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The Sync of this round was read: returns when that is so everywhere.
    pub(super) fn sync(&self, round: u32) -> Result<(), Error> {
        let due = u64::from(self.nr) * u64::from(round);
        let mut state = self.state();
        state.arrived += 1;
        if state.arrived >= due {
            self.pages.store(0, Ordering::Relaxed);
            self.changed.notify_all();
        }
        while state.arrived < due {
            self.interrupt.check()?;
            if state.ended > 0 {
                // The source closes it when it gives up: the first connection knows why.
                return Err(Error::Closed);
            }
            state = self.wait(state);
        }
        Ok(())
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0
    }
}

/// The end of a thread.
struct End<'a> {
    barrier: &'a Barrier,
    result: Result<(), Error>,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        let mut state = self.barrier.state();
        state.ended += 1;
        if let Err(cause) = std::mem::replace(&mut self.result, Ok(())) {
            state.failure.get_or_insert(cause);
            self.barrier.interrupt.stop.store(true, Ordering::Release);
        }
        self.barrier.changed.notify_all();
    }
}

/// What the threads of one migration share.
pub(super) struct Shared<'a> {
    pub(super) ram: &'a Arc<dyn GuestRam>,
    pub(super) interrupt: &'a Interrupt,
    pub(super) cfg: &'a DestinationConfig,
    pub(super) agreed: Agreed,
}

impl Shared<'_> {
    fn memory(&self) -> Memory {
        Memory::new(self.agreed.features & FEATURE_LZ4 != 0)
    }
}

impl Lanes {
    /// Accepts the announced connections and begins to read them.
    pub(super) fn accept(
        announced: &wire::Streams,
        connections: &dyn Connections,
        shared: &Shared<'_>,
    ) -> Result<Self, Error> {
        let &wire::Streams { nr, token } = announced;
        if !(1..=MAX_STREAMS).contains(&nr) {
            return Err(WireError::Streams("more than there may be, or none").into());
        }
        let barrier = Arc::new(Barrier {
            state: Mutex::default(),
            changed: Condvar::new(),
            interrupt: shared.interrupt.clone(),
            nr: nr + 1,
            pages: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        });
        let mut lanes = Self { threads: Vec::new(), barrier };
        let (config, agreed) = (shared.cfg.clone(), shared.agreed);
        let mut door =
            Door::new(connections, &shared.interrupt.cancel, move |transport, interrupt| {
                hear(transport, (token, agreed), &config, interrupt)
            });
        let until = Instant::now() + shared.cfg.streams_timeout;
        let mut joined = vec![false; nr as usize];
        while joined.contains(&false) {
            if let Some(cause) = lanes.failure() {
                return Err(cause);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Stream(TransportError::TimedOut(shared.cfg.streams_timeout)));
            }
            match door.next(left.min(TICK)).map_err(Error::stream)? {
                Some(Heard { said: Ok((stream, reader, writer)), .. }) => {
                    // The token was right, so if this is wrong it is the source that counts wrong.
                    let free = joined.get_mut(stream as usize).filter(|joined| !**joined);
                    *free.ok_or(WireError::Streams("one that was not announced"))? = true;
                    lanes.spawn(reader, writer, shared)?;
                }
                // A stranger, and no concern of this migration.
                Some(Heard { said: Err(_), .. }) | None => {}
            }
        }
        Ok(lanes)
    }

    fn spawn(
        &mut self,
        mut reader: FrameReader,
        writer: Box<dyn WriteHalf>,
        shared: &Shared<'_>,
    ) -> Result<(), Error> {
        let (barrier, ram) = (self.barrier.clone(), shared.ram.clone());
        let mut memory = shared.memory();
        barrier.bytes.fetch_add(reader.bytes(), Ordering::Relaxed);
        reader.deadline = None;
        reader.interrupt = shared.interrupt.clone();
        let thread = wherry_threads::of_kind("migration-receive")
            .spawn(move || {
                // Nobody may wait for a thread that is gone, however it went.
                let mut end = End { barrier: &barrier, result: Err(Error::Closed) };
                end.result = loop {
                    match step(&mut reader, &*ram, &mut memory, &barrier) {
                        Ok(()) => {}
                        Err(Error::Closed) if memory.complete() => break barrier.interrupt.check(),
                        Err(cause) => break Err(cause),
                    }
                };
                writer.shutdown();
            })
            .map_err(Error::Connection)?;
        self.threads.push(thread);
        Ok(())
    }

    /// Where the first connection's Syncs go.
    pub(super) fn barrier(&self) -> &Barrier {
        &self.barrier
    }

    /// Pages with content of this round that came over data connections.
    pub(super) fn pages(&self) -> u64 {
        self.barrier.pages.load(Ordering::Relaxed)
    }

    /// Bytes of all rounds that came over them.
    pub(super) fn bytes(&self) -> u64 {
        self.barrier.bytes.load(Ordering::Relaxed)
    }

    /// Waits until all connections have ended in order: nobody here writes memory any more.
    pub(super) fn finish(&mut self, stall: Duration) -> Result<(), Error> {
        let until = Instant::now() + stall;
        let mut state = self.barrier.state();
        while state.ended < self.barrier.nr - 1 {
            self.barrier.interrupt.check()?;
            if Instant::now() >= until {
                return Err(Error::Stalled(stall));
            }
            state = self.barrier.wait(state);
        }
        let failure = state.failure.take();
        drop(state);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        failure.map_or(Ok(()), Err)
    }

    /// Why a thread failed, if one did.
    pub(super) fn failure(&self) -> Option<Error> {
        self.barrier.state().failure.take()
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.barrier.interrupt.stop.store(true, Ordering::Release);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Reads which of the source's connections it is.
fn hear(
    mut transport: Box<dyn Transport>,
    (token, agreed): (u128, Agreed),
    cfg: &DestinationConfig,
    interrupt: &Interrupt,
) -> Result<(u32, FrameReader, Box<dyn WriteHalf>), Error> {
    let deadline = greet(&mut *transport, cfg, interrupt)?;
    let (input, output) = transport.split().map_err(Error::Connection)?;
    let patience = (Some(cfg.stall_timeout), cfg.frame_limit);
    let mut reader = FrameReader::new(input, patience, interrupt.clone());
    (reader.version, reader.features) = (agreed.version, agreed.features);
    reader.deadline = deadline;
    reader.next(&[Kind::Join], "on a data connection")?;
    let join: Join = reader.control(Kind::Join)?;
    if join.token != token {
        return Err(WireError::Streams("one of somebody else").into());
    }
    Ok((join.stream, reader, output))
}

/// Reads one frame and acts on it.
fn step(
    reader: &mut FrameReader,
    ram: &dyn GuestRam,
    memory: &mut Memory,
    barrier: &Barrier,
) -> Result<(), Error> {
    // A peer that never pauses would keep the reader from looking.
    barrier.interrupt.check()?;
    let before = reader.bytes();
    let legal = (memory.legal(), "on a data connection");
    let (kind, pages) = memory.next(reader, legal, ram)?;
    barrier.bytes.fetch_add(reader.bytes() - before, Ordering::Relaxed);
    if kind == Kind::Sync {
        let SyncPoint { round } = reader.control(Kind::Sync)?;
        memory.sync(round)?;
        return barrier.sync(round);
    }
    barrier.pages.fetch_add(pages, Ordering::Relaxed);
    Ok(())
}
