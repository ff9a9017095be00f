//! A trace as it is drawn.
//!
//! It comes from a file that anybody may have written: beside what [`wherry_trace::read`] limits,
//! lists are limited, time never goes back, a line that cannot be understood is counted and left
//! out, and numbers are added without overflow.

use std::collections::BTreeMap;
use std::io::BufRead;

use serde_json::Value;
use wherry_trace::read::{Bad, Lines, MAX_LINES, MAX_ROUNDS, MAX_TIME_US, next_line};
use wherry_trace::{Event, FATES, MAX_CELLS, Start, What};

use crate::Error;

/// Remarks (decisions, ids) that are kept.
const MAX_REMARKS: usize = 2000;
const MAX_PROBLEMS: usize = 50;
/// Characters of a text that are kept.
const MAX_TEXT: usize = 200;

/// Pages by class, in the order of [`FATES`].
pub type Fates = [u64; FATES.len()];

/// A migration as its trace tells it. Times are microseconds since it began, counts are pages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// Its settings.
    pub start: Start,
    /// Time of the last event.
    pub end_us: u64,
    /// When each phase began.
    pub phases: Vec<(u64, String)>,
    /// By number.
    pub rounds: BTreeMap<u32, Round>,
    /// In order of time.
    pub slices: Vec<Slice>,
    /// Whether the guest was asked for hints.
    pub asked: bool,
    /// Pages named by hints, and when.
    pub hinted: Vec<(u64, u64)>,
    /// Pages known to be dirty, and when.
    pub dirty: Vec<(u64, u64)>,
    /// Decisions and ids, in words.
    pub remarks: Vec<(u64, String)>,
    /// Pages of each cell of round one's map.
    pub cell_pages: u64,
    /// Round one's map; empty if the trace has none.
    pub cells: Vec<Fates>,
    /// The migration's own report, if it succeeded.
    pub report: Option<Value>,
    /// Why it failed, if it did.
    pub failed: Option<String>,
    /// What is wrong with the trace, in words.
    pub problems: Vec<String>,
}

/// One round.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Round {
    /// When it was planned.
    pub at_us: u64,
    /// Never populated.
    pub hole: u64,
    /// In the balloon.
    pub ballooned: u64,
    /// Not written since they were sent.
    pub clean: u64,
    /// Sent with content.
    pub sent: u64,
    /// Of these, hinted afterwards.
    pub sent_then_hinted: u64,
    /// Read and found zero.
    pub zero: u64,
    /// Skipped for hints.
    pub hinted: u64,
    /// Of these, written before the round's end.
    pub overridden: u64,
    /// On the wire.
    pub bytes: u64,
    /// Its length.
    pub duration_us: u64,
    /// Time for which the sender held back.
    pub held_us: u64,
    /// Pages that the harvest at its end found written.
    pub dirty: u64,
}

impl Round {
    /// Pages by class.
    pub fn fates(&self) -> Fates {
        let late = self.sent_then_hinted.min(self.sent);
        let overridden = self.overridden.min(self.hinted);
        let hinted = self.hinted - overridden;
        [
            self.sent - late,
            late,
            self.zero,
            self.hole,
            hinted,
            overridden,
            self.ballooned,
            self.clean,
        ]
    }
}

