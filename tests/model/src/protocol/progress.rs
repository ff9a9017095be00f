//! How far the engine has got: its steps, and what it remembers between them.

use super::round::RoundState;
use super::terms::Mask;

/// How a sink honours hints, as in the engine.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Method {
    /// Protected before the id: a hint clears bits.
    Protected,
    /// Checked zero; these words were protected before the id.
    CheckedZero {
        /// One bit a word.
        early: u8,
    },
}

/// The sink of one published id.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Sink {
    /// How it honours hints.
    pub method: Method,
    /// Its gate.
    pub closed: bool,
    /// The probe's outcome.
    pub not_zeroing: bool,
    /// What the probe has seen.
    pub zero_blocks: u8,
    /// And this.
    pub content_blocks: u8,
}

impl Sink {
    pub(super) fn new(method: Method) -> Self {
        Self { method, closed: false, not_zeroing: false, zero_blocks: 0, content_blocks: 0 }
    }
}

/// What the engine does next.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Pc {
    /// Turn the log on.
    #[default]
    Log,
    /// Ask for holes, to find the words to protect.
    Populated,
    /// Protect the next word that is to be protected.
    Protect,
    /// Ask for holes again.
    Holes,
    /// Ask for the balloon, and plan round one.
    Plan,
    /// Publish an id.
    Publish,
    /// (Mistake) protect after publishing.
    ProtectLate,
    /// Claim the next word, or end the round.
    Send,
    /// Protect what was claimed, unless it is.
    Claimed,
    /// Note that it is.
    Guard,
    /// Read and send what was claimed.
    Read,
    /// (Mistake) protect what was read.
    GuardLate,
    /// Rest is over: close the sink.
    RenewClose,
    /// And publish.
    RenewStart,
    /// Switch: wait for those inside the old sink.
    SwitchClose,
    /// Switch: protect the rest.
    SwitchProtect,
    /// Without further hints: wait for those inside.
    EarlyClose,
    /// Harvest in the middle of round one.
    Halfway,
    /// The round's bitmap is empty: STOP.
    Stop,
    /// Close the gate.
    Close,
    /// Check the sums.
    Account,
    /// Harvest.
    Harvest,
    /// Another round or not.
    Decide,
    /// Ask for the balloon, and plan a later round.
    PlanLater,
    /// vCPUs stop.
    PauseVcpus,
    /// Devices stop.
    PauseDevices,
    /// The last harvest.
    LastHarvest,
    /// Save the device's state and verify.
    Save,
    /// The destination runs.
    HandOff,
    /// Undoing: DONE.
    UndoDone,
    /// Undoing: run.
    UndoResume,
    /// Undoing: log off.
    UndoLog,
    /// Over.
    End,
}

/// The engine.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Engine {
    /// What comes next.
    pub pc: Pc,
    /// The round under way.
    pub round: RoundState,
    /// The sink of the present id.
    pub sink: Option<Sink>,
    /// An id was published in this round, and no more pages are claimed once the epoch is closed
    /// than by the sweep.
    pub sweeping: bool,
    /// The driver was asked to rest.
    pub resting: bool,
    /// DONE is published, the sink is closed: the driver is to take its memory back.
    pub returning: bool,
    /// The id that was published when it had.
    pub regained: u32,
    /// Words still to be protected.
    pub todo: u8,
    /// Words protected since the log was turned on.
    pub guarded: u8,
    /// Words whose holes and ballooned pages are skipped.
    pub known: u8,
    /// Populated pages as last asked.
    pub populated: Mask,
    /// Ballooned pages as asked too early.
    pub ballooned: Mask,
    /// The next word to claim.
    pub cursor: u32,
    /// Claimed pages.
    pub claimed: Mask,
    /// What the next round has to send.
    pub dirty: Mask,
    /// Round one was harvested in the middle.
    pub halfway: bool,
    /// And these were written that are not sent after that in it.
    pub written: Mask,
    /// Pages of which the destination may hold content.
    pub content: Mask,
    /// Hints were honoured in the protected way.
    pub protected_hints: bool,
    /// vCPUs are stopped.
    pub vcpus_paused: bool,
    /// Devices are stopped.
    pub devices_paused: bool,
    /// What is still to be undone, as the guard has it.
    pub undo: u8,
}
