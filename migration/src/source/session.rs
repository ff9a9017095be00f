//! The connection and what every phase needs of it: answers, interruption, signs of life, progress.
//!
//! The destination is silent between Welcome and Loaded, so its half of the connection is read by a
//! thread of its own: it passes answers on through a channel and, when the stream ends or an Abort
//! comes, raises the stop flag that interrupts sending. The source is never silent for long: after
//! a second without a frame it sends Idle, so that scanning gigabytes of zeros, or holding back for
//! hints, is not taken for a stall. Opening further connections has a limit of its own.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::bitmap::Bitmap;
use crate::config::{Compression, SourceConfig};
use crate::control::CancelToken;
use crate::error::{Error, Phase};
use crate::link::{Cap, FrameReader, FrameWriter, Interrupt, SIGN_OF_LIFE};
use crate::observe::{Event, Observer, Progress, Slice};
use crate::report::{HintFigures, Snapshot};
use crate::round::Round;
use crate::traits::SourceVm;
use crate::transport::{More, TICK, Throttle, Transport, TransportError};
use crate::units::PAGE_SIZE;
use crate::verify::shadow::Shadow;
use crate::wire::{
    self, FEATURE_LZ4, FEATURE_STREAMS, FEATURE_VERIFY, Hello, Kind, MAX_DESCRIPTION, MAX_STREAMS,
    SyncPoint, Welcome, WireError,
};

use super::lanes::{Streams, random_token};
use super::meter::Meter;
use super::sender::Buffers;

/// Assumed until something was measured, in bytes per second.
const ASSUMED_RATE: f64 = (1u64 << 30) as f64;
/// Answers that a destination may have under way: more were not asked for, and would fill memory.
const MAX_UNREAD: u32 = 4;
const PROGRESS: Duration = Duration::from_millis(200);

pub(super) struct Session<'a> {
    pub(super) vm: &'a SourceVm,
    pub(super) cfg: &'a SourceConfig,
    pub(super) nr_pages: u64,
    pub(super) writer: FrameWriter,
    /// Further connections, for memory.
    pub(super) streams: Option<Streams>,
    /// Where these come from.
    more: Option<Box<dyn More>>,
    cap: Option<Cap>,
    pub(super) interrupt: Interrupt,
    pub(super) meter: Meter,
    pub(super) phase: Phase,
    /// Pages of which the destination may hold content: those that were sent and not zeroed since.
    pub(super) content: Bitmap,
    pub(super) buffers: Buffers,
    /// Time that claiming, protecting and reading pages took.
    pub(super) reading: Duration,
    /// Time that packing them and writing them to the first connection took.
    pub(super) sending_here: Duration,
    /// Bytes of guest memory that a byte on the wire carried in the last round on a dirty set; 1
    /// before, and without compression.
    pub(super) dirty_packing: f64,
    /// Hints were honoured in the protected way, so later rounds may ask for more.
    pub(super) protected_hints: bool,
    /// What hints did in the rounds that are over.
    pub(super) hinting: HintFigures,
    /// Time held back for hints in this round.
    pub(super) held: Duration,
    /// If the migration is to be verified.
    pub(super) shadow: Option<Arc<Shadow>>,
    /// Whoever watches.
    pub(super) observer: Arc<dyn Observer>,
    /// Answers that were read and not yet expected.
    unread: Arc<AtomicU32>,
    progress: &'a dyn Progress,
    last_progress: Instant,
    answers: Receiver<Result<(Kind, Vec<u8>), Error>>,
    reader: Option<JoinHandle<()>>,
    /// Tells the reading thread that its session is over.
    over: Interrupt,
}