/// Where a round stood.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Slice {
    /// When.
    pub t_us: u64,
    /// Which round.
    pub round: u32,
    /// All bytes since the migration began.
    pub bytes: u64,
    /// Time held back in this round.
    pub held_us: u64,
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
        self.start = Start::of(event.what).map_err(|why| Error::NoTrace(why.into()))?;
        self.start.hints = cut(std::mem::take(&mut self.start.hints));
        self.start.compression = self.start.compression.take().map(cut);
        Ok(())
    }

    fn event(&mut self, event: Event) {
        // Time does not go back; who says so is put where he said it.
        self.end_us = self.end_us.max(event.t_us.min(MAX_TIME_US));
        let t_us = self.end_us;
        match event.what {
            What::Phase { phase } if self.phases.len() < MAX_REMARKS => {
                self.phases.push((t_us, cut(phase)))
            }
            What::Round { round, hole, ballooned, clean, .. } => {
                if let Some(round) = self.round(round) {
                    round.at_us = t_us;
                    (round.hole, round.ballooned, round.clean) = (hole, ballooned, clean);
                }
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
            What::Slice { round, bytes, sent, zero, hinted, held_us, .. } => {
                let before = self.slices.last().map_or(0, |last| last.bytes);
                let bytes = bytes.max(before);
                self.slices.push(Slice { t_us, round, bytes, held_us });
                if let Some(round) = self.round(round) {
                    (round.sent, round.zero, round.hinted, round.held_us) =
                        (sent, zero, hinted, held_us);
                    round.bytes = round.bytes.saturating_add(bytes - before);
                    round.duration_us = t_us.saturating_sub(round.at_us);
                }
            }
            What::Dirty { pages, .. } => self.dirty.push((t_us, pages)),
            What::Harvest { round, dirty, overridden } => {
                self.dirty.push((t_us, dirty));
                if let Some(round) = self.round(round) {
                    (round.dirty, round.overridden) = (dirty, overridden);
                    round.duration_us = t_us.saturating_sub(round.at_us);
                }
            }
            What::Map { round: 1, cell_pages, cells } => self.map(cell_pages, cells),
            What::End { report } => self.report = Some(report),
            What::Failed { phase, error } => {
                self.failed =
                    Some(format!("It failed ({}): {}", cut(phase).replace('_', " "), cut(error)));
            }
            What::Lost { events } => self.problem(format!(
                "{events} events are missing: they came faster than they were written"
            )),
            // What later versions have, and maps of later rounds.
            _ => {}
        }
    }

    /// Says it once.
    fn problem(&mut self, text: String) {
        if self.problems.len() < MAX_PROBLEMS && !self.problems.contains(&text) {
            self.problems.push(text);
        }
    }

    fn map(&mut self, cell_pages: u64, cells: Vec<Fates>) {
        if cells.is_empty() || cells.len() as u64 > MAX_CELLS || cell_pages == 0 {
            let nr_cells = cells.len();
            self.problem(format!(
                "its memory map has {nr_cells} cells of {cell_pages} pages, and is left out"
            ));
            return;
        }
        (self.cell_pages, self.cells) = (cell_pages, cells);
        let late = self.fate_sum(1);
        if let Some(round) = self.round(1) {
            round.sent_then_hinted = late;
        }
    }

    /// All pages of a class in the map.
    pub fn fate_sum(&self, class: usize) -> u64 {
        self.cells
            .iter()
            .fold(0, |sum: u64, cell| sum.saturating_add(cell.get(class).copied().unwrap_or(0)))
    }

    fn round(&mut self, number: u32) -> Option<&mut Round> {
        let room = self.rounds.len() < MAX_ROUNDS || self.rounds.contains_key(&number);
        if !room {
            self.problem(format!("only {MAX_ROUNDS} rounds are shown"));
        }
        room.then(|| self.rounds.entry(number).or_default())
    }

    fn remark(&mut self, t_us: u64, text: String) {
        if self.remarks.len() < MAX_REMARKS {
            self.remarks.push((t_us, text));
        }
    }

    /// What the migration's own report says is exact: it goes before what was seen in between.
    fn finish(&mut self) {
        let report = self.report.clone().unwrap_or_default();
        for own in report["rounds"].as_array().into_iter().flatten() {
            let number = |key: &str| own[key].as_u64();
            let Some(round) =
                number("round").and_then(|n| u32::try_from(n).ok()).and_then(|n| self.round(n))
            else {
                continue;
            };
            for (field, key) in [
                (&mut round.sent, "sent"),
                (&mut round.zero, "zero"),
                (&mut round.hole, "hole"),
                (&mut round.hinted, "hinted"),
                (&mut round.ballooned, "ballooned"),
                (&mut round.clean, "clean"),
                (&mut round.sent_then_hinted, "sent_then_hinted"),
                (&mut round.overridden, "overridden"),
                (&mut round.bytes, "bytes"),
            ] {
                *field = number(key).unwrap_or(*field);
            }
        }
    }

    /// All bytes on the wire.
    pub fn total_bytes(&self) -> u64 {
        self.reported("/total_bytes")
            .unwrap_or_else(|| self.slices.last().map_or(0, |last| last.bytes))
    }

    /// A number of the migration's own report.
    pub fn reported(&self, pointer: &str) -> Option<u64> {
        self.report.as_ref()?.pointer(pointer)?.as_u64()
    }

    /// How long the guest was paused: what the report says, else by the phases.
    pub fn downtime_us(&self) -> Option<u64> {
        self.reported("/downtime/total_us").or_else(|| self.pause().map(|(from, to)| to - from))
    }

    /// From when until when the guest was paused.
    pub fn pause(&self) -> Option<(u64, u64)> {
        let paused = |name: &str| ["last_round", "verify", "state", "commit"].contains(&name);
        let first = self.phases.iter().position(|(_, name)| paused(name))?;
        let rest = &self.phases[first..];
        let end = rest.iter().find(|(_, name)| !paused(name)).map_or(self.end_us, |(at, _)| *at);
        Some((rest.first()?.0, end))
    }
}

fn cut(text: String) -> String {
    if text.len() <= MAX_TEXT { text } else { text.chars().take(MAX_TEXT).chain(['…']).collect() }
}
