//! Who runs the guest: every order of commands, ends, a migration's steps, losses and crashes.
//!
//! The product's own [`step`] decides and its own [`Gate`] is the machine's wall; around them are a
//! small engine, a destination, a network that loses, and clients. Each command is one step here
//! because the product holds a lock over look, decide, act and note; the first mistake takes that
//! lock away.

mod judge;
mod words;

use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model, Property};
use wherry_vmm::life::{Act, End, Event, Gate, Hold, Life, Phase, Refusal, step};

use words::COMMANDS;
pub use words::{Action, Command, Mistake, Wrong};

/// Where the engine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Engine {
    Idle,
    Rounds,
    /// Stopped; the last round, the state.
    Held,
    /// The token says that it is too late to cancel.
    Committed,
    /// The machine is shut.
    Sending,
    Waiting,
    /// The destination runs it.
    Moved,
    /// Failed: the guest goes on here, unless a byte of the hand-off left.
    Undo,
    /// All that is left is to say so.
    Ending,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Wire {
    Empty,
    HandOff,
    Running,
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum There {
    Nothing,
    Runs,
    Stands,
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
    clients: Vec<Client>,
    guest_ends: u8,
    faults: u8,
    /// Only of [`Mistake::NotedBeforeStarted`]: the machine is in charge and not started yet.
    to_start: bool,
    // What is only watched.
    wish: bool,
    forced: bool,
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
    /// What is done wrong.
    pub mistake: Option<Mistake>,
}

impl System {
    fn is(&self, mistake: Mistake) -> bool {
        self.mistake == Some(mistake)
    }

    /// What the owner does before it looks at any event.
    fn catch_up(&self, w: &mut World) {
        if w.ended.is_some() && !self.is(Mistake::EndSeenTooLate) {
            self.end(w);
        }
        if w.killed {
            let _ = self.apply(w, Event::End(End::Kill));
        }
    }

    fn end(&self, w: &mut World) {
        if let Some(end) = w.ended {
            let _ = self.apply(w, Event::End(end));
        }
    }

    fn event(&self, w: &mut World, event: Event) -> Result<(), Refusal> {
        self.catch_up(w);
        self.apply(w, event)?;
        self.catch_up(w);
        Ok(())
    }

    fn apply(&self, w: &mut World, event: Event) -> Result<(), Refusal> {
        let (next, act) = step(w.life, event)?;
        act_on(w, act).map_err(|_| Refusal::BeingHandedOver)?;
        w.life = next;
        Ok(())
    }

    fn command(&self, w: &mut World, command: Command) {
        let was = w.clone();
        let event = match command {
            Command::Pause => Event::Pause,
            Command::Resume => Event::Resume { force: false },
            Command::Force => Event::Resume { force: true },
            Command::Stop => Event::Touch,
            Command::Migrate => Event::Migrate,
            Command::Kill => {
                w.killed = true;
                return;
            }
            Command::Cancel => {
                if w.engine != Engine::Idle {
                    if w.token == OPEN {
                        w.token = CANCELLED;
                    }
                    w.cancel_ok |= w.token == CANCELLED || self.is(Mistake::CancelledTooLate);
                }
                return;
            }
        };
        if self.is(Mistake::ResumePassesHold)
            && command == Command::Resume
            && matches!(w.life, Life::Migrating { phase: Phase::Held, .. })
        {
            w.vcpus = true;
            return;
        }
        let touched_late = self.is(Mistake::TouchedWhileHeld)
            && command == Command::Stop
            && matches!(w.life, Life::Migrating { phase: Phase::Held, .. });
        if touched_late {
            w.touched_late = true;
            return;
        }
        if self.event(w, event).is_err() {
            return;
        }
        match command {
            Command::Pause => w.wish = false,
            Command::Resume | Command::Force => {
                w.wish = true;
                w.forced |= was.life == Life::Unknown;
            }
            Command::Stop => w.touched_late |= w.engine >= Engine::Held,
            Command::Migrate => {
                (w.engine, w.token, w.cancel_ok, w.touched_late) =
                    (Engine::Rounds, OPEN, false, false);
                (w.there, w.wire) = (There::Nothing, Wire::Empty);
                (w.handed_off, w.began) = (false, false);
            }
            _ => {}
        }
    }

    /// The same with the lock let go between the steps.
    fn begin(&self, w: &mut World, client: usize, command: Command) {
        let event =
            if command == Command::Pause { Event::Pause } else { Event::Resume { force: false } };
        if let (Ok((next, act)), Some(client)) = (step(w.life, event), w.clients.get_mut(client)) {
            client.under_way = Some((next, act, false));
        }
    }

    fn next(&self, w: &mut World, nr: usize) {
        let Some(client) = w.clients.get_mut(nr) else { return };
        let Some((next, act, acted)) = client.under_way else { return };
        client.under_way = (!acted).then_some((next, act, true));
        if acted {
            w.life = next;
            w.wish = next == Life::Running;
        } else {
            // The machine as it was: it stopped and started for whoever asked.
            match act {
                Act::Start => w.vcpus = true,
                Act::Stop => w.vcpus = false,
                _ => {}
            }
        }
    }

    fn engine(&self, w: &mut World) {
        let cancelled = w.token == CANCELLED;
        w.engine = match w.engine {
            Engine::Rounds if cancelled => Engine::Undo,
            Engine::Rounds => match self.event(w, Event::Hold) {
                Ok(()) => {
                    w.sent_run = matches!(w.life, Life::Migrating { run: true, .. });
                    Engine::Held
                }
                Err(_) => Engine::Undo,
            },
            Engine::Held if cancelled => Engine::Undo,
            Engine::Held => {
                w.token = COMMITTED;
                Engine::Committed
            }
            Engine::Committed if self.is(Mistake::HandOffUnsaid) => Engine::Sending,
            Engine::Committed => match self.event(w, Event::HandOver) {
                Ok(()) => {
                    w.began = true;
                    Engine::Sending
                }
                Err(_) => Engine::Undo,
            },
            Engine::Sending => {
                (w.handed_off, w.wire) = (true, Wire::HandOff);
                Engine::Waiting
            }
            Engine::Moved => {
                let _ = self.event(w, Event::Hold);
                self.engine_ended(w, true);
                Engine::Idle
            }
            Engine::Undo => {
                if !w.handed_off {
                    let _ = self.event(w, Event::Release);
                    if self.is(Mistake::RunsAfterFailure) {
                        w.vcpus = w.ended.is_none();
                    }
                }
                Engine::Ending
            }
            Engine::Ending => {
                self.engine_ended(w, false);
                Engine::Idle
            }
            other => other,
        };
    }

    fn engine_ended(&self, w: &mut World, moved: bool) {
        let _ = self.event(w, Event::EngineEnded { moved });
    }

    fn fault(&self, w: &mut World, action: Action) {
        w.faults -= 1;
        match action {
            Action::SendPart => {
                (w.handed_off, w.wire, w.engine) = (true, Wire::Lost, Engine::Undo);
            }
            Action::SendNothing => {
                w.began = self.event(w, Event::TakeBack).is_err();
                w.engine = Engine::Undo;
            }
            Action::Lose => w.wire = Wire::Lost,
            Action::Crash => w.there = There::Crashed,
            Action::Panic if self.is(Mistake::PanicGuessed) => {
                let _ = self.event(w, Event::Release);
                (w.life, w.engine) = (Life::Unknown, Engine::Idle);
            }
            Action::Fail | Action::Panic => w.engine = Engine::Undo,
            Action::Die => {
                self.engine_ended(w, false);
                w.engine = Engine::Idle;
                // A guest that was held stays paused, and the state says so.
                w.wish &= w.life != Life::Paused;
            }
            _ => {}
        }
    }

    fn reboot(&self, w: &mut World) {
        if w.life == Life::Rebooting {
            return self.arrive(w);
        }
        if self.event(w, Event::Reboot).is_ok() {
            // The old machine, and all that it said, goes.
            (w.gate, w.hold, w.vcpus) = (Gate::default(), None, false);
            w.this_ended = false;
            if !self.is(Mistake::EndOutlivesMachine) {
                w.ended = None;
            }
        }
    }

    fn arrive(&self, w: &mut World) {
        let dead = w.ended;
        if let Some(end) = dead
            && !self.is(Mistake::DeadArrives)
        {
            let _ = self.event(w, Event::Stillborn(end));
            return;
        }
        if self.is(Mistake::NotedBeforeStarted) {
            w.to_start = true;
            if let Ok((next, _)) = step(w.life, Event::Arrived { run: true }) {
                w.life = next;
            }
            return;
        }
        if self.event(w, Event::Arrived { run: true }).is_ok() {
            w.wish = true;
            w.dead_arrived = dead.is_some();
        }
    }

    fn look(&self, w: &mut World) {
        if std::mem::take(&mut w.to_start) {
            let _ = act_on(w, Act::Start);
            return;
        }
        self.catch_up(w);
        self.end(w);
    }

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
            Action::Fail if w.engine == Engine::Waiting => w.engine = Engine::Undo,
            Action::Deliver => self.deliver(&mut w),
            fault => self.fault(&mut w, fault),
        }
        w
    }

    fn deliver(&self, w: &mut World) {
        match w.wire {
            Wire::HandOff if w.there == There::Nothing => {
                w.there = if w.sent_run { There::Runs } else { There::Stands };
                w.wire = Wire::Running;
            }
            Wire::Running => {
                w.wire = Wire::Empty;
                if w.engine == Engine::Waiting {
                    w.engine = Engine::Moved;
                }
            }
            _ => w.wire = Wire::Lost,
        }
    }
}

/// As the product's owner does it.
fn act_on(w: &mut World, act: Act) -> Result<(), ()> {
    if act == Act::StopAndCancel && w.token == OPEN && w.engine != Engine::Idle {
        w.token = CANCELLED;
    }
    match w.gate.apply(&mut w.hold, act) {
        Ok(Some(run)) => w.vcpus = run,
        Ok(None) => {}
        Err(_) => return Err(()),
    }
    Ok(())
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
            clients: vec![
                Client { left: self.commands, under_way: None };
                usize::from(self.clients)
            ],
            guest_ends: self.guest_ends,
            faults: self.faults,
            to_start: false,
            wish: true,
            forced: false,
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
    /// Moved, unknown and rebooting were all reached.
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
    let reached = |name| checker.discovery(name).is_some();
    Explored {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        time: started.elapsed(),
        everything: ["it moves", "it is unknown", "it reboots"].into_iter().all(reached),
        wrong,
    }
}
