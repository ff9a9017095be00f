//! QEMU with KVM, through QMP.
//!
//! Machine q35 with `virtio-balloon-pci,free-page-hint=on` and an I/O thread, as its documentation
//! of the device asks for. Its migration is at its defaults (no compression, no postcopy) but for
//! events, the downtime limit, a case's connections (`multifd`) and the bandwidth cap: that is
//! lifted, since the link has the rate.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use wherry_tests::Console;

use super::api::{Files, Machine, Migration, TimedOut, Vmm, on_path};
use super::qmp::Qmp;
use super::recording::Recording;
use crate::case::{Case, Hints};
use crate::entry::{Figures, Round};

/// The variable with the path of a QEMU that is not on the `PATH`.
pub const GIVEN: &str = "WHERRY_QEMU";
const PROGRAM: &str = "qemu-system-x86_64";
/// Rate that no link here reaches: QEMU's own default is 128 MiB/s.
pub const NO_CAP: u64 = 100 << 30;
/// How often QEMU is asked how far it is.
const POLL: Duration = Duration::from_millis(50);
/// The downtime limit's own bounds in QEMU.
const MAX_DOWNTIME_MS: u64 = 2_000_000;

/// The program.
pub struct Qemu {
    program: PathBuf,
}

impl Qemu {
    /// The one that `cargo xtask bench` has fetched.
    pub fn given() -> Result<Self> {
        let program = std::env::var_os(GIVEN).map(PathBuf::from);
        Ok(Self { program: program.with_context(|| format!("{GIVEN} is not set"))? })
    }

    /// From the `PATH`.
    pub fn installed() -> Result<Self> {
        let why = || format!("there is no {PROGRAM}: apt-get install qemu-system-x86");
        Ok(Self { program: on_path(PROGRAM).with_context(why)? })
    }

    fn spawn(
        &self,
        files: &Files,
        name: &'static str,
        case: &Case,
        more: &[String],
    ) -> Result<Guest> {
        let path = |suffix: &str| files.dir.join(format!("{name}.{suffix}"));
        let log = files.log(name)?;
        let mut command = Command::new(&self.program);
        let hint = if case.hints == Hints::Off { "off" } else { "on" };
        let reporting = if case.reporting { "on" } else { "off" };
        let mib = case.memory_bytes()? >> 20;
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-machine", "q35,accel=kvm,usb=off,memory-backend=ram", "-cpu", "host"])
            .args(["-smp", &case.cpus.to_string()])
            .args(["-m", &format!("{mib}M"), "-object"])
            // Else Linux refuses a guest that is larger than the host, though its memory is never
            // touched.
            .arg(format!("memory-backend-ram,id=ram,size={mib}M,reserve=off"))
            .arg("-kernel")
            .arg(&files.kernel)
            .arg("-initrd")
            .arg(&files.initrd)
            .args(["-object", "iothread,id=io0", "-device"])
            .arg(format!(
                "virtio-balloon-pci,id=balloon0,iothread=io0,free-page-hint={hint},free-page-reporting={reporting}"
            ))
            .arg("-chardev")
            .arg(format!("socket,id=serial,path={},server=on,wait=off", path("serial").display()))
            .args(["-serial", "chardev:serial"])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", path("qmp").display()))
            .args(more)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command.spawn().with_context(|| format!("cannot start {PROGRAM}"))?;
        let (serial, trace) = (path("serial"), files.trace());
        let mut guest = Guest { child: Some(child), qmp: None, serial, trace };
        // Until QMP answers QEMU has not even read its arguments.
        match Qmp::connect(&path("qmp"), Duration::from_secs(30)) {
            Ok(qmp) => guest.qmp = Some(qmp),
            Err(error) => {
                drop(guest);
                let said = std::fs::read_to_string(path("log")).unwrap_or_default();
                bail!("{error:#}; it says: {}", said.trim());
            }
        }
        Ok(guest)
    }
}

impl Vmm for Qemu {
    fn version(&self) -> Result<String> {
        let out = Command::new(&self.program).arg("--version").output()?;
        Ok(String::from_utf8_lossy(&out.stdout).lines().next().unwrap_or_default().to_owned())
    }

