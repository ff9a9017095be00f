//! Wherry, through its command line.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use wherry_tests::Console;

use super::api::{Files, Machine, Migration, TimedOut, Vmm, on_path};
use crate::case::{Case, Hints};
use crate::entry::{Figures, Round};

/// Exit code of a migration that succeeded, but not its trace.
const TRACE_INCOMPLETE: i32 = 8;

/// The binary.
pub struct Wherry {
    binary: PathBuf,
}

impl Wherry {
    /// From `WHERRY_BIN`, which `cargo xtask bench` sets.
    pub fn new() -> Result<Self> {
        let binary =
            std::env::var_os("WHERRY_BIN").map(PathBuf::from).or_else(|| on_path("wherry"));
        let binary = binary.filter(|file| file.is_file());
        Ok(Self {
            binary: binary.context("there is no wherry: WHERRY_BIN is not set or names no file")?,
        })
    }

    fn spawn(
        &self,
        files: &Files,
        name: &'static str,
        args: &[String],
    ) -> Result<Box<dyn Machine>> {
        let log = files.log(name)?;
        let mut command = Command::new(&self.binary);
        command.args(args).args(["--serial", "none"]).env("WHERRY_RUNTIME_DIR", &files.dir);
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let mut guest = Guest { name, child, binary: self.binary.clone(), files: files.clone() };
        let end = Instant::now() + Duration::from_secs(20);
        while !guest.command(&["info", name, "--json"]).output()?.status.success() {
            if let Some(status) = guest.child.try_wait()? {
                bail!("wherry ended at once: {status}");
            }
            if Instant::now() > end {
                bail!("wherry did not come up");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(Box::new(guest))
    }
}

impl Vmm for Wherry {
    fn version(&self) -> Result<String> {
        let out = Command::new(&self.binary).arg("--version").output()?;
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
    }

    fn run(&self, files: &Files, case: &Case, append: &str) -> Result<Box<dyn Machine>> {
        let reporting = if case.reporting { ",reporting" } else { "" };
        let (kernel, initrd) = (files.kernel.display(), files.initrd.display());
        let args = [
            "run".into(),
            "source".into(),
            format!("--kernel={kernel}"),
            format!("--initrd={initrd}"),
            format!("--cmdline={append}"),
            format!("--memory={}", case.memory),
            format!("--cpus={}", case.cpus),
            format!("--balloon-features=hinting,stats,deflate-on-oom,page-poison{reporting}"),
        ];
        self.spawn(files, "source", &args)
    }

    fn receive(&self, files: &Files, _: &Case, port: u16) -> Result<Box<dyn Machine>> {
        let (kernel, initrd) = (files.kernel.display(), files.initrd.display());
        self.spawn(
            files,
            "destination",
            &[
                "receive".into(),
                "destination".into(),
                format!("tcp:127.0.0.1:{port}"),
                // Source and destination share this host's memory.
                "--max-memory=1TiB".into(),
                // What is measured is memory: files are not sent.
                format!("--kernel={kernel}"),
                format!("--initrd={initrd}"),
            ],
        )
    }
}

struct Guest {
    name: &'static str,
    child: Child,
    binary: PathBuf,
    files: Files,
}

impl Guest {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(args).env("WHERRY_RUNTIME_DIR", &self.files.dir).stdin(Stdio::null());
        command
    }
}

impl Machine for Guest {
    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn console(&mut self) -> Result<Console> {
        Console::attach(self.command(&["console", self.name]))
    }

    fn migrate(&mut self, migration: Migration) -> Result<Figures> {
        let uri = format!("tcp:127.0.0.1:{}", migration.port);
        let mut command = self.command(&["migrate", self.name, &uri, "--json", "--quiet"]);
        command.args(["--hints", migration.case.hints.word()]);
        command.args(["--compression", migration.case.compression.word()]);
        command.arg(format!("--streams={}", migration.case.streams));
        command.arg(format!("--downtime-limit={}ms", migration.case.downtime_limit_ms));
        command.arg("--trace").arg(self.files.trace());
        if let Some(rate) = migration.bandwidth {
            command.arg(format!("--bandwidth={}Mbit", rate * 8 / 1_000_000));
        }
        // Its end of the stream is closed when it ends, so that we can sleep until then: to look
        // now and then takes time of an emulated CPU from the migration.
        let (mut ours, its) = UnixStream::pair()?;
        let mut child =
            command.stdout(OwnedFd::from(its)).stderr(self.files.log("migrate")?).spawn()?;
        // It holds that end, too.
        drop(command);
        ours.set_read_timeout(Some(migration.timeout))?;
        let mut text = String::new();
        if let Err(error) = ours.read_to_string(&mut text) {
            // Closing its connection cancels the migration.
            let _ = child.kill();
            let _ = child.wait();
            return Err(match error.kind() {
                io::ErrorKind::WouldBlock => TimedOut(migration.timeout.as_secs()).into(),
                _ => error.into(),
            });
        }
        let status = child.wait()?;
        let report: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        // A trace with gaps is shown as such; the migration is what is measured.
        if !status.success() && status.code() != Some(TRACE_INCOMPLETE) {
            let why = report
                .pointer("/error/message")
                .and_then(Value::as_str)
                .unwrap_or("no reason given");
            bail!("wherry migrate failed with {}: {why}", status.code().unwrap_or(-1));
        }
        Ok(figures(&report, migration.case))
    }

    fn balloon(&mut self, taken: u64, _: u64) -> Result<()> {
        let target = format!("{}MiB", taken >> 20);
        let out = self.command(&["balloon", self.name, "target", &target]).output()?;
        anyhow::ensure!(
            out.status.success(),
            "wherry balloon: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The report of `wherry migrate --json`.
fn figures(report: &Value, case: &Case) -> Figures {
    let rounds: Vec<Round> = report["rounds"].as_array().into_iter().flatten().map(round).collect();
    let number = |path: &str| report.pointer(path).and_then(Value::as_u64);
    let downtime = &report["downtime"];
    let parts = ["pause", "last_round", "state", "commit", "resume"].map(|part| {
        (
            part.to_owned(),
            json!(downtime[format!("{part}_us")].as_u64().unwrap_or(0) as f64 / 1000.0),
        )
    });
    let hinted = report["rounds"].as_array().into_iter().flatten().any(|r| r["hint_bytes"] != 0);
    Figures {
        round_one_bytes: number("/round_one_bytes"),
        total_bytes: number("/total_bytes"),
        rounds: Some(rounds.len() as u64),
        total_ms: number("/total_ms"),
        downtime_ms: number("/downtime/total_us").map(|us| us as f64 / 1000.0),
        downtime_parts: Some(Value::Object(parts.into_iter().collect())),
        hints_note: report["hints"].as_str().map(str::to_owned),
        hinting_seen: (case.hints != Hints::Off).then_some(hinted),
        per_round: rounds,
        ..Figures::default()
    }
}

fn round(report: &Value) -> Round {
    let number = |key: &str| report[key].as_u64();
    Round {
        round: number("round").unwrap_or(0),
        bytes: number("bytes"),
        duration_ms: number("duration_ms"),
        sent: number("sent"),
        zero: number("zero"),
        hole: number("hole"),
        hinted: number("hinted"),
        late: number("hinted_too_late"),
        sent_then_hinted: number("sent_then_hinted"),
        overridden: number("overridden"),
        ballooned: number("ballooned"),
        clean: number("clean"),
        hint_bytes: number("hint_bytes"),
        time_to_first_hint_ms: number("time_to_first_hint_ms"),
        held_ms: number("held_ms"),
        skipped: None,
    }
}
