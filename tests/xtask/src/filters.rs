//! `cargo xtask bench --filters`: what the filters of system calls cost a boot and a migration.
//!
//! A bare-metal guest boots and moves to another VM of this machine, with the filters and without,
//! in turns. So what this machine does beside concerns both alike. No lab: there runs of one kind
//! differ by more than what is looked for.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use wherry_tests::{Env, Guest, Scratch, median, migrate};

use crate::build::Workspace;
use crate::note::note;

/// What `--seccomp` is, in turns: the second is the reference.
const MODES: [&str; 2] = ["kill", "off"];

/// One guest's boot and migration.
#[derive(Debug, Serialize)]
struct Sample {
    seccomp: &'static str,
    boot: Cost,
    migration: Cost,
}

/// In seconds: on the clock, and of CPUs, in all processes of the VMs and with what the guest
/// itself took of it.
#[derive(Debug, Serialize)]
struct Cost {
    wall_s: f64,
    cpu_s: f64,
}

/// Runs it so many times, and writes what was measured to `json`.
pub fn main(pairs: u32, json: Option<&Path>) -> Result<u8> {
    let workspace = Workspace::find()?;
    let wherry = workspace.wherry()?;
    let scratch = Scratch::new("filters")?;
    let env = Env {
        wherry,
        kernel: Some(workspace.hostile()?),
        initrd: None,
        here: true,
        dir: scratch.path().to_owned(),
        netns: None,
    };
    // The first of each does not count: it reads the programs from the disk.
    for mode in MODES {
        sample(&env, mode)?;
    }
    let mut samples = Vec::new();
    for pair in 0..pairs {
        // Neither is always the one that runs first.
        for turn in 0..2 {
            samples.push(sample(&env, MODES[(pair as usize + turn) % 2])?);
        }
        note(&format!("pair {} of {pairs}", pair + 1));
    }
    show(&samples);
    if let Some(path) = json {
        std::fs::write(path, serde_json::to_string_pretty(&samples)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(0)
}

fn sample(env: &Env, seccomp: &'static str) -> Result<Sample> {
    let filters = ["--seccomp", seccomp];
    let start = Instant::now();
    let source = Source::boot(env, &filters)?;
    let boot = Cost { wall_s: start.elapsed().as_secs_f64(), cpu_s: cpu(source.0.id())? };

    let uri = env.unix_uri("target");
    let target = Guest::receive_with(env, "target", &uri, &filters.map(String::from))?;
    let before = cpu(source.0.id())? + cpu(target.pid())?;
    let start = Instant::now();
    let report = migrate(env, "source", &uri, &["--verify"])?;
    let wall_s = start.elapsed().as_secs_f64();
    let after = cpu(source.0.id())? + cpu(target.pid())?;
    ensure!(report["verify"]["wrong"] == 0, "pages are wrong: {report:#}");
    source.end()?;
    Ok(Sample { seccomp, boot, migration: Cost { wall_s, cpu_s: after - before } })
}

/// A VM whose console is its standard output: whoever asks it for its state takes time of it.
struct Source(Child);

impl Source {
    fn boot(env: &Env, args: &[&str]) -> Result<Self> {
        let kernel = env.kernel.as_ref().context("no kernel")?;
        let mut command = env.command(&["run", "source", "--memory", "256MiB", "--no-reboot"]);
        command.args(["--cmdline", "console=ttyS0 hostile=honest seed=1", "--kernel"]);
        command.arg(kernel).args(args).stdout(Stdio::piped());
        let mut source = Self(command.spawn().context("cannot start wherry")?);
        let console = source.0.stdout.take().context("no console")?;
        for line in BufReader::new(console).lines() {
            if line?.contains("WHERRY: ready") {
                return Ok(source);
            }
        }
        bail!("the guest did not get ready: {}", source.0.wait()?)
    }

    /// Its guest has moved away.
    fn end(mut self) -> Result<()> {
        let status = self.0.wait()?;
        ensure!(status.success(), "the source ended with {status}");
        Ok(())
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// CPU time of a process that has not been waited for, in seconds.
fn cpu(pid: u32) -> Result<f64> {
    let mut clock = 0;
    // SAFETY: writes one clock's number.
    let error = unsafe { libc::clock_getcpuclockid(pid.try_into()?, &mut clock) };
    ensure!(error == 0, "process {pid}: {}", std::io::Error::from_raw_os_error(error));
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one time.
    let error = unsafe { libc::clock_gettime(clock, &mut time) };
    ensure!(error == 0, "process {pid}: {}", std::io::Error::last_os_error());
    Ok(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
}

/// One of a sample's numbers.
type Figure = fn(&Sample) -> f64;

fn show(samples: &[Sample]) {
    println!("| medians of {} | filters | without | ratio of pairs | 95 % |", samples.len() / 2);
    println!("|---|---|---|---|---|");
    let figures: [(&str, Figure); 4] = [
        ("boot, s", |sample| sample.boot.wall_s),
        ("boot, CPU s", |sample| sample.boot.cpu_s),
        ("migration, s", |sample| sample.migration.wall_s),
        ("migration, CPU s", |sample| sample.migration.cpu_s),
    ];
    for (name, figure) in figures {
        let [with, without] = MODES.map(|mode| {
            let of = samples.iter().filter(|sample| sample.seccomp == mode);
            of.map(figure).collect::<Vec<_>>()
        });
        let ratios = with.iter().zip(&without).map(|(with, without)| with / without);
        let (low, ratio, high) = interval(ratios.collect());
        let [with, without] = [with, without].map(|of| median(of).unwrap_or(f64::NAN));
        println!("| {name} | {with:.4} | {without:.4} | {ratio:.3} | {low:.3} to {high:.3} |");
    }
}

/// The median, and between which of the numbers that of all that there could be is, 95 times of
/// 100: by how many of them may be on one side of it (binomial, as a normal distribution).
fn interval(mut numbers: Vec<f64>) -> (f64, f64, f64) {
    numbers.sort_by(f64::total_cmp);
    let n = numbers.len();
    let aside = ((n as f64 - 1.96 * (n as f64).sqrt()) / 2.0).floor().max(0.0) as usize;
    let at = |index: usize| numbers.get(index).copied().unwrap_or(f64::NAN);
    let (low, high) = (at(aside), at(n.saturating_sub(1).saturating_sub(aside)));
    (low, median(numbers.iter().copied()).unwrap_or(f64::NAN), high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_that_of_the_tables() {
        // For 25 numbers the 8th and the 18th, as in any table of the sign test.
        let numbers = (1..=25).map(f64::from).collect();
        assert_eq!(interval(numbers), (8.0, 13.0, 18.0));
        assert_eq!(interval(vec![2.0, 1.0]), (1.0, 1.5, 2.0));
    }

    #[test]
    fn a_process_takes_time_and_is_asked_until_it_is_waited_for() {
        let work = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done";
        let mut child = std::process::Command::new("sh").args(["-c", work]).spawn().unwrap();
        let pid = child.id();
        // Ended, and not yet waited for.
        while !std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") Z ") {
            std::thread::yield_now();
        }
        assert!(cpu(pid).unwrap() > 0.0);
        child.wait().unwrap();
        assert!(cpu(pid).is_err());
    }
}
