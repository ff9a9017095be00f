//! Replays of invented migrations, whose guests and links are known exactly, and of files that are
//! no traces.

mod damaged;

use serde_json::json;

use super::growth::Growth;
use super::*;
use wherry_trace::{Event, Harvest, Map, RoundPlan, Slice, Start, What};

const PAGES: u64 = 1 << 18;
const WIRE: f64 = 4100.0;

/// An invented guest: what is sent, what is hinted, how it writes.
#[derive(Clone, Copy)]
struct Invented {
    content: u64,
    zero: u64,
    /// Pages with content that hints name, evenly over this time.
    free: u64,
    hinting_s: f64,
    growth: Growth,
    /// Bytes per second.
    link: f64,
    limit_ms: u64,
    hints: bool,
    /// Wire bytes of a page, in round one and in later ones.
    wire: (f64, f64),
    /// The hosts' CPUs are what limits it, not a cap: connections, and parts of a byte's time that
    /// went into reading and into sending.
    work: Option<(u32, f64, f64)>,
}

const IDLE: Invented = Invented {
    content: 25_000,
    zero: 5_000,
    free: 0,
    hinting_s: 0.0,
    growth: Growth { steady: 0.0, set: 300.0, rate: 1.0 },
    link: 125e6,
    limit_ms: 300,
    hints: false,
    wire: (WIRE, WIRE),
    work: None,
};

struct Lines {
    lines: Vec<String>,
}

impl Lines {
    fn tell(&mut self, seconds: f64, what: What) {
        let event = Event { t_us: (seconds * 1e6) as u64, what };
        self.lines.push(serde_json::to_string(&event).unwrap());
    }
}

/// Pages compress, and those that are written not so well.
const PACKED: Invented = Invented {
    growth: Growth { steady: 0.0, set: 20_000.0, rate: 0.4 },
    link: 50e6,
    wire: (1000.0, 3000.0),
    ..IDLE
};

