//! The life of a VM as one state machine: who runs the guest, and what may happen next.
//!
//! [`step`] is pure and holds every transition; [`Owner`](owner::Owner) calls it under one
//! lock and acts before it lets go. The model checker (`tests/model`) calls the same function.
//!
//! **Invariants.** The source's vCPUs never run after the hand-off began, unless a person says so
//! (`resume --force`). While the engine holds the machine nobody else starts it. A guest that ended
//! itself never runs again, here or elsewhere.
//!
//! | state | `pause` | `resume` | `migrate` | guest ends | `kill` |
//! |---|---|---|---|---|---|
//! | Receiving | no | no | no | Ended | Ended |
//! | Running | Paused | as it is | Migrating | Ended | Ended |
//! | Paused | as it is | Running | Migrating | Ended | Ended |
//! | Migrating, not yet handed over | no | no | busy | cancels, then Ended | cancels, then Ended |
//! | Migrating, hand-off begun | no | no | busy | - | Migrated, or Ended |
//! | Unknown | no | `--force`: Running | no | - | Ended |
//! | Migrated | no | no | no | - | - |
//! | Ended | no | no | no | - | - |
//! | Rebooting | no | no | no | Ended | Ended |
//!
//! # Who runs, and who has the disks' locks
//!
//! | state | the guest runs | locks of its disks here |
//! |---|---|---|
//! | Receiving | at the source | none; when the state has arrived all, before the source hears so |
//! | Running | here | all, but for those past which a person forced it |
//! | Paused | nowhere | all, or it is `lock lost` |
//! | Migrating, Live | here, or nowhere | as before |
//! | Migrating, Held | nowhere | all, until nothing but the state is left to send; then none |
//! | Migrating, HandingOver | nowhere, or at the destination | none |
//! | Unknown | at the destination, or nowhere | none |
//! | Migrated | at the destination | none |
//! | Ended, Rebooting | nowhere | as before |
//!
//! A machine that cannot have its disks to itself is not started
//! ([`Refusal::DiskTaken`]): it stays paused, whoever asks, but for `resume --force`. [`locks`]
//! says of each act whether it needs them.
//!
//! "Guest ends" of one that receives or reboots is `Stillborn`: its machine is over before it was
//! put in charge, and never counts as arrived.
//!
//! The engine moves a migration along: `Hold` stops the machine for the switchover, `HandOver`
//! begins the hand-off (and is refused unless the machine is still held), `TakeBack` says that not
//! a byte of it left, `Release` lets the machine go on, `EngineEnded` ends it. Whether the guest
//! may be elsewhere is read off the phase alone, so a panic needs no guess.

pub mod ending;
pub mod owner;
pub mod wake;

use std::fmt;

/// How a VM ends on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// The guest powered off.
    PowerOff,
    /// The guest reset itself.
    Reset,
    /// The guest cannot go on.
    Fatal,
    /// `kill`, or a signal.
    Kill,
}

impl End {
    /// The first end counts. A reset alone gives way: what may start again must not hide that it
    /// cannot, or must not.
    #[must_use]
    pub fn or(earlier: Option<Self>, later: Self) -> Self {
        match (earlier, later) {
            (None | Some(Self::Reset), later) => later,
            (Some(first), _) => first,
        }
    }
}

/// How far a migration away is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The guest goes on as it was.
    Live,
    /// The engine holds the machine still: the switchover.
    Held,
    /// The first byte of the hand-off may have left.
    HandingOver,
}

/// The state of a VM. See the module's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Life {
    /// Waits for a guest, or receives one.
    Receiving,
    /// vCPUs run.
    Running,
    /// vCPUs are stopped on request.
    Paused,
    /// The guest is on its way elsewhere.
    Migrating {
        /// Whether it runs, here after a failure and there after a success.
        run: bool,
        /// How far.
        phase: Phase,
        /// What ends the VM as soon as the engine has let go, unless it is gone by then.
        ended: Option<End>,
    },
    /// The guest runs at the destination. Final.
    Migrated,
    /// The hand-off began and nobody knows whether it arrived: stopped here.
    Unknown,
    /// The VM is over on this host. Final, but for a reboot.
    Ended(End),
    /// The guest reset itself and a new machine is being built.
    Rebooting,
}

