//! Recording a trace: an observer that turns what it sees into the lines of a trace.
//!
//! Hints are gathered as they come and told a few times a second. What is kept is bounded, whatever
//! the guest does.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use wherry_migration::bitmap::{Bitmap, word_masks};
use wherry_migration::config::{HintMode, OnTimeout, SourceConfig};
use wherry_migration::error::{Phase, describe};
use wherry_migration::observe::{self, Observer};
use wherry_migration::report::HintUse;
use wherry_migration::round::{LeftOut, Plan, Round};
use wherry_migration::sync::lock;
use wherry_migration::units::micros;

use crate::event::{Event, FATES, Harvest, MAX_CELLS, Map, RoundPlan, Slice, Start, VERSION, What};

/// Time between two slices, and between flushes of hints.
const SLICE: Duration = Duration::from_millis(50);
/// Time between two looks at the dirty log. Tests look all the time.
const LOOK: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 200 });
/// A look takes at most this part of the time, however large the guest.
const LOOK_SHARE: u32 = 50;
/// Ranges kept between two flushes: 8 GiB of Linux's blocks, and lines of 40 KiB.
const MAX_RANGES: usize = 2048;

/// Takes the lines of a trace in their order.
pub type Tell = Box<dyn Fn(Event) + Send + Sync>;
/// Sets the bit of every page that was written since it was last protected, and consumes and
/// protects nothing; may leave out what the VMM itself wrote.
pub type Look = Box<dyn Fn(&mut Bitmap) -> io::Result<()> + Send + Sync>;

/// The trace of one migration.
pub struct Recording {
    nr_pages: u64,
    tell: Tell,
    look: Option<Look>,
    started: Instant,
    state: Mutex<State>,
    hints: Mutex<Hints>,
}

/// What the engine's events leave behind.
struct State {
    /// The round whose last harvest has not been, whether all of it is sent, and what an earlier
    /// harvest found of pages that are not sent after that.
    round: Option<Arc<Round>>,
    over: bool,
    written: Option<Bitmap>,
    /// Round one's.
    plan: Option<Plan>,
    hints: Option<HintUse>,
    /// Words of 64 pages that are write-protected; all of them since the first harvest.
    protected: Bitmap,
    next_slice: Instant,
    next_look: Instant,
}

/// What hints leave behind, on the device's thread.
#[derive(Default)]
struct Hints {
    ranges: Vec<(u64, u64)>,
    dropped: u64,
    /// Round one, and its pages that a hint found already sent.
    round: Option<(Arc<Round>, Bitmap)>,
}

impl Recording {
    /// Begins a trace with its first line. Without `look` nothing is told of what is dirty during a
    /// round.
    pub fn new(nr_pages: u64, cfg: &SourceConfig, tell: Tell, look: Option<Look>) -> Self {
        let now = Instant::now();
        let recording = Self {
            nr_pages,
            tell,
            look,
            started: now,
            state: Mutex::new(State {
                round: None,
                over: false,
                written: None,
                plan: None,
                hints: None,
                protected: Bitmap::new(nr_pages.div_ceil(64)),
                next_slice: now,
                next_look: now,
            }),
            hints: Mutex::default(),
        };
        recording.tell(What::Start(Start {
            version: VERSION,
            nr_pages,
            hints: cfg.hints.as_str().into(),
            bandwidth: cfg.bandwidth,
            compression: (!cfg.compression.is_none()).then(|| cfg.compression.word().into()),
            streams: cfg.streams,
            downtime_limit_us: micros(cfg.downtime_limit),
            max_rounds: cfg.max_rounds,
            force: cfg.on_timeout == OnTimeout::Force,
            switchover_estimate_us: micros(cfg.switchover_estimate),
        }));
        recording
    }

    fn tell(&self, what: What) {
        (self.tell)(Event { t_us: micros(self.started.elapsed()), what });
    }

    fn flush_hints(&self) {
        let (ranges, dropped) = {
            let mut hints = lock(&self.hints);
            (std::mem::take(&mut hints.ranges), std::mem::take(&mut hints.dropped))
        };
        if !ranges.is_empty() {
            self.tell(What::Hints { ranges, dropped });
        }
    }

