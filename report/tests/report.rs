//! Reports of made-up traces: everything that is in a trace is in its report, and nothing in a
//! trace does harm.

use std::fmt::Write;

use proptest::prelude::*;
use wherry_report::{Trace, memory_picture, migration_page};
use wherry_trace::{Event, FATES, Harvest, MAX_CELLS, Map, RoundPlan, Slice, Start, VERSION, What};

const PAGES: u64 = 262_144;

fn start() -> What {
    What::Start(Start {
        version: VERSION,
        nr_pages: PAGES,
        hints: "on".into(),
        bandwidth: Some(125_000_000),
        compression: None,
        streams: 1,
        downtime_limit_us: 300_000,
        max_rounds: 30,
        force: false,
        switchover_estimate_us: 50_000,
    })
}

/// A guest of 1 GiB that freed most of what it used: two rounds and the pause.
fn example() -> Vec<Event> {
    let mut events = Vec::new();
    let mut at = |ms: u64, what: What| events.push(Event { t_us: ms * 1000, what });
    at(0, start());
    at(1, What::Phase { phase: "rounds".into() });
    at(
        2,
        What::Round(RoundPlan { round: 1, to_send: 200_000, hole: 62_144, ballooned: 0, clean: 0 }),
    );
    at(3, What::Publish { round: 1, mode: "checked_zero".into() });
    for step in 1..20 {
        let n = step.min(10) * 15_000;
        at(50 * step, What::Hints { ranges: vec![(step * 4096, 15_000)], dropped: 0 });
        at(
            50 * step,
            What::Slice(Slice {
                round: 1,
                bytes: step * 6_000_000,
                sent: step * 1_400,
                zero: step * 100,
                hinted: n,
                remaining: 200_000 - n,
                rate: 120_000_000,
                held_us: step.min(5) * 40_000,
                reading_us: step * 10_000,
                sending_us: step * 30_000,
            }),
        );
        at(50 * step, What::Dirty { round: 1, pages: step * 50, protected: n });
    }
    at(960, What::Decision { what: "hints <used>".into() });
    at(970, What::Harvest(Harvest { round: 1, dirty: 1_300, overridden: 20 }));
    let cells = (0..MAX_CELLS)
        .map(|cell| match cell {
            0..900 => [40, 4, 10, 10, 0, 0, 0, 0],
            900..2800 => [0, 2, 0, 0, 60, 2, 0, 0],
            _ => [0, 0, 0, 64, 0, 0, 0, 0],
        })
        .collect();
    at(971, What::Map(Map { round: 1, cell_pages: 64, cells }));
    at(
        980,
        What::Round(RoundPlan {
            round: 2,
            to_send: 1_300,
            hole: 0,
            ballooned: 0,
            clean: PAGES - 1_300,
        }),
    );
    at(1020, slice(2, 117_000_000));
    at(1021, What::Phase { phase: "last_round".into() });
    at(
        1022,
        What::Round(RoundPlan { round: 3, to_send: 90, hole: 0, ballooned: 0, clean: PAGES - 90 }),
    );
    at(1040, slice(3, 117_400_000));
    at(1041, What::Phase { phase: "state".into() });
    at(1060, What::Phase { phase: "done".into() });
    let report = serde_json::json!({
        "total_bytes": 117_500_000u64, "total_ms": 1060, "hints": "used <b>",
        "downtime": { "total_us": 39_000, "pause_us": 1_000, "last_round_us": 18_000,
        "state_us": 15_000, "commit_us": 1_000, "resume_us": 4_000 },
        "rounds": [ { "round": 1, "bytes": 113_300_000u64, "sent": 27_000, "hinted": 150_000,
        "zero": 23_000, "hole": 62_144,
            "sent_then_hinted": 500, "overridden": 20 } ],
    });
    at(1060, What::End { report });
    events
}

fn slice(round: u32, bytes: u64) -> What {
    What::Slice(Slice { round, bytes, sent: 900, zero: 400, rate: 1, ..Slice::default() })
}

fn text(events: &[Event]) -> String {
    events.iter().fold(String::new(), |mut text, event| {
        let _ = writeln!(text, "{}", serde_json::to_string(event).unwrap());
        text
    })
}

fn read(text: &str) -> Trace {
    Trace::read(text.as_bytes()).unwrap()
}