/// The migration as it happens: sent in order, everything write-protected when it is sent.
fn happen(guest: &Invented) -> (String, Outcome) {
    let mut out = Lines { lines: Vec::new() };
    let ((one, later), compressed) = (guest.wire, guest.wire.0 < WIRE);
    let free = if guest.hints { guest.free } else { 0 };
    let sent = guest.content + guest.free - free;
    let to_send = sent + guest.zero + free;
    out.tell(
        0.0,
        What::Start(Start {
            version: 1,
            nr_pages: PAGES,
            hints: if guest.hints { "on" } else { "off" }.into(),
            bandwidth: guest.work.is_none().then_some(guest.link as u64),
            compression: compressed.then(|| "lz4".into()),
            streams: guest.work.map_or(1, |(streams, ..)| streams),
            downtime_limit_us: guest.limit_ms * 1000,
            max_rounds: 30,
            force: false,
            switchover_estimate_us: 10_000,
        }),
    );
    let begin = 0.2;
    out.tell(
        begin,
        What::Round(RoundPlan { round: 1, to_send, hole: PAGES - to_send, ballooned: 0, clean: 0 }),
    );
    let mut cells = vec![[0u64; 8]; 4096];
    let used = guest.content + guest.zero;
    for page in 0..to_send {
        // Zero pages lie evenly among the others.
        let zero = page < used && page * guest.zero / used != (page + 1) * guest.zero / used;
        let fate = match (zero, page < used || free == 0) {
            (true, _) => 2,
            (_, true) => 0,
            _ => 4,
        };
        cells[(page / 64) as usize][fate] += 1;
    }
    for page in to_send..PAGES {
        cells[(page / 64) as usize][3] += 1;
    }
    if guest.hints {
        out.tell(begin, What::Publish { round: 1, mode: "checked_zero".into() });
    }
    // Held back while hints come, then sent at the link's rate.
    let hold = if free > 0 { guest.hinting_s } else { 0.0 };
    let end = begin + hold + sent as f64 * one / guest.link;
    let start = guest.content + guest.zero;
    let (_, reading, sending) = guest.work.unwrap_or_default();
    let worked = |part: f64| move |bytes: f64| (bytes / guest.link * part * 1e6) as u64;
    let work = (worked(reading), worked(sending));
    let slice = |t: f64, out: &mut Lines, hinted: u64, at: f64| {
        let zero = (guest.zero as f64 * at) as u64;
        let done = (sent as f64 * at) as u64;
        out.tell(
            t,
            What::Slice(Slice {
                round: 1,
                bytes: 1000 + (done as f64 * one) as u64,
                sent: done,
                zero,
                hinted,
                remaining: to_send - done - zero - hinted,
                rate: guest.link as u64,
                held_us: ((t - begin).min(hold) * 1e6) as u64,
                reading_us: work.0(done as f64 * one),
                sending_us: work.1(done as f64 * one),
            }),
        );
    };
    slice(begin, &mut out, 0, 0.0);
    let steps = if free > 0 { 50 } else { 0 };
    for step in 0..steps {
        let (from, to) = (free * step / steps, free * (step + 1) / steps);
        let t = begin + hold * step as f64 / steps as f64;
        out.tell(t, What::Hints { ranges: vec![(start + from, to - from)], dropped: 0 });
        slice(t, &mut out, to, 0.0);
    }
    let spread = |t: f64| -> f64 {
        let parts = 200;
        let till = ((t - begin - hold) / (end - begin - hold)).min(1.0);
        (0..parts)
            .map(|i| (f64::from(i) + 0.5) / f64::from(parts))
            .filter(|at| *at < till)
            .map(|at| {
                guest.growth.at(t - (begin + hold + at * (end - begin - hold))) / f64::from(parts)
            })
            .sum()
    };
    for step in 1..=100u32 {
        let at = f64::from(step) / 100.0;
        let t = begin + hold + at * (end - begin - hold);
        slice(t, &mut out, free, at);
        if step.is_multiple_of(4) {
            out.tell(t, What::Dirty { round: 1, pages: spread(t) as u64, protected: 0 });
        }
    }
    let mut dirty = spread(end) as u64;
    let mut wire = 1000.0 + sent as f64 * one;
    let round_one_bytes = (sent as f64 * one) as u64;
    let (mut now, mut round) = (end, 1u32);
    out.tell(now, What::Harvest(Harvest { round, dirty, overridden: 0 }));
    out.tell(now, What::Map(Map { round: 1, cell_pages: 64, cells }));
    let one_round = |out: &mut Lines, now: f64, round: u32, dirty: u64, wire: &mut f64| -> f64 {
        out.tell(
            now,
            What::Round(RoundPlan {
                round,
                to_send: dirty,
                hole: 0,
                ballooned: 0,
                clean: PAGES - dirty,
            }),
        );
        let took = dirty as f64 * later / guest.link;
        for (at, done) in [(0.0, 0), (0.5, dirty / 2), (1.0, dirty)] {
            out.tell(
                now + at * took,
                What::Slice(Slice {
                    round,
                    bytes: (*wire + done as f64 * later) as u64,
                    sent: done,
                    remaining: dirty - done,
                    rate: guest.link as u64,
                    reading_us: work.0(*wire - 1000.0 + done as f64 * later),
                    sending_us: work.1(*wire - 1000.0 + done as f64 * later),
                    ..Slice::default()
                }),
            );
        }
        *wire += dirty as f64 * later;
        now + took
    };
    loop {
        let packing = if compressed && round > 1 { 4096.0 / later } else { 1.0 };
        let predicted = dirty as f64 * 4096.0 / (guest.link * packing) + 0.01;
        if predicted * 1e3 <= guest.limit_ms as f64 {
            break;
        }
        if round == 30 {
            out.tell(now, What::Failed { phase: "rounds".into(), error: "no".into() });
            let outcome = Outcome {
                converged: false,
                round_one_bytes,
                total_bytes: wire as u64,
                rounds: 30,
                dirty_pages: dirty,
                total_ms: now * 1e3,
                downtime_ms: 0.0,
            };
            return (out.lines.join("\n") + "\n", outcome);
        }
        round += 1;
        let since = now;
        now = one_round(&mut out, now, round, dirty, &mut wire);
        dirty = (guest.growth.at(now - since) as u64).min(PAGES);
        out.tell(now, What::Harvest(Harvest { round, dirty, overridden: 0 }));
    }
    let paused = now;
    let left = dirty;
    now = one_round(&mut out, now, round + 1, dirty, &mut wire) + 0.02;
    let (total_ms, downtime_ms) = (now * 1e3, (now - paused) * 1e3);
    let report = json!({
        "round_one_bytes": round_one_bytes, "total_bytes": wire as u64, "total_ms": total_ms as u64,
        "downtime": {"total_us": (downtime_ms * 1e3) as u64,
        "last_round_us": ((downtime_ms - 20.0) * 1e3) as u64},
    });
    out.tell(now, What::End { report });
    let outcome = Outcome {
        converged: true,
        round_one_bytes,
        total_bytes: wire as u64,
        rounds: round + 1,
        dirty_pages: left,
        total_ms,
        downtime_ms,
    };
    (out.lines.join("\n") + "\n", outcome)
}

