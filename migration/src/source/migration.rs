//! One migration under way: the machine, the peer, the sender, and what is told about them.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::bitmap::Bitmap;
use crate::config::SourceConfig;
use crate::error::{Error, Phase};
use crate::observe::{Event, Observer, Progress, Slice};
use crate::report::{HintFigures, Report, Snapshot};
use crate::round::{Maps, Plan, Round};
use crate::traits::SourceVm;
use crate::transport::TICK;
use crate::units::micros;
use crate::wire::{Kind, RoundStart};

use super::peer::Peer;
use super::sender::Sender;

/// Bitmaps that are kept for later: a round needs two, and another while it is planned.
const SPARE: usize = 3;
/// Time between two snapshots.
const PROGRESS: Duration = Duration::from_millis(200);

/// Measures the downtime part by part.
pub(super) struct Stopwatch {
    start: Instant,
    last: Instant,
}

impl Stopwatch {
    pub(super) fn start() -> Self {
        let now = Instant::now();
        Self { start: now, last: now }
    }

    /// Microseconds of the part that ends here.
    pub(super) fn lap(&mut self) -> u64 {
        let before = std::mem::replace(&mut self.last, Instant::now());
        micros(self.last - before)
    }

    /// Microseconds of all parts.
    pub(super) fn total(&self) -> u64 {
        micros(self.last - self.start)
    }
}

/// What every step of a migration needs.
pub(super) struct Migration<'a> {
    pub(super) vm: &'a SourceVm,
    pub(super) cfg: &'a SourceConfig,
    pub(super) nr_pages: u64,
    pub(super) peer: Peer,
    pub(super) sender: Sender,
    pub(super) phase: Phase,
    /// What is known so far.
    pub(super) report: Report,
    /// Bitmaps without a bit, and those of a round. New ones cost by all of memory.
    spare: Vec<Bitmap>,
    spare_maps: Option<Maps>,
    /// How long the last harvest took, and planning the last round on a dirty set. The pause needs
    /// both once more.
    harvesting: Duration,
    pub(super) planning: Duration,
    /// Time held back for hints in this round.
    pub(super) held: Duration,
    /// Hints were honoured in the protected way, so later rounds may ask for more.
    pub(super) protected_hints: bool,
    /// Since the guest was to pause.
    pub(super) paused: Stopwatch,
    pub(super) observer: Arc<dyn Observer>,
    progress: &'a dyn Progress,
    last_progress: Instant,
}

impl<'a> Migration<'a> {
    pub(super) fn new(
        vm: &'a SourceVm,
        cfg: &'a SourceConfig,
        peer: Peer,
        observer: Arc<dyn Observer>,
        progress: &'a dyn Progress,
    ) -> Self {
        let nr_pages = vm.ram.nr_pages();
        let (compression, streams) = (cfg.compression, cfg.streams);
        Self {
            vm,
            cfg,
            nr_pages,
            peer,
            sender: Sender::new(vm, cfg),
            phase: Phase::Handshake,
            report: Report { nr_pages, compression, streams, ..Report::default() },
            spare: Vec::new(),
            spare_maps: None,
            harvesting: Duration::ZERO,
            planning: Duration::ZERO,
            held: Duration::ZERO,
            protected_hints: false,
            paused: Stopwatch::start(),
            observer,
            progress,
            last_progress: Instant::now(),
        }
    }

    pub(super) fn handshake(&mut self) -> Result<(), Error> {
        self.enter(Phase::Handshake);
        self.sender.lanes = self.peer.handshake(self.vm, self.cfg, &self.sender.reader)?;
        self.report.boot_told = self.peer.boot_file_bytes.is_some();
        self.report.boot_file_bytes = self.peer.boot_file_bytes.unwrap_or(0);
        Ok(())
    }