#[test]
fn the_map_alone_is_a_picture_with_a_legend() {
    let picture = memory_picture(&read(&text(&example()))).unwrap();
    for what in ["<svg viewBox=", "hinted: ", "225 MiB to 256 MiB: hinted", ":root {", "</svg>\n"] {
        assert!(picture.contains(what), "{what}");
    }
    assert_eq!(picture.matches("<svg ").count(), picture.matches("</svg>").count());
    let mut without = example();
    without.retain(|event| !matches!(event.what, What::Map(_)));
    assert!(memory_picture(&read(&text(&without))).is_none());
}

#[test]
fn everything_of_the_trace_is_in_the_report() {
    let page = migration_page(&read(&text(&example())), "wherry migrate web <here>").unwrap();
    if let Some(path) = std::env::var_os("WHERRY_EXAMPLE_REPORT") {
        std::fs::write(path, &page).unwrap();
    }
    for what in [
        "117.5 MB", // all bytes
        "113.3 MB", // round one
        "1.06 s",
        "39.0 ms",   // downtime, by the report
        "585.9 MiB", // hinted: 150 000 pages
        "wherry migrate web &lt;here&gt;",
        "hints &lt;used&gt;",
        "used &lt;b&gt;",
        "Held back for hints",
        "Guest paused",
        "Dirty memory",
        "Hinted so far",
        "Bandwidth",
        "225 MiB to 256 MiB: hinted", // a band of the map
    ] {
        assert!(page.contains(what), "no {what}");
    }
    // Late: 900 cells with 4 pages, 1900 with 2.
    assert!(page.contains("28.9 MiB, 2.8 %"), "late pages");
    assert_eq!(page.matches("<svg role=\"img\"").count(), 5);
    assert_eq!(page.matches("<desc>").count(), 5, "what figures show is said in words, too");
    for text in ["<script", "src=", "@import", "url(", "http-equiv", "<b>\""] {
        assert!(!page.contains(text), "{text}");
    }
}

#[test]
fn what_is_missing_is_named() {
    let all = example();
    let failed = text(&all[..30]);
    let page = migration_page(&read(&failed), "").unwrap();
    assert!(page.contains("The trace has no end") && page.contains("no map of memory"));
    let mut told = all[..30].to_vec();
    told.push(Event { t_us: 0, what: What::Lost { events: 9 } });
    told.push(Event {
        t_us: 0,
        what: What::Failed { phase: "last_round".into(), error: "gone <b>".into() },
    });
    let page = migration_page(&read(&text(&told)), "").unwrap();
    assert!(
        page.contains("It failed (last round): gone &lt;b&gt;")
            && page.contains("9 events are missing")
    );
    let quiet: Vec<Event> = all
        .iter()
        .filter(|e| !matches!(e.what, What::Hints { .. } | What::Dirty { .. } | What::Harvest(_)))
        .cloned()
        .collect();
    let page = migration_page(&read(&text(&quiet)), "").unwrap();
    assert!(page.contains("No hint came") && page.contains("was not recorded"));
    assert_eq!(read(&text(&all)).problems, Vec::<String>::new());
}

#[test]
fn damage_is_counted_and_the_rest_is_shown() {
    let mut lines: Vec<String> = text(&example()).lines().map(str::to_owned).collect();
    lines.insert(3, "{\"t_us\": 1, \"event\": \"of a later version\", \"x\": [1]}".into());
    lines.insert(5, "{\"t_us\": -5, \"event\": \"slice\"}".into());
    lines.insert(9, "nonsense".into());
    lines.insert(12, "\u{0}\u{ff}".into());
    let trace = read(&lines.join("\n"));
    assert_eq!(trace.problems, ["3 lines could not be understood and are left out"]);
    assert_eq!(trace.total_bytes(), 117_500_000);
    for bad in ["", "\n", "{}", "nonsense", "{\"t_us\":0,\"event\":\"phase\",\"phase\":\"done\"}"] {
        assert!(Trace::read(bad.as_bytes()).is_err(), "{bad:?}");
    }
    let newer = text(&example()).replacen("\"version\":1", "\"version\":2", 1);
    assert!(Trace::read(newer.as_bytes()).unwrap_err().to_string().contains("another version"));
}

