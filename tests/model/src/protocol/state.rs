//! The whole world: memory, driver, ring, device and engine, as values.

use wherry_devices::virtio::balloon::HintState;

use super::memory::Memory;
use super::progress::{Engine, Pc};
use super::terms::{Budget, Chain, Mask, Wrong};

/// The driver.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Driver {
    /// The work item is to run.
    pub work: bool,
    /// The field is to be read at the next look.
    pub stale: bool,
    /// The id as last read.
    pub received: u32,
    /// The id as last announced.
    pub active: u32,
    /// The work item has found an id to hint under, which it has yet to announce.
    pub starting: bool,
    /// Between announcement and STOP.
    pub hinting: bool,
    /// It announced an old id and hints under it.
    pub replaying: bool,
    /// The work item has found DONE, and looks at nothing else before it has given back.
    pub giving_back: bool,
    /// Held since before DONE was published.
    pub owed: Mask,
}

impl Driver {
    /// A config interrupt.
    pub(super) fn interrupt(&mut self) {
        (self.work, self.stale) = (true, true);
    }

    pub(super) fn idle(&self) -> bool {
        !self.starting && !self.hinting && !self.giving_back
    }
}

/// How far the sink has got with a block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Look {
    /// Not begun.
    #[default]
    Start,
    /// Checked zero: these bits were taken.
    Claimed(Mask),
    /// Their word was protected.
    Protected(Mask),
    /// And that was noted.
    Noted(Mask),
    /// These are zero, by having looked too early.
    TooEarly(Mask, Mask),
    /// These are to go back.
    PutBack(Mask),
}

/// The device. Its lock is held while `todo` has a block.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Device {
    /// The product's automaton.
    pub hints: HintState,
    /// It has the engine's present sink.
    pub sink: bool,
    /// Blocks of the present chain, for the sink.
    pub todo: Vec<Mask>,
    /// How far the first is.
    pub look: Look,
    /// The field was read since it was last published.
    pub seen: bool,
    /// Pages that the guest took out of the balloon without telling.
    pub untold: Mask,
    /// By the specification: the published id whose hints count, or 0.
    pub current: u32,
    /// By the specification: it was announced after its publication.
    pub open: bool,
    /// By the specification: and STOP was said for it.
    pub stopped: bool,
}

impl Device {
    /// The set of ballooned pages as the host sees it.
    pub(super) fn ballooned(&self, really: Mask) -> Mask {
        really | self.untold
    }
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

impl State {
    /// The migration is over.
    pub(super) fn ended(&self) -> bool {
        self.engine.pc == Pc::End
    }

    /// Whether the device's lock can be had.
    pub(super) fn unlocked(&self) -> bool {
        self.device.todo.is_empty()
    }
}