    fn run(&self, files: &Files, case: &Case, append: &str) -> Result<Box<dyn Machine>> {
        Ok(Box::new(self.spawn(files, "source", case, &["-append".into(), append.into()])?))
    }

    fn receive(&self, files: &Files, case: &Case, port: u16) -> Result<Box<dyn Machine>> {
        // What it is to expect must be said before it listens.
        let mut guest =
            self.spawn(files, "destination", case, &["-incoming".into(), "defer".into()])?;
        guest.capabilities(case)?;
        guest.qmp()?.call("migrate-incoming", json!({ "uri": format!("tcp:127.0.0.1:{port}") }))?;
        Ok(Box::new(guest))
    }
}

struct Guest {
    child: Option<Child>,
    qmp: Option<Qmp>,
    serial: PathBuf,
    trace: PathBuf,
}

impl Guest {
    fn qmp(&mut self) -> Result<&mut Qmp> {
        self.qmp.as_mut().context("QEMU is gone")
    }

    /// Both sides must be told the same.
    fn capabilities(&mut self, case: &Case) -> Result<()> {
        let qmp = self.qmp()?;
        let set = |name: &str, state: bool| json!({ "capability": name, "state": state });
        let all = [set("events", true), set("multifd", case.streams > 1)];
        qmp.call("migrate-set-capabilities", json!({ "capabilities": all }))?;
        if case.streams > 1 {
            qmp.call("migrate-set-parameters", json!({ "multifd-channels": case.streams }))?;
        }
        Ok(())
    }
}

impl Machine for Guest {
    fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    fn console(&mut self) -> Result<Console> {
        let stream =
            std::os::unix::net::UnixStream::connect(&self.serial).context("QEMU's serial port")?;
        Console::over(stream)
    }

    fn migrate(&mut self, migration: Migration) -> Result<Figures> {
        let trace = self.trace.clone();
        self.capabilities(migration.case)?;
        let qmp = self.qmp()?;
        let limit = migration.case.downtime_limit_ms.min(MAX_DOWNTIME_MS);
        let cap = migration.bandwidth.unwrap_or(NO_CAP);
        qmp.call(
            "migrate-set-parameters",
            json!({ "downtime-limit": limit, "max-bandwidth": cap }),
        )?;
        qmp.call("migrate", json!({ "uri": format!("tcp:127.0.0.1:{}", migration.port) }))?;
        let end = Instant::now() + migration.timeout;
        let mut recording = Recording::new(&migration, migration.case.memory_bytes()? / 4096);
        let mut passes = Passes::default();
        loop {
            if Instant::now() > end {
                let _ = qmp.call("migrate_cancel", json!({}));
                return Err(TimedOut(migration.timeout.as_secs()).into());
            }
            let Some(event) = qmp.event(POLL)? else {
                let state = qmp.call("query-migrate", json!({}))?;
                recording.sample(pass(&state), Totals::of(&state).bytes);
                passes.seen(&state);
                continue;
            };
            match (event["event"].as_str(), event["data"]["status"].as_str()) {
                // Said when a pass begins, so what was sent until now belongs to the one before.
                (Some("MIGRATION_PASS"), _) => {
                    let number = event["data"]["pass"].as_u64().unwrap_or(0);
                    passes.next(number, &qmp.call("query-migrate", json!({}))?);
                }
                (Some("STOP"), _) => recording.paused(),
                (Some("MIGRATION"), Some("completed")) => break,
                (Some("MIGRATION"), Some("failed" | "cancelled")) => {
                    let state = qmp.call("query-migrate", json!({}))?;
                    bail!(
                        "QEMU: {}",
                        state["error-desc"].as_str().unwrap_or("the migration failed")
                    );
                }
                _ => {}
            }
        }
        // QEMU says that it has completed before it has worked out how long it took.
        let patience = Instant::now() + Duration::from_secs(10);
        loop {
            let state = qmp.call("query-migrate", json!({}))?;
            if state["total-time"].as_u64() > Some(0) || Instant::now() > patience {
                recording.sample(pass(&state), Totals::of(&state).bytes);
                let figures = passes.finish(&state, migration.case);
                // What cannot be written is not shown; it was measured all the same.
                let _ = std::fs::write(trace, recording.finish(&figures));
                return Ok(figures);
            }
            std::thread::sleep(POLL);
        }
    }

