//! `cargo xtask test` and `ci`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use clap::Parser;
use wherry_tests::{cargo::PROGRAMS_OF_UNITS, needs};

use crate::build::Workspace;
use crate::inside::is_called;
use crate::lab::{self, Job};
use crate::note::note;
use crate::releases::Builds;
use crate::{debians, deny, host, house, image, images, inside, intel, releases, setup};

/// Options of `test`.
#[derive(Debug, Parser)]
pub struct Args {
    /// Runs only the integration tests whose name contains this.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
    /// Also runs the long tests.
    #[arg(long)]
    soak: bool,
    /// Migrations of the soak with everything on [default: 200].
    #[arg(long, value_name = "N", requires = "soak")]
    migrations: Option<u64>,
    /// Begins no migration of that soak after so many minutes.
    #[arg(long, value_name = "N", requires = "soak")]
    minutes: Option<u64>,
    /// Replays that soak's decisions, not its timing.
    #[arg(long, value_name = "N", requires = "soak")]
    seed: Option<u64>,
    /// Runs only the unit tests; those that need a KVM only where there is one.
    #[arg(long, conflicts_with_all = ["integration", "soak"])]
    units: bool,
    /// Runs only the integration tests.
    #[arg(long)]
    integration: bool,
    /// Runs all of it on this machine's own KVM or not at all, and writes a report to send in.
    #[arg(long, conflicts_with_all = ["units", "soak"])]
    host: bool,
    /// Gives up on the integration tests after so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    timeout: u64,
}

/// How one part ended.
struct Outcome {
    name: String,
    passed: bool,
    seconds: f64,
}

/// Runs `cargo xtask test`.
pub fn main(args: &Args) -> Result<u8> {
    setup::install_missing()?;
    let workspace = Workspace::find()?;
    let mut outcomes = Vec::new();
    if args.host {
        host::check(&workspace)?;
    }
    tests(&workspace, args, &mut outcomes)?;
    if args.host {
        let parts: Vec<_> = outcomes.iter().map(|o| (&*o.name, o.passed, o.seconds)).collect();
        host::report(&workspace, &parts, &table(&workspace)?)?;
    }
    summary(&outcomes)
}

/// Where tests leave what is known of VMs that failed.
fn keep(workspace: &Workspace) -> Result<PathBuf> {
    Ok(workspace.out()?.join("failed"))
}

/// The folder of the labs' [table](crate::table).
fn table(workspace: &Workspace) -> Result<PathBuf> {
    Ok(keep(workspace)?.join("table"))
}

fn tests(workspace: &Workspace, args: &Args, outcomes: &mut Vec<Outcome>) -> Result<()> {
    if !args.integration {
        thread::scope(|scope| {
            if !args.units {
                scope.spawn(|| fetch_ahead(workspace, args));
            }
            outcomes.push(timed("unit tests", || units(workspace)));
        });
    }
    if !args.units {
        integration(workspace, args, outcomes)?;
    }
    Ok(())
}

/// Provides what the integration tests boot while the unit tests are built and wait: it comes from
/// the network, and is put together by one CPU. What fails is tried again where it is needed, and
/// said there.
fn fetch_ahead(workspace: &Workspace, args: &Args) {
    let kernels = images::missing().into_iter().map(|id| images::kernel(id).map(drop));
    let debian = image::tested();
    // A filter may leave out what boots it, and outside of a lab nothing does.
    let needed = args.filter.is_none() && lab::is_ours(workspace).unwrap_or(false);
    let needed = needed && image::obstacle(&debian).is_none();
    let debian = needed.then(|| image::provide(&debian, false).map(drop));
    for failed in kernels.chain(debian).filter_map(Result::err) {
        note(&format!("{failed:#}\ntrying again later"));
    }
}

fn units(workspace: &Workspace) -> Result<bool> {
    // Setup has installed e2fsprogs and passt.
    let mut required = vec![needs::MKE2FS.variable, needs::PASST.variable];
    match lab::look_at_kvm() {
        Ok(()) => required.push(needs::KVM.variable),
        Err(e) => note(&format!("/dev/kvm: {e}: unit tests that need it are not run")),
    }
    // The integration tests' own folder is left to the lab.
    let units = ["test", "--workspace", "--exclude", "wherry-tests"];
    let mut variables: Vec<_> = required.iter().map(|&name| (name, "1")).collect();
    let threads = threads();
    variables.push(("RUST_TEST_THREADS", &threads));
    workspace.cargo_with(&variables, &units)?;
    workspace.cargo(&["test", "--package", "wherry-tests", "--lib"])?;
    Ok(true)
}

