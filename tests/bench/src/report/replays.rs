//! How far `wherry replay` is from what was measured: each recorded run replayed as it was, with
//! hints off against the run that had them off, and with other connections against the run that had
//! these.

use std::fmt::Write as _;
use std::fs::File;
use std::io::BufReader;

use wherry_replay::{OutcomeError, Replay, Settings, Trace};
use wherry_tests::median;

use super::traces::Traces;
use crate::case::Hints;
use crate::entry::Entry;
use crate::spread;

/// The table for the terminal; empty if nothing can be replayed.
pub fn table(entries: &[Entry], traces: &Traces) -> String {
    let ours =
        spread::typical(entries).into_iter().filter(|e| e.vmm == crate::vmm::NAMES[0] && e.ok());
    let recorded: Vec<(&Entry, Replay)> =
        ours.filter_map(|e| Some((e, replay(e, traces)?))).collect();
    let as_recorded: Vec<OutcomeError> = recorded
        .iter()
        .map(|(_, replay)| replay.simulate(&replay.settings()).error_from(&replay.recorded()))
        .collect();
    let hints_off: Vec<OutcomeError> = recorded
        .iter()
        .filter(|(entry, replay)| entry.hints != Hints::Off && replay.has_hints())
        .filter_map(|(entry, replay)| {
            let really = |other: &&(&Entry, Replay)| {
                other.0.hints == Hints::Off && other.0.group() == entry.group()
            };
            let (_, off) = recorded.iter().find(really)?;
            let simulated = replay.simulate(&Settings { hints: false, ..replay.settings() });
            Some(simulated.error_from(&off.recorded()))
        })
        .collect();
    let mut streams = Vec::new();
    for (one, replay) in &recorded {
        let like = |other: &&(&Entry, Replay)| {
            other.0.streams != one.streams && other.0.but_for("streams") == one.but_for("streams")
        };
        for (other, really) in recorded.iter().filter(like) {
            let simulated =
                replay.simulate(&Settings { streams: other.streams, ..replay.settings() });
            streams.push(simulated.error_from(&really.recorded()));
        }
    }
    let mut out = String::new();
    let all = [
        ("as recorded", as_recorded),
        ("with hints off, against a run without", hints_off),
        ("with other connections, against a run that had them", streams),
    ];
    for (name, errors) in all {
        if errors.is_empty() {
            continue;
        }
        if out.is_empty() {
            let _ = writeln!(
                out,
                "{:58}{:>16}{:>16}{:>16}{:>16}",
                "Replays, off by (median, worst)", "round one", "all", "time", "downtime"
            );
        }
        let _ = write!(out, "{:58}", format!("  {name} ({})", errors.len()));
        let figures: [fn(&OutcomeError) -> f64; 4] =
            [|e| e.round_one_bytes, |e| e.total_bytes, |e| e.total_ms, |e| e.downtime_ms];
        for figure in figures {
            let column = || errors.iter().map(|e| figure(e).abs());
            if let (Some(median), Some(worst)) = (median(column()), column().reduce(f64::max)) {
                let _ = write!(out, "{:>16}", format!("{median:.1} %, {worst:.1} %"));
            }
        }
        out.push('\n');
    }
    out
}

/// A replay of a run whose trace is there and has an end.
fn replay(entry: &Entry, traces: &Traces) -> Option<Replay> {
    let file = File::open(traces.file(entry)?).ok()?;
    let replay = Replay::new(Trace::read(BufReader::new(file)).ok()?);
    replay.recorded().converged.then_some(replay)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_no_trace_is_left_out() {
        let run = spread::tests::entry("a", "wherry", 1, 5);
        assert_eq!(table(&[run], &Traces::default()), "");
    }
}
