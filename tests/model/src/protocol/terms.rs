//! Words of all machines: pages, steps, what must not be.

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
    pub bursts: u8,
}

/// What the driver puts into the hint queue.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Chain {
    /// An id, or STOP.
    Command(u32),
    /// One block of pages, or two.
    Blocks(Mask, Mask),
    /// Four writable bytes, which are zero.
    Tiny(Mask),
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
    pub(super) fn is_engines(self) -> bool {
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
