//! Sending over several connections at once.
//!
//! The engine's thread claims and protects pages (module `claim`). With data connections it reads
//! none of them itself: what it protects at a time goes to a *lane*, a thread that reads it frame
//! by frame, compresses, checksums and writes each to a connection of its own. So all work that
//! grows with memory is spread over CPUs and connections, and the engine wakes up once for two
//! frames. What decides whether a page is lost stays on one thread: a lane gets pages that are
//! claimed and protected, and a round is accounted for and harvested when all lanes have said that
//! they are done.
//!
//! # Invariant
//! A page that is sent in one round and again in a later one is applied in that order, even if it
//! travels over two connections.
//!
//! *Why:* within a round a page is sent at most once, since its to-send bit is taken once. Between
//! two rounds stands a Sync, sent on every connection, the first included, behind all of its frames
//! of the round; the destination applies nothing behind a Sync before it has applied everything
//! ahead of it on all connections.
//!
//! The first connection carries everything else, HandOff included, and lanes end before the state
//! is sent. So lanes have no part in who owns the guest.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::rand::{GetRandomFlags, getrandom};

use crate::config::SourceConfig;
use crate::error::Error;
use crate::link::{Cap, FrameWriter, Interrupt, SIGN_OF_LIFE};
use crate::round::Round;
use crate::transport::{Connections, TICK};
use crate::wire::version::Agreed;
use crate::wire::{self, Join, Kind, SyncPoint};

use super::claim::Protected;
use super::meter::Meter;
use super::reader::Reader;

/// Jobs of a lane: one on its way, one ready.
const JOBS: u32 = 2;
/// How long a destination may take to accept all data connections: less than it waits for a peer
/// that says nothing.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
/// What has less content than this says little about the link.
pub(super) const MEASURE: usize = 128 << 10;

enum Job {
    Pages(Protected, Arc<Round>),
    Sync(u32),
}

/// What a lane has done.
enum Done {
    /// Its frames are written, with so many bytes of content.
    Pages(usize),
    Sync,
    /// All that there was.
    End,
}

