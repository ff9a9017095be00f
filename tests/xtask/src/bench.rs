//! `cargo xtask bench`: migrations in the lab, measured, as tables, JSON and an HTML report.
//!
//! The work is done by `wherry-bench` (`tests/bench`); this builds what it needs and gives it a
//! lab, and a fresh one whenever the old one has died or has been used for long enough. With
//! `--native` there is neither lab nor guest.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use wherry_guest_kernel::kernels::KernelId;
use wherry_guest_kernel::tools::QEMU;

use crate::build::Workspace;
use crate::lab::{self, Job};
use crate::note::{check_writable, note};
use crate::{devices, filters, images, peer, setup};

/// A lab begins no run after so many seconds: the longer one lives, the more is lost when it
/// freezes.
const BUDGET: u64 = 420;
/// How long the run that is then under way may take.
const LAST_RUN: u64 = 660;
/// Exit code of `wherry-bench run` when runs are left.
const MORE: u8 = 3;

/// Options of `bench`.
#[derive(Debug, Parser)]
pub struct Args {
    /// Case files in `tests/bench/cases` by name, those with some values (`name/key=value,…`), or
    /// paths of case files [default: all]
    #[arg(value_name = "CASE")]
    cases: Vec<String>,
    /// Measures this VMM, too: qemu (10, which is fetched), or qemu-installed, which is on the
    /// PATH; may be repeated.
    #[arg(long, value_name = "VMM")]
    peer: Vec<String>,
    /// Measures this VMM alone: wherry or one of these.
    #[arg(long, value_name = "VMM", conflicts_with = "peer")]
    only: Option<String>,
    /// Only the cases marked as quick: about 10 minutes with a peer, on two quiet cores.
    #[arg(long)]
    quick: bool,
    /// Runs each case so often; the tables then show medians [default: 1, with --native 7]
    #[arg(long, value_name = "N")]
    runs: Option<u32>,
    /// Writes the results to this file as a JSON list.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes a report to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Runs nothing, shows these results (files of `--json`) again; may be repeated.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["cases", "quick", "only", "peer",
        "resume"])]
    from: Vec<PathBuf>,
    /// Measures disks and network of a guest beside QEMU 10's, and nothing else: in emulation.
    #[arg(long, conflicts_with_all = ["cases", "quick", "only", "peer", "html", "from", "resume"])]
    devices: bool,
    /// Only work of --devices that has this in its name.
    #[arg(long, value_name = "TEXT", requires = "devices", default_value = "")]
    work: String,
    /// Measures what a byte of guest memory costs, beside plain copies, what a pause costs where
    /// memory is large, and nothing else: two processes on this machine, without a guest.
    #[arg(long, conflicts_with_all = ["cases", "quick", "only", "from", "resume", "devices"])]
    native: bool,
    /// Guest memory for --native [default: 1GiB]
    #[arg(long, value_name = "SIZE", requires = "native")]
    memory: Option<String>,
    /// Puts the memory of --native's destination into this folder, too, as of `wherry receive`.
    #[arg(long, value_name = "DIR", requires = "native")]
    memory_backing: Option<PathBuf>,
    /// RAM of the guests whose pause --native measures, with commas between [default:
    /// 4GiB,128GiB,1024GiB]
    #[arg(long, value_name = "SIZES", requires = "native")]
    ram: Option<String>,
    /// What these use of it [default: 1GiB]
    #[arg(long, value_name = "SIZE", requires = "native")]
    populated: Option<String>,
    /// Of --native the pause alone.
    #[arg(long, requires = "native")]
    pause: bool,
    /// Measures what the filters of system calls cost a boot and a migration, and nothing else:
    /// so many with and without, in turns, of a bare-metal guest on this machine's KVM.
    #[arg(long, value_name = "PAIRS", value_parser = clap::value_parser!(u32).range(1..=10_000),
        conflicts_with_all = ["cases", "quick", "only", "peer", "runs", "html", "from", "resume",
        "devices", "native"])]
    filters: Option<u32>,
    /// The half of --devices that runs in the lab: leaves its figures in this folder.
    #[arg(long, hide = true, value_name = "DIR", requires = "devices")]
    inner: Option<PathBuf>,
    /// Ends after one lab, to go on with --resume.
    #[arg(long, hide = true)]
    one_lab: bool,
    /// Goes on with a benchmark that was interrupted.
    #[arg(long, conflicts_with_all = ["cases", "quick", "only", "peer"])]
    resume: bool,
}

/// Runs `cargo xtask bench`.
pub fn main(args: &Args) -> Result<u8> {
    let wanted = devices::Wanted { runs: args.runs.unwrap_or(1), name: args.work.clone() };
    if let Some(dir) = &args.inner {
        return devices::inner(&wanted, dir);
    }
    let start = Instant::now();
    for path in [&args.json, &args.html].into_iter().flatten() {
        check_writable(path)?;
    }
    if args.devices {
        return devices::outer(&wanted, args.json.as_deref());
    }
    if let Some(pairs) = args.filters {
        return filters::main(pairs, args.json.as_deref());
    }
    let workspace = Workspace::find()?;
    let out = workspace.out()?.join("bench");
    let tool = build(&workspace)?;
    if args.native {
        return native(&tool, args);
    }
    if args.from.is_empty() {
        run(&workspace, &tool, &out, args)?;
        note(&format!(
            "bench took {:.0} s; logs and single results are in {}",
            start.elapsed().as_secs_f64(),
            out.display()
        ));
    }
    let mut report = Command::new(&tool);
    report.arg("report").current_dir(&workspace.root);
    let here = std::env::current_dir().context("the working directory is gone")?;
    for (option, path) in [("--json", &args.json), ("--html", &args.html)] {
        if let Some(path) = path {
            report.arg(option).arg(here.join(path));
        }
    }
    if args.from.is_empty() {
        report.arg("--out").arg(&out);
    }
    report.arg("--traces").arg(&out);
    report.args(args.from.iter().map(|file| here.join(file)));
    code(&mut report)
}

