//! `xtask run-tests`: the integration tests one by one, where `/dev/kvm` is real.
//!
//! Each test has a process and a time limit of its own, so that one that hangs costs itself only
//! and says where it hung.
//!
//! **Disks are written once.** What a Debian wrote to its disk stays for as long as the lab does:
//! keys, packages, a database. So a lab whose disks have been written ends before the next attempt
//! that has use for them, with [`FRESH`], and a new one with its number goes on in the [`Table`].
//!
//! **A second attempt, in emulation only.** The emulated KVM host loses interrupts and now and then
//! a guest (docs/lab.md). There, and nowhere else, a failed test is tried once more. Both
//! outcomes are printed and the summary names each test that needed it: one that needs it often has
//! something to say. On a real KVM host a failure is a failure.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::calls::Calls;
use crate::note::note;
use crate::table::Table;
use crate::{host, lab};

/// Options of `run-tests`.
#[derive(Debug, Parser)]
pub struct Args {
    /// Runs only the tests whose name contains this.
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Runs only the test of this name; may be repeated.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Leaves out the test of this name; may be repeated.
    #[arg(long, value_name = "NAME", conflicts_with = "only")]
    leave_out: Vec<String>,
    /// Says first what host this is, and what this `wherry doctor` finds.
    #[arg(long, value_name = "WHERRY")]
    host: Option<PathBuf>,
    /// Ends a test after so many seconds.
    #[arg(long, value_name = "SECONDS")]
    limit: u64,
    /// Folder with the table of tests.
    #[arg(long, value_name = "DIR")]
    table: PathBuf,
    /// This lab's number in it.
    #[arg(long, value_name = "N")]
    lab: u32,
    /// File for what the VMs' threads ask of the kernel, which must be a lab's.
    #[arg(long, value_name = "FILE")]
    calls: Option<PathBuf>,
    /// Test executables.
    executables: Vec<PathBuf>,
}

/// Exit code of a lab that must be followed by a fresh one with its number.
pub const FRESH: u8 = 75;

/// Tests that take minutes in emulation, the longest first. Begun late, one of them would run alone
/// when the other labs are through.
const LONG: [&str; 7] = [
    "a_stock_debian_works_while_it_moves",
    "balloon_on_cloud_6_12",
    "balloon_on_cloud_6_1",
    "there_and_back_under_a_writer",
    "memory_of_host_and_guest_on_cloud_6_1",
    "replays_come_close_to_what_happens",
    "owner::pause_beside_migrate_then_resume_never_two",
];

/// The tests in the executables, in the order in which they are to begin.
fn in_order(args: &Args) -> Result<Vec<(&Path, String)>> {
    let mut all = Vec::new();
    for executable in &args.executables {
        let mut names = names(executable, &args.filter, soak())?;
        names.retain(|name| args.only.is_empty() || args.only.contains(name));
        names.retain(|name| !args.leave_out.contains(name));
        all.extend(names.into_iter().map(|name| (&**executable, name)));
    }
    // A test that is not run must not look like one that passed.
    if let Some(none) = args.only.iter().find(|only| !all.iter().any(|(_, name)| name == *only)) {
        bail!("no test is called {none}");
    }
    all.sort_by_key(|(_, name)| LONG.iter().position(|long| long == name).unwrap_or(LONG.len()));
    Ok(all)
}

/// Runs them; 1 if any failed for good, [`FRESH`] if not all were run.
pub fn main(args: &Args) -> Result<u8> {
    if let Some(wherry) = &args.host {
        host::say(wherry)?;
    }
    std::fs::create_dir_all(&args.table)
        .with_context(|| format!("cannot create {}", args.table.display()))?;
    let table = Table { dir: &args.table, lab: args.lab };
    let counted = |file| Calls::count(file, &args.executables);
    let mut calls = args.calls.as_deref().map(counted).transpose()?;
    let (mut nr_passed, mut again, mut failed) = (0, Vec::new(), Vec::new());
    let mut ran = false;
    for (executable, name) in in_order(args)? {
        let Some(mut entry) = table.take(executable, &name)? else { continue };
        // What a soak finds once in hundreds of migrations is what it is for.
        let soaks = soak() && name.starts_with("soak_");
        let attempts = if lab::is_emulated() && !soaks { 2 } else { 1 };
        while !entry.passed && entry.failures < attempts {
            if ran && is_called(executable, "debian") && disks_are_written()? {
                note("the lab's disks have been written: going on in a fresh one");
                return Ok(FRESH);
            }
            if entry.failures > 0 {
                note(&format!("{name}: once more, this host is emulated"));
            }
            ran = true;
            let passed = run(executable, &name, Duration::from_secs(args.limit))?;
            calls.as_mut().map(Calls::write).transpose()?;
            entry.note(passed)?;
        }
        match (entry.passed, entry.failures) {
            (false, _) => failed.push(name),
            (true, 0) => nr_passed += 1,
            (true, _) => again.push(name),
        }
    }
    note(&format!(
        "{nr_passed} tests passed, {} more at the second attempt, {} failed",
        again.len(),
        failed.len()
    ));
    again.iter().for_each(|name| note(&format!("passed at the second attempt: {name}")));
    failed.iter().for_each(|name| note(&format!("FAILED: {name}")));
    Ok(u8::from(!failed.is_empty()))
}