fn replay(text: &str) -> Replay {
    Replay::new(Trace::read(text.as_bytes()).unwrap_or_else(|e| panic!("{e}")))
}

fn close(is: &Outcome, should: &Outcome, bytes: f64, time: f64) {
    let off = |is: f64, should: f64| (is - should).abs() / should.max(1.0);
    let text = format!("simulated {is:?}, is {should:?}");
    assert_eq!((is.converged, is.rounds), (should.converged, should.rounds), "{text}");
    assert!(off(is.round_one_bytes as f64, should.round_one_bytes as f64) < bytes, "{text}");
    assert!(off(is.total_bytes as f64, should.total_bytes as f64) < bytes, "{text}");
    assert!(off(is.total_ms, should.total_ms) < time, "{text}");
    assert!((is.downtime_ms - should.downtime_ms).abs() < 0.1 * should.downtime_ms + 5.0, "{text}");
}

#[test]
fn as_recorded_a_replay_is_what_happened() {
    let writer = Growth { steady: 0.0, set: 20_000.0, rate: 0.4 };
    for guest in [
        IDLE,
        Invented { growth: writer, ..IDLE },
        Invented { free: 100_000, ..IDLE },
        Invented { free: 100_000, hints: true, hinting_s: 1.0, ..IDLE },
        Invented { growth: writer, link: 50e6, limit_ms: 1500, ..IDLE },
        PACKED,
        Invented { free: 100_000, hints: true, hinting_s: 1.0, ..PACKED },
    ] {
        let (text, outcome) = happen(&guest);
        let replay = replay(&text);
        let simulated = replay.simulate(&replay.settings());
        close(&simulated, &outcome, 0.02, 0.03);
        close(&replay.recorded(), &outcome, 0.001, 0.002);
    }
}

#[test]
fn another_link_is_foreseen() {
    let writer = Growth { steady: 0.0, set: 20_000.0, rate: 0.4 };
    for guest in [
        IDLE,
        Invented { free: 100_000, ..IDLE },
        Invented { growth: writer, limit_ms: 600, ..IDLE },
        Invented { growth: Growth { steady: 3000.0, set: 2000.0, rate: 2.0 }, ..IDLE },
        PACKED,
    ] {
        let replay = replay(&happen(&guest).0);
        for link in [40e6, 80e6, 250e6] {
            let (_, outcome) = happen(&Invented { link, ..guest });
            let settings = Settings { bandwidth: Some(link as u64), ..replay.settings() };
            close(&replay.simulate(&settings), &outcome, 0.05, 0.06);
        }
    }
}

