//! What the guest does to the host, step by step.
//!
//! Two rules keep the guest's honest pages honest, so that losing one is the host's fault alone:
//! - A page in use is hinted only under an id that the guest had read before it last wrote the
//!   page.
//! - Everything is hinted (all RAM, the program and the rings included) only when no id is open:
//!   after the guest's own STOP, after a reset, under ids that are not the device's. None of that
//!   may count.

mod device;
mod edges;
mod memory;
mod protocol;

use crate::balloon::{Balloon, DONE, FIRST_ID, STOP};
use crate::pages::{self, Kind, Tally};
use crate::phys::*;
use crate::rng::Rng;
use crate::second;

/// One kind of attack.
#[derive(Clone, Copy)]
enum Attack {
    TakeBack,
    TakeZeroed,
    Fickle,
    InUse,
    Tables,
    Discards,
    AfterStop,
    Ids,
    Shapes,
    Chains,
    Config,
    Reset,
    Garbage,
    Flood,
    Edges,
    Boast,
    Stats,
    Pair,
    Rivals,
}

/// What a guest does all the time.
pub struct Scenario {
    attacks: &'static [Attack],
    /// One step in so many is an attack; the others are a well-behaved driver's.
    every: u64,
}

use Attack::*;

/// By the name on the command line.
const SCENARIOS: [(&str, &[Attack], u64); 21] = [
    ("honest", &[], 1),
    ("takeback", &[TakeBack], 1),
    ("takezeroed", &[TakeZeroed], 1),
    ("fickle", &[Fickle], 1),
    ("inuse", &[InUse], 1),
    ("tables", &[Tables], 2),
    ("discards", &[Discards], 2),
    ("afterstop", &[AfterStop], 256),
    ("ids", &[Ids], 256),
    ("shapes", &[Shapes], 2),
    ("chains", &[Chains], 2),
    ("config", &[Config], 2),
    ("reset", &[Reset], 256),
    ("garbage", &[Garbage], 64),
    ("flood", &[Flood, Flood, Chains, Config, Discards, Reset, Garbage], 1),
    ("edges", &[Edges, Edges, TakeBack], 1),
    ("boast", &[Boast, TakeZeroed, TakeZeroed], 1),
    ("stats", &[Stats, TakeBack], 1),
    ("pair", &[Pair], 1),
    ("rivals", &[Rivals, Rivals, Rivals, InUse, Ids, AfterStop, Discards], 1),
    (
        "storm",
        &[
            TakeBack, TakeZeroed, Fickle, InUse, Tables, Discards, AfterStop, Ids, Shapes, Chains,
            Config, Reset, Garbage,
        ],
        2,
    ),
];

impl Scenario {
    /// The scenario of this name.
    pub fn named(name: &str) -> Option<Self> {
        let (_, attacks, every) = SCENARIOS.into_iter().find(|(known, ..)| *known == name)?;
        Some(Self { attacks, every })
    }

    /// Whether the guest needs a second vCPU, `--cpus 2`, and if so whether that one may reset the
    /// device.
    pub fn wants_second(&self) -> Option<bool> {
        self.attacks.iter().find_map(|attack| match attack {
            Pair => Some(false),
            Rivals => Some(true),
            _ => None,
        })
    }

    /// Whether the guest has RAM around the hole, which `--memory 3136MiB` gives it.
    pub fn wants_edges(&self) -> bool {
        self.attacks.iter().any(|attack| matches!(attack, Edges))
    }
}

/// How often what happened.
#[derive(Default)]
pub struct Counts {
    /// Steps.
    pub steps: u64,
    /// Ids that were read and announced as they should be.
    pub ids: u64,
    /// Steps that began while an id was open.
    pub open_steps: u64,
    /// Resets in the middle of something.
    pub resets: u64,
}

/// The guest.
pub struct Attacker {
    /// Its driver.
    pub balloon: Balloon,
    /// What it found in its memory.
    pub tally: Tally,
    /// What it did.
    pub counts: Counts,
    scenario: Scenario,
    rng: Rng,
    /// Whether it clears what it hands to the second vCPU: by seed, since the host treats the two
    /// kinds of guests differently.
    zeroes: bool,
    /// Resets by the second vCPU that were noticed.
    resets_seen: u64,
    /// The id that was announced last, and not stopped.
    announced: Option<u32>,
    /// The id for which STOP was sent.
    stopped: Option<u32>,
    /// The last id that was read.
    last_id: u32,
    /// Blocks of [`ONCE`] that were hinted since the last DONE: one bit each.
    taken_once: u128,
    /// How many hints there had been at the last DONE.
    hints_at_done: u64,
}

/// Bytes of the blocks in which the pool is freed and taken back: what the host can honour at a
/// time when it looks for zeros.
const BLOCK: u64 = 256 << 10;

