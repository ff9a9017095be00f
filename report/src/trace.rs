//! A trace as it is drawn.
//!
//! It comes from a file that anybody may have written: beside what [`wherry_trace::read`] and
//! [`History`] limit, lists are limited, a line that cannot be understood is counted and left out,
//! and numbers are added without overflow.

use std::collections::BTreeMap;
use std::io::BufRead;

use wherry_trace::read::{Bad, Lines, MAX_LINES, MAX_ROUNDS, next_line};
use wherry_trace::{Event, Fates, Harvest, History, MAX_CELLS, RoundPlan, Slice, Start, What};

use crate::Error;

/// Remarks (decisions, ids) that are kept.
const MAX_REMARKS: usize = 2000;
const MAX_PROBLEMS: usize = 50;
/// Characters of a text that are kept.
const MAX_TEXT: usize = 200;

/// A migration as its trace tells it. Times are microseconds since it began, counts are pages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// What its events say.
    pub history: History,
    /// When each phase began.
    pub phases: Vec<(u64, String)>,
    /// By number.
    pub rounds: BTreeMap<u32, Round>,
    /// In order of time, with bytes that do not fall.
    pub slices: Vec<(u64, Slice)>,
    /// Whether the guest was asked for hints.
    pub asked: bool,
    /// Pages named by hints, and when.
    pub hinted: Vec<(u64, u64)>,
    /// Pages known to be dirty, and when.
    pub dirty: Vec<(u64, u64)>,
    /// Decisions and ids, in words.
    pub remarks: Vec<(u64, String)>,
    /// What is wrong with the trace, in words.
    pub problems: Vec<String>,
}

/// What is known of a round.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Round {
    /// When it was planned.
    pub at_us: u64,
    /// Its length.
    pub duration_us: u64,
    /// What it left out.
    pub plan: RoundPlan,
    /// Where it stood at its end.
    pub last: Slice,
    /// What was written meanwhile.
    pub harvest: Harvest,
    /// Pages sent with content and hinted afterwards.
    pub sent_then_hinted: u64,
    /// On the wire.
    pub bytes: u64,
}

impl Round {
    fn of(told: &wherry_trace::Round) -> Self {
        let (slice, (harvested, harvest)) = (told.slices.last(), told.harvest.unwrap_or_default());
        let end_us = slice.map_or(0, |slice| slice.0).max(harvested);
        Self {
            at_us: told.at_us,
            duration_us: end_us.saturating_sub(told.at_us),
            plan: told.plan,
            last: told.last(),
            harvest,
            ..Self::default()
        }
    }

    /// Pages by class.
    pub fn fates(&self) -> Fates {
        let late = self.sent_then_hinted.min(self.last.sent);
        let overridden = self.harvest.overridden.min(self.last.hinted);
        [
            self.last.sent - late,
            late,
            self.last.zero,
            self.plan.hole,
            self.last.hinted - overridden,
            overridden,
            self.plan.ballooned,
            self.plan.clean,
        ]
    }
}

/// Takes a trace line by line.
#[derive(Debug, Default)]
pub struct Reader {
    trace: Trace,
    started: bool,
    lines: Lines,
    bad: u64,
}

impl Reader {
    /// The next line. `Ok(false)`: there are enough, and this one was not taken.
    ///
    /// # Errors
    /// If the first line is not that of a trace.
    pub fn line(&mut self, line: &[u8]) -> Result<bool, Error> {
        match self.lines.event(line) {
            Ok(None) => return Ok(true),
            Ok(Some(event)) if self.started => self.trace.event(event),
            Ok(Some(event)) => self.trace.start(event)?,
            Err(Bad::NoEvent(_)) if self.started => self.bad += 1,
            Err(Bad::NoEvent(what)) => return Err(Error::NoTrace(what)),
            Err(Bad::TooLong) => {
                let number = self.lines.number();
                self.trace
                    .problem(format!("line {number} is too long; it and what follows is left out"));
                return Ok(false);
            }
            Err(Bad::TooMany) => {
                self.trace.problem(format!("only the first {MAX_LINES} lines are shown"));
                return Ok(false);
            }
        }
        self.started = true;
        Ok(true)
    }

    /// The trace.
    ///
    /// # Errors
    /// If there was no line.
    pub fn finish(mut self) -> Result<Trace, Error> {
        if !self.started {
            return Err(Error::NoTrace("it is empty".into()));
        }
        if self.bad > 0 {
            self.trace
                .problem(format!("{} lines could not be understood and are left out", self.bad));
        }
        self.trace.finish();
        Ok(self.trace)
    }
}

impl Trace {
    /// Reads a trace from its beginning to its end.
    ///
    /// # Errors
    /// If it cannot be read, or begins with something else than a trace does.
    pub fn read(mut from: impl BufRead) -> Result<Self, Error> {
        let (mut reader, mut line) = (Reader::default(), Vec::new());
        while next_line(&mut from, &mut line)? && reader.line(&line)? {}
        reader.finish()
    }

    fn start(&mut self, event: Event) -> Result<(), Error> {
        let start = Start::of(event.what).map_err(|why| Error::NoTrace(why.into()))?;
        let (hints, compression) = (cut(&start.hints), start.compression.as_deref().map(cut));
        self.history.start = Start { hints, compression, ..start };
        Ok(())
    }