#[test]
fn a_hostile_trace_is_bounded() {
    let mut hostile = text(&[Event { t_us: 0, what: start() }]);
    let mut add = |what: What, t_us: u64| {
        let _ = writeln!(hostile, "{}", serde_json::to_string(&Event { t_us, what }).unwrap());
    };
    let evil = "</pre><script>alert(1)</script>\u{1b}[31m".repeat(100);
    for round in 0..3000 {
        add(
            What::Round(RoundPlan {
                round,
                to_send: u64::MAX,
                hole: u64::MAX,
                ballooned: u64::MAX,
                clean: u64::MAX,
            }),
            u64::MAX,
        );
        add(What::Decision { what: evil.clone() }, 0);
        add(What::Phase { phase: evil.clone() }, 0);
        add(slice(round, u64::MAX), 1);
        add(What::Hints { ranges: vec![(u64::MAX, u64::MAX); 2], dropped: u64::MAX }, 5);
        add(What::Dirty { round, pages: u64::MAX, protected: 0 }, 7);
        add(What::Harvest(Harvest { round, dirty: u64::MAX, overridden: u64::MAX }), 7);
    }
    add(
        What::Map(Map {
            round: 1,
            cell_pages: u64::MAX,
            cells: vec![[u64::MAX; FATES.len()]; MAX_CELLS as usize],
        }),
        8,
    );
    add(
        What::Map(Map {
            round: 1,
            cell_pages: 1,
            cells: vec![[1; FATES.len()]; MAX_CELLS as usize + 1],
        }),
        8,
    );
    let trace = read(&hostile);
    assert!(trace.rounds.len() <= 1000 && trace.problems.len() == 2, "{:?}", trace.problems);
    let page = migration_page(&trace, &evil).unwrap();
    assert!(page.len() < 3_000_000, "{}", page.len());
    assert!(!page.contains("<script") && !page.contains('\u{1b}'));
    let long = format!("{}{}", text(&[Event { t_us: 0, what: start() }]), "x".repeat(9 << 20));
    assert_eq!(read(&long).problems.len(), 1);
}

proptest! {
    /// Whatever numbers a trace has, in whatever order: a page.
    #[test]
    fn no_numbers_do_harm(events in prop::collection::vec(any_event(), 0..40),
        cut in 0usize..4000) {
        let mut all = vec![Event { t_us: 0, what: start() }];
        all.extend(events);
        let text = text(&all);
        let cut = text.len().saturating_sub(cut).max(text.find('\n').unwrap_or(0));
        if let Some(part) = text.get(..cut) {
            migration_page(&read(part), "").unwrap();
        }
    }
}

fn any_event() -> impl Strategy<Value = Event> {
    let number = || prop_oneof![0u64..3, 0u64..1_000_000, any::<u64>()];
    let round = || prop_oneof![0u32..4, any::<u32>()];
    let phase = prop::sample::select(vec!["rounds", "last_round", "state", "done", "x"]);
    let what =
        prop_oneof![
            phase.prop_map(|phase| What::Phase { phase: phase.into() }),
            (round(), number(), number()).prop_map(|(round, to_send, hole)| What::Round(
                RoundPlan { round, to_send, hole, ballooned: hole, clean: to_send }
            )),
            (round(), number(), number(), number()).prop_map(|(round, bytes, sent, held_us)| {
                What::Slice(Slice {
                    round,
                    bytes,
                    sent,
                    zero: sent,
                    hinted: sent,
                    remaining: bytes,
                    rate: sent,
                    held_us,
                    reading_us: sent,
                    sending_us: bytes,
                })
            }),
            (number(), number()).prop_map(|(first, len)| What::Hints {
                ranges: vec![(first, len), (len, first)],
                dropped: 0
            }),
            (round(), number()).prop_map(|(round, pages)| What::Dirty {
                round,
                pages,
                protected: pages
            }),
            (round(), number(), number()).prop_map(|(round, dirty, overridden)| What::Harvest(
                Harvest { round, dirty, overridden }
            )),
            (number(), prop::collection::vec(prop::array::uniform8(number()), 0..9))
                .prop_map(|(cell_pages, cells)| What::Map(Map { round: 1, cell_pages, cells })),
        ];
    (number(), what).prop_map(|(t_us, what)| Event { t_us, what })
}
