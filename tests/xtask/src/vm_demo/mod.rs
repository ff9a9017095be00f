//! `cargo xtask demo --vm`: a stock Debian with PostgreSQL moves between two hosts while people
//! use it.
//!
//! The outer half provides the image and starts the lab; the inner one runs in it. Two hosts and a
//! client are namespaces there ([`wherry_tests::hosts`]). The guest boots from its own disk, gets a
//! key and a name on Wherry's command line, and nothing else. While it moves, the client runs
//! pgbench against its database ([`ledger`]) and reads numbers over ssh ([`Stream`]).

mod figures;
mod show;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use wherry_tests::Env;
use wherry_tests::debian::ledger::{self, Ledger};
use wherry_tests::debian::stream::Stream;
use wherry_tests::debian::{Debian, Net};
use wherry_tests::hosts::{self, Hosts};

use crate::build::Workspace;
use crate::lab::{self, Job};
use crate::note::{check_writable, note};
use crate::{image, images, setup};
use figures::{FREED_MIB, Figures};

/// Guest RAM.
const MEMORY: &str = "2GiB";
/// How long clients work before the migration, and after it.
const BEFORE: Duration = Duration::from_secs(8);
const AFTER: Duration = Duration::from_secs(8);
/// Which kernel runs in the guest, and since when.
const KERNEL: &str = "uname -r; cat /proc/sys/kernel/random/boot_id";

/// Where the outer half finds what the inner one made.
struct Out {
    results: PathBuf,
    picture: PathBuf,
}

impl Out {
    fn new(dir: &Path) -> Self {
        Self { results: dir.join("results.json"), picture: dir.join("memory.svg") }
    }
}

/// Runs the outer half.
pub fn outer(json: Option<&Path>) -> Result<u8> {
    let start = Instant::now();
    json.map(check_writable).transpose()?;
    setup::install_missing()?;
    let workspace = Workspace::find()?;
    let wherry = workspace.wherry()?;
    let image = image::provide(&image::tested(), false)?;
    let dir = workspace.out()?.join("vm-demo");
    std::fs::create_dir_all(&dir)?;
    let out = Out::new(&dir);
    let _ = std::fs::remove_file(&out.results);

    let mut job = Job { cwd: workspace.root.clone(), ..Job::default() };
    job.timeout = Some(Duration::from_secs(1500));
    job.env = images::lab_environment(&wherry, &[]);
    // The guest's disk, and the tool box.
    job.disks = vec![image.path.clone(), image.path];
    job.writable.push(dir.clone());
    job.argv = vec![std::env::current_exe()?.into(), "demo".into(), "--vm".into()];
    job.argv.extend(["--inner".into(), dir.clone().into()]);
    let code = lab::run_emulated(&workspace, &job, "it mounts and makes networks")?;
    ensure!(code == 0, "the demo failed in the lab (exit code {code}); see above");
    let figures = std::fs::read(&out.results).context("the lab left no results")?;
    let figures: Figures = serde_json::from_slice(&figures)?;
    show::print(&figures);
    println!("What became of its memory, drawn: {}", out.picture.display());
    if let Some(path) = json {
        std::fs::write(path, serde_json::to_string_pretty(&figures)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    note(&format!("demo took {:.0} s", start.elapsed().as_secs_f64()));
    Ok(u8::from(!show::judge(&figures)))
}

/// Runs the inner half, which leaves its figures in `dir`.
pub fn inner(dir: &Path) -> Result<u8> {
    let out = Out::new(dir);
    let scratch = PathBuf::from("/dev/shm/vm-demo");
    std::fs::create_dir_all(&scratch)?;
    note("two hosts, a client and their network");
    let hosts = Hosts::build(Path::new("/dev/vdb"), &scratch)?;
    let env = Env::binary(&scratch)?.on_fast_storage()?;
    let figures = run(&env, hosts, &out)?;
    std::fs::write(&out.results, serde_json::to_vec(&figures)?)?;
    Ok(0)
}

fn run(env: &Env, hosts: Hosts, out: &Out) -> Result<Figures> {
    note("a stock Debian 12 boots from its own disk");
    let began = Instant::now();
    let mut debian =
        Debian::start(hosts, env, Net::Tap, &["/dev/vda".to_owned()], &["--memory", MEMORY])?;
    debian.wait_for_ssh()?;
    let boot_s = began.elapsed().as_secs_f64();
    let kernel = debian.run(KERNEL)?;
    let release = kernel.lines().next().unwrap_or_default();
    note(&format!("  in it by ssh after {boot_s:.0} s, Linux {release}"));
    note("  its PostgreSQL gets tables");
    ledger::prepare(&debian)?;
    note(&format!("{FREED_MIB} MiB of its memory are written and freed"));
    debian.run(&format!(
        "set -e; mount -o remount,size=80% /dev/shm; \
         perl -e '$b = \"wherry! \" x 131072; print $b for 1..{FREED_MIB}' > /dev/shm/x; \
         rm /dev/shm/x; sync"
    ))?;

    note("an ssh session and pgbench begin");
    let stream = Stream::begin(&debian.hosts)?;
    let ledger = Ledger::begin(&debian.hosts)?;
    std::thread::sleep(BEFORE);
    note("the guest moves from host a to host b");
    let trace = env.dir.join("trace");
    let report = debian.move_over(&["--trace", &trace.display().to_string()])?;
    std::thread::sleep(AFTER);
    hosts::output(env.command(&["report", "--output"]).arg(&out.picture).arg(&trace))?;
    let stream = stream.end()?;
    let ledger = ledger.end(&debian.hosts)?;

    let same = debian.run(KERNEL)? == kernel;
    note("the guest is shut down, its file system is checked");
    let sound = debian.shut_down();
    if let Err(error) = &sound {
        note(&format!("{error:#}"));
    }
    let number = |path: &str| {
        report.pointer(path).and_then(Value::as_u64).with_context(|| format!("no {path}"))
    };
    let skipped = ["hole", "hinted", "ballooned"].map(|what| number(&format!("/rounds/0/{what}")));
    let skipped = skipped.into_iter().sum::<Result<u64>>();
    Ok(Figures {
        guest_ok: same && sound.is_ok(),
        total_bytes: number("/total_bytes")?,
        round_one_bytes: number("/round_one_bytes")?,
        total_ms: number("/total_ms")?,
        downtime_ms: number("/downtime/total_us")? as f64 / 1000.0,
        ssh_stream_gapless: stream.gapless,
        ssh_longest_gap_ms: stream.longest_gap_ms,
        transactions: ledger.committed,
        lost_transactions: ledger.lost,
        longest_transaction_gap_ms: ledger.longest_gap_ms,
        skipped_bytes: skipped? * 4096,
        ram_bytes: number("/nr_pages")? * 4096,
        boot_s,
    })
}