fn native(tool: &Path, args: &Args) -> Result<u8> {
    let mut native = Command::new(tool);
    native.arg("native");
    match args.peer.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => {}
        ["qemu"] => {
            native.env(peer::VARIABLE, QEMU.program(&peer::provide()?.0));
        }
        _ => bail!("--native has one peer: qemu"),
    }
    let runs = args.runs.map(|runs| runs.to_string());
    for (option, value) in [
        ("--memory", &args.memory),
        ("--runs", &runs),
        ("--ram", &args.ram),
        ("--populated", &args.populated),
    ] {
        native.args(value.iter().flat_map(|value| [option, value]));
    }
    for (option, path) in
        [("--json", &args.json), ("--html", &args.html), ("--memory-backing", &args.memory_backing)]
    {
        native.args(path.iter().flat_map(|path| [option.as_ref(), path.as_os_str()]));
    }
    native.args(args.pause.then_some("--pause"));
    code(&mut native)
}

fn build(workspace: &Workspace) -> Result<PathBuf> {
    workspace.cargo(&["build", "--release", "--package", "wherry-bench"])?;
    Ok(workspace.target.join("release/wherry-bench"))
}

/// Runs a command with our streams.
fn code(command: &mut Command) -> Result<u8> {
    let status = command.stdin(Stdio::null()).status().context("cannot run wherry-bench")?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

fn run(workspace: &Workspace, tool: &Path, out: &Path, args: &Args) -> Result<()> {
    setup::install_missing()?;
    let wherry = workspace.wherry()?;
    if args.resume {
        ensure!(out.join("plan.json").is_file(), "there is nothing to resume");
    } else {
        plan(workspace, tool, out, args)?;
    }
    let plan = read_plan(out)?;
    let images = images::guests(workspace, &kernels(&plan)?)?;
    let mut job = Job { cwd: workspace.root.clone(), ..Job::default() };
    job.timeout = Some(Duration::from_secs(BUDGET + LAST_RUN));
    job.env = images::lab_environment(&wherry, &images);
    job.env.extend(workspace.commit().map(|commit| ("WHERRY_COMMIT".into(), commit.into())));
    let runs = plan["runs"].as_array().context("the plan has no runs")?;
    if runs.iter().any(|run| run["vmm"] == "qemu") {
        peer::give(&mut job, lab::is_ours(workspace)?)?;
    }
    job.writable.push(out.to_owned());
    job.argv = [tool.as_os_str(), "run".as_ref(), out.as_os_str()].map(Into::into).to_vec();
    job.argv.extend(["--budget".into(), BUDGET.to_string().into()]);
    loop {
        let before = progress(out);
        let outcome = lab::run(workspace, &job);
        match outcome {
            Ok(0) => return Ok(()),
            Ok(MORE) if args.one_lab => return Ok(()),
            Ok(MORE) => note("a fresh lab for the rest"),
            // A lab that died in a run has left that run's number: the next one puts it down as
            // such.
            Ok(lab::TIMED_OUT) => note("the lab ran out of time; a fresh one for the rest"),
            Err(error) if progress(out) != before => {
                note(&format!("the lab died: {error:#}; a fresh one for the rest"))
            }
            Err(error) => return Err(error),
            Ok(code) => bail!("wherry-bench failed in the lab with exit code {code}; see above"),
        }
        ensure!(
            progress(out) != before,
            "the lab gets nowhere; `cargo xtask bench --resume` tries again"
        );
    }
}

/// Changes with every run that begins or ends.
fn progress(out: &Path) -> [Vec<u8>; 2] {
    ["current", "results.jsonl"].map(|name| std::fs::read(out.join(name)).unwrap_or_default())
}

fn plan(workspace: &Workspace, tool: &Path, out: &Path, args: &Args) -> Result<()> {
    // What an earlier benchmark left is not this one's.
    let _ = std::fs::remove_dir_all(out);
    std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let mut plan = Command::new(tool);
    plan.arg("plan")
        .arg("--dir")
        .arg(workspace.root.join("tests/bench/cases"))
        .arg("--out")
        .arg(out);
    plan.args(["--runs", &args.runs.unwrap_or(1).to_string()]);
    plan.args(args.peer.iter().flat_map(|peer| ["--peer", peer]));
    plan.args(args.only.iter().flat_map(|only| ["--only", only]));
    plan.args(args.quick.then_some("--quick")).args(&args.cases);
    ensure!(code(&mut plan)? == 0, "there is nothing to measure");
    Ok(())
}

fn read_plan(out: &Path) -> Result<serde_json::Value> {
    Ok(serde_json::from_slice(&std::fs::read(out.join("plan.json"))?)?)
}

/// The kernels that the plan's cases boot.
fn kernels(plan: &serde_json::Value) -> Result<Vec<KernelId>> {
    let names = plan["kernels"].as_array().context("the plan has no kernels")?;
    let names: Vec<&str> = names.iter().filter_map(|name| name.as_str()).collect();
    let known: Vec<KernelId> =
        KernelId::ALL.into_iter().filter(|id| names.contains(&id.to_string().as_str())).collect();
    for name in names.iter().filter(|name| !known.iter().any(|id| id.to_string() == **name)) {
        let all = KernelId::ALL.map(|id| id.to_string()).join(", ");
        note(&format!("{name}: no such kernel; there are {all}. Its cases will fail."));
    }
    // The lab's environment wants one, even if no case has a kernel that exists.
    Ok(if known.is_empty() { vec![KernelId::CLOUD_6_1] } else { known })
}