#[test]
fn hints_off_sends_what_was_skipped_and_another_limit_changes_the_end() {
    let guest = Invented { free: 100_000, hints: true, hinting_s: 1.0, ..IDLE };
    let replay_on = replay(&happen(&guest).0);
    let (_, off) = happen(&Invented { hints: false, ..guest });
    close(
        &replay_on.simulate(&Settings { hints: false, ..replay_on.settings() }),
        &off,
        0.02,
        0.04,
    );
    assert!(
        replay_on.notes(&Settings { hints: false, ..replay_on.settings() })[0]
            .contains("counts as content")
    );

    let busy = Invented { growth: Growth { steady: 0.0, set: 20_000.0, rate: 0.4 }, ..IDLE };
    let replay = replay(&happen(&busy).0);
    for limit_ms in [50, 100, 1000] {
        let (_, outcome) = happen(&Invented { limit_ms, ..busy });
        let settings = Settings { downtime_limit_us: limit_ms * 1000, ..replay.settings() };
        close(&replay.simulate(&settings), &outcome, 0.05, 0.05);
    }
}

#[test]
fn more_connections_are_foreseen_until_reading_is_what_takes_the_time() {
    let writer = Growth { steady: 0.0, set: 20_000.0, rate: 0.4 };
    let one = Invented { growth: writer, limit_ms: 600, work: Some((1, 0.2, 0.8)), ..IDLE };
    // Two send in 0.4 of the time, four in 0.2, and eight wait for the one that reads.
    for (streams, times) in [(2, 2.5), (4, 5.0), (8, 5.0)] {
        let (text, _) = happen(&one);
        let many = Invented {
            link: one.link * times,
            work: Some((streams, 0.2 * times, 0.8 * times)),
            ..one
        };
        let (other, outcome) = happen(&many);
        let (replayed, back) = (replay(&text), replay(&other));
        let settings = Settings { streams, ..replayed.settings() };
        close(&replayed.simulate(&settings), &outcome, 0.05, 0.05);
        assert!(replayed.notes(&settings)[0].contains("room for them"));
        // And back again.
        close(&back.simulate(&back.settings()), &outcome, 0.02, 0.03);
        let alone = back.simulate(&Settings { streams: 1, ..back.settings() });
        close(&alone, &replayed.recorded(), 0.05, 0.05);
    }
    // A cap is for all connections together, and a trace may not say what sending cost.
    for silent in [IDLE, Invented { work: Some((1, 0.0, 0.0)), ..IDLE }] {
        let replay = replay(&happen(&silent).0);
        let same = replay.settings();
        assert_eq!(replay.simulate(&Settings { streams: 4, ..same }), replay.simulate(&same));
    }
}

#[test]
fn a_guest_that_does_not_converge_does_not_in_the_replay() {
    let busy = Invented { growth: Growth { steady: 60_000.0, set: 0.0, rate: 1.0 }, ..IDLE };
    let (text, outcome) = happen(&busy);
    assert!(!outcome.converged);
    let replay = replay(&text);
    let same = replay.simulate(&replay.settings());
    assert!(!same.converged && same.rounds == 30, "{same:?}");
    // Ten times the link carries it, and a limit on rounds ends it.
    let fast = Settings { bandwidth: Some(1_250_000_000), ..replay.settings() };
    let fast = replay.simulate(&fast);
    assert!(fast.converged && fast.rounds < 10, "{fast:?}");
    let forced = replay.simulate(&Settings { max_rounds: 3, force: true, ..replay.settings() });
    assert_eq!((forced.converged, forced.rounds), (true, 4));
    let endless = Settings { max_rounds: u32::MAX, force: true, ..replay.settings() };
    assert!(replay.simulate(&endless).rounds <= 10_001);
}

fn refused(text: &str) -> String {
    Trace::read(text.as_bytes()).unwrap_err().to_string()
}

