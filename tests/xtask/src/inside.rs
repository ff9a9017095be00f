//! `xtask run-tests`: the integration tests one by one, where `/dev/kvm` is real.
//!
//! Each test has a process and a time limit of its own, so that one that hangs costs itself only
//! and says where it hung.
//!
//! **A table of tests.** A folder has a file for each test that was begun, made exclusively by the
//! lab whose number is in it: so labs share the tests, and none runs twice. "passed" follows the
//! number in time. A lab that died is followed by one with its number, which goes on with what it
//! had begun.
//!
//! **A second attempt, in emulation only.** The emulated KVM host loses interrupts and now and then
//! a guest (docs/lab.md). There, and nowhere else, a failed test is tried once more. Both
//! outcomes are printed and the summary names each test that needed it: one that needs it often has
//! something to say. On a real KVM host a failure is a failure.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;

use crate::lab;
use crate::note::note;

/// Options of `run-tests`.
#[derive(Debug, Parser)]
pub struct Args {
    /// Runs only the tests whose name contains this.
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Ends a test after so many seconds.
    #[arg(long, value_name = "SECONDS")]
    limit: u64,
    /// Folder with the table of tests.
    #[arg(long, value_name = "DIR")]
    table: PathBuf,
    /// This lab's number in it.
    #[arg(long, value_name = "N")]
    lab: u32,
    /// Test executables.
    executables: Vec<PathBuf>,
}

/// Runs them; 1 if any failed for good.
pub fn main(args: &Args) -> Result<u8> {
    let (mut nr_passed, mut again, mut failed) = (0, Vec::new(), Vec::new());
    for executable in &args.executables {
        for name in names(executable, &args.filter, soak())? {
            let mut entry = match take(args, executable, &name)? {
                Taken::Ours(entry) => entry,
                Taken::Passed => {
                    nr_passed += 1;
                    continue;
                }
                Taken::Theirs => continue,
            };
            // What a soak finds once in hundreds of migrations is what it is for.
            let soaks = soak() && name.starts_with("soak_");
            let attempts = if lab::is_emulated() && !soaks { 2 } else { 1 };
            let mut attempt = 1;
            let passed = loop {
                let passed = run(executable, &name, Duration::from_secs(args.limit))?;
                if passed || attempt == attempts {
                    break passed;
                }
                attempt += 1;
                note(&format!("{name}: once more, this host is emulated"));
            };
            if passed {
                entry.write_all(PASSED.as_bytes())?;
            }
            match (passed, attempt) {
                (false, _) => failed.push(name),
                (true, 1) => nr_passed += 1,
                (true, _) => again.push(name),
            }
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

/// What the table says of a test.
enum Taken {
    /// This lab is to run it, and note here that it passed.
    Ours(File),
    /// It passed in a lab of this number.
    Passed,
    /// Another lab runs it, or did.
    Theirs,
}

const PASSED: &str = " passed";

fn take(args: &Args, executable: &Path, name: &str) -> Result<Taken> {
    let stem = executable.file_name().unwrap_or_default().to_string_lossy();
    let path = args.table.join(format!("{stem} {name}"));
    let cannot = || format!("cannot use {}", path.display());
    let own = args.lab.to_string();
    match OpenOptions::new().write(true).create_new(true).open(&path) {
        Ok(mut entry) => {
            entry.write_all(own.as_bytes()).with_context(cannot)?;
            Ok(Taken::Ours(entry))
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let mut entry =
                File::options().read(true).append(true).open(&path).with_context(cannot)?;
            let mut said = String::new();
            entry.read_to_string(&mut said).with_context(cannot)?;
            Ok(match said.strip_prefix(&own) {
                Some(PASSED) => Taken::Passed,
                Some("") => Taken::Ours(entry),
                _ => Taken::Theirs,
            })
        }
        Err(error) => Err(error).with_context(cannot),
    }
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
