//! A trace of a VMM that writes none itself, in Wherry's format: what was on the wire, and when, as
//! seen from outside.

use std::time::Instant;

use serde_json::json;
use wherry_trace::{Event, RoundPlan, Slice, Start, VERSION, What};

use super::api::Migration;
use crate::entry::Figures;

/// A trace that is being made.
pub struct Recording {
    start: Instant,
    events: Vec<Event>,
    round: u32,
}

impl Recording {
    /// Begins with the migration.
    pub fn new(migration: &Migration, nr_pages: u64) -> Self {
        let case = migration.case;
        let what = What::Start(Start {
            version: VERSION,
            nr_pages,
            hints: case.hints.word().into(),
            bandwidth: case.link_rate().unwrap_or_default(),
            compression: None,
            streams: case.streams,
            downtime_limit_us: case.downtime_limit_ms.saturating_mul(1000),
            max_rounds: 0,
            force: false,
            switchover_estimate_us: 0,
        });
        Self { start: Instant::now(), events: vec![Event { t_us: 0, what }], round: 0 }
    }

    fn add(&mut self, what: What) {
        let t_us = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.events.push(Event { t_us, what });
    }

    /// All bytes so far, and the round that is under way.
    pub fn sample(&mut self, round: u32, bytes: u64) {
        if round > self.round {
            self.add(What::Round(RoundPlan { round, ..RoundPlan::default() }));
            self.round = round;
        }
        self.add(What::Slice(Slice { round: self.round, bytes, ..Slice::default() }));
    }

    /// The guest was paused.
    pub fn paused(&mut self) {
        self.add(What::Phase { phase: "last_round".into() });
    }

    /// It succeeded: the whole trace.
    pub fn finish(mut self, figures: &Figures) -> String {
        self.add(What::Phase { phase: "done".into() });
        let down = figures.downtime_ms.map(|ms| (ms * 1000.0) as u64);
        let rounds: Vec<_> = figures
            .per_round
            .iter()
            .map(|r| json!({ "round": r.round, "bytes": r.bytes, "sent": r.sent, "zero": r.zero }))
            .collect();
        let report = json!({
            "total_bytes": figures.total_bytes, "total_ms": figures.total_ms, "rounds": rounds,
            "downtime": { "total_us": down },
        });
        self.add(What::End { report });
        self.events
            .iter()
            .filter_map(|e| serde_json::to_string(e).ok())
            .map(|line| line + "\n")
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Round;

    #[test]
    fn it_is_a_trace() {
        let case =
            toml::from_str("title = ''\nmemory = '1GiB'\nlink = '1Gbit'\nhints = 'on'").unwrap();
        let migration =
            Migration { port: 1, bandwidth: None, case: &case, timeout: std::time::Duration::ZERO };
        let mut recording = Recording::new(&migration, 1 << 18);
        recording.sample(1, 1000);
        recording.sample(1, 5000);
        recording.sample(2, 6000);
        recording.paused();
        let per_round =
            vec![Round { round: 1, bytes: Some(5500), sent: Some(7), ..Round::default() }];
        let figures = Figures {
            total_bytes: Some(6100),
            downtime_ms: Some(2.5),
            per_round,
            ..Figures::default()
        };
        let trace = wherry_report::Trace::read(recording.finish(&figures).as_bytes()).unwrap();
        assert_eq!(
            (
                trace.total_bytes(),
                trace.history.start.bandwidth,
                trace.history.start.hints.as_str()
            ),
            (6100, Some(125_000_000), "on")
        );
        assert_eq!(trace.rounds.values().map(|r| r.bytes).collect::<Vec<_>>(), [5500, 1000]);
        assert_eq!(trace.slices.len(), 3);
        assert!(trace.pause().is_some() && trace.problems.is_empty());
    }
}
