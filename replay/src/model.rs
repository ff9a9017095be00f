//! What a trace tells about its guest and its link.

use wherry_migration::units::PAGE_SIZE;
use wherry_trace::{Harvest, Round, Slice, Start};

use crate::growth::{Exposure, Growth, Seen, least_squares};
use crate::read::Trace;
use crate::{Outcome, Settings};

const PAGE: f64 = PAGE_SIZE as f64;
/// Points that an exposure, and a round's part in the fit, is told with.
const POINTS: usize = 40;
/// Pages from which an average says something.
const ENOUGH: f64 = 16.0;

/// A trace, ready to be run under other settings.
#[derive(Clone, Debug)]
pub struct Replay {
    pub(crate) trace: Trace,
    pub(crate) link: Link,
    pub(crate) growth: Growth,
    /// Round one's exposure when it was harvested.
    pub(crate) exposure: Exposure,
    /// The first harvest.
    pub(crate) dirty_one: Dirty,
    /// Bytes that are not of any round: handshake, state, verification.
    pub(crate) other_bytes: f64,
}

/// A dirty set.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Dirty {
    /// Zeroed for a hint: there only if hints are used, and as many in whatever time.
    pub hinted: f64,
    /// Given back to the host (reported, in the balloon): dirty, and nothing to send. As many in
    /// whatever time.
    pub free: f64,
    /// Written by the guest: grows with time.
    pub guest: f64,
}

impl Dirty {
    pub fn pages(&self) -> f64 {
        self.hinted + self.free + self.guest
    }
}

/// Costs on the wire and in time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    /// Wire bytes for a page with content.
    pub page_bytes: f64,
    /// The same in later rounds, for what a guest writes may compress quite unlike what it keeps.
    pub later_page_bytes: f64,
    /// Wire bytes for a zero page in a later round.
    pub zero_bytes: f64,
    /// Seconds for a wire byte.
    pub byte_s: f64,
    /// Seconds for a page that is read and found zero.
    pub zero_s: f64,
    /// Seconds beside sending and holding back while hints came.
    pub asking_s: f64,
    /// What the engine measured, by what came out.
    pub meter: f64,
    /// The rate that the engine reckons with, in bytes per second.
    pub rate: f64,
    /// What a wire byte costs the hosts; `None` if the trace does not say, or the cap was what
    /// limited it.
    pub work: Option<Work>,
}

/// Seconds of work for a wire byte.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    /// On the one thread that reads guest memory.
    reading: f64,
    /// On the threads of all connections together.
    sending: f64,
}

impl Work {
    /// Seconds for a byte with so many connections: one sends what it has read, several send while
    /// it is read.
    fn byte_s(self, streams: u32) -> f64 {
        match streams {
            0 | 1 => self.reading + self.sending,
            _ => self.reading.max(self.sending / f64::from(streams)),
        }
    }
}

pub(crate) fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

impl Replay {
    /// Learns from a trace.
    pub fn new(trace: Trace) -> Self {
        let link = Link::learn(&trace);
        let mut replay = Self {
            link,
            growth: Growth::default(),
            exposure: exposure(&trace, trace.rounds().first().map_or(0, harvested)),
            dirty_one: Dirty::default(),
            other_bytes: 0.0,
            trace,
        };
        replay.dirty_one = replay.split_dirty();
        replay.growth = Growth::fit(&replay.seen());
        let of_rounds = replay.trace.rounds().iter().map(bytes).fold(0, u64::saturating_add);
        replay.other_bytes = (replay.all_bytes() as f64 - of_rounds as f64).max(0.0);
        replay
    }

    /// The settings that it was recorded with. Hints are on if the guest was asked for any.
    pub fn settings(&self) -> Settings {
        Settings {
            bandwidth: self.trace.history.start.bandwidth,
            streams: self.trace.history.start.streams,
            downtime_limit_us: self.trace.history.start.downtime_limit_us,
            hints: self.has_hints(),
            max_rounds: self.trace.history.start.max_rounds,
            force: self.trace.history.start.force,
        }
    }

    /// Whether the guest was asked for hints: without them nobody knows what they would have been.
    pub fn has_hints(&self) -> bool {
        !self.trace.publishes.is_empty()
    }

    /// The trace.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// What was recorded.
    pub fn recorded(&self) -> Outcome {
        let trace = &self.trace;
        let one = trace.rounds().first().map_or(0, bytes);
        Outcome {
            converged: trace.has_end(),
            round_one_bytes: match trace.reported("/round_one_bytes") {
                0 => one,
                reported => reported,
            },
            total_bytes: self.all_bytes(),
            rounds: trace.rounds().len() as u32,
            dirty_pages: self.running().last().and_then(|r| r.harvest).map_or(0, |h| h.1.dirty),
            total_ms: match trace.has_end() {
                true => trace.reported("/total_ms") as f64,
                false => seconds(trace.rounds().last().map_or(0, harvested)) * 1e3,
            },
            downtime_ms: seconds(trace.reported("/downtime/total_us")) * 1e3,
        }
    }

