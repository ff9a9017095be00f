//! All machines together: which steps there are, what they lead to, and what is wrong with that.

use super::memory::Memory;
use super::progress::Engine;
use super::scenario::Scenario;
use super::state::{Device, Driver, State};
use super::terms::{Action, Wrong};
use super::{device, engine, guest};
use crate::mutant::{self, Mutant};

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
        if state.ended() {
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
