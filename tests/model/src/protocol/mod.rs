//! The protocol as state machines, and what must hold.
//!
//! # Who takes part
//! | machine | file | steps |
//! |---|---|---|
//! | guest and its balloon driver | `guest` | write, free, balloon; read the id, announce, hint, STOP, give back |
//! | ring and device | `device` | one chain; the product's `Balloon::handle` decides what it means |
//! | hint sink | `device` | late? · claim · protect · note · look · put back, each a step of its own |
//! | dirty log and memory | `memory` | |
//! | round planner, sender, switchover, undoing | `engine` | one call into the machine or one access to shared bitmaps a step |
//!
//! Guest, device and engine run in turn in every possible order. A step is as large as it may be
//! without hiding an order that matters: everything that another machine could see half done is
//! split. Pages are read and sent in one step, because frames arrive in order and a broken
//! connection ends the migration.
//!
//! # What must hold ([`Wrong`])
//! At the end every page not free at the pause is equal on both sides, every other is equal or was
//! hinted (or ballooned) and is unwritten since; each round accounts for all pages; whoever waits
//! goes on; and when everything has come to rest the guest holds none of the pages that it hinted.
//! And what the device owes to the specification.

mod bench;
mod device;
mod engine;
mod explore;
mod guest;
mod memory;
mod progress;
mod round;
mod scenario;
mod undo;

pub use explore::{Explored, Walked, explore, replay, walk};
pub use scenario::{Scenario, deeper, named, scenarios, walks};

use crate::mutant::{self, Mutant};

pub use device::{Chain, Device, Look};
pub use engine::{Engine, Pc, RoundState, Sink, Way};
pub use guest::Driver;
pub use memory::Memory;

/// One bit a page.
pub type Mask = u16;

/// Something that must not be.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Wrong {
    /// These pages were not free at the pause and differ.
    Lost(Mask),
    /// These were free, were not hinted or were written since, and differ.
    Differs(Mask),
    /// A round's classes do not add up.
    Accounting,
    /// At the end the guest still holds pages that it hinted.
    Held(Mask),
    /// The driver hints again, after it was to take its memory back, and has these still.
    NotReturned(Mask),
    /// Asked to rest, the driver takes STOP for an id, under which it will hint all that it has.
    HintsUnderStop,
    /// A hint reached the sink that does not belong to the current id.
    StaleHint,
    /// A hint under the current id did not reach the sink.
    DroppedHint,
    /// A chain came back with a length other than 0.
    UsedLength,
    /// These pages are to be sent again though nobody wrote them.
    Resent(Mask),
    /// The device has work and must wait for the sender.
    HintWaits,
    /// The migration is over and the guest does not run.
    StaysPaused,
    /// The migration is over and the log is on.
    LogStaysOn,
    /// Nobody can go on.
    Deadlock,
}

/// What the guest may still do, which bounds the exploration.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Budget {
    /// Writes of pages.
    pub writes: u8,
    /// Pages freed.
    pub frees: u8,
    /// Hinted blocks.
    pub hints: u8,
    /// Inflating, deflating, reporting.
    pub balloon: u8,
    /// Times that the guest, short of memory, takes back everything that the driver holds.
    pub shrinks: u8,
    /// Replayed ids.
    pub replays: u8,
    /// Blocks of four writable bytes.
    pub tiny: u8,
    /// Spells after the first.
    pub spells: u8,
}

/// The whole world.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct State {
    /// Guest memory on both sides, and the dirty log.
    pub mem: Memory,
    /// The guest's balloon driver.
    pub driver: Driver,
    /// The hint queue, oldest first.
    pub queue: Vec<Chain>,
    /// The balloon.
    pub device: Device,
    /// The source's engine.
    pub engine: Engine,
    /// What the guest may still do.
    pub left: Budget,
    /// Found wrong.
    pub wrong: Option<Wrong>,
}

