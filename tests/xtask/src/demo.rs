//! `cargo xtask demo`: the main job. Boots a stock Linux, migrates it with and without hints, prints what went over the wire.
//!
//! The outer half builds, provides the kernel and starts the lab; the inner half (`--inner`) runs in it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use wherry_guest_kernel::kernels::KernelId;
use wherry_tests::{Env, Guest, GuestOptions, SETTLE, migrate};

use crate::build::Workspace;
use crate::lab::{self, Job};
use crate::{check_writable, images, note, setup, testing};

/// Link between source and destination. Capped so that bytes cost time, as they do between hosts.
const LINK: &str = "1Gbit";
/// Guest RAM in bytes.
const RAM: u64 = 1 << 30;
/// MiB of random data that a busy guest wrote and freed.
const USED_MIB: u64 = 700;

/// Options of `demo`.
#[derive(Debug, Parser)]
pub struct Args {
    /// Writes the figures to this file as JSON, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The half that runs in the lab: writes its figures to this file.
    #[arg(long, hide = true, value_name = "FILE")]
    inner: Option<PathBuf>,
}

/// One migration.
#[derive(Debug, Clone, Copy)]
struct Case {
    key: &'static str,
    title: &'static str,
    append: &'static str,
    busy: bool,
    hints: &'static str,
}

const IDLE: Case = Case { key: "idle", title: "idle guest", append: "", busy: false, hints: "auto" };
const OFF: Case = Case {
    key: "hints_off",
    title: "700 MiB written and freed, hints off",
    append: "",
    busy: true,
    hints: "off",
};
const ON: Case = Case { key: "hints_on", title: "the same, hints on", hints: "on", ..OFF };
const OFF_PLAIN: Case = Case {
    key: "hints_off_init_on_alloc_0",
    title: "init_on_alloc=0, hints off",
    append: "init_on_alloc=0",
    ..OFF
};
const ON_PLAIN: Case =
    Case { key: "hints_on_init_on_alloc_0", title: "init_on_alloc=0, hints on", hints: "on", ..OFF_PLAIN };
const CASES: [Case; 5] = [IDLE, OFF, ON, OFF_PLAIN, ON_PLAIN];
/// What `--json` holds; the fifth case is only there to compare times.
const IN_JSON: [&str; 4] = [IDLE.key, OFF.key, ON.key, ON_PLAIN.key];

/// Figures of one migration. Times are of the lab, bytes are exact.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Figures {
    guest_ram_bytes: u64,
    round_one_bytes: u64,
    total_bytes: u64,
    rounds: u64,
    total_ms: u64,
    downtime_ms: f64,
    longest_gap_ms: f64,
    guest_ok: bool,
}

type Results = std::collections::BTreeMap<String, Figures>;

/// Runs `cargo xtask demo`.
pub fn main(args: &Args) -> Result<u8> {
    match &args.inner {
        Some(file) => inner(file),
        None => outer(args.json.as_deref()),
    }
}