/// What happens to a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// The machine is built and may run (at start; `run: false` for a guest that was paused when it
    /// left its source).
    Arrived {
        /// Whether it runs.
        run: bool,
    },
    /// The machine was over before it could be put in charge.
    Stillborn(End),
    /// `pause`.
    Pause,
    /// `resume`.
    Resume {
        /// Also after a migration whose outcome is unknown.
        force: bool,
    },
    /// A command that changes the machine: its power button, its balloon.
    Touch,
    /// `migrate`.
    Migrate,
    /// The engine stops the machine for good unless the migration fails.
    Hold,
    /// The engine is about to send the hand-off.
    HandOver,
    /// Not a byte of the hand-off was sent.
    TakeBack,
    /// The engine has failed and lets the guest go on.
    Release,
    /// The engine is through, or dead.
    EngineEnded {
        /// The destination says that it runs the guest.
        moved: bool,
    },
    /// The guest ended itself, or was killed.
    End(End),
    /// The run loop builds a new machine after a reset.
    Reboot,
}

/// What the owner does in the same breath.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Act {
    /// Nothing.
    Nothing,
    /// Stops the machine.
    Stop,
    /// Starts the machine.
    Start,
    /// Starts the machine although it was handed over.
    StartAnyway,
    /// Stops the machine so that only [`Act::Release`] and what follows it start it again.
    Hold,
    /// Makes the machine refuse to run.
    HandOver,
    /// Takes [`Act::HandOver`] back: held as before.
    TakeBack,
    /// Takes the hold away and starts the machine.
    Release,
    /// Takes the hold away; the machine stays stopped.
    LetGo,
    /// Stops the machine and cancels the migration.
    StopAndCancel,
}

/// What becomes of the locks of the machine's disks in the same breath.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Locks {
    /// Nothing.
    AsTheyAre,
    /// Taken, or nothing happens.
    Needed,
    /// Taken as far as can be: a person's word.
    Forced,
    /// Taken, but for those past which a person forced the guest: it reboots, and that holds on.
    AsBefore,
    /// Taken if they are free. The guest stays as it is, paused or forced to run.
    Wanted,
}

/// What becomes of the locks with an [`Act`] that [`turns`](Gate::apply) the machine on or off.
/// They are taken before it is turned on.
pub fn locks(act: Act, event: Event, turns: Option<bool>) -> Locks {
    match (turns, act, event) {
        // Where nobody knows whether the guest runs elsewhere, a lock that somebody has is the best
        // sign that it does: that outweighs a person's word.
        (Some(true), Act::Start, Event::Resume { force: true }) => Locks::Forced,
        (Some(true), Act::Start, Event::Arrived { .. }) => Locks::AsBefore,
        (Some(true), ..) => Locks::Needed,
        (None, Act::LetGo, _) | (None, Act::Nothing, Event::Resume { .. }) => Locks::Wanted,
        _ => Locks::AsTheyAre,
    }
}

/// Why an event is refused. Nothing has changed then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// The VM is in another state.
    #[error("the VM is {0}")]
    State(Life),
    /// A migration is under way.
    #[error("a migration is under way")]
    Busy,
    /// The guest is on its way: what would be changed here would be lost.
    #[error("the guest is being handed over")]
    BeingHandedOver,
    /// A device has work that does not end; the guest goes on.
    #[error("a device is busy: its requests do not end")]
    Unfinished,
    /// Somebody else has the lock of a disk; the guest stays as it is.
    #[error("one of its disks is in use")]
    DiskTaken,
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Life::Receiving => "receiving",
            Life::Running => "running",
            Life::Paused => "paused",
            Life::Migrating { .. } => "migrating",
            Life::Migrated => "migrated",
            Life::Unknown => "migration-unknown",
            Life::Rebooting => "rebooting",
            Life::Ended(_) => "stopped",
        })
    }
}