    fn event(&mut self, event: Event) {
        let t_us = self.history.now(event.t_us);
        match &event.what {
            What::Phase { phase } if self.phases.len() < MAX_REMARKS => {
                self.phases.push((t_us, cut(phase)));
            }
            What::Publish { round, mode } => {
                self.asked = true;
                let mode = cut(mode).replace('_', " ");
                self.remark(t_us, format!("round {round}: the guest is asked for hints ({mode})"));
            }
            What::Decision { what } => self.remark(t_us, cut(what)),
            What::Hints { ranges, .. } => {
                let pages = ranges.iter().fold(0, |sum: u64, range| sum.saturating_add(range.1));
                self.hinted.push((t_us, pages));
            }
            What::Map(map) if map.round == 1 => {
                let (nr_cells, cell_pages) = (map.cells.len(), map.cell_pages);
                if nr_cells == 0 || nr_cells as u64 > MAX_CELLS || cell_pages == 0 {
                    self.problem(format!(
                        "its memory map has {nr_cells} cells of {cell_pages} pages, and is left out"
                    ));
                    return;
                }
            }
            What::Lost { events } => self.problem(format!(
                "{events} events are missing: they came faster than they were written"
            )),
            _ => {}
        }
        if self.history.take(event).is_err() {
            self.problem(format!("only {MAX_ROUNDS} rounds are shown"));
        }
    }

    /// Says it once.
    fn problem(&mut self, text: String) {
        if self.problems.len() < MAX_PROBLEMS && !self.problems.contains(&text) {
            self.problems.push(text);
        }
    }

    fn remark(&mut self, t_us: u64, text: String) {
        if self.remarks.len() < MAX_REMARKS {
            self.remarks.push((t_us, text));
        }
    }

    /// Puts in order of time what the rounds have, and sums it up.
    fn finish(&mut self) {
        let rounds = &self.history.rounds;
        self.rounds = rounds.iter().map(|told| (told.plan.round, Round::of(told))).collect();
        self.slices = rounds.iter().flat_map(|round| &round.slices).copied().collect();
        self.slices.sort_by_key(|(t_us, _)| *t_us);
        let mut before = 0;
        for (_, slice) in &mut self.slices {
            slice.bytes = slice.bytes.max(before);
            if let Some(round) = self.rounds.get_mut(&slice.round) {
                round.bytes = round.bytes.saturating_add(slice.bytes - before);
            }
            before = slice.bytes;
        }
        let harvests = rounds.iter().filter_map(|round| round.harvest);
        let looks = rounds.iter().flat_map(|round| &round.looks).copied();
        self.dirty = looks.chain(harvests.map(|(t_us, found)| (t_us, found.dirty))).collect();
        self.dirty.sort_by_key(|(t_us, _)| *t_us);
        let late = self.fate_sum(1);
        if let Some(first) = self.rounds.get_mut(&1) {
            first.sent_then_hinted = late;
        }
        self.believe_report();
    }

    /// What the migration's own report says is exact: it goes before what was seen in between.
    fn believe_report(&mut self) {
        let report = self.history.report.clone().unwrap_or_default();
        for own in report["rounds"].as_array().into_iter().flatten() {
            let number = |key: &str| own[key].as_u64();
            let Some(nr) = number("round").and_then(|nr| u32::try_from(nr).ok()) else { continue };
            if self.rounds.len() >= MAX_ROUNDS && !self.rounds.contains_key(&nr) {
                continue;
            }
            let round = self.rounds.entry(nr).or_default();
            for (field, key) in [
                (&mut round.last.sent, "sent"),
                (&mut round.last.zero, "zero"),
                (&mut round.plan.hole, "hole"),
                (&mut round.last.hinted, "hinted"),
                (&mut round.plan.ballooned, "ballooned"),
                (&mut round.plan.clean, "clean"),
                (&mut round.sent_then_hinted, "sent_then_hinted"),
                (&mut round.harvest.overridden, "overridden"),
                (&mut round.bytes, "bytes"),
            ] {
                *field = number(key).unwrap_or(*field);
            }
        }
    }

    /// All pages of a class in the map.
    pub fn fate_sum(&self, class: usize) -> u64 {
        let cells = self.history.map.cells.iter();
        cells.fold(0, |sum: u64, cell| sum.saturating_add(cell.get(class).copied().unwrap_or(0)))
    }

    /// All bytes on the wire.
    pub fn total_bytes(&self) -> u64 {
        self.history
            .reported("/total_bytes")
            .unwrap_or_else(|| self.slices.last().map_or(0, |last| last.1.bytes))
    }

    /// Why it failed, if it did.
    pub fn failed(&self) -> Option<String> {
        let (phase, error) = self.history.failed.as_ref()?;
        Some(format!("It failed ({}): {}", cut(phase).replace('_', " "), cut(error)))
    }

    /// How long the guest was paused: what the report says, else by the phases.
    pub fn downtime_us(&self) -> Option<u64> {
        self.history
            .reported("/downtime/total_us")
            .or_else(|| self.pause().map(|(from, to)| to - from))
    }

    /// From when until when the guest was paused.
    pub fn pause(&self) -> Option<(u64, u64)> {
        let paused = |name: &str| ["last_round", "verify", "state", "commit"].contains(&name);
        let first = self.phases.iter().position(|(_, name)| paused(name))?;
        let rest = &self.phases[first..];
        let end = rest.iter().find(|(_, name)| !paused(name));
        Some((rest.first()?.0, end.map_or(self.history.end_us, |(at, _)| *at)))
    }
}

fn cut(text: &str) -> String {
    if text.len() <= MAX_TEXT {
        return text.into();
    }
    text.chars().take(MAX_TEXT).chain(['…']).collect()
}
