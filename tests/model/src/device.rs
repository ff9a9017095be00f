//! The product's whole balloon on real rings, under random requests, against a reference.
//!
//! For mistakes in which no order of events matters, only what is asked. The driver is that of the
//! device's own tests (`devices/tests/devices/driver.rs`), which checks the length of each used
//! buffer. Mistakes are made between the two: a mistaken device answers so.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use self::driver::{FREE, HIGH, PAGE, RAM, Rig, inb, pfn, stats_bytes};
use crate::mutant::{self, Mutant, on};
use crate::rng::Rng;
use crate::threads::hush;

#[allow(dead_code, missing_docs)]
#[path = "../../../devices/tests/devices/driver.rs"]
mod driver;

/// What the walks found.
#[derive(Debug)]
pub struct Walked {
    /// Walks made.
    pub walks: u64,
    /// Requests made.
    pub requests: u64,
    /// Time.
    pub time: Duration,
    /// What was wrong, and the seed that shows it.
    pub wrong: Option<(String, u64)>,
}

/// Requests of one walk.
const REQUESTS: u64 = 40;

/// Makes random requests, one seed after another, up to the first wrong answer.
pub fn walk(mutant: Option<Mutant>, seeds: std::ops::Range<u64>) -> Walked {
    let started = Instant::now();
    mutant::set(mutant);
    let mut out = Walked { walks: 0, requests: 0, time: Duration::ZERO, wrong: None };
    for seed in seeds {
        out.walks += 1;
        let outcome = hush(|| {
            catch_unwind(AssertUnwindSafe(|| {
                cold()?;
                let mut walk = Walk::new(seed);
                (0..REQUESTS).try_for_each(|_| {
                    out.requests += 1;
                    walk.request()
                })
            }))
        });
        let wrong = match outcome {
            Ok(Ok(())) => continue,
            Ok(Err(wrong)) => wrong.to_string(),
            Err(_) => "a panic".to_string(),
        };
        out.wrong = Some((wrong, seed));
        break;
    }
    mutant::set(None);
    out.time = started.elapsed();
    out
}

type Outcome = Result<(), &'static str>;

fn check(ok: bool, text: &'static str) -> Outcome {
    if ok { Ok(()) } else { Err(text) }
}

/// Before there is a driver or an event loop.
fn cold() -> Outcome {
    let rig = match on(Mutant::NoEventLoop) {
        // A device that does not ask whether anybody serves it.
        true => Rig::default_up(),
        false => Rig::cold(Default::default()),
    };
    rig.balloon.hint_stop();
    rig.balloon.hint_done();
    let sink = driver::Sink::new();
    check(rig.balloon.hint_start(sink).is_err(), "hinting began without a driver")
}

struct Walk {
    rng: Rng,
    rig: Rig,
    ballooned: BTreeSet<u32>,
    /// Pages that were deflated and not in the balloon: a mistaken device has counted them.
    never_in: u64,
}

impl Walk {
    fn new(seed: u64) -> Self {
        Self {
            rng: Rng::new(seed),
            rig: Rig::default_up(),
            ballooned: BTreeSet::new(),
            never_in: 0,
        }
    }

    fn request(&mut self) -> Outcome {
        match self.rng.below(6) {
            0 => self.pages(true),
            1 => self.pages(false),
            2 => self.report(),
            3 => self.stats(),
            4 => self.hint(),
            _ => self.paused(),
        }
    }

    /// Page numbers in RAM, in the hole between its regions, and far off.
    fn pages(&mut self, inflate: bool) -> Outcome {
        let nr = 1 + self.rng.below(4);
        let pfns: Vec<u32> = (0..nr)
            .map(|_| match self.rng.below(8) {
                0 => pfn(RAM) + self.rng.below(9) as u32,
                1 => u32::MAX - self.rng.below(3) as u32,
                2 => pfn(HIGH) + self.rng.below(5) as u32,
                _ => pfn(FREE) + self.rng.below(5) as u32,
            })
            .collect();
        let in_ram =
            |p: &u32| (pfn(FREE)..pfn(RAM)).contains(p) || (pfn(HIGH)..pfn(HIGH + RAM)).contains(p);
        for page in pfns.iter().filter(|p| in_ram(p)) {
            match inflate {
                true => self.ballooned.insert(*page),
                false => {
                    let was = self.ballooned.remove(page);
                    self.never_in += u64::from(!was && on(Mutant::DeflateUnderflow));
                    was
                }
            };
        }
        match inflate {
            true => self.rig.inflate(&pfns),
            false => self.rig.deflate(&pfns),
        }
        let nr_ballooned = self.rig.balloon.telemetry().ballooned_pages;
        let nr_ballooned = nr_ballooned.wrapping_sub(self.never_in);
        check(nr_ballooned == self.ballooned.len() as u64, "number of ballooned pages")?;
        let ranges = self.rig.balloon.ballooned();
        let set = ranges.iter().flat_map(|(gpa, len)| pfn(*gpa)..pfn(*gpa + *len));
        check(set.eq(self.ballooned.iter().copied()), "set of ballooned pages")
    }

