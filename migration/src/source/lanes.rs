//! Sending over several connections at once.
//!
//! The engine's thread claims, protects and reads pages (module `sender`). With data connections it
//! does not write them itself: each chunk goes to a *lane*, a thread that compresses it, checksums
//! it and writes it to a connection of its own. So packing and network work are spread over CPUs
//! and connections, while everything that races with the guest stays on one thread.
//!
//! # Invariant
//! A page that is sent in one round and again in a later one is applied in that order, even if it
//! travels over two connections.
//!
//! *Why:* within a round a page is sent at most once, since its to-send bit is taken once. Between
//! two rounds stands a Sync, sent on every connection, the first included, behind all of its chunks
//! of the round; the destination applies nothing behind a Sync before it has applied everything
//! ahead of it on all connections. What becomes zero between two rounds goes over the first
//! connection, behind one Sync and ahead of the next, and is not in the round between.
//!
//! The first connection carries everything else, HandOff included, and lanes end before the state
//! is sent. So lanes have no part in who owns the guest.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::config::{Compression, SourceConfig};
use crate::error::Error;
use crate::link::{Cap, FrameWriter, Interrupt, SIGN_OF_LIFE};
use crate::transport::{Connections, TICK};
use crate::wire::pages::packed_room;
use crate::wire::sum::ContentSum;
use crate::wire::version::Agreed;
use crate::wire::{self, Join, Kind, SyncPoint};

use super::claim::FRAME_ROOM;
use super::meter::Meter;

/// Chunks of a lane: one on its way, one ready.
const CHUNKS: u32 = 2;
/// How long a destination may take to accept all data connections: less than it waits for a peer
/// that says nothing.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// Chunks with less content than this say little about the link.
pub(super) const MEASURE: usize = 128 << 10;

/// Pages on their way to a connection.
pub(super) struct Chunk {
    /// The run table, as sent.
    pub(super) table: Vec<u8>,
    /// Content of the runs that have some; its first `len` bytes count.
    pub(super) content: Vec<u8>,
    pub(super) len: usize,
    /// Its CRC32, if that was made.
    pub(super) sum: Option<ContentSum>,
}

enum Job {
    Pages(Chunk),
    Sync(u32),
}

/// What a lane has done.
enum Done {
    /// These pages are written; the chunk may be used again.
    Pages(Chunk),
    Sync,
    /// All that there was.
    End,
}

/// A chunk that waits for pages, and its lane.
pub(super) struct Idle {
    lane: usize,
    pub(super) chunk: Chunk,
}

/// What was sent, and how long that took.
#[derive(Default)]
struct Sent {
    content: u64,
    wire: u64,
    time: Duration,
}

/// What a lane says after each job, and when it ends.
struct LaneReport {
    lane: usize,
    done: Done,
    /// Bytes on the wire since it last said something.
    wire: u64,
    /// How long it took.
    busy: Duration,
    at: Instant,
}

struct Lane {
    jobs: Sender<Job>,
    /// Returns its connection: while that is open the destination does not take the end of it for
    /// the cause of a failure.
    thread: JoinHandle<FrameWriter>,
}

/// All lanes.
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    reports: Receiver<Result<LaneReport, Error>>,
    /// The one that has waited longest is the first.
    idle: VecDeque<Idle>,
    /// Jobs of which nothing has been heard.
    nr_under_way: usize,
    /// Bytes on the wire, of jobs that are done.
    bytes: u64,
    /// Time that lanes worked, all together.
    busy: Duration,
    /// When the last chunk was done, or the first one begun.
    clock: Instant,
    /// Small chunks, to be measured with the next big one: the
    /// other lanes' bytes went out in this time, too.
    small: Sent,
    interrupt: Interrupt,
}

impl Lanes {
    /// No connection but the first.
    pub(super) fn none() -> Self {
        Self::of(channel().1, &Interrupt::default())
    }

    fn of(reports: Receiver<Result<LaneReport, Error>>, interrupt: &Interrupt) -> Self {
        Self {
            lanes: Vec::new(),
            reports,
            idle: VecDeque::new(),
            nr_under_way: 0,
            bytes: 0,
            busy: Duration::ZERO,
            clock: Instant::now(),
            small: Default::default(),
            interrupt: interrupt.clone(),
        }
    }

