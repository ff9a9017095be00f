//! Deliberate mistakes, one of which may be made at a time: the list, and the switch.
//!
//! All are made around the product's code, never in it: by the primitives that it shares memory
//! with ([`sync`]), by the memory, log or rings that it is given, by what is handed on of its
//! answers, or by the order in which it is called.
#![forbid(unsafe_code)]

pub mod sync;

use std::cell::Cell;

thread_local! {
    static MADE: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// Makes a mistake, or none, on this thread from now on.
pub fn set(mutant: Option<Mutant>) {
    MADE.with(|made| made.set(mutant));
}

/// Whether this thread makes the mistake.
pub fn on(mutant: Mutant) -> bool {
    MADE.with(|made| made.get() == Some(mutant))
}

macro_rules! mutants {
    ($($name:ident, $history:literal, $finder:ident, $text:literal;)*) => {
        /// A mistake.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Mutant { $(#[doc = $text] $name,)* }

        impl Mutant {
            /// All of them.
            pub const ALL: &'static [Mutant] = &[$(Mutant::$name,)*];

            /// In one line.
            pub fn text(self) -> &'static str {
                match self { $(Mutant::$name => $text,)* }
            }

            /// Whether another VMM had it.
            pub fn historical(self) -> bool {
                match self { $(Mutant::$name => $history,)* }
            }

            /// What is to find it.
            pub fn finder(self) -> Finder {
                match self { $(Mutant::$name => Finder::$finder,)* }
            }
        }
    };
}

/// Which of the three parts of this crate finds a mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finder {
    /// Every interleaving of the protocol's state machines.
    Protocol,
    /// Every interleaving of the product's threads under loom.
    Threads,
    /// Random requests to the product's device on real rings.
    Device,
}

mutants! {
    LogNotCleared, true, Protocol, "skipped pages sent again next round: the log is not cleared";
    NoDoneAfterFailure, true, Protocol, "DONE not published after a failed migration";
    StaysPaused, false, Protocol, "the guest not resumed after a failed migration";
    LogStaysOn, false, Protocol, "the log not turned off after a failed migration";
    ReplayedId, true, Protocol, "hinting restarted by replaying an id";
    FirstSegment, true, Protocol, "only the first segment of a hint used";
    UsedLength, true, Protocol, "wrong used length";
    WaitsWithoutLoop, true, Protocol,
        "no I/O thread: the engine waits for a driver that nobody serves";
    NoEventLoop, true, Device, "no I/O thread: hinting starts without a driver";
    SendersMutex, true, Protocol, "hints wait for a mutex that the sender holds while it sends";
    CommandByLength, true, Protocol, "command told from pages by length 4";
    PausedLoop, true, Protocol, "pausing vCPUs does not stop the balloon's loop";
    ConsumesWhilePaused, true, Device, "the same in the transport";
    CompletesWhilePaused, false, Device, "a buffer that the device held is given back while paused";
    StatsTags, true, Device, "stats crash when tags grow";
    DeflateUnderflow, true, Device, "page range underflow on deflate";
    ReportNotClamped, true, Device, "reported range not clamped to its region";

    PublishBeforeProtect, false, Protocol, "id published before memory is protected";
    HintAfterClose, false, Protocol,
        "STOP not waited for and one bitmap for all rounds: late hints honoured";
    StaleId, false, Protocol, "hints under an older id honoured";
    NoDone, false, Protocol, "no DONE on restore";
    VmmWrites, false, Protocol, "the VMM's own writes left out of the dirty set";
    ProtectTwice, false, Protocol, "a word protected again by a hint for it";
    EarlyIsGuarded, false, Protocol,
        "a hint alone clears words protected after the id";
    LookBeforeProtect, false, Protocol, "checked zero: read, then protected";
    SendBeforeProtect, false, Protocol, "the sender reads, then protects";
    HolesBeforeProtect, false, Protocol, "holes determined before the protection";
    BalloonBeforeProtect, false, Protocol, "balloon read before the protection";
    UsedBeforeTold, false, Protocol, "ballooned pages left out without MUST_TELL_HOST";
    SwitchWithoutProtect, false, Protocol,
        "switch to the protected way without protecting the rest";
    PublishBeforeReturn, false, Protocol,
        "after DONE a new id is published before the driver took its memory back";
    OneLookIsEnough, false, Protocol,
        "the same, once the driver has looked at DONE, perhaps between two blocks";
    RestBeforeAnnounced, false, Protocol,
        "a driver that has yet to announce its id is asked to rest, and takes STOP for the id";
    NoSweep, false, Protocol, "no sweep after the epoch closed";
    HalfwayForgets, false, Protocol,
        "halfway through round one, marks of pages that were sent are dropped, too";
    HalfwayInEpoch, false, Protocol, "halfway through round one while hints still count";
    ZeroNotTold, false, Protocol,
        "a page that became zero is not sent though the destination has content";

    GateLooksFirst, false, Threads, "gate: looks at the flag, then counts itself in";
    GateDoesNotWait, false, Threads, "gate: closing does not wait for those inside";
    LostWakeup, false, Threads, "gate: notification without the lock";
    LeavesRelaxed, false, Threads,
        "gate: leaving is relaxed, so what was done inside may not be seen";
    CountsUnclaimed, false, Threads, "a hint counts pages whose bits others had taken";
    TakeInTwoSteps, false, Threads, "a word taken by load and store instead of one swap";
    SweepBeforeClose, false, Threads, "the last sweep before the gate is closed";
    ReadsBeforeProtecting, false, Threads, "the product's sink reads, then protects";
    SinkTrustsGuarded, false, Threads,
        "in the product's sink a hint alone clears words protected after the id";
    GuardedNotLookedAt, false, Threads, "the product's sink never looks at `guarded`";
    GuardedNotLookedAtAgain, false, Threads,
        "the product's sink does not look at `guarded` again after claiming";
}

impl Mutant {
    /// By its name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|m| format!("{m:?}").eq_ignore_ascii_case(name))
    }
}
