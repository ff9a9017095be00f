//! How far `wherry replay` is from what was measured: each recorded run replayed as it was, and with hints off against
//! the run that had them off.

use std::fmt::Write as _;
use std::fs::File;
use std::io::BufReader;

use wherry_migration::replay::{Outcome, Replay, Settings, Trace};

use super::traces::Traces;
use crate::case::Hints;
use crate::entry::Entry;
use crate::spread;

/// Round one, all bytes, time, downtime.
type Figures = [f64; 4];

/// The table for the terminal; empty if nothing can be replayed.
pub fn table(entries: &[Entry], traces: &Traces) -> String {
    let ours = spread::typical(entries).into_iter().filter(|e| e.vmm == crate::vmm::NAMES[0] && e.ok());
    let recorded: Vec<(&Entry, Replay)> = ours.filter_map(|e| Some((e, replay(e, traces)?))).collect();
    let as_recorded: Vec<Figures> = recorded
        .iter()
        .map(|(_, replay)| errors(&replay.simulate(&replay.settings()), &of(&replay.recorded())))
        .collect();
    let hints_off: Vec<Figures> = recorded
        .iter()
        .filter(|(entry, replay)| entry.hints != Hints::Off && replay.has_hints())
        .filter_map(|(entry, replay)| {
            let really =
                |other: &&(&Entry, Replay)| other.0.hints == Hints::Off && other.0.group() == entry.group();
            let (_, off) = recorded.iter().find(really)?;
            let simulated = replay.simulate(&Settings { hints: false, ..replay.settings() });
            Some(errors(&simulated, &of(&off.recorded())))
        })
        .collect();
    let mut out = String::new();
    for (name, errors) in [("as recorded", as_recorded), ("with hints off, against a run without", hints_off)]
    {
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
        for figure in 0..4 {
            let mut column: Vec<f64> = errors.iter().map(|e| e[figure].abs()).collect();
            column.sort_by(f64::total_cmp);
            let (median, worst) = (column[column.len() / 2], column[column.len() - 1]);
            let _ = write!(out, "{:>16}", format!("{median:.1} %, {worst:.1} %"));
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

fn of(outcome: &Outcome) -> Figures {
    let bytes = [outcome.round_one_bytes, outcome.total_bytes].map(|bytes| bytes as f64);
    [bytes[0], bytes[1], outcome.total_ms, outcome.downtime_ms]
}

/// In per cent of what was.
fn errors(simulated: &Outcome, was: &Figures) -> Figures {
    let is = of(simulated);
    std::array::from_fn(|n| if was[n] > 0.0 { (is[n] - was[n]) / was[n] * 100.0 } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_of_what_was() {
        let simulated =
            Outcome { round_one_bytes: 110, total_bytes: 90, total_ms: 5.0, ..Outcome::default() };
        assert_eq!(errors(&simulated, &[100.0, 100.0, 4.0, 0.0]), [10.0, -10.0, 25.0, 0.0]);
    }

    #[test]
    fn what_has_no_trace_is_left_out() {
        let run = spread::tests::entry("a", "wherry", 1, 5);
        assert_eq!(table(&[run], &Traces::default()), "");
    }
}