    /// What to bear in mind about a simulation under these settings.
    pub fn notes(&self, settings: &Settings) -> Vec<String> {
        let mut notes = Vec::new();
        let trace = &self.trace;
        if let (Some(old), Some(new)) = (trace.history.start.bandwidth, settings.bandwidth)
            && new > old
        {
            notes.push(
                "recorded over a slower link: whether these hosts can send faster is not in it"
                    .into(),
            );
        }
        if settings.streams != trace.history.start.streams {
            notes.push(match self.link.work {
                None if limited(self.link.byte_s, trace.history.start.bandwidth) => {
                    "connections change nothing here: the cap was what limited it, and it holds \
                     for all of them"
                        .into()
                }
                None => "connections change nothing here: the trace does not say what sending cost"
                    .into(),
                Some(_) if settings.streams < trace.history.start.streams => {
                    "fewer connections, at worst: what each of the others waited for is taken to \
                     have been work"
                        .into()
                }
                Some(_) => {
                    "more connections, at best: the network and both hosts are taken to have room \
                     for them (--bandwidth says how much)"
                        .into()
                }
            });
        }
        if !settings.hints && self.has_hints() {
            notes.push("hints off: all that was skipped for hints counts as content".into());
        }
        if !settings.hints && self.has_hints() && trace.history.start.compression.is_some() {
            notes.push(
                "hints off: it is taken to compress like the rest, which may be far from true"
                    .into(),
            );
        }
        if trace.history.lost > 0 {
            notes.push(format!("{} events are missing from the trace", trace.history.lost));
        }
        if trace.cut {
            notes.push("the last line of the trace is cut off".into());
        }
        if let Some(error) = trace.failed() {
            notes.push(format!("the recorded migration failed: {error}"));
        } else if !trace.has_end() {
            notes.push("the trace has no end: downtime and total time are estimates".into());
        }
        notes
    }

    /// Rounds with the guest running.
    pub(crate) fn running(&self) -> &[Round] {
        let rounds = self.trace.rounds();
        let paused = usize::from(self.trace.has_end() && rounds.len() > 1);
        &rounds[..rounds.len() - paused]
    }

    /// The last round, with the guest paused.
    pub(crate) fn paused(&self) -> Option<&Round> {
        self.trace.rounds().get(self.running().len())
    }

    fn all_bytes(&self) -> u64 {
        let last =
            self.trace.rounds().iter().rev().find_map(|r| r.slices.last()).map_or(0, |s| s.1.bytes);
        self.trace.reported("/total_bytes").max(last)
    }

    /// A guest that zeroes what it hints makes it dirty: pages of the first dirty set that had been
    /// hinted, or are zero.
    fn split_dirty(&self) -> Dirty {
        let one = self.trace.rounds().first();
        let Harvest { dirty, overridden, .. } = one.and_then(|r| r.harvest).unwrap_or_default().1;
        let free = self.free(1).min(dirty);
        let zero = self.trace.rounds().get(1).map_or(0, |two| two.last().zero);
        let hinted = if self.has_hints() { overridden.max(zero).min(dirty - free) } else { 0 };
        let guest = dirty - free - hinted;
        Dirty { hinted: hinted as f64, free: free as f64, guest: guest as f64 }
    }

    /// Pages of a round (by index) that were dirty and that the host has back.
    pub(crate) fn free(&self, at: usize) -> u64 {
        self.trace.rounds().get(at).map_or(0, |r| r.plan.hole.saturating_add(r.plan.ballooned))
    }

    /// The harvest of a round (by index): when, and how many pages the guest had written.
    pub(crate) fn written(&self, at: usize) -> Option<(u64, u64)> {
        let (t_us, found) = self.trace.rounds().get(at)?.harvest?;
        Some((t_us, found.dirty.saturating_sub(self.free(at + 1))))
    }

    /// All observations of growth.
    fn seen(&self) -> Vec<Seen> {
        let mut seen = Vec::new();
        let Dirty { hinted, guest, .. } = self.dirty_one;
        let share = if guest > 0.0 { guest / (hinted + guest) } else { 0.0 };
        if let Some(one) = self.trace.rounds().first() {
            for &(t_us, pages) in thin(&one.looks) {
                seen.push(Seen {
                    exposure: exposure(&self.trace, t_us),
                    pages: pages as f64 * share,
                });
            }
            seen.push(Seen { exposure: self.exposure.clone(), pages: guest });
        }
        let later: Vec<usize> = (1..self.running().len()).collect();
        for &at in thin(&later) {
            let (Some(round), Some(since)) = (self.trace.rounds().get(at), self.protected_at(at))
            else {
                continue;
            };
            let all = round.looks.iter().copied().chain(self.written(at));
            let all: Vec<_> = all.collect();
            for &(t_us, pages) in thin(&all) {
                let watched = seconds(t_us.saturating_sub(since));
                seen.push(Seen { exposure: vec![(1.0, watched)], pages: pages as f64 });
            }
        }
        seen
    }