    /// Whether there is none (any more).
    pub(super) fn are_none(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Opens these connections and says on each which it is.
    pub(super) fn open(
        connections: &dyn Connections,
        announced: &wire::Streams,
        cfg: &SourceConfig,
        cap: Option<&Cap>,
        interrupt: &Interrupt,
        agreed: Agreed,
    ) -> Result<Self, Error> {
        let (tell, reports) = channel();
        let mut lanes = Self::of(reports, interrupt);
        let until = Instant::now() + OPEN_TIMEOUT;
        let &wire::Streams { nr, token } = announced;
        for stream in 0..nr {
            interrupt.check()?;
            let left = until.saturating_duration_since(Instant::now());
            let opened = connections.next(&interrupt.cancel, left).map_err(Error::stream)?;
            // Nothing comes back on it.
            let (_, output) = opened.split().map_err(Error::Connection)?;
            output.set_sharers(nr);
            let patience = (cfg.stall_timeout, cfg.frame_limit);
            let mut writer = FrameWriter::new(output, cap.cloned(), patience, interrupt.clone());
            (writer.version, writer.features) = (agreed.version, agreed.features);
            writer.send_control(Kind::Join, &Join { stream, token })?;
            let (lane, compression, tell) = (stream as usize, cfg.compression, tell.clone());
            let (jobs, todo) = channel();
            let thread = thread::Builder::new()
                .name(format!("migration-send-{stream}"))
                .spawn(move || {
                    if let Err(cause) = work(&mut writer, lane, compression, &todo, &tell) {
                        let _ = tell.send(Err(cause));
                    }
                    writer
                })
                .map_err(Error::Connection)?;
            lanes.lanes.push(Lane { jobs, thread });
        }
        for _ in 0..CHUNKS {
            for lane in 0..lanes.lanes.len() {
                lanes.idle.push_back(Idle { lane, chunk: Chunk::new() });
            }
        }
        Ok(lanes)
    }

    /// Bytes on the wire, of all lanes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Time that lanes worked, all together.
    pub(super) fn busy(&self) -> Duration {
        self.busy
    }

    /// A chunk to fill, if there is a lane that has one within `patience`.
    pub(super) fn take(
        &mut self,
        patience: Duration,
        meter: &mut Meter,
    ) -> Result<Option<Idle>, Error> {
        self.hear(Duration::ZERO, meter)?;
        if self.idle.is_empty() && !self.are_none() {
            self.hear(patience, meter)?;
        }
        if self.nr_under_way == 0 {
            (self.clock, self.small) = (Instant::now(), Default::default());
        }
        Ok(self.idle.pop_front())
    }

    /// Gives back a chunk, if one was taken, that was not needed.
    pub(super) fn keep(&mut self, idle: Option<Idle>) {
        idle.into_iter().for_each(|idle| self.idle.push_front(idle));
    }

    /// Sends a chunk.
    pub(super) fn send(&mut self, Idle { lane, chunk }: Idle) -> Result<(), Error> {
        self.give(lane, Job::Pages(chunk))
    }

    /// Whether everything is written.
    pub(super) fn settled(&mut self, patience: Duration, meter: &mut Meter) -> Result<bool, Error> {
        if self.nr_under_way > 0 {
            self.hear(patience, meter)?;
        }
        Ok(self.nr_under_way == 0)
    }

    /// Says on all connections that this round is complete.
    pub(super) fn sync(&mut self, round: u32) -> Result<(), Error> {
        (0..self.lanes.len()).try_for_each(|lane| self.give(lane, Job::Sync(round)))
    }

    /// Ends the connections; all jobs must be done. What is left to hear are their last bytes.
    pub(super) fn close(&mut self) -> Result<(), Error> {
        for Lane { jobs, thread } in self.lanes.drain(..) {
            drop(jobs);
            if let Ok(writer) = thread.join() {
                // This is how the destination knows that nothing follows.
                writer.shutdown();
            }
        }
        self.hear(Duration::ZERO, &mut Meter::default())
    }

    fn give(&mut self, lane: usize, job: Job) -> Result<(), Error> {
        let sent = self.lanes.get(lane).is_some_and(|lane| lane.jobs.send(job).is_ok());
        if sent {
            self.nr_under_way += 1;
            return Ok(());
        }
        // The lane has ended, and has reported why.
        self.hear(TICK, &mut Meter::default())?;
        Err(Error::Closed)
    }

    /// Takes what lanes have said, waiting up to `patience` for the first report.
    fn hear(&mut self, patience: Duration, meter: &mut Meter) -> Result<(), Error> {
        let mut next = if patience.is_zero() {
            self.reports.try_recv().ok()
        } else {
            self.reports.recv_timeout(patience).ok()
        };
        if next.is_none() && self.lanes.iter().any(|lane| lane.thread.is_finished()) {
            // Without a report, or with one that came just now.
            next = Some(self.reports.try_recv().unwrap_or(Err(Error::Closed)));
        }
        while let Some(report) = next {
            let LaneReport { lane, done, wire, busy, at } = report?;
            self.bytes += wire;
            self.busy += busy;
            if !matches!(done, Done::End) {
                self.nr_under_way -= 1;
            }
            if let Done::Pages(chunk) = done {
                // Lanes work side by side: what counts is the time from one being done to the next,
                // whichever it is.
                self.small.content += chunk.len as u64;
                self.small.wire += wire;
                self.small.time += at.saturating_duration_since(self.clock);
                if chunk.len >= MEASURE {
                    let Sent { content, wire, time } = std::mem::take(&mut self.small);
                    meter.add(content, wire, time);
                }
                self.clock = self.clock.max(at);
                self.idle.push_back(Idle { lane, chunk });
            }
            next = self.reports.try_recv().ok();
        }
        Ok(())
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        if self.lanes.is_empty() {
            return;
        }
        // It did not come to an orderly end: lanes that are writing notice within a tick.
        self.interrupt.stop.store(true, std::sync::atomic::Ordering::Release);
        let _ = self.close();
    }
}

/// One lane's thread.
fn work(
    writer: &mut FrameWriter,
    lane: usize,
    compression: Compression,
    jobs: &Receiver<Job>,
    tell: &Sender<Result<LaneReport, Error>>,
) -> Result<(), Error> {
    let mut packed = room_to_pack(compression);
    let mut told = 0;
    let mut say = |done, writer: &FrameWriter, since: Instant| {
        let wire = writer.bytes() - told;
        told = writer.bytes();
        let at = Instant::now();
        // Fails only when nobody listens any more.
        let _ = tell.send(Ok(LaneReport { lane, done, wire, busy: at - since, at }));
    };
    loop {
        let job = jobs.recv_timeout(SIGN_OF_LIFE);
        let since = Instant::now();
        let done = match job {
            Ok(Job::Pages(chunk)) => {
                writer.send_pages(&chunk.table, chunk.content(), &mut packed)?;
                Done::Pages(chunk)
            }
            Ok(Job::Sync(round)) => {
                writer.send_control(Kind::Sync, &SyncPoint { round })?;
                Done::Sync
            }
            Err(RecvTimeoutError::Timeout) => {
                writer.send(Kind::Idle, &[])?;
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => {
                say(Done::End, writer, since);
                return Ok(());
            }
        };
        say(done, writer, since);
    }
}

impl Chunk {
    pub(super) fn new() -> Self {
        Self { table: Vec::new(), content: vec![0; FRAME_ROOM], len: 0, sum: None }
    }

    /// Content of the runs that have some, and its sum.
    pub(super) fn content(&self) -> (&[u8], Option<&ContentSum>) {
        (self.content.get(..self.len).unwrap_or_default(), self.sum.as_ref())
    }
}

/// Room for [`FrameWriter::send_pages`]; empty if nothing is compressed.
pub(super) fn room_to_pack(compression: Compression) -> Vec<u8> {
    match compression {
        Compression::None => Vec::new(),
        Compression::Lz4 => vec![0; packed_room()],
    }
}

/// A number that nobody guesses.
pub(super) fn random_token() -> io::Result<u128> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u128::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_chunks_do_not_take_their_time_away_from_big_ones() {
        let (tell, reports) = channel();
        let begun = Instant::now();
        let mut lanes = Lanes::of(reports, &Interrupt::default());
        (lanes.nr_under_way, lanes.clock) = (40, begun);
        // One lane takes 10 ms for each big chunk, the other is done with a small one just before.
        for n in 1..=20 {
            for (len, before) in [(4096, 1), (FRAME_ROOM, 0)] {
                let chunk = Chunk { len, ..Chunk::new() };
                let at = begun + Duration::from_millis(10 * n - before);
                let report = LaneReport {
                    lane: 0,
                    done: Done::Pages(chunk),
                    wire: len as u64,
                    busy: Duration::ZERO,
                    at,
                };
                tell.send(Ok(report)).unwrap();
            }
        }
        let mut meter = Meter::default();
        lanes.hear(Duration::ZERO, &mut meter).unwrap();
        let link = (FRAME_ROOM + 4096) as f64 * 100.0;
        assert!(
            (meter.rate().unwrap() / link - 1.0).abs() < 0.01,
            "{:?}, not {link}",
            meter.rate()
        );
        assert_eq!((lanes.nr_under_way, lanes.idle.len()), (0, 40));
    }
}