fn timed(name: &str, work: impl FnOnce() -> Result<bool>) -> Outcome {
    let start = Instant::now();
    let passed = work().unwrap_or_else(|error| {
        note(&format!("{name}: {error:#}"));
        false
    });
    Outcome { name: name.to_owned(), passed, seconds: start.elapsed().as_secs_f64() }
}

/// Builds the integration tests here and runs those that are asked for, for a soak some of them on
/// an Intel CPU, too.
fn integration(workspace: &Workspace, args: &Args, outcomes: &mut Vec<Outcome>) -> Result<()> {
    let all = workspace.integration_tests()?;
    let mut executables = all.clone();
    if let Some(filter) = &args.filter {
        let any = |test: &PathBuf| inside::names(test, filter, args.soak).map(|n| !n.is_empty());
        executables.retain(|test| any(test).unwrap_or(false));
    }
    let filter = args.filter.as_deref().unwrap_or_default();
    let on_intel = if args.soak { intel::chosen(filter) } else { Vec::new() };
    // Nothing run is nothing shown: a mistyped filter must not look like success.
    ensure!(
        !executables.is_empty() || !on_intel.is_empty(),
        "no integration test is called like that"
    );
    let keep = keep(workspace)?;
    std::fs::create_dir_all(&keep).with_context(|| format!("cannot create {}", keep.display()))?;
    if !executables.is_empty() {
        in_labs(workspace, args, executables, outcomes)?;
    }
    if !on_intel.is_empty() {
        let timeout = Duration::from_secs(args.timeout);
        let log = keep.join("intel.log");
        outcomes.push(timed("tests on an Intel CPU", || {
            intel::run(workspace, &on_intel, &all, log, timeout)
        }));
    }
    Ok(())
}

