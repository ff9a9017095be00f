//! Running the engine's rules over what a trace tells.

use std::time::Duration;

use wherry_migration::config::SourceConfig;
use wherry_migration::hinting::policy::{Action, Asking, Driver, Seen};
use wherry_migration::transport::Throttle;
use wherry_migration::units::PAGE_SIZE;
use wherry_trace::{FATES, Fates, Round};

use crate::growth::Exposure;
use crate::model::{Dirty, Link, Replay, bytes, seconds};
use crate::{Outcome, Settings};

const PAGE: f64 = PAGE_SIZE as f64;
/// Steps of round one at most.
const MAX_STEPS: f64 = 100_000.0;
/// Rounds at most: a guest that has not converged by then does not.
const MAX_ROUNDS: u32 = 10_000;

/// Round one as it would have been.
struct RoundOne {
    sent: f64,
    /// Seconds since the beginning.
    end: f64,
    /// What was done when: parts of the round's pages.
    done: Vec<(f64, f64)>,
}

impl Replay {
    /// The migration under these settings.
    pub fn simulate(&self, settings: &Settings) -> Outcome {
        let link = self.link.under(&self.trace.history.start, settings);
        let hints = settings.hints && self.has_hints();
        let one = self.round_one(hints, &link);
        let round_one_bytes = one.sent * link.page_bytes;
        // Nothing is taken for granted about what dirty pages compress to until a round has sent
        // some.
        let (link, mut packing) = (link.later(), 1.0);
        let (mut now, mut wire) = (one.end, self.other_bytes + round_one_bytes);
        let mut dirty = self.dirty_after_one(&one, hints);
        let mut rounds = 1;
        let limit = seconds(settings.downtime_limit_us);
        let converged = loop {
            if dirty.pages() * PAGE / (link.rate * packing)
                + seconds(self.trace.history.start.switchover_estimate_us)
                <= limit
            {
                break true;
            }
            if rounds >= settings.max_rounds.min(MAX_ROUNDS) {
                break settings.force;
            }
            let (content, zero) = self.content(rounds as usize, dirty, hints);
            let watched = self.before(rounds as usize) + link.time(content, zero);
            wire += content * link.page_bytes + zero * link.zero_bytes;
            now += watched + self.after(rounds as usize);
            let free = self.free(rounds as usize + 1) as f64;
            dirty = Dirty { hinted: 0.0, free, guest: self.dirty_after(rounds as usize, watched) };
            rounds += 1;
            packing = link.packing(&self.trace);
        };
        let mut outcome = Outcome {
            converged,
            round_one_bytes: round_one_bytes as u64,
            rounds,
            dirty_pages: dirty.pages() as u64,
            total_bytes: wire as u64,
            total_ms: now * 1e3,
            downtime_ms: 0.0,
        };
        if converged {
            // What the guest and its devices write until they stand still.
            let extra = self.written_while_pausing();
            let last = Dirty { guest: dirty.guest + extra, ..dirty };
            let (content, zero) = self.content(rounds as usize, last, hints);
            let (downtime, credit, tail) = self.fixed_ending();
            let downtime = downtime + (link.time(content, zero) - credit).max(0.0);
            wire += content * link.page_bytes + zero * link.zero_bytes;
            outcome.rounds += 1;
            outcome.total_bytes = wire as u64;
            outcome.total_ms = (now + downtime + tail) * 1e3;
            outcome.downtime_ms = downtime * 1e3;
        }
        outcome
    }