    fn balloon(&mut self, taken: u64, ram: u64) -> Result<()> {
        self.qmp()?.call("balloon", json!({ "value": ram.saturating_sub(taken) })).map(drop)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// QEMU counts since the start; a round's figures are differences.
#[derive(Default)]
struct Passes {
    rounds: Vec<Round>,
    last: Totals,
    /// Where it was when last seen in the pass of that number.
    seen: Option<(u64, Totals, u64)>,
}

#[derive(Default, Clone, Copy)]
struct Totals {
    bytes: u64,
    normal: u64,
    duplicate: u64,
    ms: u64,
}

impl Totals {
    fn of(state: &Value) -> Self {
        let ram = |key: &str| state["ram"][key].as_u64().unwrap_or(0);
        Self {
            bytes: ram("transferred"),
            normal: ram("normal"),
            duplicate: ram("duplicate"),
            ms: state["total-time"].as_u64().unwrap_or(0),
        }
    }
}

/// Number of the pass that is under way.
fn pass(state: &Value) -> u32 {
    state["ram"]["dirty-sync-count"].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
}

fn pages(state: &Value) -> u64 {
    state["ram"]["total"].as_u64().unwrap_or(0) / 4096
}

impl Passes {
    /// A look in between.
    fn seen(&mut self, state: &Value) {
        self.seen = Some((pass(state).into(), Totals::of(state), pages(state)));
    }

    /// A pass begins. Pass 1 is announced before anything is sent.
    fn next(&mut self, pass: u64, state: &Value) {
        if pass <= 1 {
            return;
        }
        // QEMU may have been too busy to answer in time; then the last look at the pass before is
        // closer to the truth.
        let late = state["ram"]["dirty-sync-count"].as_u64().is_some_and(|now| now > pass)
            || state["status"].as_str().is_some_and(|status| status != "active");
        match self.seen {
            Some((seen, totals, pages)) if late && seen + 1 == pass => self.close(totals, pages),
            _ => self.close(Totals::of(state), pages(state)),
        }
    }

    fn close(&mut self, now: Totals, pages: u64) {
        let (sent, zero) = (
            now.normal.saturating_sub(self.last.normal),
            now.duplicate.saturating_sub(self.last.duplicate),
        );
        self.rounds.push(Round {
            round: self.rounds.len() as u64 + 1,
            bytes: Some(now.bytes.saturating_sub(self.last.bytes)),
            duration_ms: Some(now.ms.saturating_sub(self.last.ms)),
            sent: Some(sent),
            zero: Some(zero),
            skipped: Some(pages.saturating_sub(sent + zero)),
            ..Round::default()
        });
        self.last = now;
    }

    fn finish(mut self, state: &Value, case: &Case) -> Figures {
        self.close(Totals::of(state), pages(state));
        Figures {
            round_one_bytes: self.rounds.first().and_then(|r| r.bytes),
            total_bytes: Some(self.last.bytes),
            rounds: Some(self.rounds.len() as u64),
            total_ms: state["total-time"].as_u64(),
            downtime_ms: state["downtime"].as_f64(),
            hints_note: Some(format!(
                "free-page-hint={}",
                if case.hints == Hints::Off { "off" } else { "on" }
            )),
            per_round: self.rounds,
            ..Figures::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_differences() {
        let state = |bytes: u64, normal: u64, zero: u64| {
            json!({ "ram": { "total": 4096 * 100,
            "transferred": bytes, "normal": normal, "duplicate": zero }, "total-time": bytes / 10,
            "downtime": 7 })
        };
        let mut passes = Passes::default();
        passes.next(1, &state(0, 0, 0));
        passes.next(2, &state(100, 10, 80));
        let case =
            Case { hints: Hints::Off, ..toml::from_str("title = ''\nmemory = '1GiB'").unwrap() };
        let figures = passes.finish(&state(150, 15, 81), &case);
        assert_eq!(
            (figures.round_one_bytes, figures.total_bytes, figures.rounds),
            (Some(100), Some(150), Some(2))
        );
        let second = &figures.per_round[1];
        assert_eq!(
            (second.sent, second.zero, second.skipped, second.duration_ms),
            (Some(5), Some(1), Some(94), Some(5))
        );
        assert_eq!(figures.downtime_ms, Some(7.0));
    }
}