/// Runs all tests of these executables, one after the other in each lab.
fn in_labs(
    workspace: &Workspace,
    args: &Args,
    mut executables: Vec<PathBuf>,
    outcomes: &mut Vec<Outcome>,
) -> Result<()> {
    let wherry = workspace.wherry()?;
    let mut job = Job { cwd: workspace.root.clone(), ..Job::default() };
    let images = images::all(workspace)?;
    let hostile = workspace.hostile()?;
    // Some tests mount and make networks, which is nothing for a person's own machine.
    let in_a_lab = lab::is_ours(workspace)?;
    if !in_a_lab {
        executables.retain(|test| !is_called(test, "debian") && !is_called(test, "storage"));
        note("tests that mount and make networks are not run here (WHERRY_LAB=qemu runs them)");
    }
    if let Some(why) = image::obstacle(&image::tested()) {
        executables.retain(|test| !is_called(test, "debian"));
        note(&format!("tests of a stock Debian are not run, for want of its image: {why}"));
    }
    let debian = executables.iter().any(|test| is_called(test, "debian"));
    job.timeout = Some(Duration::from_secs(args.timeout));
    job.env = images::lab_environment(&wherry, &images);
    job.env.push(("WHERRY_KERNEL_HOSTILE".into(), hostile.clone().into()));
    if debian {
        debians::give(workspace, &mut job, args.soak)?;
    }
    let builds = releases::build(workspace)?;
    job.env.extend(builds.iter().map(|(name, path)| (name.into(), path.into())));
    let own = std::env::current_exe().context("where is xtask?")?;
    let limit = if args.soak { args.timeout.to_string() } else { TEST_LIMIT.to_owned() };
    job.argv = vec![own.into(), "run-tests".into(), "--limit".into(), limit.into()];
    let keep = keep(workspace)?;
    job.env.push(("WHERRY_KEEP".into(), keep.clone().into()));
    let table = table(workspace)?;
    let _ = std::fs::remove_dir_all(&table);
    // In a place of its own: what is in the table itself are tests.
    let calls = table.join("calls");
    std::fs::create_dir_all(&calls)
        .with_context(|| format!("cannot create {}", calls.display()))?;
    job.argv.extend(["--table".into(), table.into()]);
    job.writable.push(keep);
    if args.soak {
        job.env.push(("WHERRY_SOAK".into(), "1".into()));
        let numbers = [
            ("WHERRY_SOAK_MIGRATIONS", args.migrations),
            ("WHERRY_SOAK_MINUTES", args.minutes),
            ("WHERRY_SOAK_SEED", args.seed),
        ];
        let given =
            numbers.into_iter().filter_map(|(name, n)| Some((name.into(), n?.to_string().into())));
        job.env.extend(given);
    }
    job.argv.extend(["--filter".into(), args.filter.clone().unwrap_or_default().into()]);
    let bare_metal = executables.iter().find(|test| is_called(test, "hostile")).cloned();
    if let Some(test) = bare_metal.filter(|_| lab::software_kvm(workspace)) {
        let run = |filter: &[&str]| here(&test, &wherry, &hostile, &builds, args.soak, filter);
        // Software KVMs differ in what they can do.
        if run(&["--exact", "the_guest_notices_a_page_that_is_wrong"])? {
            let filter: Vec<_> = args.filter.as_deref().into_iter().collect();
            let here = timed("bare-metal guests on this machine's KVM", || run(&filter));
            // The lab's CPU is of another make, and emulated: a sample of them is enough there.
            if here.passed && args.filter.is_none() && !args.soak {
                let mut rest = inside::names(&test, "", false)?;
                rest.retain(|name| !intel::bare_metal().contains(&&**name));
                note(&format!("{} of these tests are not run in the lab again", rest.len()));
                job.argv.extend(rest.iter().flat_map(|name| ["--leave-out".into(), name.into()]));
            }
            outcomes.push(here);
        } else {
            note("this machine's KVM runs no bare-metal guests either: only the lab runs them");
        }
    }
    let executables: Vec<OsString> = executables.into_iter().map(Into::into).collect();
    // A soak measures memory and time for hours: nothing else runs beside it.
    let few = args.soak || args.filter.is_some();
    let labs = if few { 1 } else { lab::side_by_side(workspace)? };
    job.beside_others = labs > 1;
    if job.beside_others {
        lab::end_on_signals();
    }
    outcomes.push(timed("integration tests", || {
        thread::scope(|scope| {
            let labs: Vec<_> = (1..=labs)
                .map(|number| {
                    let mut job = job.clone();
                    let number = number.to_string();
                    if in_a_lab {
                        job.argv.extend(["--calls".into(), calls.join(&number).into()]);
                    }
                    job.argv.extend(["--lab".into(), number.into()]);
                    job.argv.extend(executables.iter().cloned());
                    scope.spawn(|| run_in_labs(workspace, job))
                })
                .collect();
            // All of them, also after one has failed.
            let ended: Vec<_> = labs.into_iter().map(|lab| lab.join()).collect();
            ended.into_iter().try_fold(true, |all, lab| Ok(all & lab.map_err(|_| panicked())??))
        })
    }));
    // Of a part of the tests it says nothing.
    if in_a_lab && args.filter.is_none() && debian {
        outcomes.push(timed("lists of system calls", || used(workspace, &calls)));
    }
    Ok(())
}

/// Whether the tests used every rule in the lists of system calls.
fn used(workspace: &Workspace, calls: &Path) -> Result<bool> {
    let files = std::fs::read_dir(calls).context("no calls were counted")?;
    let files: Vec<_> = files.map(|file| Ok(file?.path())).collect::<Result<_>>()?;
    workspace.cargo(&[&["build", "--quiet"], &PROGRAMS_OF_UNITS[..]].concat())?;
    let compare = workspace.target.join("debug/examples/seccomp");
    let status = Command::new(&compare).args(files).stdout(std::io::stderr()).status();
    Ok(status.with_context(|| format!("cannot start {}", compare.display()))?.success())
}

fn panicked() -> anyhow::Error {
    anyhow!("a lab's thread panicked")
}

/// Labs of one number that may die: in emulation one now and then freezes, or its kernel panics.
/// The next goes on with the test that the last one was at.
const MAX_DEATHS: u32 = 2;

