//! Recording a trace: see [`crate::trace`].
//!
//! Without a recorder nothing here does more than look at an `Option`. With one, [`Record::start`]
//! puts layers around the machine's dirty log and balloon, which note protections and hints as they
//! pass, so that rounds, sinks and sender know nothing of traces; the engine's thread turns these
//! notes into events a few times a second. What is kept is bounded, whatever the guest does.

use std::cell::{Cell, RefCell};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::bitmap::{AtomicBitmap, Bitmap, word_masks};
use crate::config::{HintMode, HintPolicy, OnTimeout, SourceConfig};
use crate::error::{Error, Phase, describe};
use crate::report::Report;
use crate::round::{Plan, Round};
use crate::trace::{Event, FATES, MAX_CELLS, Recorder, Start, VERSION, What};
use crate::traits::{DirtyLog, HintSink, HintSource, SourceVm};
use crate::units::micros;

use super::session::Session;

/// Time between two slices, and between flushes of hints.
const SLICE: Duration = Duration::from_millis(50);
/// Time between two looks at the dirty log. Tests look all the time.
const LOOK: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 200 });
/// A look takes at most this part of the time, however large the guest.
const LOOK_SHARE: u32 = 50;
/// Ranges kept between two flushes: 8 GiB of Linux's blocks, and lines of 40 KiB.
const MAX_RANGES: usize = 2048;

/// The trace of one migration, or none.
#[derive(Default)]
pub(super) struct Record<'a>(Option<Tape<'a>>);

struct Tape<'a> {
    to: &'a dyn Recorder,
    started: Instant,
    /// The log below all layers.
    log: Arc<dyn DirtyLog>,
    notes: Arc<Notes>,
    map: RefCell<Option<Map>>,
    hints: RefCell<String>,
    held: Cell<Duration>,
    next_slice: Cell<Instant>,
    next_look: Cell<Instant>,
}

/// What the layers see, on whatever thread.
struct Notes {
    nr_pages: u64,
    /// Words of 64 pages that are write-protected.
    protected: AtomicBitmap,
    all_protected: AtomicBool,
    hints: Mutex<Hinted>,
}

#[derive(Default)]
struct Hinted {
    ranges: Vec<(u64, u64)>,
    dropped: u64,
    /// Round one, and its pages that a hint found already sent.
    round: Option<(Arc<Round>, Bitmap)>,
    /// The balloon as round one's plan found it.
    ballooned: Option<Bitmap>,
    planned: bool,
}

impl Notes {
    fn hints(&self) -> MutexGuard<'_, Hinted> {
        self.hints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hint(&self, first: u64, nr: u64) {
        let mut hints = self.hints();
        if let Some((round, late)) = &mut hints.round {
            for (word, mask) in word_masks(self.nr_pages, first, nr) {
                late.words_mut()[word] |= round.sent_mask(word) & mask;
            }
        }
        let full = hints.ranges.len() >= MAX_RANGES;
        match hints.ranges.last_mut() {
            Some((start, len)) if start.checked_add(*len) == Some(first) => {
                *len = len.saturating_add(nr)
            }
            _ if full => hints.dropped += 1,
            _ => hints.ranges.push((first, nr)),
        }
    }
}

/// Round one's plan, cell by cell.
struct Map {
    cell_pages: u64,
    to_send: Bitmap,
    ballooned: Option<Bitmap>,
}