#[test]
fn what_is_no_trace_is_refused_with_its_line() {
    let (good, _) = happen(&IDLE);
    let lines: Vec<&str> = good.lines().collect();
    let with = |line: &str| [&lines[..2], &[line], &lines[2..]].concat().join("\n");
    for (text, why) in [
        (String::new(), "ends before round one"),
        ("{}".into(), "line 1 is not an event"),
        ("\u{0}\u{1}".into(), "line 1 is not an event"),
        (lines[1..].join("\n"), "begins with its start"),
        (lines[..20].join("\n") + "\n", "ends within round one"),
        (good.replacen("\"version\":1", "\"version\":2", 1), "another version"),
        (good.replacen("\"nr_pages\":262144", "\"nr_pages\":0", 1), "not a size"),
        (
            good.replacen("\"nr_pages\":262144", "\"nr_pages\":18446744073709551615", 1),
            "not a size",
        ),
        (good.replacen("\"nr_pages\":262144", "\"nr_pages\":262145", 1), "do not sum up"),
        (with("{\"t_us\":1,\"event\":\"phase\",\"phase\":\"x\"}"), "line 3: its time is before"),
        (with("{\"t_us\":99999999999999999,\"event\":\"phase\"}"), "more than a year"),
        (with("{\"t_us\":200000,\"event\":\"round\",\"round\":7,\"hole\":262144}"), "out of order"),
        (with("{\"t_us\":200000,\"event\":\"dirty\",\"round\":2,\"pages\":1}"), "another round"),
        (
            with("{\"t_us\":200000,\"event\":\"dirty\",\"round\":1,\"pages\":262145}"),
            "than guest RAM has",
        ),
        (
            with(
                "{\"t_us\":200000,\"event\":\"slice\",\"round\":1,\"sent\":18446744073709551615,\"zero\":9}",
            ),
            "more pages than the round has",
        ),
        (
            with("{\"t_us\":200000,\"event\":\"map\",\"round\":1,\"cell_pages\":0,\"cells\":[]}"),
            "not a map",
        ),
        (
            with("{\"t_us\":200000,\"event\":\"map\",\"round\":1,\"cell_pages\":1,\"cells\":[]}"),
            "size of guest",
        ),
        (
            with("{\"t_us\":200000,\"event\":\"hints\",\"ranges\":[[0,-1]]}"),
            "line 3 is not an event",
        ),
    ] {
        let said = refused(&text);
        assert!(said.contains(why), "{said}, not {why}");
    }
    let named = format!("[{}]", vec!["[0,262144]"; 70].join(","));
    let hints = format!("{{\"t_us\":200000,\"event\":\"hints\",\"ranges\":{named}}}");
    assert!(refused(&with(&hints)).contains("too many hints"));
    let endless = format!("{{\"t_us\":0,\"event\":\"{}", "x".repeat(5 << 20));
    assert!(refused(&endless).contains("longer than 4 MiB"));
}

#[test]
fn what_can_be_borne_is_borne() {
    let (good, outcome) = happen(&IDLE);
    // The last line cut off, as by a full disk; events and hints that are missing; events of a
    // later version.
    let cut_off = replay(&good[..good.len() - 30]);
    assert!(cut_off.trace().cut && !cut_off.recorded().converged);
    let simulated = cut_off.simulate(&cut_off.settings());
    assert!(
        simulated.converged
            && simulated.round_one_bytes.abs_diff(outcome.round_one_bytes) < 1 << 20
    );
    let mut lines: Vec<String> = good.lines().map(Into::into).collect();
    lines.insert(3, r#"{"t_us":200000,"event":"lost","events":5}"#.into());
    lines.insert(3, r#"{"t_us":200000,"event":"eclipse","total":true}"#.into());
    lines.insert(3, r#"{"t_us":200000,"event":"hints","ranges":[[18446744073709551615,18446744073709551615]],"dropped":2}"#.into());
    lines.retain(|line| !line.contains("\"map\""));
    let lines = replay(&lines.join("\n"));
    assert_eq!(lines.trace().history.lost, 7);
    close(&lines.simulate(&lines.settings()), &outcome, 0.02, 0.05);
}

#[test]
fn errors_are_of_what_was() {
    let is = Outcome { round_one_bytes: 110, total_bytes: 90, total_ms: 5.0, ..Outcome::default() };
    let was =
        Outcome { round_one_bytes: 100, total_bytes: 100, total_ms: 4.0, ..Outcome::default() };
    let expected = OutcomeError {
        round_one_bytes: 10.0,
        total_bytes: -10.0,
        total_ms: 25.0,
        downtime_ms: 0.0,
    };
    assert_eq!(is.error_from(&was), expected);
}
