//! What can happen, what can be done wrong, and what must never be.

use wherry_vmm::life::End;

/// Deliberate mistakes: the old races, and walls that are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mistake {
    /// Pause and resume look, act, and note as three steps with others in between.
    CheckActNote,
    /// A machine is noted as running before it is started.
    NotedBeforeStarted,
    /// Nobody looks at the guest's own end before a migration moves on.
    EndSeenTooLate,
    /// Resume starts a machine that the engine holds.
    ResumePassesHold,
    /// The engine sends the hand-off without a word to the machine's owner.
    HandOffUnsaid,
    /// Commands change a machine whose state is already on its way.
    TouchedWhileHeld,
    /// Cancelling says yes although the hand-off has begun.
    CancelledTooLate,
    /// Ownership after a panic of the engine is guessed.
    PanicGuessed,
    /// What a machine said about its end reaches the next machine.
    EndOutlivesMachine,
    /// A migration that failed starts the guest though somebody paused it before.
    RunsAfterFailure,
    /// A machine is put in charge without a look whether it is over already.
    DeadArrives,
    /// The source lets go of its disk while its guest runs.
    UnlockedBeforePause,
    /// The source lets go of its disk and flushes it then.
    UnlockedBeforeFlush,
    /// The source goes on after a failure without a look at the lock.
    ResumedWithoutLock,
    /// The source takes its disk back though a hand-off may have left.
    TakenBackTooLate,
    /// Nobody looks whether somebody wrote while the lock was free.
    ChangeOverlooked,
    /// The destination loads the guest, and takes the lock when it runs it.
    LoadedBeforeLocked,
}

impl Mistake {
    /// All.
    pub const ALL: [Self; 17] = [
        Self::CheckActNote,
        Self::NotedBeforeStarted,
        Self::EndSeenTooLate,
        Self::ResumePassesHold,
        Self::HandOffUnsaid,
        Self::TouchedWhileHeld,
        Self::CancelledTooLate,
        Self::PanicGuessed,
        Self::EndOutlivesMachine,
        Self::RunsAfterFailure,
        Self::DeadArrives,
        Self::UnlockedBeforePause,
        Self::UnlockedBeforeFlush,
        Self::ResumedWithoutLock,
        Self::TakenBackTooLate,
        Self::ChangeOverlooked,
        Self::LoadedBeforeLocked,
    ];
}

/// What must never be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wrong {
    /// The guest runs here and at the destination.
    Two,
    /// It runs here after the first byte of a hand-off, and nobody forced it.
    RunsAfterHandOff,
    /// It runs while the engine takes it for stopped.
    RunsWhileHeld,
    /// A guest that ended itself was moved or runs.
    EndedGuestGoesOn,
    /// A command was answered ok and had no effect.
    Lost,
    /// A guest was cancelled, with an ok, and moved.
    CancelledAndMoved,
    /// The state says unknown though no hand-off had begun.
    UnknownForNothing,
    /// A VM is over though neither its guest nor anybody ended it.
    EndedForNothing,
    /// A machine that had died counted as arrived.
    DeadArrived,
    /// Two write the disk, and nobody forced it.
    TwoWrite,
    /// Who runs the guest has not the lock, or is wrong about it.
    Unlocked,
    /// The source has the lock after the first byte of a hand-off, and nobody forced it.
    LockedAfterHandOff,
    /// Who runs the guest, or is to run it, has not seen what another wrote last.
    OldDisk,
    /// Nothing happens any more, and a VM that was ended is not over.
    Hangs,
}

/// A client's command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    /// `pause`.
    Pause,
    /// `resume`.
    Resume,
    /// `resume --force`: somebody looked, the guest runs nowhere else.
    Force,
    /// `stop`, for all commands that change the machine.
    Stop,
    /// `kill`.
    Kill,
    /// `cancel`.
    Cancel,
    /// `migrate`.
    Migrate,
}

pub(super) const COMMANDS: [Command; 7] = [
    Command::Pause,
    Command::Resume,
    Command::Force,
    Command::Stop,
    Command::Kill,
    Command::Cancel,
    Command::Migrate,
];

/// One step of anybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// The machine is built and put in charge.
    Arrive,
    /// A client's command; of one that takes steps (a mistake), its beginning.
    Client(u8, Command),
    /// The next step of a command that takes several.
    Next(u8),
    /// The guest ends itself.
    Guest(End),
    /// A machine dies that is built and not yet in charge.
    DieUnborn,
    /// The run loop looks.
    Look,
    /// The run loop builds a machine.
    Reboot,
    /// The engine goes on.
    Engine,
    /// The engine's peer or its network fails, or the engine sees that it was cancelled.
    Fail,
    /// The engine panics, and its guard undoes what it can.
    Panic,
    /// The engine dies without its guard.
    Die,
    /// The hand-off leaves in part.
    SendPart,
    /// Not a byte of the hand-off leaves.
    SendNothing,
    /// What is on its way to the destination, or back, is lost.
    Lose,
    /// It arrives.
    Deliver,
    /// The destination crashes.
    Crash,
    /// The source's process is killed.
    CrashHere,
    /// The destination knows that nothing comes any more, and gives up.
    Notice,
    /// The engine has waited for the disk's lock long enough.
    GiveUp,
    /// A stranger takes the lock that nobody has.
    StrangerLocks {
        /// And writes.
        writes: bool,
    },
    /// It goes.
    StrangerLeaves,
}