    /// Since when the writes of a later round (by index) are seen.
    pub(crate) fn protected_at(&self, at: usize) -> Option<u64> {
        let before = self.trace.rounds().get(at.checked_sub(1)?)?;
        before.harvest.map(|h| h.0)
    }
}

/// At most [`POINTS`] of them, spread evenly, the last included.
fn thin<T>(all: &[T]) -> impl Iterator<Item = &T> {
    let step = all.len().div_ceil(POINTS).max(1);
    all.iter().rev().step_by(step)
}

fn harvested(round: &Round) -> u64 {
    let end = round.slices.last().map_or(round.at_us, |s| s.0);
    round.harvest.map_or(end, |h| h.0)
}

/// A round's bytes on the wire.
pub(crate) fn bytes(round: &Round) -> u64 {
    match (round.slices.first(), round.slices.last()) {
        (Some((_, first)), Some((_, last))) => last.bytes.saturating_sub(first.bytes),
        _ => 0,
    }
}

/// How long round one's pages had been watched at a time.
fn exposure(trace: &Trace, t_us: u64) -> Exposure {
    let Some(one) = trace.rounds().first() else { return Vec::new() };
    let until = |since: u64| seconds(t_us.saturating_sub(since));
    if trace.publishes.last().is_some_and(|(_, protected)| *protected) {
        return vec![(1.0, until(one.at_us))];
    }
    let total = one.plan.to_send.max(1) as f64;
    let (mut parts, mut before) = (Vec::new(), (one.at_us, 0));
    let slices: Vec<_> = one.slices.iter().filter(|s| s.0 <= t_us).collect();
    let mut points: Vec<_> = thin(&slices).collect();
    points.reverse();
    for (t_us, slice) in points {
        let done = slice.sent.saturating_add(slice.zero).saturating_add(slice.hinted);
        if done > before.1 {
            // In the middle of the time in which they were dealt with.
            let since = before.0 + (t_us - before.0) / 2;
            parts.push(((done - before.1) as f64 / total, until(since)));
        }
        before = (*t_us, done.max(before.1));
    }
    parts
}

impl Link {
    fn learn(trace: &Trace) -> Self {
        let (quiet, hinting): (Vec<_>, Vec<_>) =
            trace.rounds().iter().flat_map(|round| round.slices.windows(2)).partition(|pair| {
                let asked = |at: u64| (pair[0].0..pair[1].0).contains(&at);
                pair[0].1.hinted == pair[1].1.hinted
                    && !trace.publishes.iter().any(|(at, _)| asked(*at))
            });
        let row = |pair: &&[(u64, Slice)]| {
            let ((from, a), (to, b)) = (pair[0], pair[1]);
            let time = (to - from).saturating_sub(b.held_us - a.held_us);
            [(b.bytes - a.bytes) as f64, (b.zero - a.zero) as f64, seconds(time)]
        };
        // While hints come the sender also waits for the driver: that says little about the link.
        let all: Vec<_> = if quiet.iter().any(|pair| pair[1].1.bytes > pair[0].1.bytes) {
            quiet.iter().map(row).collect()
        } else {
            quiet.iter().chain(&hinting).map(row).collect()
        };
        let (byte_s, zero_s) = least_squares(all.iter().copied());
        // The shape is the fit's, the sum is what was measured: a stall counts in full.
        let sum = |rows: &[[f64; 3]]| {
            rows.iter().fold((0.0, 0.0), |(is, was), [bytes, zero, time]| {
                (is + bytes * byte_s + zero * zero_s, was + time)
            })
        };
        let (is, was) = sum(&all);
        let scale = if is > 0.0 { was / is } else { 1.0 };
        let (is, was) = sum(&hinting.iter().map(row).collect::<Vec<_>>());
        let asking_s = (was - is * scale).max(0.0);
        let (byte_s, zero_s) = (byte_s * scale, zero_s * scale);
        // Nothing was sent: the cap, or as fast as the engine assumes.
        let fallback =
            1.0 / trace.history.start.bandwidth.map_or((1u64 << 30) as f64, |b| b as f64);
        let byte_s = if byte_s > 0.0 { byte_s.clamp(1e-12, 1e3) } else { fallback };
        let rate =
            trace.rounds().iter().rev().find_map(|r| r.slices.last()).map_or(0, |s| s.1.rate);
        let (page_bytes, later_page_bytes, zero_bytes) = wire_costs(trace);
        let meter = if rate > 0 { (rate as f64 * byte_s).clamp(0.5, 2.0) } else { 1.0 };
        let work = work(trace, zero_s).filter(|_| !limited(byte_s, trace.history.start.bandwidth));
        Self {
            page_bytes,
            later_page_bytes,
            zero_bytes,
            byte_s,
            zero_s,
            asking_s,
            meter,
            rate: 0.0,
            work,
        }
        .capped(trace.history.start.bandwidth)
    }