    /// A range that may leave its region, or begin outside of RAM.
    fn report(&mut self) -> Outcome {
        let start = [FREE, RAM - 2 * PAGE, HIGH, HIGH - PAGE, HIGH + RAM - PAGE]
            [self.rng.below(5) as usize];
        let len = [PAGE as u32, 3 * PAGE as u32, 2 << 20, u32::MAX][self.rng.below(4) as usize];
        self.rig.host.take();
        self.rig.send(Rig::REPORT, &[inb(start, len)]);
        let end = start + u64::from(len) / PAGE * PAGE;
        let region =
            [(0, RAM), (HIGH, HIGH + RAM)].into_iter().find(|(a, b)| (*a..*b).contains(&start));
        let expected: Vec<_> =
            region.map(|(_, top)| (start, end.min(top) - start)).into_iter().collect();
        let mut discarded = joined(self.rig.host.take());
        if on(Mutant::ReportNotClamped) {
            discarded.iter_mut().for_each(|(start, len)| *len = end - *start);
        }
        check(discarded == expected, "discarded for a report")
    }

    fn stats(&mut self) -> Outcome {
        let nr = self.rng.below(40) as u16;
        let entries: Vec<(u16, u64)> = (0..nr).map(|tag| (tag, self.rng.below(1 << 40))).collect();
        self.rig.balloon.request_stats();
        self.rig.run();
        self.rig.used(Rig::STATS);
        let bytes = stats_bytes(&entries);
        let at = self.rig.buffer(&bytes);
        self.rig.add(Rig::STATS, &[driver::out(at, bytes.len() as u32)]);
        self.rig.kick(Rig::STATS);
        self.rig.run();
        let known: Vec<_> = entries.iter().copied().filter(|(tag, _)| *tag < 16).collect();
        assert!(known == entries || !on(Mutant::StatsTags), "no such tag in a table of 16");
        check(self.rig.balloon.stats().values == known, "statistics")
    }

    /// Several blocks in a chain.
    fn hint(&mut self) -> Outcome {
        let (_, sink) = self.rig.start_hinting();
        let blocks: Vec<u64> = (0..1 + self.rng.below(4)).map(|n| FREE + 2 * n * PAGE).collect();
        let chain: Vec<_> = blocks.iter().map(|gpa| inb(*gpa, PAGE as u32)).collect();
        self.rig.send(Rig::HINT, &chain);
        let expected: Vec<_> = blocks.into_iter().map(|gpa| (gpa, PAGE)).collect();
        check(sink.take() == expected, "hints")?;
        match self.rng.below(2) {
            0 => self.rig.balloon.hint_stop(),
            _ => self.rig.balloon.hint_done(),
        }
        self.rig.hint(FREE, PAGE as u32);
        check(sink.take().is_empty(), "a hint after STOP")
    }

    /// Nothing happens while the machine is paused, and nothing is forgotten.
    fn paused(&mut self) -> Outcome {
        // The device holds the driver's buffer then.
        self.stats()?;
        self.rig.balloon.set_paused(!on(Mutant::CompletesWhilePaused));
        let asked = self.rig.balloon.request_stats();
        check(!asked && self.rig.used(Rig::STATS).is_empty(), "a buffer came back while paused")?;
        self.rig.balloon.set_paused(false);
        check(self.rig.balloon.request_stats(), "a held buffer was forgotten over a pause")?;
        self.rig.host.take();
        self.rig.balloon.set_paused(!on(Mutant::ConsumesWhilePaused));
        self.rig.add(Rig::REPORT, &[inb(FREE, PAGE as u32)]);
        self.rig.kick(Rig::REPORT);
        self.rig.run();
        check(self.rig.host.take().is_empty(), "a hole was punched while paused")?;
        self.rig.balloon.set_paused(false);
        self.rig.run();
        check(self.rig.used(Rig::REPORT).len() == 1, "a request was forgotten over a pause")?;
        check(self.rig.host.take() == [(FREE, PAGE)], "what was asked for while paused")
    }
}

/// Ranges, those that follow one another as one: how the device divides its work is its own affair.
fn joined(ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.into_iter().fold(Vec::new(), |mut all: Vec<(u64, u64)>, (start, len)| {
        match all.last_mut() {
            Some((first, so_far)) if *first + *so_far == start => *so_far += len,
            _ => all.push((start, len)),
        }
        all
    })
}