impl<'a> Session<'a> {
    pub(super) fn open(
        vm: &'a SourceVm,
        transport: Box<dyn Transport>,
        cfg: &'a SourceConfig,
        progress: &'a dyn Progress,
        cancel: &CancelToken,
    ) -> Result<Self, Error> {
        let more = transport.more();
        let (input, output) = transport.split().map_err(Error::Connection)?;
        let cap = cfg.bandwidth.map(|rate| Arc::new(Mutex::new(Throttle::new(rate))));
        let interrupt = Interrupt { cancel: cancel.clone(), ..Interrupt::default() };
        let over = Interrupt::default();
        let mut frames = FrameReader::new(input, None, over.clone());
        frames.frame_limit = cfg.frame_limit;
        let (tell, answers) = channel();
        let stop = interrupt.stop.clone();
        let unread = Arc::new(AtomicU32::new(0));
        let queued = unread.clone();
        let legal: &[Kind] = match cfg.verify {
            true => &[Kind::Welcome, Kind::Digests, Kind::Loaded, Kind::Running],
            false => &[Kind::Welcome, Kind::Loaded, Kind::Running],
        };
        let reader = thread::Builder::new()
            .name("migration-answers".into())
            .spawn(move || {
                loop {
                    let next = frames.next(legal, "from a destination").and_then(|found| {
                        let during = "without having been asked for";
                        match queued.fetch_add(1, Ordering::AcqRel) {
                            MAX_UNREAD.. => Err(WireError::Unexpected { found, during }.into()),
                            _ => Ok((found, frames.payload().to_vec())),
                        }
                    });
                    let end = next.is_err();
                    // The channel first: who sees the flag finds the cause there.
                    let gone = tell.send(next).is_err();
                    if end || gone {
                        stop.store(true, Ordering::Release);
                        return;
                    }
                }
            })
            .map_err(Error::Connection)?;
        let nr_pages = vm.ram.nr_pages();
        let mut writer =
            FrameWriter::new(output, cap.clone(), cfg.stall_timeout, interrupt.clone());
        writer.frame_limit = cfg.frame_limit;
        Ok(Self {
            vm,
            cfg,
            nr_pages,
            writer,
            streams: None,
            more,
            cap,
            interrupt,
            meter: Meter::default(),
            phase: Phase::Handshake,
            content: Bitmap::new(nr_pages),
            buffers: Buffers::new(cfg.compression),
            reading: Duration::ZERO,
            sending_here: Duration::ZERO,
            dirty_packing: 1.0,
            protected_hints: false,
            hinting: HintFigures::default(),
            held: Duration::ZERO,
            shadow: None,
            observer: Arc::new(()),
            unread,
            progress,
            last_progress: Instant::now(),
            answers,
            reader: Some(reader),
            over,
        })
    }

    pub(super) fn handshake(&mut self) -> Result<(), Error> {
        self.enter(Phase::Handshake);
        let description = self.vm.description.clone();
        if description.len() > MAX_DESCRIPTION {
            return Err(WireError::Payload("description").into());
        }
        let mut features = 0;
        if self.cfg.verify {
            features |= FEATURE_VERIFY;
        }
        if self.cfg.compression == Compression::Lz4 {
            features |= FEATURE_LZ4;
        }
        if self.cfg.streams > 1 {
            features |= FEATURE_STREAMS;
        }
        let hello = Hello { features, nr_pages: self.nr_pages, description };
        self.writer.send_control(Kind::Hello, "hello", &hello)?;
        let payload = match self.expect(Kind::Welcome) {
            Err(Error::PeerAbort(reason)) => return Err(Error::Refused(reason)),
            other => other?,
        };
        let welcome: Welcome = crate::wire::codec::decode(&payload, "welcome")?;
        match welcome.features ^ features {
            0 if self.cfg.streams > 1 => self.open_streams(),
            0 => Ok(()),
            not_agreed => Err(WireError::Features(not_agreed).into()),
        }
    }

    fn open_streams(&mut self) -> Result<(), Error> {
        let Some(more) = self.more.take() else {
            return Err(Error::Stream(TransportError::Single));
        };
        let token = random_token().map_err(Error::Connection)?;
        let announced = wire::Streams { nr: self.cfg.streams.min(MAX_STREAMS), token };
        let streams =
            Streams::open(&*more, &announced, self.cfg, self.cap.as_ref(), &self.interrupt)?;
        self.streams = Some(streams);
        // They wait to be accepted by then, so that a destination need not wait for one that never
        // comes.
        self.writer.send_control(Kind::Streams, "streams", &announced)
    }

