//! Traces that are damaged or lie: no panic, and figures that are figures.

use std::collections::HashMap;

use proptest::prelude::*;
use serde_json::Value;

use super::{IDLE, Invented, happen};
use crate::*;

/// Everything that a replay does with what it reads: no panic, and figures that are figures.
fn survive(bytes: &[u8]) {
    if let Ok(trace) = Trace::read(bytes) {
        let replay = Replay::new(trace);
        let same = replay.settings();
        for settings in [
            same,
            Settings { bandwidth: Some(1), hints: false, ..same },
            Settings { streams: u32::MAX, ..same },
            Settings {
                bandwidth: Some(u64::MAX),
                downtime_limit_us: 1,
                max_rounds: 40,
                force: true,
                ..same
            },
        ] {
            let outcome = replay.simulate(&settings);
            assert!(outcome.total_ms.is_finite() && outcome.downtime_ms.is_finite(), "{outcome:?}");
            assert!(outcome.total_ms >= 0.0 && outcome.downtime_ms >= 0.0, "{outcome:?}");
            replay.notes(&settings);
            replay.recorded();
        }
    }
}

/// What the property below finds now and then only: two rounds of 16 EiB each.
#[test]
fn rounds_that_claim_more_bytes_than_can_be_counted_do_not_panic() {
    let (good, _) = happen(&IDLE);
    let mut slices = HashMap::new();
    let absurd: Vec<String> = good
        .lines()
        .map(|line| {
            let mut event: Value = serde_json::from_str(line).unwrap();
            if event["event"] == "slice" {
                let before = slices.entry(event["round"].as_u64().unwrap()).or_insert(0);
                event["bytes"] = if *before == 0 { 0 } else { u64::MAX }.into();
                *before += 1;
            }
            event.to_string()
        })
        .collect();
    assert!(slices.values().filter(|nr| **nr > 1).count() > 1, "{slices:?}");
    survive(absurd.join("\n").as_bytes());
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(1), 0u64..400_000, Just(u64::MAX), Just(1 << 36), any::<u64>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        survive(&bytes);
    }

    /// A good trace with some of its numbers changed, lines dropped, doubled and swapped.
    #[test]
    fn no_changed_trace_panics(
        hints in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), number(), 0u8..6), 1..12),
    ) {
        let guest = Invented { free: 50_000, hints, hinting_s: 0.5, ..IDLE };
        let (good, _) = happen(&guest);
        let mut lines: Vec<String> = good.lines().map(Into::into).collect();
        for (line, place, value, what) in changes {
            let at = line.index(lines.len());
            match what {
                0 => { lines.remove(at); }
                1 => { let copy = lines[at].clone(); lines.insert(at, copy); }
                2 => { let to = place.index(lines.len()); lines.swap(at, to); }
                _ => {
                    let text = lines[at].clone();
                    let digits: Vec<(usize, &str)> = text
                        .match_indices(|c: char| c.is_ascii_digit())
                        .filter(|(i, _)| *i == 0 || !text.as_bytes()[i - 1].is_ascii_digit())
                        .take(200)
                        .collect();
                    if !digits.is_empty() {
                        let from = digits[place.index(digits.len())].0;
                        let len = text[from..].chars().take_while(char::is_ascii_digit).count();
                        lines[at].replace_range(from..from + len, &value.to_string());
                    }
                }
            }
            if lines.is_empty() {
                break;
            }
        }
        survive(lines.join("\n").as_bytes());
    }
}