/// The one transition function: the next state and what to do, or why not.
///
/// # Errors
/// The event is not for this state.
pub fn step(life: Life, event: Event) -> Result<(Life, Act), Refusal> {
    match event {
        Event::Arrived { .. } | Event::Stillborn(_) | Event::Reboot => machine(life, event),
        Event::Pause | Event::Resume { .. } | Event::Touch | Event::Migrate => command(life, event),
        Event::End(end) => Ok(ended(life, end)),
        _ => engine(life, event),
    }
}

/// A new machine.
fn machine(life: Life, event: Event) -> Result<(Life, Act), Refusal> {
    use Life::{Ended, Paused, Rebooting, Receiving, Running};
    Ok(match (event, life) {
        (Event::Arrived { run: true }, Receiving | Rebooting) => (Running, Act::Start),
        (Event::Arrived { run: false }, Receiving) => (Paused, Act::Nothing),
        (Event::Reboot, Ended(End::Reset)) => (Rebooting, Act::Nothing),
        (Event::Stillborn(end), Receiving | Rebooting) => (Ended(end), Act::Nothing),
        _ => return Err(Refusal::State(life)),
    })
}

fn command(life: Life, event: Event) -> Result<(Life, Act), Refusal> {
    use Life::{Migrating, Paused, Running, Unknown};
    use Phase::{HandingOver, Held, Live};
    Ok(match (event, life) {
        (Event::Pause, Running) => (Paused, Act::Stop),
        (Event::Pause, Paused) | (Event::Resume { .. }, Running) => (life, Act::Nothing),
        (Event::Resume { .. }, Paused) => (Running, Act::Start),
        (Event::Resume { force: true }, Unknown) => (Running, Act::StartAnyway),
        (Event::Migrate, Running | Paused) => {
            (Migrating { run: life == Running, phase: Live, ended: None }, Act::Nothing)
        }
        (Event::Migrate, Migrating { .. }) => return Err(Refusal::Busy),
        (Event::Touch, Running | Migrating { run: true, phase: Live, ended: None }) => {
            (life, Act::Nothing)
        }
        (Event::Touch, Migrating { phase: Held | HandingOver, .. }) => {
            return Err(Refusal::BeingHandedOver);
        }
        // A paused machine stays as it is.
        (Event::Touch, Migrating { run: false, .. }) => return Err(Refusal::State(Paused)),
        _ => return Err(Refusal::State(life)),
    })
}

fn engine(life: Life, event: Event) -> Result<(Life, Act), Refusal> {
    use Life::{Ended, Migrated, Migrating, Paused, Running, Unknown};
    use Phase::{HandingOver, Held, Live};
    let Migrating { run, phase, ended } = life else { return Err(Refusal::State(life)) };
    let at = |phase| Migrating { run, phase, ended };
    Ok(match (event, phase, ended) {
        (Event::Hold, Live | Held, None) => (at(Held), Act::Hold),
        // After its success, to be quite sure.
        (Event::Hold, HandingOver, _) => (life, Act::Stop),
        (Event::HandOver, Held, None) => (at(HandingOver), Act::HandOver),
        (Event::TakeBack, HandingOver, _) => (at(Held), Act::TakeBack),
        (Event::Release, Held, None) if run => (at(Live), Act::Release),
        (Event::Release, Held, _) => (at(Live), Act::LetGo),
        (Event::Release, Live, _) => (life, Act::Nothing),
        (Event::EngineEnded { moved: true }, HandingOver, _) => (Migrated, Act::Stop),
        // It cannot have moved without a hand-off; if it says so, the guest does not run here
        // either.
        (Event::EngineEnded { moved: true }, ..) => (Unknown, Act::Stop),
        (Event::EngineEnded { .. }, _, Some(end)) => (Ended(end), Act::Stop),
        (Event::EngineEnded { .. }, HandingOver, None) => (Unknown, Act::Stop),
        // The engine died holding it: stopped and ours.
        (Event::EngineEnded { .. }, Held, None) => (Paused, Act::LetGo),
        (Event::EngineEnded { .. }, Live, None) => {
            (if run { Running } else { Paused }, Act::Nothing)
        }
        _ => return Err(Refusal::State(life)),
    })
}