    fn capped(mut self, cap: Option<u64>) -> Self {
        let cap = cap.map_or(f64::INFINITY, |cap| cap.max(1) as f64);
        self.rate = (self.meter / self.byte_s).min(cap);
        self
    }

    /// The same with other connections and another cap.
    pub(crate) fn under(&self, recorded: &Start, settings: &Settings) -> Self {
        let mut link = *self;
        if let Some(work) = self.work {
            let (was, is) = (work.byte_s(recorded.streams), work.byte_s(settings.streams));
            link.byte_s *= if was > 0.0 { is / was } else { 1.0 };
        }
        let new = settings.bandwidth.map_or(0.0, |cap| 1.0 / cap.max(1) as f64);
        link.byte_s = match (recorded.bandwidth, settings.bandwidth) {
            // The cap was what limited it: so will the other.
            (Some(own), Some(_)) if limited(self.byte_s, recorded.bandwidth) => {
                self.byte_s * new * own.max(1) as f64
            }
            _ => link.byte_s.max(new),
        };
        link.capped(settings.bandwidth)
    }

    /// For later rounds.
    pub(crate) fn later(&self) -> Self {
        Self { page_bytes: self.later_page_bytes, ..*self }
    }

    /// Bytes of guest memory that a byte on the wire is taken to carry, which is 1 where nothing is
    /// compressed.
    pub(crate) fn packing(&self, trace: &Trace) -> f64 {
        if trace.history.start.compression.is_some() { PAGE / self.page_bytes } else { 1.0 }
    }

    /// Seconds for these pages.
    pub(crate) fn time(&self, content: f64, zero: f64) -> f64 {
        content * self.page_bytes * self.byte_s + zero * self.zero_s
    }
}

/// Whether a link with a byte in this time is as fast as the cap lets it be.
fn limited(byte_s: f64, cap: Option<u64>) -> bool {
    cap.is_some_and(|cap| byte_s <= 1.15 / cap.max(1) as f64)
}

/// What a wire byte cost on both sides of the lanes.
fn work(trace: &Trace, zero_s: f64) -> Option<Work> {
    let rounds = trace.rounds();
    let (_, first) = rounds.first()?.slices.first()?;
    let (_, last) = rounds.iter().rev().find_map(|r| r.slices.last())?;
    let bytes = last.bytes.checked_sub(first.bytes).filter(|&bytes| bytes > 0)? as f64;
    let sending = seconds(last.sending_us.checked_sub(first.sending_us).filter(|&us| us > 0)?);
    let zero = rounds.iter().map(|round| round.last().zero as f64).sum::<f64>();
    let reading = seconds(last.reading_us.saturating_sub(first.reading_us)) - zero * zero_s;
    Some(Work { reading: reading.max(0.0) / bytes, sending: sending / bytes })
}

/// Wire bytes of a page with content in round one and in later ones, and of a zero page in later
/// rounds (round one's cost nothing).
fn wire_costs(trace: &Trace) -> (f64, f64, f64) {
    // Pages that `bytes` are the price of: nobody knows what the ones before the first slice cost.
    let sent = |round: &Round| {
        let before = round.slices.first().map_or(0, |slice| slice.1.sent);
        round.last().sent.saturating_sub(before) as f64
    };
    let least = if trace.history.start.compression.is_some() { 1.0 } else { PAGE };
    let price = |bytes: f64, sent: f64| (bytes / sent).clamp(least, 2.0 * PAGE);
    let page = match trace.rounds().first() {
        Some(one) if sent(one) > 0.0 => price(bytes(one) as f64, sent(one)),
        _ => PAGE,
    };
    let later = || trace.rounds().iter().skip(1);
    let (all, pages): (f64, f64) =
        (later().map(|r| bytes(r) as f64).sum(), later().map(sent).sum());
    if trace.history.start.compression.is_some() {
        // Zero pages cost little beside what is not known about the others.
        return (page, if pages >= ENOUGH { price(all, pages) } else { page }, 0.0);
    }
    let zeros: f64 = later().map(|r| r.last().zero as f64).sum();
    (page, page, if zeros > 0.0 { ((all - pages * page) / zeros).clamp(0.0, 64.0) } else { 0.0 })
}
