//! `cargo xtask demo`: the main job. Boots a stock Linux, migrates it with and without hints,
//! prints what went over the wire.
//!
//! The outer half builds, provides the kernel and starts the lab; the inner half (`--inner`) runs
//! in it. The outer one also watches the CPUs, since the lab cannot know what else this machine
//! does.

mod case;
mod claims;
mod share;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde_json::Value;
use wherry_guest_kernel::kernels::KernelId;
use wherry_tests::{Env, Guest, GuestOptions, SETTLE, migrate};

use crate::build::Workspace;
use crate::lab::{self, Job};
use crate::note::{check_writable, note};
use crate::{images, setup, vm_demo};
use case::*;

/// Link between source and destination. Capped so that bytes cost time, as they do between hosts.
const LINK: &str = "1Gbit";
/// Guest RAM in bytes.
const RAM: u64 = 1 << 30;
/// MiB of random data that a busy guest wrote and freed.
const USED_MIB: u64 = 700;

/// Options of `demo`.
#[derive(Debug, Parser)]
pub struct Args {
    /// A stock Debian with PostgreSQL, on a disk, moves between two hosts while it is used.
    #[arg(long)]
    vm: bool,
    /// Writes the figures to this file as JSON, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The half that runs in the lab: writes its figures to this file, or into this folder.
    #[arg(long, hide = true, value_name = "FILE")]
    inner: Option<PathBuf>,
}

/// Runs `cargo xtask demo`.
pub fn main(args: &Args) -> Result<u8> {
    match (&args.inner, args.vm) {
        (Some(file), false) => inner(file),
        (Some(dir), true) => vm_demo::inner(dir),
        (None, false) => outer(args.json.as_deref()),
        (None, true) => vm_demo::outer(args.json.as_deref()),
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
    job.env = images::lab_environment(&wherry, &images);
    job.writable.push(out);
    job.argv =
        vec![std::env::current_exe()?.into(), "demo".into(), "--inner".into(), file.clone().into()];
    let watch = share::Watch::start();
    let code = lab::run(&workspace, &job);
    let shares = watch.finish();
    let code = code?;
    ensure!(code == 0, "the demo failed in the lab (exit code {code}); see above");

    let mut results: Results =
        serde_json::from_slice(&std::fs::read(&file).context("the lab left no results")?)?;
    for figures in results.values_mut() {
        figures.cpu_share = shares.between(figures.began_unix_ms, figures.ended_unix_ms);
    }
    print(&results);
    let claims = claims::judge(&results);
    claims.iter().for_each(|claim| println!("{}", claim.line()));
    println!("{}", claims::summary(&claims));
    if let Some(path) = json {
        let wanted: serde_json::Map<_, _> = IN_JSON
            .iter()
            .map(|&k| Ok((k.to_owned(), serde_json::to_value(&results[k])?)))
            .collect::<Result<_>>()?;
        std::fs::write(path, serde_json::to_string_pretty(&wanted)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    note(&format!("demo took {:.0} s", start.elapsed().as_secs_f64()));
    Ok(u8::from(claims.iter().any(claims::Claim::is_fatal)))
}

fn mb(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn print(results: &Results) {
    println!("\n1 GiB guest, stock Debian kernel, link {LINK}/s\n");
    println!(
        "{:<40} {:>11} {:>11} {:>6} {:>9} {:>9} {:>9} {:>5}  guest",
        "", "round one", "total", "rounds", "time", "downtime", "gap", "CPU"
    );
    for case in CASES {
        let Some(f) = results.get(case.key) else { continue };
        println!(
            "{:<40} {:>11} {:>11} {:>6} {:>6} ms {:>6.0} ms {:>6.0} ms {:>5}  {}",
            case.title,
            mb(f.round_one_bytes),
            mb(f.total_bytes),
            f.rounds,
            f.total_ms,
            f.downtime_ms,
            f.longest_gap_ms,
            f.cpu_share.map_or("?".into(), |share| format!("{:.0} %", 100.0 * share)),
            if f.guest_ok { "intact" } else { "WRONG" }
        );
    }
    println!();
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
    let began_unix_ms = share::unix_ms();
    let report = migrate(env, "source", &uri, &["--hints", case.hints, "--bandwidth", LINK])?;
    std::thread::sleep(SETTLE);
    let ended_unix_ms = share::unix_ms();
    destination.ask("verify", Duration::from_secs(60)).map(drop)?;
    let status = destination.ask("status", Duration::from_secs(20))?;
    if std::env::var_os("WHERRY_DEMO_VERBOSE").is_some() {
        eprintln!("{report:#}\n{status:?}");
    }
    Ok(Figures { began_unix_ms, ended_unix_ms, ..figures(&report, &status)? })
}

/// All but the times of day.
fn figures(report: &Value, status: &wherry_tests::Fields) -> Result<Figures> {
    let number = |path: &str| {
        report.pointer(path).and_then(Value::as_u64).with_context(|| format!("no {path}"))
    };
    Ok(Figures {
        guest_ram_bytes: number("/nr_pages")? * 4096,
        round_one_bytes: number("/round_one_bytes")?,
        total_bytes: number("/total_bytes")?,
        rounds: report["rounds"].as_array().map_or(0, Vec::len) as u64,
        total_ms: number("/total_ms")?,
        downtime_ms: number("/downtime/total_us")? as f64 / 1000.0,
        longest_gap_ms: status.float("longest_gap_ms")?,
        guest_ok: status.num("bad")? == 0,
        began_unix_ms: 0,
        ended_unix_ms: 0,
        cpu_share: None,
    })
}