fn ended(life: Life, end: End) -> (Life, Act) {
    use Life::{Ended, Migrating, Paused, Rebooting, Receiving, Running, Unknown};
    use Phase::{HandingOver, Held, Live};
    match life {
        Running | Paused => (Ended(end), Act::Stop),
        Receiving | Unknown | Rebooting if end == End::Kill => (Ended(end), Act::Stop),
        Migrating { run, phase: phase @ (Live | Held), ended } => {
            let act = if ended.is_none() { Act::StopAndCancel } else { Act::Nothing };
            (Migrating { run, phase, ended: Some(End::or(ended, end)) }, act)
        }
        Migrating { run, phase: HandingOver, .. } if end == End::Kill => {
            (Migrating { run, phase: HandingOver, ended: Some(end) }, Act::Nothing)
        }
        Ended(End::Reset) => (Ended(End::or(Some(End::Reset), end)), Act::Nothing),
        // Over already, or the guest's life goes on elsewhere.
        _ => (life, Act::Nothing),
    }
}

/// Whether a machine runs, and who may start it. The machine's own, below the owner: a second wall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Gate {
    running: bool,
    held: bool,
    handed_over: bool,
    starts: u32,
}

/// The engine's hold on a machine: while it lives, only its holder starts the machine.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Hold {
    starts: u32,
}

/// What a machine says that is shut for good.
const HANDED_OVER: Refusal = Refusal::State(Life::Unknown);

impl Gate {
    /// What an [`Act`] does to the machine: `Some(true)`: now start its vCPUs, `Some(false)`: now
    /// stop them. `hold` is the owner's.
    ///
    /// # Errors
    /// The machine is held, handed over, or not as it was held. Nothing has changed then.
    pub fn apply(&mut self, hold: &mut Option<Hold>, act: Act) -> Result<Option<bool>, Refusal> {
        match act {
            Act::Nothing => Ok(None),
            Act::Stop | Act::StopAndCancel => Ok(self.stop()),
            Act::Start => self.start(),
            Act::StartAnyway => {
                *hold = None;
                (self.held, self.handed_over) = (false, false);
                self.start()
            }
            Act::Hold if self.handed_over => Err(HANDED_OVER),
            Act::Hold => {
                self.held = true;
                *hold = Some(Hold { starts: self.starts });
                Ok(self.stop())
            }
            Act::HandOver => {
                let since = hold.as_ref().map(|h| h.starts);
                if self.running || !self.held || since != Some(self.starts) {
                    // It ran after it was stopped for the hand-off.
                    return Err(Refusal::BeingHandedOver);
                }
                self.handed_over = true;
                Ok(None)
            }
            Act::TakeBack => {
                self.handed_over = false;
                Ok(None)
            }
            Act::Release | Act::LetGo => {
                *hold = None;
                self.held = false;
                if act == Act::Release { self.start() } else { Ok(None) }
            }
        }
    }

    fn stop(&mut self) -> Option<bool> {
        std::mem::take(&mut self.running).then_some(false)
    }

    fn start(&mut self) -> Result<Option<bool>, Refusal> {
        match (self.handed_over, self.held) {
            (true, _) => Err(HANDED_OVER),
            (_, true) => Err(Refusal::BeingHandedOver),
            _ if self.running => Ok(None),
            _ => {
                self.running = true;
                self.starts = self.starts.wrapping_add(1);
                Ok(Some(true))
            }
        }
    }
}