impl Attacker {
    /// A guest that has written its pages and brought up the balloon.
    pub fn new(scenario: Scenario, seed: u64) -> Self {
        for page in MIXED.pages() {
            pages::write(
                page,
                if (page / PAGE).is_multiple_of(2) { Kind::Honest } else { Kind::Lie },
            );
        }
        ONCE.pages().for_each(|page| pages::write(page, Kind::Honest));
        POOL.pages()
            .filter(|page| (page / BLOCK).is_multiple_of(2))
            .for_each(|page| pages::write(page, Kind::Honest));
        LIES.pages()
            .filter(|page| (page / PAGE / 16).is_multiple_of(4))
            .for_each(|page| pages::write(page, Kind::Lie));
        for page in edges().iter().flat_map(Zone::pages) {
            // By seed, so that each end of RAM is honest in one of them.
            let even = (page / PAGE + seed).is_multiple_of(2);
            pages::write(page, if even { Kind::Honest } else { Kind::Lie });
        }
        Self {
            balloon: Balloon::new(),
            tally: Tally::default(),
            counts: Counts::default(),
            scenario,
            rng: Rng::new(seed),
            zeroes: !seed.is_multiple_of(2),
            resets_seen: 0,
            announced: None,
            stopped: None,
            last_id: 0,
            taken_once: 0,
            hints_at_done: 0,
        }
    }

    /// One attack or one step of a well-behaved driver, and a look at some honest pages.
    pub fn step(&mut self) {
        self.counts.steps += 1;
        let open = self.sync();
        self.counts.open_steps += u64::from(open);
        if self.scenario.attacks.is_empty() || !self.rng.one_in(self.scenario.every) {
            self.behave(open);
        } else {
            match self.choose() {
                TakeBack => self.take_back(open),
                TakeZeroed => self.take_zeroed(open),
                Fickle => self.fickle(open),
                InUse => self.hint_in_use(open),
                Tables => self.hint_tables(open),
                Discards => self.discards(),
                AfterStop => self.hint_after_stop(),
                Ids => self.wrong_ids(),
                Shapes => self.shapes(),
                Chains => self.chains(),
                Config => self.config(),
                Reset => self.reset(),
                Garbage => self.garbage(),
                Flood => self.flood(),
                Edges => self.edges(open),
                Boast => self.boast(),
                Stats => self.stats(),
                Pair | Rivals => self.hand_over(open),
            }
        }
        self.tend();
    }

    /// The next attack. In a storm those that end hinting for a while are rare, or nothing else
    /// would get anywhere.
    fn choose(&mut self) -> Attack {
        let attack = self.rng.pick(self.scenario.attacks);
        let ends_hinting = matches!(attack, AfterStop | Ids | Reset | Garbage);
        if ends_hinting && self.scenario.attacks.len() > 1 && !self.rng.one_in(32) {
            return if self.scenario.wants_second().is_some() { Pair } else { TakeBack };
        }
        attack
    }

    /// Does what Linux does on a config interrupt; whether hints count now.
    fn sync(&mut self) -> bool {
        let (resets, _) = second::counts();
        if resets != self.resets_seen {
            self.resets_seen = resets;
            // Now and then it goes on as if nothing had happened.
            let told = !self.rng.one_in(2);
            self.recover_unless(told);
        }
        let id = self.balloon.shown();
        if id == DONE {
            self.taken_once = 0;
            self.hints_at_done = self.balloon.hints;
        }
        if id < FIRST_ID {
            if self.announced.is_some() {
                self.stop();
            }
            return false;
        }
        if self.announced == Some(id) || self.stopped == Some(id) {
            return self.announced == Some(id);
        }
        self.counts.ids += 1;
        (self.announced, self.last_id) = (Some(id), id);
        let told = self.balloon.command(id);
        self.recover_unless(told) && self.announced.is_some()
    }

    /// STOP: from now on, for the device too, nothing counts that is hinted before the next
    /// [`sync`](Self::sync).
    fn stop(&mut self) {
        self.stopped = self.announced.take().or(self.stopped);
        let told = self.balloon.command(STOP);
        self.recover_unless(told);
    }

    /// Starts again if the device gave up, for which the guest may have asked. Returns `told`.
    fn recover_unless(&mut self, told: bool) -> bool {
        if !told {
            self.forget();
            self.balloon.recover();
            if self.scenario.wants_second() == Some(true) {
                // The other vCPU has reset the device: nothing is announced to it yet.
                self.hint_all();
            }
        }
        told
    }

    /// The device does not know this driver any more.
    fn forget(&mut self) {
        (self.announced, self.stopped) = (None, None);
    }

    /// Honest pages are looked at, and some are written.
    fn tend(&mut self) {
        for _ in 0..4 {
            let page = self.honest_page();
            pages::check(page, &mut self.tally);
        }
        if self.rng.one_in(8) {
            // A small set that is written often, and seldom any.
            let any = self.honest_page();
            let rare = self.rng.one_in(8) && !ONCE.has(any);
            let page = if rare { any } else { MIXED.start + 2 * PAGE * self.rng.within(0..64) };
            pages::write(page, Kind::Honest);
        }
    }

    /// An honest page, if the first that is looked at is one, or any of [`MIXED`].
    fn honest_page(&mut self) -> u64 {
        let page = POOL.start + PAGE * self.rng.within(0..(ONCE.end - POOL.start) / PAGE);
        if pages::is_honest(page) && self.rng.one_in(2) {
            return page;
        }
        if let Some(page) = self.edge_page()
            && pages::is_honest(page)
        {
            return page;
        }
        MIXED.start + 2 * PAGE * self.rng.within(0..(MIXED.end - MIXED.start) / PAGE / 2)
    }

    /// Changes a page behind the guest's own back.
    pub fn spoil(&mut self) {
        zero(self.honest_page(), PAGE);
    }
}