/// Whether anything was written to a disk that the lab was given.
fn disks_are_written() -> Result<bool> {
    for index in 0..26 {
        let disk = lab::disk_name(index).replace("/dev/", "");
        let Ok(stat) = std::fs::read_to_string(format!("/sys/block/{disk}/stat")) else { break };
        // Documentation/block/stat.rst: the fifth number is that of writes.
        let writes = stat.split_whitespace().nth(4).with_context(|| format!("{disk}: {stat}"))?;
        if writes != "0" {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether this is the executable of the integration test `name`: cargo adds a hash.
pub fn is_called(test: &Path, name: &str) -> bool {
    let file = test.file_name().unwrap_or_default().to_string_lossy();
    file.rsplit_once('-').is_some_and(|(stem, _)| stem == name)
}

/// Names of the tests in an executable that contain `filter`; for a soak also those that are
/// ignored, which are long.
pub fn names(executable: &Path, filter: &str, soak: bool) -> Result<Vec<String>> {
    let list = |ignored: &[&str]| -> Result<Vec<String>> {
        let out = Command::new(executable).arg("--list").args(ignored).arg(filter).output();
        let out = out.with_context(|| format!("cannot run {}", executable.display()))?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        Ok(text.lines().filter_map(|line| line.strip_suffix(": test").map(Into::into)).collect())
    };
    let ignored = if soak { Vec::new() } else { list(&["--ignored"])? };
    Ok(list(&[])?.into_iter().filter(|name| !ignored.contains(name)).collect())
}

fn soak() -> bool {
    std::env::var_os("WHERRY_SOAK").is_some()
}

/// Runs one test. Its output, which it keeps for failures, goes to ours.
fn run(executable: &Path, name: &str, limit: Duration) -> Result<bool> {
    let started = Instant::now();
    let mut test = Command::new(executable)
        .args(["--exact", name, "--quiet", "--include-ignored"])
        // A soak says how far it is; the others' output is for failures.
        .args(name.starts_with("soak_").then_some("--nocapture"))
        .spawn()
        .with_context(|| format!("cannot run {}", executable.display()))?;
    let status = wait(&mut test, limit)?;
    if status.is_none() {
        note(&format!("{name} takes longer than {limit:?}; what hangs:"));
        print_tasks();
        let _ = test.kill();
        let _ = test.wait();
    }
    let passed = status.is_some_and(|s| s.success());
    if !passed && lab::is_emulated() {
        // What the test left behind must not disturb the next one, and there are no VMs but ours.
        let _ = Command::new("pkill").args(["-KILL", "-x", "wherry(-vm)?"]).status();
    }
    let word = if passed { "ok" } else { "FAILED" };
    note(&format!("{name} ... {word} ({:.1} s)", started.elapsed().as_secs_f64()));
    Ok(passed)
}

fn wait(test: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    while Instant::now() < end {
        if let Some(status) = test.try_wait()? {
            return Ok(Some(status));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(None)
}

fn is_ours(program: &str) -> bool {
    program.ends_with("wherry") || program.ends_with("wherry-vm")
}

/// Where the threads of all `wherry` processes are: command line, thread, and the kernel's stack
/// (as root).
fn print_tasks() {
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|e| e.path()) {
        let command = read(process.join("cmdline")).replace('\0', " ");
        if !command.split(' ').next().is_some_and(is_ours) {
            continue;
        }
        eprintln!("{command}");
        for task in std::fs::read_dir(process.join("task"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path())
        {
            let top: Vec<String> =
                read(task.join("stack")).lines().take(3).map(Into::into).collect();
            eprintln!("  {}: {}", read(task.join("comm")).trim(), top.join(" "));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(folder: &Path) -> String {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let text = |path: PathBuf| match path.is_dir() {
            true => sources(&path),
            false => std::fs::read_to_string(path).unwrap(),
        };
        entries.map(text).collect()
    }

    #[test]
    fn long_tests_are_called_that() {
        let all = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests"));
        for long in LONG {
            let name = long.rsplit("::").next().unwrap();
            assert!(all.contains(&format!("fn {name}(")), "{long}");
        }
    }
}
