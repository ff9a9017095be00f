//! Reading a trace file. Nothing in it is believed: lines, counts and numbers are bounded before
//! anything is kept.

use std::io::{self, BufRead};

use thiserror::Error;

use wherry_migration::wire::MAX_STREAMS;
use wherry_trace::read::{Bad, Lines, MAX_TIME_US, next_line};
use wherry_trace::{Event, History, MAX_CELLS, Map, Round, Start, What};

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

/// A hint of round one.
#[derive(Clone, Copy, Debug)]
pub struct Hint {
    pub t_us: u64,
    pub first: u64,
    pub nr: u64,
}

/// A trace as far as a replay needs it.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    pub(crate) history: History,
    pub(crate) hints: Vec<Hint>,
    /// Ids of round one: when, and whether in the protected way.
    pub(crate) publishes: Vec<(u64, bool)>,
    /// Whether its last line is only half there.
    pub cut: bool,
    named: u64,
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

    /// Whether the migration succeeded, and it says so.
    pub(crate) fn has_end(&self) -> bool {
        self.history.report.is_some()
    }

    /// A number of the migration's own report, 0 if it is not there.
    pub(crate) fn reported(&self, pointer: &str) -> u64 {
        self.history.reported(pointer).unwrap_or(0)
    }

    pub(crate) fn rounds(&self) -> &[Round] {
        &self.history.rounds
    }

    /// Why it failed, if it says so.
    pub(crate) fn failed(&self) -> Option<String> {
        self.history.failed.as_ref().map(|(_, error)| cut(error))
    }

    fn take(&mut self, mut event: Event) -> Result<(), &'static str> {
        if event.t_us > MAX_TIME_US {
            return Err("its time is more than a year");
        }
        if event.t_us < self.history.end_us {
            return Err("its time is before the line above");
        }
        let t_us = self.history.now(event.t_us);
        // No trace that is taken has version 0.
        if self.history.start.version == 0 {
            return self.start(event.what);
        }
        self.check(&event.what)?;
        match &mut event.what {
            // A later id of the same round is good for the rest of it: two at most in a round.
            What::Publish { round: 1, mode } if self.publishes.len() < 16 => {
                self.publishes.push((t_us, mode == "protected"));
            }
            What::Hints { ranges, .. } if self.history.rounds.len() <= 1 => {
                self.hint(t_us, ranges)?;
            }
            What::Harvest(found) => found.overridden = found.overridden.min(found.dirty),
            _ => {}
        }
        self.history.take(event)
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
        self.history.start = start;
        Ok(())
    }

    /// Whether this can be, after all that was before.
    fn check(&self, what: &What) -> Result<(), &'static str> {
        let nr_pages = self.history.start.nr_pages;
        match what {
            What::Start(_) => return Err("a second start"),
            What::Round(plan) => {
                if sum([plan.to_send, plan.hole, plan.ballooned, plan.clean]) != Some(nr_pages) {
                    return Err("the classes of the round do not sum up to guest RAM");
                }
                if plan.round as usize != self.history.rounds.len() + 1 {
                    return Err("rounds out of order");
                }
            }
            What::Slice(now) => {
                let round = self.round(now.round)?;
                let pages = sum([now.sent, now.zero, now.hinted, now.remaining]);
                if pages.is_none_or(|pages| pages > round.plan.to_send) {
                    return Err("more pages than the round has");
                }
                let before = round.last();
                if now.bytes < before.bytes
                    || now.sent < before.sent
                    || now.zero < before.zero
                    || now.held_us < before.held_us
                {
                    return Err("counts that fall");
                }
            }
            What::Dirty { round, pages, .. } => {
                self.round(*round)?;
                if *pages > nr_pages {
                    return Err("more pages than guest RAM has");
                }
            }
            What::Harvest(found) => {
                self.round(found.round)?;
                if found.dirty > nr_pages {
                    return Err("more pages than guest RAM has");
                }
            }
            What::Map(map) if map.round == 1 => check_map(map, nr_pages)?,
            _ => {}
        }
        Ok(())
    }

    /// The present round, if it has this number.
    fn round(&self, number: u32) -> Result<&Round, &'static str> {
        let present = self.history.rounds.last().filter(|round| round.plan.round == number);
        present.ok_or("it is of another round than the present one")
    }

    fn hint(&mut self, t_us: u64, ranges: &[(u64, u64)]) -> Result<(), &'static str> {
        let nr_pages = self.history.start.nr_pages;
        for &(first, nr) in ranges {
            // Guests may hint what they like: only what lies in RAM counts.
            let nr = nr.min(nr_pages.saturating_sub(first));
            if nr == 0 {
                continue;
            }
            self.named = self.named.saturating_add(nr);
            if self.named / MAX_NAMED > nr_pages || self.hints.len() == MAX_HINTS {
                return Err("too many hints");
            }
            self.hints.push(Hint { t_us, first, nr });
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Self, ReadError> {
        let Some(one) = self.history.rounds.first() else {
            return Err(ReadError::Useless(
                "the trace ends before round one: there is nothing to replay",
            ));
        };
        if one.slices.is_empty() || one.harvest.is_none() {
            return Err(ReadError::Useless(
                "the trace ends within round one: there is not enough to replay",
            ));
        }
        if self.history.map.cells.is_empty() {
            // Without a map all of RAM is one cell.
            let (last, nr_pages) = (one.last(), self.history.start.nr_pages);
            let left = nr_pages.saturating_sub(last.sent + last.zero + last.hinted);
            let cells = vec![[last.sent, 0, last.zero, left, last.hinted, 0, 0, 0]];
            self.history.map = Map { round: 1, cell_pages: nr_pages, cells };
        }
        Ok(self)
    }
}

fn check_map(map: &Map, nr_pages: u64) -> Result<(), &'static str> {
    if map.cell_pages == 0 || map.cells.len() as u64 > MAX_CELLS {
        return Err("not a map");
    }
    if nr_pages.div_ceil(map.cell_pages) != map.cells.len() as u64 {
        return Err("the map has not the size of guest RAM");
    }
    if map.cells.iter().any(|&cell| sum(cell).is_none_or(|pages| pages > map.cell_pages)) {
        return Err("more pages in a cell of the map than it has");
    }
    Ok(())
}

fn sum<const N: usize>(parts: [u64; N]) -> Option<u64> {
    parts.iter().try_fold(0u64, |sum, &part| sum.checked_add(part))
}

/// Texts of a trace are shown: short, and without control characters.
fn cut(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