    /// The memory of this round is all sent: what follows on any connection is applied after it.
    pub(super) fn sync(&mut self, round: &Round) -> Result<(), Error> {
        let Some(streams) = &mut self.streams else { return Ok(()) };
        streams.sync(round.number)?;
        self.writer.send_control(Kind::Sync, "sync", &SyncPoint { round: round.number })?;
        // The round ends when it is written: its bytes and its time are known then.
        while let Some(streams) = &mut self.streams
            && !streams.settled(TICK, &mut self.meter)?
        {
            self.tick(Some(round))?;
        }
        Ok(())
    }

    /// No memory follows.
    pub(super) fn close_streams(&mut self) -> Result<(), Error> {
        self.streams.as_mut().map_or(Ok(()), Streams::close)
    }

    /// Time that packing and writing pages took, of all connections together.
    pub(super) fn sending(&self) -> Duration {
        self.sending_here + self.streams.as_ref().map_or(Duration::ZERO, Streams::busy)
    }

    /// Bytes on the wire so far, of all connections. Of further ones those that are known to be
    /// written.
    pub(super) fn bytes(&self) -> u64 {
        self.writer.bytes() + self.streams.as_ref().map_or(0, Streams::bytes)
    }

    /// Waits for the destination's next answer, which must be `kind`.
    pub(super) fn expect(&mut self, kind: Kind) -> Result<Vec<u8>, Error> {
        let until = Instant::now() + self.cfg.stall_timeout;
        loop {
            let answer = self.answers.recv_timeout(TICK);
            if let Ok(Ok(_)) = answer {
                self.unread.fetch_sub(1, Ordering::AcqRel);
            }
            match answer {
                Ok(Ok((found, payload))) if found == kind => return Ok(payload),
                Ok(Ok((found, _))) => {
                    let during = "as the next answer";
                    return Err(WireError::Unexpected { found, during }.into());
                }
                Ok(Err(cause)) => return Err(cause),
                Err(RecvTimeoutError::Disconnected) => return Err(Error::Closed),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.interrupt.cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            self.interrupt.limit.check()?;
            if Instant::now() >= until {
                return Err(Error::Stalled(self.cfg.stall_timeout));
            }
        }
    }

    /// The true cause of an error that may only be its consequence: a broken pipe is what an Abort
    /// looks like to the writer.
    pub(super) fn explain(&mut self, error: Error) -> Error {
        if !matches!(error, Error::Closed | Error::Connection(_)) {
            return error;
        }
        let until = Instant::now() + TICK;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.answers.recv_timeout(left) {
                Ok(Ok(_)) => {}
                Ok(Err(Error::PeerAbort(reason))) if self.phase == Phase::Handshake => {
                    return Error::Refused(reason);
                }
                Ok(Err(cause)) => return cause,
                Err(_) => return error,
            }
        }
    }

    /// Bytes on the wire per second to reckon with: the cap, or what was measured, or an
    /// assumption.
    pub(super) fn link_rate(&self) -> f64 {
        let cap = self.cfg.bandwidth.map(|cap| cap.max(1) as f64);
        match (cap, self.meter.rate()) {
            (Some(cap), Some(rate)) => rate.min(cap),
            (None, Some(rate)) | (Some(rate), None) => rate,
            (None, None) => ASSUMED_RATE,
        }
    }

    /// Bytes of guest memory per second: what a hint is worth. Compressed, the link carries more
    /// than its own bytes.
    pub(super) fn memory_rate(&self) -> f64 {
        let cap = self.cfg.bandwidth.map_or(f64::INFINITY, |cap| cap.max(1) as f64);
        self.meter.likely_rate(ASSUMED_RATE.min(cap)).min(cap) * self.meter.packing()
    }

    /// How long this dirty set would take.
    ///
    /// Compressed it may take a fraction of that, and what the guest writes may compress quite
    /// unlike what it keeps. So nothing is taken for granted until a round has sent a dirty set.
    pub(super) fn time_for(&self, pages: u64) -> Duration {
        let bytes = (pages * PAGE_SIZE as u64) as f64;
        Duration::from_secs_f64(bytes / (self.link_rate() * self.dirty_packing))
    }

