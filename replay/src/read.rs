//! Reading a trace file. Nothing in it is believed: lines, counts and numbers are bounded before
//! anything is kept.

use std::io::{self, BufRead};

use serde::Deserialize;
use thiserror::Error;

use wherry_migration::wire::MAX_STREAMS;
use wherry_trace::read::{Bad, Lines, MAX_ROUNDS, MAX_TIME_US, next_line};
use wherry_trace::{Event, FATES, MAX_CELLS, Start, What};

/// 256 TiB of guest RAM.
const MAX_PAGES: u64 = 1 << 36;
const MAX_HINTS: usize = 1_000_000;
/// Hints may name each page so often.
const MAX_NAMED: u64 = 64;

/// Why a file is no trace that can be replayed.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error("cannot read it")]
    Io(#[from] io::Error),
    /// Not JSON, or not an event.
    #[error("line {line} is not an event of a trace: {what}")]
    Line {
        /// From 1.
        line: u64,
        /// What the parser says.
        what: String,
    },
    /// An event that cannot be.
    #[error("line {line}: {what}")]
    Wrong {
        /// From 1.
        line: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Well-formed, and of no use.
    #[error("{0}")]
    Useless(&'static str),
}

/// Where a round stood.
#[derive(Clone, Copy, Debug, Default)]
pub struct Slice {
    pub t_us: u64,
    pub bytes: u64,
    pub sent: u64,
    pub zero: u64,
    pub hinted: u64,
    pub rate: u64,
    pub held_us: u64,
    pub reading_us: u64,
    pub sending_us: u64,
}

/// A round.
#[derive(Clone, Debug, Default)]
pub struct Round {
    pub t_us: u64,
    pub to_send: u64,
    pub hole: u64,
    pub ballooned: u64,
    pub slices: Vec<Slice>,
    /// Times and distinct dirty pages.
    pub looks: Vec<(u64, u64)>,
    /// Time, dirty and overridden pages.
    pub harvest: Option<(u64, u64, u64)>,
}

/// A hint of round one.
#[derive(Clone, Copy, Debug)]
pub struct Hint {
    pub t_us: u64,
    pub first: u64,
    pub nr: u64,
}

/// Round one's map.
#[derive(Clone, Debug, Default)]
pub struct Cells {
    pub cell_pages: u64,
    pub fates: Vec<[u64; FATES.len()]>,
}

/// Parts of the report, all zero where absent.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Ending {
    pub round_one_bytes: u64,
    pub total_bytes: u64,
    pub total_ms: u64,
    pub downtime: Downtime,
}

/// Parts of the downtime.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Downtime {
    pub last_round_us: u64,
    pub total_us: u64,
}

/// A trace as far as a replay needs it.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    pub(crate) start: Start,
    pub(crate) rounds: Vec<Round>,
    pub(crate) hints: Vec<Hint>,
    /// Ids of round one: when, and whether in the protected way.
    pub(crate) publishes: Vec<(u64, bool)>,
    pub(crate) cells: Cells,
    pub(crate) ending: Option<Ending>,
    /// Why it failed, if it says so.
    pub failed: Option<String>,
    /// Events and hints that did not reach it.
    pub lost: u64,
    /// Whether its last line is only half there.
    pub cut: bool,
    named: u64,
    last_us: u64,
}

impl Trace {
    /// Reads a whole trace.
    ///
    /// # Errors
    /// Not a trace, a trace that contradicts itself, or one that ends before round one did.
    pub fn read(mut input: impl BufRead) -> Result<Self, ReadError> {
        let (mut trace, mut lines, mut raw) = (Self::default(), Lines::default(), Vec::new());
        while next_line(&mut input, &mut raw)? {
            let event = lines.event(&raw);
            let line = lines.number();
            let wrong = |what| ReadError::Wrong { line, what };
            match event {
                Ok(None) => {}
                Ok(Some(event)) => trace.take(event).map_err(wrong)?,
                Err(Bad::NoEvent(_)) if !raw.ends_with(b"\n") && line > 1 => trace.cut = true,
                Err(Bad::NoEvent(what)) => return Err(ReadError::Line { line, what: cut(&what) }),
                Err(Bad::TooLong) => return Err(wrong("it is longer than 4 MiB")),
                Err(Bad::TooMany) => return Err(wrong("there are more than 400000 before it")),
            }
        }
        trace.finish()
    }