    pub(super) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.tell(&Event::Phase(phase));
        self.update(None);
    }

    /// Begins a round: tells whoever watches, and the destination.
    pub(super) fn begin(&mut self, plan: &Plan) -> Arc<Round> {
        let number = self.report.rounds.len() as u32 + 1;
        let maps = self.spare_maps.take().unwrap_or_else(|| Maps::new(self.nr_pages));
        let round = Arc::new(Round::with(maps, number, self.nr_pages, plan));
        self.held = Duration::ZERO;
        self.tell(&Event::Round(&round, plan));
        round
    }

    /// A round is over that another follows: what it needed is kept for that. The guest runs.
    pub(super) fn end(&mut self, round: Arc<Round>, plan: Plan) {
        // Somebody may hold on to the round, but not to the pause's time.
        let maps = Arc::into_inner(round).map(Round::into_maps);
        self.spare_maps = Some(maps.unwrap_or_else(|| Maps::new(self.nr_pages)));
        self.give_back(plan.to_send);
        self.give_back(plan.ballooned);
    }

    /// A bitmap of all pages, none of which has its bit.
    pub(super) fn map(&mut self) -> Bitmap {
        self.spare.pop().unwrap_or_else(|| Bitmap::new(self.nr_pages))
    }

    /// It is not needed any more.
    pub(super) fn give_back(&mut self, mut map: Bitmap) {
        if self.spare.len() < SPARE && map.len() == self.nr_pages {
            map.clear_all();
            self.spare.push(map);
        }
    }

    /// To be called often: notices interruption, shows signs of life, tells where the round stands.
    pub(super) fn tick(&mut self, round: Option<&Round>) -> Result<(), Error> {
        self.peer.tick()?;
        if let Some(round) = round {
            self.slice(round, false);
        }
        if self.last_progress.elapsed() >= PROGRESS {
            self.update(round);
        }
        Ok(())
    }

    /// Tells the destination that a round begins.
    pub(super) fn announce(&mut self, round: &Round) -> Result<(), Error> {
        let start = RoundStart { round: round.number };
        self.peer.writer.send_control(Kind::Round, &start)
    }

    /// The memory of this round is all sent: returns when it is written, too.
    pub(super) fn sync(&mut self, round: &Round) -> Result<(), Error> {
        self.sender.sync(&mut self.peer.writer, round.number)?;
        while !self.sender.settled()? {
            self.tick(Some(round))?;
        }
        Ok(())
    }

    /// Bytes on the wire so far, of all connections; of data connections, those that are known to
    /// be written.
    pub(super) fn bytes(&self) -> u64 {
        self.peer.writer.bytes() + self.sender.lanes.bytes()
    }

    /// What the downtime would be with so many dirty pages, and the state that the machine would
    /// have now.
    pub(super) fn predicted_downtime(&self, dirty_pages: u64) -> Duration {
        let state = self.vm.machine.state_bytes(self.peer.writer.version);
        let meter = &self.sender.meter;
        let pages = meter.time_for(dirty_pages);
        let here = self.harvesting + self.planning + self.cfg.switchover_estimate;
        pages.saturating_add(meter.time_on_link(state)).saturating_add(here)
    }

    /// Turns the dirty log on.
    pub(super) fn start_log(&mut self) -> Result<(), Error> {
        let log = self.vm.log.clone();
        self.meanwhile(move || log.start())?.map_err(Error::machine("start the dirty log"))
    }

    /// What is dirty now. The guest runs: harvesting may take as long as it takes.
    pub(super) fn harvest(&mut self) -> Result<Bitmap, Error> {
        let (log, mut dirty) = (self.vm.log.clone(), self.map());
        let harvest = move || {
            let started = Instant::now();
            log.harvest(&mut dirty).map(|()| (dirty, started.elapsed()))
        };
        let harvested = self.meanwhile(harvest)?;
        let (dirty, time) = harvested.map_err(Error::machine("harvest the dirty log"))?;
        self.harvesting = time;
        Ok(dirty)
    }

    /// Which pages may hold anything. Looks at all of memory, about 10 ms for each GiB: for round
    /// one alone, never with the guest paused.
    pub(super) fn populated(&mut self) -> Result<Bitmap, Error> {
        let (ram, mut found) = (self.vm.ram.clone(), self.map());
        let walk = move || ram.populated(0..ram.nr_pages(), &mut found).map(|()| found);
        self.meanwhile(walk)?.map_err(Error::machine("find populated memory"))
    }

    /// The same once more for these words of 64 pages; `found` stays as it is for all others.
    pub(super) fn populated_again(
        &mut self,
        words: &Bitmap,
        mut found: Bitmap,
    ) -> Result<Bitmap, Error> {
        let ram = self.vm.ram.clone();
        let walk = || {
            for (first, nr) in words.runs() {
                let pages = first * 64..((first + nr) * 64).min(ram.nr_pages());
                found.clear_range(pages.start, pages.end - pages.start);
                ram.populated(pages, &mut found)?;
            }
            Ok(found)
        };
        self.meanwhile(walk)?.map_err(Error::machine("find populated memory"))
    }

    /// Does something that may take long, and shows signs of life meanwhile. Waits for its end
    /// whatever happens, then says what did.
    pub(super) fn meanwhile<T: Send>(
        &mut self,
        work: impl FnOnce() -> T + Send,
    ) -> Result<T, Error> {
        thread::scope(|scope| {
            let (tell, done) = channel();
            let worker = wherry_threads::of_kind("migration-walk")
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
            rate: self.sender.meter.rate().unwrap_or(0.0) as u64,
            held: self.held,
            reading: self.sender.reading(),
            sending: self.sender.sending(),
        }));
    }

    fn update(&mut self, round: Option<&Round>) {
        self.last_progress = Instant::now();
        let now = round.map_or_else(HintFigures::default, |round| {
            let mut so_far = round.figures();
            so_far.set_savings(self.sender.meter.memory_rate());
            so_far.hinting
        });
        let mut hinting = self.report.hinting;
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
            rate: self.sender.meter.rate().unwrap_or(0.0) as u64,
        });
    }
}