    fn round_one(&self, hints: bool, link: &Link) -> RoundOne {
        let mut cells = Cells::new(self, hints);
        let total = cells.total().max(1.0);
        let first = self.trace.rounds().first().and_then(|r| r.slices.first());
        let mut now = first.map_or(0.0, |s| seconds(s.0));
        let mut done = Vec::new();
        if hints {
            now += link.asking_s;
            let mut asking = None;
            let (mut nr_hints, mut publishes) = (0u64, self.trace.publishes.iter().peekable());
            let mut hints = self.usable_hints().peekable();
            let slice = SourceConfig::default().slice.as_secs_f64();
            let span = self.trace.hints.last().map_or(0.0, |h| seconds(h.t_us));
            let step = slice.max(span / MAX_STEPS);
            while hints.peek().is_some() && !cells.over() {
                let before = cells.done();
                while let Some(hint) = hints.next_if(|(at, ..)| *at <= now) {
                    cells.hint(hint.1, hint.2);
                    nr_hints += 1;
                }
                while let Some(&(at, _)) =
                    publishes.next_if(|(at, _)| seconds(*at) <= now || asking.is_none())
                {
                    let new = || (seconds(at), Asking::new(cells.hintable(), false));
                    let (since, asking) = asking.get_or_insert_with(new);
                    let seen = self.would_see(&cells, nr_hints, now - *since, link);
                    asking.asked(&seen, SourceConfig::default().first_hint_wait);
                }
                let hold = asking.as_mut().is_some_and(|(since, asking)| {
                    asking.act(&self.would_see(&cells, nr_hints, now - *since, link))
                        == Action::Hold
                });
                if !hold {
                    cells.send(step, link);
                }
                done.push((now + step / 2.0, (cells.done() - before) / total));
                now += step;
            }
        }
        // From here on nothing changes any more: in a few strides, so that one sees how it went.
        let rest = cells.time_left(link);
        const STRIDES: u32 = 40;
        for _ in 0..STRIDES {
            let before = cells.done();
            cells.send(rest / f64::from(STRIDES), link);
            done.push((now + rest / f64::from(STRIDES) / 2.0, (cells.done() - before) / total));
            now += rest / f64::from(STRIDES);
        }
        cells.send(f64::INFINITY, link);
        RoundOne { sent: cells.sent, end: now + self.after(0), done }
    }

    /// What the engine would see. What the guest called free is not in a trace: it is taken to be
    /// what hints name.
    fn would_see(&self, cells: &Cells, hints: u64, now: f64, link: &Link) -> Seen {
        let bytes = |pages: f64| (pages * PAGE) as u64;
        let cleared = bytes(cells.skipped);
        Seen {
            now: duration(now),
            driver: Driver::Hinting,
            hints,
            named: cleared,
            cleared,
            zero: 0,
            remaining: bytes(cells.total()),
            held: 0,
            renamed: true,
            link_rate: link.rate * link.packing(&self.trace),
        }
    }

    /// Hints of round one that could be honoured: seconds, first page, pages. Those under an id in
    /// the checked way that a protected one followed could not, for the guest turned out not to
    /// zero.
    fn usable_hints(&self) -> impl Iterator<Item = (f64, u64, u64)> {
        let switched = self.trace.publishes.iter().rev().find(|(_, protected)| *protected);
        let from = switched.map_or(0, |(at, _)| *at);
        let hints = self.trace.hints.iter().filter(move |h| h.t_us > from);
        hints.map(|h| (seconds(h.t_us), h.first, h.nr))
    }

    fn dirty_after_one(&self, one: &RoundOne, hints: bool) -> Dirty {
        let Dirty { hinted, free, guest } = self.dirty_one;
        // Protected all at once, or page by page as they go out.
        let at_once = hints && self.trace.publishes.last().is_some_and(|(_, protected)| *protected);
        let start = self.trace.rounds().first().map_or(0.0, |r| seconds(r.at_us));
        let exposure: Exposure = if at_once {
            vec![(1.0, one.end - start)]
        } else {
            one.done.iter().map(|&(at, part)| (part, one.end - at)).collect()
        };
        let (is, was) = (self.growth.after(&exposure), self.growth.after(&self.exposure));
        let guest = if was > 0.0 { guest * is / was } else { guest };
        Dirty { hinted: if hints { hinted } else { 0.0 }, free, guest: self.at_most_all(guest) }
    }

    fn at_most_all(&self, pages: f64) -> f64 {
        pages.clamp(0.0, self.trace.history.start.nr_pages as f64)
    }

