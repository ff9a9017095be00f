//! `wherry migrate --trace` and `wherry replay`: what a replay says against what happens.
//!
//! Bytes are exact and asserted on; times are the lab's and only shown. `cargo xtask test
//! --integration --soak --filter replay` makes the tables of docs/replay.md again; with
//! `WHERRY_TRACES=DIR` the traces are kept (DIR must be one that the lab can write).

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value;
use wherry_tests::{BOOT, Env, Guest, GuestOptions, MigrateError, Result, SOON, Scratch, migrate};

/// A migration of a fresh guest with 1 GiB.
struct Case {
    name: &'static str,
    append: &'static str,
    hints: &'static str,
    bandwidth: &'static str,
}

const IDLE: &str = "";
const FREED: &str = "wherry.work=fill:700,free:700";
const PLAIN: &str = "init_on_alloc=0 wherry.work=fill:700,free:700";
const WRITER: &str = "wherry.work=writer:96,12";

const fn case(
    name: &'static str,
    append: &'static str,
    hints: &'static str,
    bandwidth: &'static str,
) -> Case {
    Case { name, append, hints, bandwidth }
}

const CASES: [Case; 11] = [
    case("plain on 1Gbit", PLAIN, "on", "1Gbit"),
    case("plain off 1Gbit", PLAIN, "off", "1Gbit"),
    case("plain on 400Mbit", PLAIN, "on", "400Mbit"),
    case("idle off 1Gbit", IDLE, "off", "1Gbit"),
    case("freed on 1Gbit", FREED, "on", "1Gbit"),
    case("freed off 1Gbit", FREED, "off", "1Gbit"),
    case("freed on 400Mbit", FREED, "on", "400Mbit"),
    case("freed off 400Mbit", FREED, "off", "400Mbit"),
    case("writer off 1Gbit", WRITER, "off", "1Gbit"),
    case("writer off 400Mbit", WRITER, "off", "400Mbit"),
    case("writer off 200Mbit", WRITER, "off", "200Mbit"),
];

/// A recording, other settings, and the recording that really had them.
const CROSS: [(&str, &[&str], &str); 9] = [
    ("plain on 1Gbit", &["--hints", "off"], "plain off 1Gbit"),
    ("plain on 1Gbit", &["--bandwidth", "400Mbit"], "plain on 400Mbit"),
    ("freed on 1Gbit", &["--hints", "off"], "freed off 1Gbit"),
    ("freed on 1Gbit", &["--bandwidth", "400Mbit"], "freed on 400Mbit"),
    ("freed off 1Gbit", &["--bandwidth", "400Mbit"], "freed off 400Mbit"),
    ("freed off 400Mbit", &["--bandwidth", "1Gbit"], "freed off 1Gbit"),
    ("writer off 1Gbit", &["--bandwidth", "400Mbit"], "writer off 400Mbit"),
    ("writer off 400Mbit", &["--bandwidth", "1Gbit"], "writer off 1Gbit"),
    ("writer off 400Mbit", &["--bandwidth", "200Mbit"], "writer off 200Mbit"),
];

fn guest(env: &Env, memory: &str, append: &str) -> Result<Guest> {
    let append = format!("wherry.check=32 wherry.check_rate=500 {append}");
    // Without free page reporting, which gives back what was freed at times of its own: two guests
    // would not be the same.
    let args = vec!["--balloon-features".into(), "hinting,stats,deflate-on-oom".into()];
    let options = GuestOptions { memory: memory.into(), append, args, cpus: 1 };
    let mut guest = Guest::run(env, "source", &options)?;
    guest.wait_for("work done", BOOT)?;
    Ok(guest)
}

fn record(env: &Env, case: &Case, trace: &Path) -> Result<Value> {
    let mut guest = guest(env, "1GiB", case.append)?;
    let uri = env.unix_uri("there");
    let mut destination = Guest::receive(env, "there", &uri)?;
    let trace = trace.display().to_string();
    let args = ["--hints", case.hints, "--bandwidth", case.bandwidth, "--trace", &trace];
    let report = migrate(env, "source", &uri, &args)?;
    guest.wait_exit(SOON)?;
    assert_eq!(destination.ask("verify", SOON)?.num("bad")?, 0);
    Ok(report)
}

fn replay(env: &Env, trace: &Path, args: &[&str]) -> Result<Value> {
    env.query(&[&["replay", &trace.display().to_string()], args].concat())
}

fn number(value: &Value, path: &str) -> Result<f64> {
    value.pointer(path).and_then(Value::as_f64).with_context(|| format!("no {path} in {value}"))
}

/// Per cent by which `is` is off.
fn off(is: &Value, should: &Value, what: &str) -> Result<f64> {
    let path = format!("/{what}");
    let (is, should) = (number(is, &path)?, number(should, &path)?);
    Ok((is - should) / should * 100.0)
}

/// The trace says what the report says.
fn agrees(trace: &Path, report: &Value) -> Result<()> {
    let text = std::fs::read_to_string(trace)?;
    let events: Vec<Value> =
        text.lines().map(serde_json::from_str).collect::<std::result::Result<_, _>>()?;
    let last = events.last().context("an empty trace")?;
    assert_eq!(last["event"], "end");
    for what in ["rounds", "total_bytes", "total_ms", "downtime"] {
        assert_eq!(last["report"][what], report[what], "{what}");
    }
    for round in report["rounds"].as_array().into_iter().flatten() {
        let slice = events.iter().rfind(|e| e["event"] == "slice" && e["round"] == round["round"]);
        let slice = slice.context("a round without a slice")?;
        for class in ["sent", "zero", "hinted"] {
            assert_eq!(slice[class], round[class], "{round}");
        }
    }
    let map = events.iter().find(|e| e["event"] == "map").context("no map")?;
    let cells: u64 = map["cells"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_array)
        .flatten()
        .filter_map(Value::as_u64)
        .sum();
    assert_eq!(Some(cells), report["nr_pages"].as_u64());
    assert!(events.iter().all(|e| e["event"] != "lost"));
    Ok(())
}