impl<'a> Record<'a> {
    /// Begins a trace, if there is a recorder: the machine as the engine shall use it.
    pub(super) fn start(
        to: Option<&'a dyn Recorder>,
        vm: &SourceVm,
        cfg: &SourceConfig,
    ) -> (Self, Option<SourceVm>) {
        let Some(to) = to else {
            return (Self(None), None);
        };
        let nr_pages = vm.ram.nr_pages();
        let notes = Arc::new(Notes {
            nr_pages,
            protected: AtomicBitmap::new(nr_pages.div_ceil(64)),
            all_protected: AtomicBool::new(false),
            hints: Mutex::default(),
        });
        let mut recorded = vm.clone();
        recorded.log = Arc::new(LogLayer { inner: vm.log.clone(), notes: notes.clone() });
        recorded.hints = vm.hints.clone().map(|inner| -> Arc<dyn HintSource> {
            Arc::new(HintsLayer { inner, notes: notes.clone() })
        });
        let now = Instant::now();
        let tape = Tape {
            to,
            started: now,
            log: vm.log.clone(),
            notes,
            map: RefCell::default(),
            hints: RefCell::default(),
            held: Cell::default(),
            next_slice: Cell::new(now),
            next_look: Cell::new(now),
        };
        let hints = match cfg.hints {
            HintPolicy::Auto => "auto",
            HintPolicy::On => "on",
            HintPolicy::Off => "off",
        };
        tape.tell(What::Start(Start {
            version: VERSION,
            nr_pages,
            hints: hints.into(),
            bandwidth: cfg.bandwidth,
            compression: (!cfg.compression.is_none()).then(|| cfg.compression.word().into()),
            streams: cfg.streams,
            downtime_limit_us: micros(cfg.downtime_limit),
            max_rounds: cfg.max_rounds,
            force: cfg.on_timeout == OnTimeout::Force,
            switchover_estimate_us: micros(cfg.switchover_estimate),
        }));
        (Self(Some(tape)), Some(recorded))
    }

    /// A phase begins.
    pub(super) fn phase(&self, phase: Phase) {
        if let Some(tape) = &self.0 {
            tape.tell(What::Phase { phase: name(phase) });
        }
    }

    /// Round one is planned, and no hint has come yet.
    pub(super) fn round_one(&self, round: &Arc<Round>, plan: &Plan) {
        let Some(tape) = &self.0 else { return };
        self.round(round);
        let mut hints = tape.notes.hints();
        hints.planned = true;
        hints.round = Some((round.clone(), Bitmap::new(round.nr_pages())));
        // Cells of whole words.
        let cell_pages = round.nr_pages().div_ceil(MAX_CELLS).next_multiple_of(64);
        let (to_send, ballooned) = (plan.to_send.clone(), hints.ballooned.take());
        *tape.map.borrow_mut() = Some(Map { cell_pages, to_send, ballooned });
    }

    /// A round is planned.
    pub(super) fn round(&self, round: &Round) {
        let Some(tape) = &self.0 else { return };
        let (hole, ballooned, clean) = round.planned();
        let to_send = round.nr_pages().saturating_sub(hole + ballooned + clean);
        tape.tell(What::Round { round: round.number, to_send, hole, ballooned, clean });
        let now = Instant::now();
        tape.held.set(Duration::ZERO);
        tape.next_slice.set(now);
        tape.next_look.set(now + LOOK);
    }

    /// An id is about to be published: what was said under an older one belongs before it in the
    /// trace, and what is said under the new one, which may come before [`Self::published`] is
    /// called, after it.
    pub(super) fn publishing(&self) {
        if let Some(tape) = &self.0 {
            tape.flush_hints();
        }
    }

    /// An id was published.
    pub(super) fn published(&self, round: &Round, mode: HintMode) {
        let Some(tape) = &self.0 else { return };
        let mode = match mode {
            HintMode::Protected => "protected",
            _ => "checked_zero",
        };
        tape.tell(What::Publish { round: round.number, mode: mode.into() });
    }

    /// The report's word on hints, which is an event when it changes.
    pub(super) fn decision(&self, what: &str) {
        let Some(tape) = &self.0 else { return };
        if *tape.hints.borrow() != what {
            tape.hints.replace(what.to_owned());
            tape.tell(What::Decision { what: format!("hints {what}") });
        }
    }