    /// Pages that are dirty after a later round (by index) in which they were watched for so long.
    fn dirty_after(&self, at: usize, watched: f64) -> f64 {
        let running = self.running();
        let own = running.get(at).zip(self.protected_at(at)).and_then(|(round, since)| {
            let end = self.written(at)?;
            let looks = round
                .looks
                .iter()
                .map(|&(t, pages)| (seconds(t.saturating_sub(since)), pages as f64));
            let mut before = (0.0, 0.0);
            for (time, pages) in looks.chain([(seconds(end.0.saturating_sub(since)), end.1 as f64)])
            {
                if watched <= time && time > before.0 {
                    let part = (watched - before.0) / (time - before.0);
                    return Some(before.1 + part * (pages - before.1));
                }
                before = (time, pages);
            }
            let (is, was) = (self.growth.at(watched), self.growth.at(before.0));
            Some(if was > 0.0 { before.1 * is / was } else { before.1 })
        });
        self.at_most_all(own.unwrap_or_else(|| self.growth.at(watched)))
    }

    /// Pages with content, and pages that are read and found zero, in the round (by index) that
    /// sends this dirty set.
    fn content(&self, at: usize, dirty: Dirty, hints: bool) -> (f64, f64) {
        let rounds = self.trace.rounds();
        let recorded = rounds.get(at).or(rounds.last().filter(|_| rounds.len() > 1));
        let Some(round) = recorded else { return (dirty.guest, dirty.hinted) };
        let of_hints = if at == 1 { self.dirty_one.hinted } else { 0.0 };
        let (to_send, last) = (round.plan.to_send, round.last());
        let own = to_send as f64 - of_hints;
        let sent = last.sent + if hints { 0 } else { last.hinted };
        // A handful of pages says nothing about others.
        let content = if own >= 16.0 { (sent as f64 / own).min(1.0) } else { 1.0 };
        let rest = to_send.saturating_sub(sent);
        let read = if rest > 0 { (last.zero as f64 / rest as f64).min(1.0) } else { 0.0 };
        let cheap = dirty.hinted + dirty.guest * (1.0 - content);
        (dirty.guest * content, cheap * read)
    }

    /// Seconds between a harvest and the first page of the next round (by index).
    fn before(&self, at: usize) -> f64 {
        let running = self.running();
        let gap = |at: usize| {
            let first = running.get(at)?.slices.first()?;
            Some(seconds(first.0.saturating_sub(self.protected_at(at)?)))
        };
        gap(at).or_else(|| gap(running.len().saturating_sub(1))).unwrap_or(0.0)
    }

    /// Seconds between a round's last page and its harvest.
    fn after(&self, at: usize) -> f64 {
        let running = self.running();
        let round = running.get(at).or(running.last());
        let ends = round.and_then(|r| r.slices.last().zip(r.harvest));
        ends.map_or(0.0, |(slice, harvest)| seconds(harvest.0.saturating_sub(slice.0)))
    }

    fn written_while_pausing(&self) -> f64 {
        let dirty = self.running().last().and_then(|r| r.harvest).map_or(0, |h| h.1.dirty);
        let planned = |Round { plan: p, .. }: &Round| {
            p.to_send.saturating_add(p.hole).saturating_add(p.ballooned)
        };
        self.paused().map_or(0.0, |p| planned(p).saturating_sub(dirty) as f64)
    }

    /// Seconds of downtime beside sending; seconds by which the last round was faster than the
    /// link, for a capped sender may make up for a short rest; and seconds that are neither
    /// downtime nor a round.
    fn fixed_ending(&self) -> (f64, f64, f64) {
        let Some(paused) = self.paused() else {
            return (seconds(self.trace.history.start.switchover_estimate_us), 0.0, 0.0);
        };
        let (mut sending, mut credit) = (0.0, 0.0);
        if let (Some(first), Some(last)) = (paused.slices.first(), paused.slices.last()) {
            let long =
                self.link.time(bytes(paused) as f64 / self.link.page_bytes, last.1.zero as f64);
            let took = seconds(last.0 - first.0);
            credit = (long - took).clamp(0.0, Throttle::BURST.as_secs_f64());
            sending = (long - credit).min(seconds(self.trace.reported("/downtime/last_round_us")));
        }
        let all = seconds(self.trace.reported("/downtime/total_us"));
        let until = self.running().last().and_then(|r| r.harvest).map_or(0, |h| h.0);
        let tail = self.trace.reported("/total_ms") as f64 / 1e3 - seconds(until) - all;
        ((all - sending).max(0.0), credit, tail.max(0.0))
    }
}

fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}

/// Guest RAM in round one, from address 0 on.
struct Cells {
    cell_pages: u64,
    /// Of each cell: pages with content that no hint names, the same that hints name and have not
    /// named yet, zero pages.
    left: Vec<Cell>,
    cursor: usize,
    sent: f64,
    skipped: f64,
    zero: f64,
}

#[derive(Clone, Copy, Default)]
struct Cell {
    content: f64,
    hintable: f64,
    zero: f64,
    /// Pages that a hint takes out, for each that it names.
    per_named: f64,
}

impl Cells {
    fn new(replay: &Replay, hints: bool) -> Self {
        let map = &replay.trace.history.map;
        let fate = |cell: &Fates, name: &str| {
            FATES.iter().position(|fate| *fate == name).map_or(0.0, |at| cell[at] as f64)
        };
        let mut left: Vec<Cell> = map
            .cells
            .iter()
            .map(|cell| {
                let named =
                    ["hinted", "overridden", "sent_then_hinted"].map(|name| fate(cell, name));
                let hintable = named.iter().sum();
                Cell {
                    content: fate(cell, "sent"),
                    hintable,
                    zero: fate(cell, "zero"),
                    per_named: 0.0,
                }
            })
            .collect();
        let mut named = vec![0.0; left.len()];
        if hints {
            for (_, first, nr) in replay.usable_hints() {
                overlaps(map.cell_pages, left.len(), first, nr, |at, pages| named[at] += pages);
            }
        }
        for (cell, named) in left.iter_mut().zip(named) {
            if named > 0.0 {
                cell.per_named = cell.hintable / named;
            } else {
                cell.content += std::mem::take(&mut cell.hintable);
            }
        }
        Self { cell_pages: map.cell_pages, left, cursor: 0, sent: 0.0, skipped: 0.0, zero: 0.0 }
    }

    fn total(&self) -> f64 {
        self.left.iter().map(|c| c.content + c.hintable + c.zero).sum()
    }

    /// Bytes that hints have yet to name.
    fn hintable(&self) -> u64 {
        (self.left.iter().map(|c| c.hintable).sum::<f64>() * PAGE) as u64
    }

    fn done(&self) -> f64 {
        self.sent + self.skipped + self.zero
    }

    fn over(&self) -> bool {
        self.cursor >= self.left.len()
    }

    fn hint(&mut self, first: u64, nr: u64) {
        let (cells, cell_pages, cursor) = (self.left.len(), self.cell_pages, self.cursor);
        let (left, skipped) = (&mut self.left, &mut self.skipped);
        overlaps(cell_pages, cells, first, nr, |at, pages| {
            let cell = &mut left[at];
            if at >= cursor {
                let taken = (pages * cell.per_named).min(cell.hintable);
                cell.hintable -= taken;
                *skipped += taken;
            }
        });
    }

    /// Sends for so many seconds.
    fn send(&mut self, mut time: f64, link: &Link) {
        while let Some(cell) = self.left.get_mut(self.cursor) {
            let content = cell.content + cell.hintable;
            let cost = link.time(content, cell.zero);
            let part = if cost > time { time / cost } else { 1.0 };
            self.sent += content * part;
            self.zero += cell.zero * part;
            for pages in [&mut cell.content, &mut cell.hintable, &mut cell.zero] {
                *pages -= *pages * part;
            }
            if part < 1.0 {
                return;
            }
            time -= cost;
            self.cursor += 1;
        }
    }

    fn time_left(&self, link: &Link) -> f64 {
        self.left.iter().skip(self.cursor).map(|c| link.time(c.content + c.hintable, c.zero)).sum()
    }
}

/// The cells that a range touches, each with the number of its pages in the range.
fn overlaps(cell_pages: u64, cells: usize, first: u64, nr: u64, mut f: impl FnMut(usize, f64)) {
    let mut at = first;
    let end = first.saturating_add(nr);
    while at < end {
        let cell = at / cell_pages;
        let stop = (cell + 1).saturating_mul(cell_pages).min(end);
        if cell as usize >= cells {
            return;
        }
        f(cell as usize, (stop - at) as f64);
        at = stop;
    }
}