/// Past the test harness, which keeps prints for failures.
fn say(text: &str) -> Result<()> {
    Ok(writeln!(std::io::stderr(), "{text}")?)
}

#[test]
fn replays_come_close_to_what_happens() -> Result<()> {
    let scratch = Scratch::new("replay")?;
    let env = scratch.env("CLOUD_6_1")?;
    let nr = if std::env::var_os("WHERRY_SOAK").is_some() { CASES.len() } else { 2 };
    let mut done = BTreeMap::new();
    say(
        "| recorded | round one | all bytes | rounds | time | downtime | replayed: round one | all \
         bytes | time | downtime |",
    )?;
    say("|---|---|---|---|---|---|---|---|---|---|")?;
    for case in &CASES[..nr] {
        let trace = scratch.path().join(format!("{}.trace", case.name.replace(' ', "-")));
        let report = record(&env, case, &trace).with_context(|| case.name)?;
        if let Some(dir) = std::env::var_os("WHERRY_TRACES").map(PathBuf::from) {
            std::fs::copy(&trace, dir.join(trace.file_name().context("no name")?))?;
        }
        agrees(&trace, &report)?;
        let replayed = replay(&env, &trace, &[])?;
        let recorded = replayed["recorded"]["outcome"].clone();
        assert_eq!(recorded["total_bytes"], report["total_bytes"]);
        let error = |what: &str| number(&replayed, &format!("/as_recorded/error_percent/{what}"));
        let mb = |what: &str| Ok::<_, anyhow::Error>(number(&recorded, &format!("/{what}"))? / 1e6);
        say(&format!(
            "| {} | {:.1} MB | {:.1} MB | {} | {:.2} s | {:.0} ms | {:+.1} % | {:+.1} % | {:+.1} % \
             | {:+.1} % |",
            case.name,
            mb("round_one_bytes")?,
            mb("total_bytes")?,
            recorded["rounds"],
            number(&recorded, "/total_ms")? / 1e3,
            number(&recorded, "/downtime_ms")?,
            error("round_one_bytes")?,
            error("total_bytes")?,
            error("total_ms")?,
            error("downtime_ms")?
        ))?;
        for what in ["round_one_bytes", "total_bytes"] {
            assert!(error(what)?.abs() < 5.0, "{}: {what}: {replayed:#}", case.name);
        }
        done.insert(case.name, (trace, recorded));
    }
    say(
        "| recorded | replayed with | foretold: all bytes | rounds | time | downtime | happened: \
         all bytes | rounds | time | downtime | error of bytes | time |",
    )?;
    say("|---|---|---|---|---|---|---|---|---|---|---|---|")?;
    for (from, args, to) in CROSS {
        let (Some((trace, _)), Some((_, happened))) = (done.get(from), done.get(to)) else {
            continue;
        };
        let foretold = replay(&env, trace, args)?["simulated"]["outcome"].clone();
        let figures = |o: &Value| -> Result<String> {
            let (bytes, rounds) = (number(o, "/total_bytes")? / 1e6, &o["rounds"]);
            let (time, downtime) = (number(o, "/total_ms")? / 1e3, number(o, "/downtime_ms")?);
            Ok(format!("{bytes:.1} MB | {rounds} | {time:.2} s | {downtime:.0} ms"))
        };
        say(&format!(
            "| {from} | {} | {} | {} | {:+.1} % | {:+.1} % |",
            args.join(" "),
            figures(&foretold)?,
            figures(happened)?,
            off(&foretold, happened, "total_bytes")?,
            off(&foretold, happened, "total_ms")?
        ))?;
        // Later rounds depend on the lab's speed at the time; round one does not, but no two guests
        // are quite the same.
        let error = off(&foretold, happened, "round_one_bytes")?;
        assert!(error.abs() < 6.0, "{from} {args:?}: {error} %: {foretold:#} {happened:#}");
    }
    Ok(())
}

#[test]
fn a_trace_onto_a_full_disk_does_not_hold_the_guest() -> Result<()> {
    let scratch = Scratch::new("tracefull")?;
    let env = scratch.env("CLOUD_6_1")?;
    let mut source = guest(&env, "256MiB", "")?;
    let uri = env.unix_uri("there");
    let mut destination = Guest::receive(&env, "there", &uri)?;
    // Not begun at all when there can be no file.
    let error =
        migrate(&env, "source", &uri, &["--trace", "/no/such/folder/a"]).expect_err("no folder");
    let error = error.downcast::<MigrateError>()?;
    assert_eq!(error.code, 1, "{error}");
    assert_eq!(source.info()?["state"], "running");
    assert!(source.info()?["last_migration"].is_null(), "{}", source.info()?);

    let error = migrate(&env, "source", &uri, &["--trace", "/dev/full"]).expect_err("a full disk");
    let error = error.downcast::<MigrateError>()?;
    assert_eq!(error.code, 8, "{error}");
    let why = error.error["trace_error"]["message"].as_str().unwrap_or_default();
    assert!(why.contains("/dev/full") && why.contains("No space left on device"), "{error}");
    assert!(error.error["total_bytes"].as_u64() > Some(1 << 20), "{error}");
    source.wait_exit(SOON)?;
    assert_eq!(destination.ask("verify", SOON)?.num("bad")?, 0);
    Ok(())
}