fn outer(json: Option<&Path>) -> Result<u8> {
    let start = Instant::now();
    json.map(check_writable).transpose()?;
    setup::install_missing()?;
    let workspace = Workspace::find()?;
    let wherry = workspace.wherry()?;
    let images = images::guests(&workspace, &[KernelId::ALL[0]])?;
    let out = workspace.out()?.join("demo");
    std::fs::create_dir_all(&out)?;
    let file = out.join("results.json");
    let _ = std::fs::remove_file(&file);

    let mut job = Job { cwd: workspace.root.clone(), ..Job::default() };
    job.timeout = Some(Duration::from_secs(1200));
    job.env = testing::lab_environment(&wherry, &images);
    job.writable.push(out);
    job.argv = vec![std::env::current_exe()?.into(), "demo".into(), "--inner".into(), file.clone().into()];
    let code = lab::run(&workspace, &job)?;
    ensure!(code == 0, "the demo failed in the lab (exit code {code}); see above");

    let results: Results = serde_json::from_slice(&std::fs::read(&file).context("the lab left no results")?)?;
    print(&results);
    if let Some(path) = json {
        let wanted: serde_json::Map<_, _> = IN_JSON
            .iter()
            .map(|&k| Ok((k.to_owned(), serde_json::to_value(&results[k])?)))
            .collect::<Result<_>>()?;
        std::fs::write(path, serde_json::to_string_pretty(&wanted)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    note(&format!("demo took {:.0} s", start.elapsed().as_secs_f64()));
    Ok(u8::from(!verdict(&results)))
}

fn mb(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn print(results: &Results) {
    println!("\n1 GiB guest, stock Debian kernel, link {LINK}/s\n");
    println!(
        "{:<40} {:>11} {:>11} {:>6} {:>9} {:>9} {:>9}  guest",
        "", "round one", "total", "rounds", "time", "downtime", "gap"
    );
    for case in CASES {
        let Some(f) = results.get(case.key) else { continue };
        println!(
            "{:<40} {:>11} {:>11} {:>6} {:>6} ms {:>6.0} ms {:>6.0} ms  {}",
            case.title,
            mb(f.round_one_bytes),
            mb(f.total_bytes),
            f.rounds,
            f.total_ms,
            f.downtime_ms,
            f.longest_gap_ms,
            if f.guest_ok { "intact" } else { "WRONG" }
        );
    }
    println!();
}

/// Checks what the demo claims, and says so line by line.
fn verdict(results: &Results) -> bool {
    let [idle, off, on, off_plain, on_plain] = CASES.map(|c| &results[c.key]);
    let checks = [
        ("every guest found its memory intact", results.values().all(|f| f.guest_ok)),
        ("hints on: at most 1.3 times the idle guest's bytes", 10 * on.total_bytes <= 13 * idle.total_bytes),
        ("hints on: at most a quarter of hints off", 4 * on.total_bytes <= off.total_bytes),
        ("hints on is faster than hints off", on.total_ms < off.total_ms),
        ("init_on_alloc=0: at most 1.3 times idle", 10 * on_plain.total_bytes <= 13 * idle.total_bytes),
        (
            "init_on_alloc=0: at most a quarter of hints off",
            4 * on_plain.total_bytes <= off_plain.total_bytes,
        ),
        ("init_on_alloc=0: hints on is faster than hints off", on_plain.total_ms < off_plain.total_ms),
        (
            "the hinted guests stood still no longer than downtime + 200 ms",
            [on, on_plain].iter().all(|f| f.longest_gap_ms <= f.downtime_ms + 200.0),
        ),
    ];
    for (claim, holds) in checks {
        println!("{} {claim}", if holds { "yes" } else { "NO " });
    }
    checks.iter().all(|(_, holds)| *holds)
}

fn inner(file: &Path) -> Result<u8> {
    let dir = PathBuf::from("/dev/shm/demo");
    std::fs::create_dir_all(&dir)?;
    let env = Env::from_vars("CLOUD_6_1", &dir)?.on_fast_storage()?;
    let mut results = Results::new();
    for case in CASES {
        note(case.title);
        let figures = run(&env, &case).with_context(|| case.title.to_owned())?;
        note(&format!(
            "  {} in round one, {} in all, {} ms",
            mb(figures.round_one_bytes),
            mb(figures.total_bytes),
            figures.total_ms
        ));
        results.insert(case.key.to_owned(), figures);
    }
    std::fs::write(file, serde_json::to_vec(&results)?)?;
    Ok(0)
}

fn run(env: &Env, case: &Case) -> Result<Figures> {
    let work = if case.busy { format!("tmpfs:{USED_MIB},free:{USED_MIB}") } else { "idle".into() };
    let options = GuestOptions {
        append: format!("wherry.work={work} wherry.check=32 {}", case.append),
        memory: format!("{RAM}B"),
        // Reporting would shrink the guest by itself, given seconds; the demo shows hints.
        args: vec!["--balloon-features".into(), "hinting,stats,deflate-on-oom,page-poison".into()],
        ..GuestOptions::default()
    };
    let mut source = Guest::run(env, "source", &options)?;
    source.wait_for("work done", Duration::from_secs(180))?;
    let uri = env.unix_uri("demo");
    let mut destination = Guest::receive(env, "destination", &uri)?;
    source.ask("resetgap", Duration::from_secs(20))?;
    let report = migrate(env, "source", &uri, &["--hints", case.hints, "--bandwidth", LINK])?;
    std::thread::sleep(SETTLE);
    destination.ask("verify", Duration::from_secs(60)).map(drop)?;
    let status = destination.ask("status", Duration::from_secs(20))?;
    if std::env::var_os("WHERRY_DEMO_VERBOSE").is_some() {
        eprintln!("{report:#}\n{status:?}");
    }
    figures(&report, &status)
}

fn figures(report: &Value, status: &wherry_tests::Fields) -> Result<Figures> {
    let number =
        |path: &str| report.pointer(path).and_then(Value::as_u64).with_context(|| format!("no {path}"));
    Ok(Figures {
        guest_ram_bytes: number("/nr_pages")? * 4096,
        round_one_bytes: number("/round_one_bytes")?,
        total_bytes: number("/total_bytes")?,
        rounds: report["rounds"].as_array().map_or(0, Vec::len) as u64,
        total_ms: number("/total_ms")?,
        downtime_ms: number("/downtime/total_us")? as f64 / 1000.0,
        longest_gap_ms: status.float("longest_gap_ms")?,
        guest_ok: status.num("bad")? == 0,
    })
}