    fn take(&mut self, event: Event) -> Result<(), &'static str> {
        if event.t_us > MAX_TIME_US {
            return Err("its time is more than a year");
        }
        if event.t_us < self.last_us {
            return Err("its time is before the line above");
        }
        self.last_us = event.t_us;
        // No trace that is taken has version 0.
        if self.start.version == 0 {
            return self.start(event.what);
        }
        self.go_on(event.t_us, event.what)
    }

    fn start(&mut self, what: What) -> Result<(), &'static str> {
        let mut start = Start::of(what)?;
        if start.nr_pages == 0 || start.nr_pages > MAX_PAGES {
            return Err("not a size of guest RAM");
        }
        start.bandwidth = start.bandwidth.filter(|&b| b > 0);
        start.max_rounds = start.max_rounds.max(1);
        start.streams = start.streams.clamp(1, MAX_STREAMS);
        start.downtime_limit_us = start.downtime_limit_us.min(MAX_TIME_US);
        start.switchover_estimate_us = start.switchover_estimate_us.min(MAX_TIME_US);
        self.start = start;
        Ok(())
    }

    fn go_on(&mut self, t_us: u64, what: What) -> Result<(), &'static str> {
        match what {
            What::Start(_) => return Err("a second start"),
            What::Round { round, to_send, hole, ballooned, clean } => {
                let sum =
                    [hole, ballooned, clean].iter().try_fold(to_send, |sum, &n| sum.checked_add(n));
                if sum != Some(self.start.nr_pages) {
                    return Err("the classes of the round do not sum up to guest RAM");
                }
                if round as usize != self.rounds.len() + 1 || self.rounds.len() == MAX_ROUNDS {
                    return Err("rounds out of order, or too many");
                }
                self.rounds.push(Round { t_us, to_send, hole, ballooned, ..Round::default() });
            }
            What::Slice {
                round,
                bytes,
                sent,
                zero,
                hinted,
                remaining,
                rate,
                held_us,
                reading_us,
                sending_us,
            } => {
                let sum =
                    [sent, zero, hinted].iter().try_fold(remaining, |sum, &n| sum.checked_add(n));
                let now = self.round(round)?;
                if sum.is_none_or(|sum| sum > now.to_send) {
                    return Err("more pages than the round has");
                }
                if now.slices.last().is_some_and(|last| {
                    bytes < last.bytes
                        || sent < last.sent
                        || zero < last.zero
                        || held_us < last.held_us
                }) {
                    return Err("counts that fall");
                }
                let slice = Slice {
                    t_us,
                    bytes,
                    sent,
                    zero,
                    hinted,
                    rate,
                    held_us,
                    reading_us,
                    sending_us,
                };
                now.slices.push(slice);
            }
            What::Dirty { round, pages, .. } => {
                self.check(pages)?;
                self.round(round)?.looks.push((t_us, pages));
            }
            What::Harvest { round, dirty, overridden } => {
                self.check(dirty)?;
                self.round(round)?.harvest = Some((t_us, dirty, overridden.min(dirty)));
            }
            What::Publish { round, mode } => {
                // A later id of the same round is good for the rest of it: two at most in a round.
                if round == 1 && self.publishes.len() < 16 {
                    self.publishes.push((t_us, mode == "protected"));
                }
            }
            What::Hints { ranges, dropped } => {
                self.lost = self.lost.saturating_add(dropped);
                if self.rounds.len() <= 1 {
                    self.hint(t_us, &ranges)?;
                }
            }
            What::Map { round: 1, cell_pages, cells } => self.map(cell_pages, cells)?,
            What::Lost { events } => self.lost = self.lost.saturating_add(events),
            What::Failed { error, .. } => self.failed = Some(cut(&error)),
            What::End { report } => self.ending = Ending::deserialize(&report).ok(),
            What::Map { .. } | What::Phase { .. } | What::Decision { .. } | What::Unknown => {}
        }
        Ok(())
    }

    fn check(&self, pages: u64) -> Result<(), &'static str> {
        if pages > self.start.nr_pages { Err("more pages than guest RAM has") } else { Ok(()) }
    }

    fn round(&mut self, number: u32) -> Result<&mut Round, &'static str> {
        let present = self.rounds.len() == number as usize;
        self.rounds
            .last_mut()
            .filter(|_| present)
            .ok_or("it is of another round than the present one")
    }

    fn hint(&mut self, t_us: u64, ranges: &[(u64, u64)]) -> Result<(), &'static str> {
        for &(first, nr) in ranges {
            // Guests may hint what they like: only what lies in RAM counts.
            let nr = nr.min(self.start.nr_pages.saturating_sub(first));
            if nr == 0 {
                continue;
            }
            self.named = self.named.saturating_add(nr);
            if self.named / MAX_NAMED > self.start.nr_pages || self.hints.len() == MAX_HINTS {
                return Err("too many hints");
            }
            self.hints.push(Hint { t_us, first, nr });
        }
        Ok(())
    }

    fn map(&mut self, cell_pages: u64, fates: Vec<[u64; FATES.len()]>) -> Result<(), &'static str> {
        if cell_pages == 0 || fates.len() as u64 > MAX_CELLS {
            return Err("not a map");
        }
        if self.start.nr_pages.div_ceil(cell_pages) != fates.len() as u64 {
            return Err("the map has not the size of guest RAM");
        }
        for cell in &fates {
            let sum = cell.iter().try_fold(0u64, |sum, &n| sum.checked_add(n));
            if sum.is_none_or(|sum| sum > cell_pages) {
                return Err("more pages in a cell of the map than it has");
            }
        }
        self.cells = Cells { cell_pages, fates };
        Ok(())
    }

    fn finish(mut self) -> Result<Self, ReadError> {
        let Some(one) = self.rounds.first() else {
            return Err(ReadError::Useless(
                "the trace ends before round one: there is nothing to replay",
            ));
        };
        let Some(last) = one.slices.last().copied().filter(|_| one.harvest.is_some()) else {
            return Err(ReadError::Useless(
                "the trace ends within round one: there is not enough to replay",
            ));
        };
        if self.cells.fates.is_empty() {
            // Without a map all of RAM is one cell.
            let left = self.start.nr_pages.saturating_sub(last.sent + last.zero + last.hinted);
            let fates = vec![[last.sent, 0, last.zero, left, last.hinted, 0, 0, 0]];
            self.cells = Cells { cell_pages: self.start.nr_pages, fates };
        }
        Ok(self)
    }
}

/// Texts of a trace are shown: short, and without control characters.
fn cut(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