/// A lane that can take pages.
pub(super) struct Idle(usize);

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
    /// How long reading took, and how long all the rest.
    reading: Duration,
    busy: Duration,
    /// Of both, what went into frames that have nothing for the link.
    in_vain: Duration,
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
    /// Time that lanes read, and that they worked otherwise, all together.
    reading: Duration,
    busy: Duration,
    /// When the last job was done, or the first one begun.
    clock: Instant,
    /// Small jobs, to be measured with the next big one: the other lanes' bytes went out in this
    /// time, too.
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
            reading: Duration::ZERO,
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
        (cap, reader): (Option<&Cap>, &Reader),
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
            let patience = (cfg.stall_timeout, cfg.frame_limit);
            let mut writer = FrameWriter::new(output, cap.cloned(), patience, interrupt.clone());
            (writer.version, writer.features) = (agreed.version, agreed.features);
            writer.sharers = nr;
            writer.send_control(Kind::Join, &Join { stream, token })?;
            let (lane, mut reader, tell) = (stream as usize, reader.another(), tell.clone());
            let (jobs, todo) = channel();
            let thread = wherry_threads::of_kind("migration-send")
                .named(format!("migration-send-{stream}"))
                .spawn(move || {
                    let work = || work(&mut writer, lane, &mut reader, &todo, &tell);
                    // A panic is told like any other end.
                    let end = catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(Error::Panicked));
                    if let Err(cause) = end {
                        let _ = tell.send(Err(cause));
                    }
                    writer
                })
                .map_err(Error::Connection)?;
            lanes.lanes.push(Lane { jobs, thread });
        }
        for _ in 0..JOBS {
            lanes.idle.extend((0..lanes.lanes.len()).map(Idle));
        }
        Ok(lanes)
    }

    /// Bytes on the wire, of all lanes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Time that lanes read, all together.
    pub(super) fn reading(&self) -> Duration {
        self.reading
    }

    /// Time that they worked otherwise.
    pub(super) fn busy(&self) -> Duration {
        self.busy
    }

    /// A lane that can take pages, if there is one within `patience`.
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

    /// Whether one may have nothing to do: as many places are free as there are lanes.
    pub(super) fn are_waiting(&self) -> bool {
        self.idle.len() >= self.lanes.len()
    }

    /// Gives back a lane, if one was taken, that was not needed.
    pub(super) fn keep(&mut self, idle: Option<Idle>) {
        idle.into_iter().for_each(|idle| self.idle.push_front(idle));
    }

    /// Has pages of this round read and sent.
    pub(super) fn send(
        &mut self,
        Idle(lane): Idle,
        pages: Protected,
        round: &Arc<Round>,
    ) -> Result<(), Error> {
        self.give(lane, Job::Pages(pages, round.clone()))
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
            let LaneReport { lane, done, wire, reading, busy, in_vain, at } = report?;
            self.bytes += wire;
            self.reading += reading;
            self.busy += busy;
            if !matches!(done, Done::End) {
                self.nr_under_way -= 1;
            }
            if let Done::Pages(len) = done {
                // Nothing for the link: this lane's share of the time does not count.
                let nr = self.lanes.len().max(1) as u32;
                self.clock = self.clock.max(at.min(self.clock + in_vain / nr));
                // Lanes work side by side: what counts is the time from one being done to the next,
                // whichever it is.
                self.small.content += len as u64;
                self.small.wire += wire;
                self.small.time += at.saturating_duration_since(self.clock);
                if len >= MEASURE {
                    let Sent { content, wire, time } = std::mem::take(&mut self.small);
                    meter.add(content, wire, time);
                }
                self.clock = self.clock.max(at);
                self.idle.push_back(Idle(lane));
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
    reader: &mut Reader,
    jobs: &Receiver<Job>,
    tell: &Sender<Result<LaneReport, Error>>,
) -> Result<(), Error> {
    let mut told = 0;
    let mut say =
        |done, writer: &FrameWriter, since: Instant, [reading, in_vain]: [Duration; 2]| {
            let wire = writer.bytes() - told;
            told = writer.bytes();
            let at = Instant::now();
            // Fails only when nobody listens any more.
            let busy = (at - since).saturating_sub(reading);
            let _ = tell.send(Ok(LaneReport { lane, done, wire, reading, busy, in_vain, at }));
        };
    loop {
        let job = jobs.recv_timeout(SIGN_OF_LIFE);
        let since = Instant::now();
        let (mut reading, mut in_vain) = (Duration::ZERO, Duration::ZERO);
        let done = match job {
            Ok(Job::Pages(mut pages, round)) => {
                let mut len = 0;
                while let Some(frame) = pages.next_frame() {
                    let begun = Instant::now();
                    let content = reader.read(&round, &frame, writer)?;
                    reading += begun.elapsed();
                    reader.send(writer)?;
                    if content == 0 {
                        in_vain += begun.elapsed();
                    }
                    len += content;
                }
                Done::Pages(len)
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
                say(Done::End, writer, since, [reading, in_vain]);
                return Ok(());
            }
        };
        say(done, writer, since, [reading, in_vain]);
    }
}

/// A number that nobody guesses.
pub(super) fn random_token() -> io::Result<u128> {
    let mut bytes = [0; 16];
    // So few are given whole (getrandom(2)).
    let got = getrandom(&mut bytes, GetRandomFlags::empty())?;
    if got < bytes.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(u128::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the link is measured at, in bytes per second, after reports of jobs: their bytes, when
    /// they were done, and how long they had nothing for the link.
    fn measured(jobs: &[(usize, Duration, Duration)]) -> f64 {
        let (tell, reports) = channel();
        let begun = Instant::now();
        let mut lanes = Lanes::of(reports, &Interrupt::default());
        (lanes.nr_under_way, lanes.clock) = (jobs.len(), begun);
        for &(len, at, in_vain) in jobs {
            let (done, wire, at) = (Done::Pages(len), len as u64, begun + at);
            let (reading, busy) = (Duration::ZERO, Duration::ZERO);
            let report = LaneReport { lane: 0, done, wire, reading, busy, in_vain, at };
            tell.send(Ok(report)).unwrap();
        }
        let mut meter = Meter::default();
        lanes.hear(Duration::ZERO, &mut meter).unwrap();
        assert_eq!((lanes.nr_under_way, lanes.idle.len()), (0, jobs.len()));
        meter.rate().unwrap()
    }

    #[test]
    fn small_frames_do_not_take_their_time_away_from_big_ones() {
        // One lane takes 10 ms for each big frame, the other is done with a small one just before.
        let frames = (1..=20).flat_map(|n| {
            [(4096, 1), (MEASURE, 0)]
                .map(|(len, before)| (len, Duration::from_millis(10 * n - before), Duration::ZERO))
        });
        let link = (MEASURE + 4096) as f64 * 100.0;
        let rate = measured(&frames.collect::<Vec<_>>());
        assert!((rate / link - 1.0).abs() < 0.01, "{rate}, not {link}");
    }

    #[test]
    fn zeros_do_not_make_the_link_slow() {
        // A job of zeros, 10 ms, and one that is half zeros, 20 ms.
        let ms = Duration::from_millis;
        let frames = (0..20).flat_map(|n| {
            let at = 30 * n;
            [(0, at + 10, 10), (MEASURE, at + 30, 10)]
        });
        let frames = frames.map(|(len, at, reading)| (len, ms(at), ms(reading)));
        let (rate, link) = (measured(&frames.collect::<Vec<_>>()), MEASURE as f64 * 100.0);
        assert!((rate / link - 1.0).abs() < 0.01, "{rate}, not {link}");
    }
}