/// A step of one machine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Action {
    /// The engine's only next step.
    Engine,
    /// The engine asks the driver to rest.
    Rest,
    /// The engine ends the rest, or looks whether the driver takes its memory back.
    Renew,
    /// The engine switches to the protected way.
    Switch,
    /// The engine does without further hints.
    StopEarly,
    /// Another round.
    NextRound,
    /// No further round.
    SwitchOver,
    /// The connection breaks, or the user cancels.
    Fail,
    /// The device takes a chain from the queue, or goes on with a hint.
    Device,
    /// The driver's work item begins after a config interrupt.
    Work,
    /// The driver reads the id for its announcement, or between two blocks.
    Look,
    /// The driver announces the id and begins to hint.
    Announce,
    /// The driver takes free pages and hints them.
    Hint(Mask),
    /// Two blocks in one chain.
    HintTwo(Mask, Mask),
    /// A block of four bytes, which are zero, in this page.
    HintTiny(Mask),
    /// The driver announces its last id once more.
    Replay,
    /// The driver says STOP.
    DriverStop,
    /// The driver gives its pages back to the guest after DONE.
    GiveBack,
    /// The guest is short of memory and takes back what the driver holds.
    Shrink,
    /// The guest uses a page and writes it.
    Write(Mask),
    /// The guest frees a page.
    Free(Mask),
    /// A free page goes into the balloon.
    Inflate(Mask),
    /// And comes out.
    Deflate(Mask),
    /// A free page is reported.
    Report(Mask),
}

impl Action {
    /// Whether the engine takes it.
    fn is_engines(self) -> bool {
        matches!(
            self,
            Action::Engine
                | Action::Rest
                | Action::Renew
                | Action::Switch
                | Action::StopEarly
                | Action::NextRound
                | Action::SwitchOver
                | Action::Fail
        )
    }
}

/// A scenario, and perhaps a mistake.
#[derive(Clone, Copy, Debug)]
pub struct System {
    /// Sizes and what may happen.
    pub scenario: &'static Scenario,
    /// A mistake that is made.
    pub mutant: Option<Mutant>,
}

impl System {
    /// Where it begins.
    pub fn init(&self) -> State {
        let s = self.scenario;
        State {
            mem: Memory::new(s),
            driver: Driver::default(),
            queue: Vec::new(),
            device: Device::default(),
            engine: Engine::default(),
            left: s.budget,
            wrong: None,
        }
    }

    /// All that may happen next.
    pub fn steps(&self, state: &State, out: &mut Vec<Action>) {
        mutant::set(self.mutant);
        if state.wrong.is_some() {
            return;
        }
        engine::steps(self.scenario, state, out);
        device::steps(self.scenario, state, out);
        guest::steps(self.scenario, state, out);
    }

    /// What happens.
    pub fn step(&self, state: &State, action: Action) -> State {
        mutant::set(self.mutant);
        let mut next = state.clone();
        match action {
            Action::Device => device::step(self.scenario, &mut next),
            _ if action.is_engines() => engine::step(self.scenario, &mut next, action),
            _ => guest::step(self.scenario, &mut next, action),
        }
        if next.wrong.is_none() {
            next.wrong = self.at_rest(&next);
        }
        next
    }

    /// Checks of a state in which something has come to its end.
    fn at_rest(&self, state: &State) -> Option<Wrong> {
        if device::has_work(state)
            && !device::can_work(self.scenario, state)
            && device::may_work(state)
        {
            return Some(Wrong::HintWaits);
        }
        if engine::ended(state) {
            if state.engine.vcpus_paused || state.engine.devices_paused {
                return Some(Wrong::StaysPaused);
            }
            if state.mem.log_on {
                return Some(Wrong::LogStaysOn);
            }
            let quiet = guest::quiet(state)
                && (state.queue.is_empty() || !device::can_work(self.scenario, state));
            return (quiet && state.mem.held != 0).then_some(Wrong::Held(state.mem.held));
        }
        let mut steps = Vec::new();
        engine::steps(self.scenario, state, &mut steps);
        if steps.iter().all(|s| *s == Action::Fail) {
            device::steps(self.scenario, state, &mut steps);
            guest::steps(self.scenario, state, &mut steps);
            if steps.iter().all(|s| *s == Action::Fail) {
                return Some(Wrong::Deadlock);
            }
        }
        None
    }
}