    /// What the downtime would be now.
    pub(super) fn prediction(&self, predicted: Duration) {
        let Some(tape) = &self.0 else { return };
        tape.tell(What::Decision {
            what: format!("predicted downtime {} ms", predicted.as_millis()),
        });
    }

    /// The sender has held back so much for hints in this round.
    pub(super) fn held(&self, held: Duration) {
        if let Some(tape) = &self.0 {
            tape.held.set(held);
        }
    }

    /// A round was harvested.
    pub(super) fn harvest(&self, round: &Round, dirty: &Bitmap, overridden: u64) {
        let Some(tape) = &self.0 else { return };
        tape.tell(What::Harvest { round: round.number, dirty: dirty.count(), overridden });
        let late = tape.notes.hints().round.take();
        if let (Some(map), Some((_, late))) = (tape.map.take(), late) {
            let cells = map.cells(round, dirty, &late);
            tape.tell(What::Map { round: round.number, cell_pages: map.cell_pages, cells });
        }
    }

    /// It failed.
    pub(super) fn failed(&self, phase: Phase, cause: &Error) {
        let Some(tape) = &self.0 else { return };
        tape.flush_hints();
        tape.tell(What::Failed { phase: name(phase), error: describe(cause) });
    }

    /// It succeeded.
    pub(super) fn end(&self, report: &Report) {
        let Some(tape) = &self.0 else { return };
        if let Ok(report) = serde_json::to_value(report) {
            tape.tell(What::End { report });
        }
    }
}

impl Session<'_> {
    /// To be called often.
    pub(super) fn record_now_and_then(&self, round: Option<&Round>) {
        let (Some(tape), Some(round)) = (&self.record.0, round) else { return };
        let now = Instant::now();
        if now >= tape.next_slice.get() {
            self.record_slice(round);
        }
        if now >= tape.next_look.get() {
            tape.look(round.number);
            let cost = now.elapsed();
            tape.next_look.set(now + LOOK.max(cost * LOOK_SHARE));
        }
    }

    /// Says where the round stands.
    pub(super) fn record_slice(&self, round: &Round) {
        let Some(tape) = &self.record.0 else { return };
        tape.next_slice.set(Instant::now() + SLICE);
        tape.flush_hints();
        tape.tell(What::Slice {
            round: round.number,
            bytes: self.bytes(),
            sent: round.sent(),
            zero: round.zero(),
            hinted: round.hinted(),
            remaining: round.remaining(),
            rate: self.meter.rate().unwrap_or(0.0) as u64,
            held_us: micros(tape.held.get()),
            reading_us: micros(self.reading),
            sending_us: micros(self.sending()),
        });
    }
}

impl Tape<'_> {
    fn tell(&self, what: What) {
        self.to.record(Event { t_us: micros(self.started.elapsed()), what });
    }

    fn flush_hints(&self) {
        let (ranges, dropped) = {
            let mut hints = self.notes.hints();
            (std::mem::take(&mut hints.ranges), std::mem::take(&mut hints.dropped))
        };
        if !ranges.is_empty() {
            self.tell(What::Hints { ranges, dropped });
        }
    }

    fn look(&self, round: u32) {
        let mut dirty = Bitmap::new(self.notes.nr_pages);
        // An error shows when the log is harvested.
        if !matches!(self.log.peek(&mut dirty), Ok(true)) {
            return;
        }
        if self.notes.all_protected.load(Ordering::Acquire) {
            let (pages, protected) = (dirty.count(), self.notes.nr_pages);
            self.tell(What::Dirty { round, pages, protected });
            return;
        }
        let (mut pages, mut words) = (0, 0);
        for (word, bits) in dirty.words().iter().enumerate() {
            if self.notes.protected.test(word as u64) {
                pages += u64::from(bits.count_ones());
                words += 1;
            }
        }
        let protected = (words * 64).min(self.notes.nr_pages);
        self.tell(What::Dirty { round, pages, protected });
    }
}

