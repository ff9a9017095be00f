//! Who runs the guest and who writes its disk: every order of commands, ends, a migration's steps,
//! losses and crashes, and of strangers who take the disk while nobody has it.
//!
//! The product's own [`step`](wherry_vmm::life::step) and [`locks`](wherry_vmm::life::locks)
//! decide, its own [`Gate`] is the machine's wall, and its own
//! [`Claim`](wherry_vmm::disks::claim::Claim) is what the source knows of the disk. Around them are
//! a small engine, a destination, a network that loses, and clients. Each command is one step here
//! because the product holds a lock over look, decide, act and note; the first mistake takes that
//! lock away.

mod disk;
mod engine;
mod judge;
mod owner;
mod words;

use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model, Property};
use wherry_vmm::life::{Act, End, Gate, Hold, Life};

use disk::{Disk, Holder};
use words::COMMANDS;
pub use words::{Action, Command, Mistake, Wrong};

/// Where the engine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Engine {
    Idle,
    Rounds,
    /// Stopped; the last round.
    Held,
    /// The disk is flushed and unlocked; the state is on its way.
    Unlocked,
    /// The destination has the lock, and loaded the state.
    Loaded,
    /// The token says that it is too late to cancel.
    Committed,
    /// The machine is shut.
    Sending,
    Waiting,
    /// The destination runs it.
    Moved,
    /// Failed: the guest goes on here, unless a byte of the hand-off left.
    Undo,
    /// The guest is here and its disk is not yet.
    Retrying,
    /// All that is left is to say so.
    Ending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Wire {
    Empty,
    State,
    Loaded,
    HandOff,
    Running,
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum There {
    Nothing,
    Loaded,
    Runs,
    Stands,
    /// Given up, with all that it had.
    Gone,
    Crashed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Client {
    left: u8,
    /// Of a command that takes several steps: what it decided, and whether it has acted.
    under_way: Option<(Life, Act, bool)>,
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    life: Life,
    gate: Gate,
    hold: Option<Hold>,
    /// vCPUs execute.
    vcpus: bool,
    /// The guest's own word about its end.
    ended: Option<End>,
    killed: bool,
    token: u8,
    engine: Engine,
    wire: Wire,
    there: There,
    disk: Disk,
    /// Strangers who may still come.
    strangers: u8,
    /// The source's process is gone.
    crashed: bool,
    clients: Vec<Client>,
    guest_ends: u8,
    faults: u8,
    /// Only of [`Mistake::NotedBeforeStarted`]: the machine is in charge and not started yet.
    to_start: bool,
    // What is only watched.
    wish: bool,
    forced: bool,
    /// A person let it go on without the disk's lock.
    past_lock: bool,
    handed_off: bool,
    /// The owner was told that a hand-off begins.
    began: bool,
    sent_run: bool,
    touched_late: bool,
    cancel_ok: bool,
    this_ended: bool,
    /// Whoever built a machine was told that it runs, though it had died before that.
    dead_arrived: bool,
    /// What was found wrong.
    pub wrong: Option<Wrong>,
}

const OPEN: u8 = 0;
const CANCELLED: u8 = 1;
const COMMITTED: u8 = 2;

/// A model: so many clients with so many commands each.
#[derive(Debug, Clone, Copy)]
pub struct System {
    /// Clients.
    pub clients: u8,
    /// Commands of each.
    pub commands: u8,
    /// Ends that the guest may come to.
    pub guest_ends: u8,
    /// Failures of the network, of the engine and of the destination.
    pub faults: u8,
    /// Strangers who want the disk.
    pub strangers: u8,
    /// What is done wrong.
    pub mistake: Option<Mistake>,
}

impl System {
    fn after(&self, before: &World, action: Action) -> World {
        let mut w = before.clone();
        match action {
            Action::Arrive => self.arrive(&mut w),
            Action::Client(nr, command) => {
                let nr = usize::from(nr);
                if let Some(client) = w.clients.get_mut(nr) {
                    client.left -= 1;
                }
                let stepwise = self.is(Mistake::CheckActNote);
                if stepwise && matches!(command, Command::Pause | Command::Resume) {
                    self.begin(&mut w, nr, command);
                } else {
                    self.command(&mut w, command);
                }
                w.clients.sort_by_key(|c| (c.left, c.under_way.is_some()));
            }
            Action::Next(nr) => self.next(&mut w, usize::from(nr)),
            Action::Guest(end) => {
                w.guest_ends -= 1;
                (w.ended, w.this_ended) = (Some(end), true);
            }
            Action::DieUnborn => {
                w.faults -= 1;
                (w.ended, w.this_ended) = (Some(End::Fatal), true);
            }
            Action::Look => self.look(&mut w),
            Action::Reboot => self.reboot(&mut w),
            Action::Engine => self.engine(&mut w),
            Action::Fail if self.fails_by_itself(&w) => w.engine = Engine::Undo,
            Action::Deliver => self.deliver(&mut w),
            Action::GiveUp => {
                // It stays paused, and the state says so.
                (w.engine, w.wish) = (Engine::Ending, false);
            }
            Action::Notice => {
                w.there = There::Gone;
                w.disk.free(Holder::Destination);
            }
            Action::StrangerLocks { writes } => {
                w.strangers -= 1;
                if w.disk.lock(Holder::Stranger) && writes {
                    w.disk.write();
                }
            }
            Action::StrangerLeaves => w.disk.free(Holder::Stranger),
            fault => self.fault(&mut w, fault),
        }
        w.disk.unflushed |= w.vcpus;
        w
    }
}

impl Model for System {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            life: Life::Receiving,
            gate: Gate::default(),
            hold: None,
            vcpus: false,
            ended: None,
            killed: false,
            token: OPEN,
            engine: Engine::Idle,
            wire: Wire::Empty,
            there: There::Nothing,
            disk: Disk::new(!self.is(Mistake::ChangeOverlooked)),
            strangers: self.strangers,
            crashed: false,
            clients: vec![
                Client { left: self.commands, under_way: None };
                usize::from(self.clients)
            ],
            guest_ends: self.guest_ends,
            faults: self.faults,
            to_start: false,
            wish: true,
            forced: false,
            past_lock: false,
            handed_off: false,
            began: false,
            sent_run: false,
            touched_late: false,
            cancel_ok: false,
            this_ended: false,
            dead_arrived: false,
            wrong: None,
        }]
    }

    fn actions(&self, w: &World, out: &mut Vec<Action>) {
        self.steps(w, out);
    }

    fn next_state(&self, before: &World, action: Action) -> Option<World> {
        let mut w = self.after(before, action);
        if w == *before {
            return None;
        }
        w.wrong = self.judge(&w, false);
        if w.wrong.is_none() {
            let mut more = Vec::new();
            self.steps(&w, &mut more);
            let last = more.iter().all(|&a| self.after(&w, a) == w);
            w.wrong = if last { self.judge(&w, true) } else { None };
        }
        Some(w)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing is wrong", |_, w: &World| w.wrong.is_none()),
            Property::sometimes("it moves", |_, w: &World| w.life == Life::Migrated),
            Property::sometimes("it is unknown", |_, w: &World| w.life == Life::Unknown),
            Property::sometimes("it reboots", |_, w: &World| w.life == Life::Rebooting),
            Property::sometimes("its lock is lost", |s, w: &World| {
                s.strangers == 0 || (w.life == Life::Paused && !w.disk.claim.is_ours())
            }),
        ]
    }
}

/// What an exploration found.
#[derive(Debug)]
pub struct Explored {
    /// Different states.
    pub states: usize,
    /// Longest path.
    pub depth: usize,
    /// Time.
    pub time: Duration,
    /// What was wrong, and the shortest way to it.
    pub wrong: Option<(Wrong, Vec<Action>)>,
    /// It moved, was unknown, rebooted, and lost its lock, each in some order.
    pub everything: bool,
}

/// Explores every order, or up to the first wrong state.
#[must_use]
pub fn explore(system: System) -> Explored {
    let started = Instant::now();
    let checker = system.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let wrong = checker.discovery("nothing is wrong").and_then(|path| {
        let found = path.last_state().wrong;
        Some((found?, path.into_actions()))
    });
    const EACH: [&str; 4] = ["it moves", "it is unknown", "it reboots", "its lock is lost"];
    let reached = |name| checker.discovery(name).is_some();
    Explored {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        time: started.elapsed(),
        everything: EACH.into_iter().all(reached),
        wrong,
    }
}