fn run_in_labs(workspace: &Workspace, mut job: Job) -> Result<bool> {
    let end = job.timeout.map(|limit| Instant::now() + limit);
    let mut deaths = 0;
    loop {
        match lab::run(workspace, &job) {
            Ok(inside::FRESH) => {}
            Ok(code) => return Ok(code == 0),
            Err(died) if deaths < MAX_DEATHS => {
                deaths += 1;
                note(&format!("{died:#}\ngoing on in a fresh lab"));
            }
            Err(died) => return Err(died),
        }
        job.timeout = end.map(|end| end.saturating_duration_since(Instant::now()));
    }
}

/// How many tests of one executable run at a time: they judge order and bytes, and many of them
/// wait, for a deadline or for a peer, most of the time.
fn threads() -> String {
    thread::available_parallelism().map_or(4, |n| n.get().max(4)).to_string()
}

/// Runs the tests of bare-metal guests on this machine, whose KVM runs those and no Linux. A soak
/// takes more seeds.
fn here(
    test: &Path,
    wherry: &Path,
    hostile: &Path,
    builds: &Builds,
    soak: bool,
    filter: &[&str],
) -> Result<bool> {
    let mut command = Command::new(test);
    command.env("RUST_TEST_THREADS", threads()).args(filter).stdout(std::io::stderr());
    command.env("WHERRY_BIN", wherry).env("WHERRY_KERNEL_HOSTILE", hostile);
    command.envs(builds.iter().map(|(name, path)| (name, path)));
    command.env("WHERRY_SEEDS", if soak { "100" } else { "1" });
    Ok(command.status()?.success())
}

fn summary(outcomes: &[Outcome]) -> Result<u8> {
    for outcome in outcomes {
        let word = if outcome.passed { "passed" } else { "FAILED" };
        note(&format!("{word}: {} ({:.0} s)", outcome.name, outcome.seconds));
    }
    Ok(u8::from(outcomes.iter().any(|o| !o.passed)))
}

/// Time for one integration test, in seconds: it ends what hangs, and judges nobody's speed. The
/// slowest takes a third of it in the lab, and two on a machine that is twice as slow.
const TEST_LIMIT: &str = "900";

/// Time for the integration tests in `ci`, in seconds: on two quiet cores they take less than half.
const CI_TIMEOUT: &str = "3900";

/// Options of `ci`.
#[derive(Debug, Parser)]
pub struct CiArgs {
    /// Leaves out the tests.
    #[arg(long)]
    quick: bool,
}

/// Runs `cargo xtask ci`: everything, even after a part has failed, and one summary at the end.
pub fn ci(args: &CiArgs) -> Result<u8> {
    if !args.quick {
        setup::install_missing()?;
    }
    setup::add_components(&["rustfmt", "clippy"])?;
    let workspace = Workspace::find()?;
    let cargo = |args: &[&str]| workspace.cargo(args).map(|()| true);
    let mut outcomes = vec![
        timed("formatting", || cargo(&["fmt", "--all", "--check"])),
        timed("rules of the house", || Ok(house::main(&house::Args::parse_from(["house"]))? == 0)),
        timed("lints", || {
            cargo(&[
                "clippy",
                "--workspace",
                "--all-targets",
                "--locked",
                "--",
                "--deny",
                "warnings",
            ])?;
            let mut bare_metal = vec![
                "clippy",
                "--package",
                "wherry-guest-kernel",
                "--bin",
                "wherry-hostile",
                "--locked",
            ];
            bare_metal.extend(["--no-default-features", "--features", "bare-metal"]);
            bare_metal.extend([
                "--config",
                "profile.dev.panic='abort'",
                "--",
                "--deny",
                "warnings",
            ]);
            cargo(&bare_metal)
        }),
    ];
    // What cannot be checked has failed: a check that is left out in silence shows nothing.
    outcomes.push(timed("dependencies", || deny::check(&workspace)));
    outcomes.push(timed("documentation", || workspace.docs().map(|()| true)));
    if !args.quick {
        tests(&workspace, &Args::parse_from(["test", "--timeout", CI_TIMEOUT]), &mut outcomes)?;
    }
    summary(&outcomes)
}
