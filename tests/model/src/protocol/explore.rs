//! Exploring: completely, or at random.

use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::scenario::Scenario;
use super::state::State;
use super::system::System;
use super::terms::{Action, Wrong};
use crate::mutant::Mutant;
use crate::rng::Rng;

impl Model for System {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.init()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.steps(state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        Some(self.step(state, action))
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing is wrong", |_, state: &State| state.wrong.is_none()),
            // That the exploration gets there at all.
            Property::sometimes("it ends", |_, state: &State| state.ended()),
            Property::sometimes("a hint is honoured", |_, state: &State| {
                state.engine.round.any_hinted()
            }),
        ]
    }
}

/// What a complete exploration found.
#[derive(Debug)]
pub struct Explored {
    /// Different states.
    pub states: usize,
    /// Transitions.
    pub transitions: usize,
    /// Longest path.
    pub depth: usize,
    /// Time.
    pub time: Duration,
    /// What was wrong, and the shortest way to it.
    pub wrong: Option<(Wrong, Vec<Action>)>,
    /// Some path reaches the end of the migration.
    pub ends: bool,
    /// Some path has a page skipped for a hint.
    pub honours: bool,
}

/// Explores everything, shortest paths first, or up to the first wrong state.
pub fn explore(scenario: &'static Scenario, mutant: Option<Mutant>) -> Explored {
    let started = Instant::now();
    let system = System { scenario, mutant };
    let checker = system.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let wrong = checker.discovery("nothing is wrong").and_then(|path| {
        let found = path.last_state().wrong;
        Some((found?, path.into_actions()))
    });
    Explored {
        states: checker.unique_state_count(),
        transitions: checker.state_count(),
        depth: checker.max_depth(),
        time: started.elapsed(),
        ends: checker.discovery("it ends").is_some(),
        honours: checker.discovery("a hint is honoured").is_some(),
        wrong,
    }
}

/// What random walks found.
#[derive(Debug)]
pub struct Walked {
    /// Walks made.
    pub walks: u64,
    /// Steps taken.
    pub steps: u64,
    /// Walks that ended in a success.
    pub moved: u64,
    /// Time.
    pub time: Duration,
    /// What was wrong, and the seed that shows it.
    pub wrong: Option<(Wrong, u64)>,
}

/// Walks at random, one seed after another, up to the first wrong state.
pub fn walk(
    scenario: &'static Scenario,
    mutant: Option<Mutant>,
    seeds: std::ops::Range<u64>,
) -> Walked {
    let started = Instant::now();
    let mut out = Walked { walks: 0, steps: 0, moved: 0, time: Duration::ZERO, wrong: None };
    for seed in seeds {
        let mut steps = 0;
        let last = one_walk(scenario, mutant, seed, |_, _| steps += 1);
        out.walks += 1;
        out.steps += steps;
        out.moved += u64::from(last.ended() && last.engine.undo == 0);
        if let Some(wrong) = last.wrong {
            out.wrong = Some((wrong, seed));
            break;
        }
    }
    out.time = started.elapsed();
    out
}

/// The walk of one seed, each step shown.
pub fn replay(
    scenario: &'static Scenario,
    mutant: Option<Mutant>,
    seed: u64,
    show: impl FnMut(Action, &State),
) -> Option<Wrong> {
    one_walk(scenario, mutant, seed, show).wrong
}

fn one_walk(
    scenario: &'static Scenario,
    mutant: Option<Mutant>,
    seed: u64,
    mut show: impl FnMut(Action, &State),
) -> State {
    let system = System { scenario, mutant };
    let mut rng = Rng::new(seed);
    // How eager each machine is differs from walk to walk.
    let eager: [u64; 4] = std::array::from_fn(|_| 1 << rng.below(5));
    let fails = rng.below(2) == 0;
    let mut state = system.init();
    let mut steps = Vec::new();
    loop {
        steps.clear();
        system.steps(&state, &mut steps);
        steps.retain(|s| *s != Action::Fail || (fails && rng.below(40) == 0));
        if steps.is_empty() {
            return state;
        }
        // First which machine, then which of its steps.
        let can = |machine: &usize| steps.iter().any(|s| machine_of(*s) == *machine);
        let machines: Vec<usize> = (0..eager.len()).filter(can).collect();
        let mut at = rng.below(machines.iter().map(|m| eager[*m]).sum());
        let machine = machines.into_iter().find(|m| {
            let here = at < eager[*m];
            at = at.saturating_sub(eager[*m]);
            here
        });
        steps.retain(|s| Some(machine_of(*s)) == machine);
        let chosen = steps.get(rng.below(steps.len() as u64) as usize);
        let Some(&action) = chosen else { return state };
        state = system.step(&state, action);
        show(action, &state);
    }
}

/// Engine, device, driver, guest.
fn machine_of(action: Action) -> usize {
    match action {
        _ if action.is_engines() => 0,
        Action::Device => 1,
        Action::Write(_)
        | Action::Free(_)
        | Action::Shrink
        | Action::Inflate(_)
        | Action::Deflate(_)
        | Action::Report(_) => 3,
        _ => 2,
    }
}