impl Map {
    fn cells(&self, round: &Round, dirty: &Bitmap, late: &Bitmap) -> Vec<[u64; FATES.len()]> {
        let (sent, hinted) = (round.sent_pages(), round.hinted_pages());
        let nr_pages = round.nr_pages();
        let mut cells = vec![[0; FATES.len()]; nr_pages.div_ceil(self.cell_pages) as usize];
        for (word, all) in word_masks(nr_pages, 0, nr_pages) {
            let of = |map: &Bitmap| map.words().get(word).copied().unwrap_or(0);
            let (to_send, sent, hinted, late) =
                (of(&self.to_send), of(&sent), of(&hinted), of(late));
            let ballooned = self.ballooned.as_ref().map_or(0, of) & all & !to_send;
            // In the order of FATES; round one has no clean pages.
            let fates = [
                sent & !late,
                sent & late,
                to_send & !sent & !hinted,
                all & !to_send & !ballooned,
                hinted & !of(dirty),
                hinted & of(dirty),
                ballooned,
                0,
            ];
            if let Some(cell) = cells.get_mut((word as u64 * 64 / self.cell_pages) as usize) {
                for (count, mask) in cell.iter_mut().zip(fates) {
                    *count += u64::from(mask.count_ones());
                }
            }
        }
        cells
    }
}

fn name(phase: Phase) -> String {
    match serde_json::to_value(phase) {
        Ok(serde_json::Value::String(name)) => name,
        _ => phase.to_string(),
    }
}

struct LogLayer {
    inner: Arc<dyn DirtyLog>,
    notes: Arc<Notes>,
}

impl DirtyLog for LogLayer {
    fn start(&self) -> io::Result<()> {
        self.inner.start()
    }

    fn protect(&self, first: u64, nr: u64) -> io::Result<()> {
        self.inner.protect(first, nr)?;
        for word in first / 64..first.saturating_add(nr).div_ceil(64) {
            self.notes.protected.set(word);
        }
        Ok(())
    }

    fn harvest(&self, out: &mut Bitmap) -> io::Result<()> {
        self.inner.harvest(out)?;
        // What was not protected before was dirty, and what was dirty is protected now.
        self.notes.all_protected.store(true, Ordering::Release);
        Ok(())
    }

    fn peek(&self, out: &mut Bitmap) -> io::Result<bool> {
        self.inner.peek(out)
    }

    fn stop(&self) -> io::Result<()> {
        self.inner.stop()
    }
}

struct HintsLayer {
    inner: Arc<dyn HintSource>,
    notes: Arc<Notes>,
}

struct SinkLayer {
    inner: Arc<dyn HintSink>,
    notes: Arc<Notes>,
}

impl HintSink for SinkLayer {
    fn hint(&self, first: u64, nr: u64) {
        self.notes.hint(first, nr);
        self.inner.hint(first, nr);
    }
}

impl HintSource for HintsLayer {
    fn available(&self) -> bool {
        self.inner.available()
    }

    fn start(&self, sink: Arc<dyn HintSink>) -> io::Result<()> {
        self.inner.start(Arc::new(SinkLayer { inner: sink, notes: self.notes.clone() }))
    }

    fn rest(&self) -> bool {
        self.inner.rest()
    }

    fn rested(&self) -> bool {
        self.inner.rested()
    }

    fn returned(&self) -> bool {
        self.inner.returned()
    }

    fn stop(&self) {
        self.inner.stop();
    }

    fn done(&self) {
        self.inner.done();
    }

    fn finished(&self) -> bool {
        self.inner.finished()
    }

    fn wait_seen(&self, timeout: Duration) -> bool {
        self.inner.wait_seen(timeout)
    }

    fn ballooned(&self, out: &mut Bitmap) {
        self.inner.ballooned(out);
        let mut hints = self.notes.hints();
        if !hints.planned {
            hints.ballooned = Some(out.clone());
        }
    }

    fn guest_free_bytes(&self) -> Option<u64> {
        self.inner.guest_free_bytes()
    }
}
