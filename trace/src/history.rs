//! A trace as a whole: what its events say of each round.
//!
//! They are taken as they come, and nothing is held against anything else, but that time does not
//! go back: who says so is put where he said it. [`MAX_ROUNDS`] are kept.

use serde_json::Value;

use crate::event::{Event, Harvest, Map, RoundPlan, Slice, Start, What};
use crate::read::{MAX_ROUNDS, MAX_TIME_US};

/// A round.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Round {
    /// When it was planned.
    pub at_us: u64,
    /// Its number, and its plan.
    pub plan: RoundPlan,
    /// Where it stood, and when.
    pub slices: Vec<(u64, Slice)>,
    /// Distinct pages that were seen dirty, and when.
    pub looks: Vec<(u64, u64)>,
    /// When it was harvested, and what was found.
    pub harvest: Option<(u64, Harvest)>,
}

impl Round {
    /// Where it stood last.
    pub fn last(&self) -> Slice {
        self.slices.last().map_or_else(Slice::default, |(_, slice)| *slice)
    }
}

/// What a trace tells.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// Its settings.
    pub start: Start,
    /// Time of the last event.
    pub end_us: u64,
    /// By number, each once.
    pub rounds: Vec<Round>,
    /// Round one's map; without cells if there is none.
    pub map: Map,
    /// The migration's own report, if it succeeded.
    pub report: Option<Value>,
    /// In which phase it failed, and why, if it did.
    pub failed: Option<(String, String)>,
    /// Events and hints that did not reach the trace.
    pub lost: u64,
}

impl History {
    /// Takes the next event.
    ///
    /// # Errors
    /// If it is of one round too many: then it is left out.
    pub fn take(&mut self, event: Event) -> Result<(), &'static str> {
        let t_us = self.now(event.t_us);
        match event.what {
            What::Round(plan) => {
                let round = self.round(plan.round)?;
                (round.at_us, round.plan) = (t_us, plan);
            }
            What::Slice(slice) => self.round(slice.round)?.slices.push((t_us, slice)),
            What::Dirty { round, pages, .. } => self.round(round)?.looks.push((t_us, pages)),
            What::Harvest(harvest) => self.round(harvest.round)?.harvest = Some((t_us, harvest)),
            What::Map(map) if map.round == 1 => self.map = map,
            What::Hints { dropped: lost, .. } | What::Lost { events: lost } => {
                self.lost = self.lost.saturating_add(lost);
            }
            What::Failed { phase, error } => self.failed = Some((phase, error)),
            What::End { report } => self.report = Some(report),
            _ => {}
        }
        Ok(())
    }

    /// A number of the migration's own report.
    pub fn reported(&self, pointer: &str) -> Option<u64> {
        self.report.as_ref()?.pointer(pointer)?.as_u64()
    }

    /// The time of an event that comes now and says that it is this.
    pub fn now(&mut self, t_us: u64) -> u64 {
        self.end_us = self.end_us.max(t_us.min(MAX_TIME_US));
        self.end_us
    }

    fn round(&mut self, number: u32) -> Result<&mut Round, &'static str> {
        let at = match self.rounds.binary_search_by_key(&number, |round| round.plan.round) {
            Ok(at) => at,
            Err(_) if self.rounds.len() >= MAX_ROUNDS => return Err("there are too many rounds"),
            Err(at) => {
                let plan = RoundPlan { round: number, ..RoundPlan::default() };
                self.rounds.insert(at, Round { plan, ..Round::default() });
                at
            }
        };
        Ok(&mut self.rounds[at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(t_us: u64, round: u32, bytes: u64) -> Event {
        Event { t_us, what: What::Slice(Slice { round, bytes, ..Slice::default() }) }
    }

    #[test]
    fn events_go_to_their_rounds_and_time_does_not_go_back() {
        let mut history = History::default();
        let plan = RoundPlan { round: 1, to_send: 9, ..RoundPlan::default() };
        for event in [
            slice(50, 2, 7),
            slice(40, 1, 8),
            Event { t_us: 60, what: What::Round(plan) },
            slice(u64::MAX, 1, 9),
        ] {
            history.take(event).unwrap();
        }
        let told: Vec<_> = history.rounds.iter().map(|r| (r.plan.round, r.at_us)).collect();
        assert_eq!(told, [(1, 60), (2, 0)]);
        let times = |at: usize| history.rounds[at].slices.iter().map(|s| s.0).collect::<Vec<_>>();
        assert_eq!((times(0), times(1)), (vec![50, MAX_TIME_US], vec![50]));
        assert_eq!((history.rounds[0].plan, history.rounds[0].last().bytes), (plan, 9));
    }

    #[test]
    fn rounds_are_limited_and_those_that_are_there_go_on() {
        let mut history = History::default();
        for round in 0..MAX_ROUNDS as u32 {
            history.take(slice(0, 2 * round, 1)).unwrap();
        }
        assert!(history.take(slice(0, 1, 1)).is_err());
        history.take(slice(0, 2, 1)).unwrap();
        assert_eq!(history.rounds.len(), MAX_ROUNDS);
        assert_eq!(history.rounds[1].slices.len(), 2);
    }
}