    fn hinted(&self, first: u64, nr: u64) {
        let mut hints = lock(&self.hints);
        if let Some((round, late)) = &mut hints.round {
            for (word, mask) in word_masks(self.nr_pages, first, nr) {
                late.or_word(word, round.sent_mask(word) & mask);
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

    fn round(&self, round: &Arc<Round>, plan: &Plan) {
        let LeftOut { hole, ballooned, clean } = round.left_out();
        let to_send = round.nr_pages().saturating_sub(hole + ballooned + clean);
        let number = round.number;
        self.tell(What::Round(RoundPlan { round: number, to_send, hole, ballooned, clean }));
        let now = Instant::now();
        let mut state = lock(&self.state);
        (state.round, state.over) = (Some(round.clone()), false);
        (state.next_slice, state.next_look) = (now, now + LOOK);
        if number == 1 {
            lock(&self.hints).round = Some((round.clone(), Bitmap::new(round.nr_pages())));
            state.plan = Some(plan.clone());
        }
    }

    fn slice(&self, slice: &observe::Slice<'_>) {
        let now = Instant::now();
        let mut state = lock(&self.state);
        let round = slice.round;
        state.over = slice.over;
        if slice.over || now >= state.next_slice {
            state.next_slice = now + SLICE;
            self.flush_hints();
            self.tell(What::Slice(Slice {
                round: round.number,
                bytes: slice.bytes,
                sent: round.sent(),
                zero: round.zero(),
                hinted: round.hinted(),
                remaining: round.remaining(),
                rate: slice.rate,
                held_us: micros(slice.held),
                reading_us: micros(slice.reading),
                sending_us: micros(slice.sending),
            }));
        }
        if !slice.over && now >= state.next_look {
            let (protected, written) = (state.protected.clone(), state.written.clone());
            // Whoever hints is not to wait for it.
            drop(state);
            self.look(round.number, &protected, written);
            lock(&self.state).next_look = now + LOOK.max(now.elapsed() * LOOK_SHARE);
        }
    }

    fn look(&self, round: u32, protected: &Bitmap, written: Option<Bitmap>) {
        let Some(look) = &self.look else { return };
        let mut dirty = written.unwrap_or_else(|| Bitmap::new(self.nr_pages));
        // An error shows when the log is harvested.
        if look(&mut dirty).is_err() {
            return;
        }
        let seen = |(word, bits): (usize, &u64)| {
            if protected.test(word as u64) { u64::from(bits.count_ones()) } else { 0 }
        };
        let pages = dirty.words().iter().enumerate().map(seen).sum();
        let protected = (protected.count() * 64).min(self.nr_pages);
        self.tell(What::Dirty { round, pages, protected });
    }

    fn harvested(&self, dirty: &Bitmap) {
        let mut state = lock(&self.state);
        state.protected.set_all();
        // None: the last harvest, with the guest paused.
        let Some(round) = state.round.take() else { return };
        let mut dirty = dirty.clone();
        if !state.over {
            dirty.and_not(&round.to_send());
            (state.round, state.written) = (Some(round), Some(dirty));
            return;
        }
        if let Some(written) = state.written.take() {
            dirty.or(&written);
        }
        let dirty = &dirty;
        let (number, overridden) = (round.number, round.overridden(dirty));
        self.tell(What::Harvest(Harvest { round: number, dirty: dirty.count(), overridden }));
        let late = lock(&self.hints).round.take();
        if let (Some(plan), Some((_, late))) = (state.plan.take(), late) {
            self.tell(What::Map(map(&round, &plan, dirty, &late)));
        }
    }

    fn hint_use(&self, now: HintUse) {
        if lock(&self.state).hints.replace(now) != Some(now) {
            self.tell(What::Decision { what: format!("hints {now}") });
        }
    }
}

impl Observer for Recording {
    fn observe(&self, event: &observe::Event<'_>) {
        use observe::Event as E;
        match event {
            E::Phase(phase) => self.tell(What::Phase { phase: name(*phase) }),
            E::Protected(words) => {
                let mut state = lock(&self.state);
                state.protected.set_range(words.start, words.end.saturating_sub(words.start));
            }
            E::Round(round, plan) => self.round(round, plan),
            // What was said under an older id belongs before this one in the trace, and what is
            // said under the new one, which may come before it is `Published`, after it.
            E::Publishing { again: false, .. } => self.flush_hints(),
            E::Published { round, mode } => {
                let mode = match mode {
                    HintMode::Protected => "protected",
                    _ => "checked_zero",
                };
                self.tell(What::Publish { round: *round, mode: mode.into() });
            }
            E::Hinted { first, nr, .. } => self.hinted(*first, *nr),
            E::Slice(slice) => self.slice(slice),
            E::Harvested(dirty) => self.harvested(dirty),
            E::Hints(now) => self.hint_use(*now),
            E::Predicted(predicted) => {
                let what = format!("predicted downtime {} ms", predicted.as_millis());
                self.tell(What::Decision { what });
            }
            E::Succeeded(report) => {
                if let Ok(report) = serde_json::to_value(report) {
                    self.tell(What::End { report });
                }
            }
            E::Failed(phase, cause) => {
                self.flush_hints();
                self.tell(What::Failed { phase: name(*phase), error: describe(*cause) });
            }
            E::Ballooned(_) | E::Publishing { .. } | E::Closed => {}
        }
    }
}

/// Round one, cell by cell. `late`: pages that were sent when a hint named them.
fn map(round: &Round, plan: &Plan, dirty: &Bitmap, late: &Bitmap) -> Map {
    let (sent, hinted) = (round.sent_pages(), round.hinted_pages());
    let nr_pages = round.nr_pages();
    // Cells of whole words.
    let cell_pages = nr_pages.div_ceil(MAX_CELLS).next_multiple_of(64);
    let mut cells = vec![[0; FATES.len()]; nr_pages.div_ceil(cell_pages) as usize];
    for (word, all) in word_masks(nr_pages, 0, nr_pages) {
        let of = |map: &Bitmap| map.words().get(word).copied().unwrap_or(0);
        let (to_send, ballooned) = (of(&plan.to_send), of(&plan.ballooned));
        let (sent, hinted, late) = (of(&sent), of(&hinted), of(late));
        // In the order of FATES; round one has no clean pages.
        let classes = [
            sent & !late,
            sent & late,
            to_send & !sent & !hinted,
            all & !to_send & !ballooned,
            hinted & !of(dirty),
            hinted & of(dirty),
            ballooned,
            0,
        ];
        if let Some(cell) = cells.get_mut((word as u64 * 64 / cell_pages) as usize) {
            for (count, mask) in cell.iter_mut().zip(classes) {
                *count += u64::from(mask.count_ones());
            }
        }
    }
    Map { round: round.number, cell_pages, cells }
}

fn name(phase: Phase) -> String {
    match serde_json::to_value(phase) {
        Ok(serde_json::Value::String(name)) => name,
        _ => phase.to_string(),
    }
}