    pub(super) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.tell(&Event::Phase(phase));
        self.report(None);
    }

    /// To be called often: notices interruption, shows signs of life, reports progress.
    pub(super) fn tick(&mut self, round: Option<&Round>) -> Result<(), Error> {
        self.interrupt.check()?;
        if self.writer.last_sent().elapsed() >= SIGN_OF_LIFE {
            self.writer.send(Kind::Idle, &[])?;
        }
        if let Some(round) = round {
            self.slice(round, false);
        }
        if self.last_progress.elapsed() >= PROGRESS {
            self.report(round);
        }
        Ok(())
    }

    /// Tells whoever watches.
    pub(super) fn tell(&self, event: &Event<'_>) {
        self.observer.observe(event);
    }

    /// Tells where the round stands.
    pub(super) fn slice(&self, round: &Round, over: bool) {
        self.tell(&Event::Slice(Slice {
            round,
            over,
            bytes: self.bytes(),
            rate: self.meter.rate().unwrap_or(0.0) as u64,
            held: self.held,
            reading: self.reading,
            sending: self.sending(),
        }));
    }

    /// Does something that may take long, and shows signs of life meanwhile. Waits for its end
    /// whatever happens, then says what did.
    fn meanwhile<T: Send>(&mut self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        thread::scope(|scope| {
            let (tell, done) = channel();
            let worker = thread::Builder::new()
                .name("migration-walk".into())
                .spawn_scoped(scope, move || {
                    let _ = tell.send(work());
                })
                .map_err(Error::Connection)?;
            let mut alive = Ok(());
            loop {
                match done.recv_timeout(TICK) {
                    Ok(result) => return alive.map(|()| result),
                    Err(RecvTimeoutError::Timeout) if alive.is_ok() => alive = self.tick(None),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => match worker.join() {
                        Err(panic) => std::panic::resume_unwind(panic),
                        Ok(()) => return Err(Error::Closed),
                    },
                }
            }
        })
    }

    /// Turns the dirty log on.
    pub(super) fn start_log(&mut self) -> Result<(), Error> {
        let log = self.vm.log.clone();
        self.meanwhile(move || log.start())?.map_err(Error::machine("start the dirty log"))
    }

    /// What is dirty now. The guest runs: harvesting may take as long as it takes.
    pub(super) fn harvest(&mut self) -> Result<Bitmap, Error> {
        let (log, mut dirty) = (self.vm.log.clone(), Bitmap::new(self.nr_pages));
        let harvest = move || log.harvest(&mut dirty).map(|()| dirty);
        self.meanwhile(harvest)?.map_err(Error::machine("harvest the dirty log"))
    }

    /// Which pages may hold anything. Looks at all of memory, about 10 ms for each GiB, so the
    /// guest must run meanwhile.
    pub(super) fn populated(&mut self) -> Result<Bitmap, Error> {
        let (ram, mut found) = (self.vm.ram.clone(), Bitmap::new(self.nr_pages));
        let walk = move || ram.populated(&mut found).map(|()| found);
        self.meanwhile(walk)?.map_err(Error::machine("find populated memory"))
    }

    fn report(&mut self, round: Option<&Round>) {
        self.last_progress = Instant::now();
        let now = round.map_or_else(HintFigures::default, |round| {
            let mut so_far = round.figures();
            so_far.reckon(self.memory_rate());
            so_far.hint_figures()
        });
        let mut hinting = self.hinting;
        hinting.add(&now);
        self.progress.update(&Snapshot {
            phase: self.phase,
            round: round.map_or(0, |r| r.number),
            sent: round.map_or(0, Round::sent),
            remaining: round.map_or(0, Round::remaining),
            hinted: round.map_or(0, Round::hinted),
            round_hinting: now,
            hinting,
            bytes: self.bytes(),
            rate: self.meter.rate().unwrap_or(0.0) as u64,
        });
    }

    #[cfg(test)]
    pub(super) fn mutated(&self, mutation: crate::tests::Mutation) -> bool {
        self.cfg.mutation == Some(mutation)
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.over.stop.store(true, Ordering::Release);
        self.writer.shutdown();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
