//! The VM as its control API sees it, through reboots and migrations.

use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde_json::Value;
use wherry_migration::CancelToken;

use super::balloon::balloon_info;
use super::manager::{Manager, progress};
use crate::console::Console;
use crate::control::{
    BalloonInfo, ControlError, ErrorCode, Info, MigrateRequest, MigrationCounts, Update, VmControl,
    VmState,
};
use crate::disks::Disks;
use crate::life::owner::Owner;
use crate::life::{End, Event, Life, Locks, Refusal};
use crate::machine::{Description, Machine, refresh_statistics};
use crate::memory::PAGE;
use crate::migrate;
use crate::net::Nets;
use crate::proc_file::ProcFile;
use crate::vsock::Vsock;

/// After a hand-off of which nobody knows what became.
const FORCE: &str = "if the destination surely does not run it: `wherry resume --force`";

/// How long a guest whose migration failed waits for its disks: a destination waits 30 s for
/// HandOff.
const DISKS_BACK: Duration = Duration::from_secs(35);
/// Time between two attempts.
const AGAIN: Duration = Duration::from_millis(100);

/// How long `balloon` waits for fresh statistics.
const STATISTICS_TIMEOUT: Duration = Duration::from_millis(500);

/// What a controller knows from the start.
pub struct VmSettings {
    /// Name of the VM.
    pub name: String,
    /// Console sink, for `info`.
    pub serial: String,
    /// Where its guest's sockets end.
    pub vsock: Vsock,
    /// Its networks' ends on this host.
    pub nets: Nets,
}

/// What `info` says of a machine.
#[derive(Clone, Default)]
struct Shape {
    nr_vcpus: u32,
    ram_bytes: u64,
    kernel: Option<String>,
}

impl Shape {
    fn of(description: &Description) -> Self {
        let &Description { nr_vcpus, ram_bytes, .. } = description;
        Self { nr_vcpus, ram_bytes, kernel: Some(description.shown_kernel()) }
    }
}

/// Implements [`VmControl`] on whatever machine runs now.
pub struct Controller {
    pub(super) settings: VmSettings,
    /// Whether a guest that resets itself goes on with a new machine.
    pub(super) reboots: AtomicBool,
    started: Instant,
    pub(super) console: Console,
    /// Who stops, starts and gives away the machine.
    pub(super) owner: Arc<Owner<Machine>>,
    /// Its disks on this host.
    pub(super) disks: Arc<Disks>,
    /// Who started this process, if that is a service manager.
    pub(super) manager: Manager,
    /// What is known of the machine while there is none: before the first, and between two.
    shape: OnceLock<Shape>,
    /// How much memory this process has.
    pub(super) statm: ProcFile,
}

impl Controller {
    /// A controller without a machine yet.
    pub fn new(settings: VmSettings, console: Console, disks: Arc<Disks>) -> Self {
        Self {
            disks,
            settings,
            reboots: AtomicBool::new(false),
            started: Instant::now(),
            console,
            owner: Arc::default(),
            manager: Manager::default(),
            statm: ProcFile::default(),
            shape: OnceLock::new(),
        }
    }

    /// There is to be such a machine.
    pub fn expect(&self, description: &Description) {
        self.shape.get_or_init(|| Shape::of(description));
    }

    /// The machine gives way to a new one like it.
    pub fn replace(&self, description: &Description) {
        self.expect(description);
        self.owner.clear();
    }

    /// Says how the VM does. Of a migration its progress is said.
    pub(super) fn tell_manager(&self, life: Life) {
        if !matches!(life, Life::Migrating { .. }) {
            self.manager.status(self.shown(life).as_str());
        }
    }

    /// The machine, for a command; `what` as in [`refused`](Self::refused).
    fn machine(&self, what: &str) -> Result<Arc<Machine>, ControlError> {
        let (machine, life) = self.owner.machine();
        machine.ok_or_else(|| self.refused(what, Refusal::State(life)))
    }

    fn command(&self, what: &str, event: Event) -> Result<(), ControlError> {
        self.owner.event(event).map(drop).map_err(|refusal| self.refused(what, refusal))
    }

    /// The state for the API.
    fn shown(&self, life: Life) -> VmState {
        match shown(self.seen(life)) {
            VmState::Paused if self.disks.lost() => VmState::LockLost,
            state => state,
        }
    }

    pub(super) fn reboots(&self) -> bool {
        self.reboots.load(Ordering::SeqCst)
    }

    /// The state as others see it: a reset is the beginning of a reboot, if there is to be one.
    fn seen(&self, life: Life) -> Life {
        match life {
            Life::Ended(End::Reset) if self.reboots() => Life::Rebooting,
            life => life,
        }
    }

    /// `what` is an infinitive, for "cannot … a VM that is …".
    fn refused(&self, what: &str, refusal: Refusal) -> ControlError {
        let state = |state: &str| {
            let text = format!("cannot {what} a VM that is {state}");
            ControlError::new(ErrorCode::InvalidState, text)
        };
        match refusal {
            Refusal::State(Life::Receiving) => {
                ControlError::new(ErrorCode::InvalidState, "no guest has arrived yet")
                    .hint("start `wherry migrate` at the source")
            }
            Refusal::State(Life::Unknown) => state(&Life::Unknown.to_string()).hint(FORCE),
            Refusal::State(life) => state(&self.seen(life).to_string()),
            Refusal::Busy => ControlError::new(ErrorCode::Busy, refusal.to_string())
                .hint("`wherry cancel` stops it"),
            Refusal::BeingHandedOver => state("being handed over to its destination")
                .hint("ask the destination, or again here if the migration fails"),
            Refusal::Unfinished => ControlError::failed(format!("cannot {what} the VM: {refusal}"))
                .hint("try again; the guest goes on"),
            Refusal::DiskTaken => {
                let taken = self.disks.taken().unwrap_or_else(|| refusal.to_string());
                ControlError::new(ErrorCode::DiskTaken, format!("cannot {what} the VM: {taken}"))
                    .hint(
                        "if whoever has it surely does not run this guest: `wherry resume --force`",
                    )
            }
        }
    }

    /// What the guest, or `kill`, did in the middle of a migration, for who asked for it.
    fn ended_meanwhile(&self, end: End, why: &str) -> ControlError {
        let name = &self.settings.name;
        let (what, hint) = match end {
            End::PowerOff => ("the guest powered off while it migrated", None),
            End::Reset if self.reboots() => (
                "the guest reset itself while it migrated",
                Some("it starts again here and can be migrated then".to_owned()),
            ),
            End::Reset => ("the guest reset itself while it migrated, which ends its VM", None),
            End::Fatal => ("the guest crashed while it migrated", None),
            End::Kill => ("the VM was killed while it migrated", None),
        };
        let text = if why.is_empty() { what.to_owned() } else { format!("{what}: {why}") };
        let hint =
            hint.unwrap_or_else(|| format!("`{name}` has ended; nothing runs at the destination"));
        ControlError::new(ErrorCode::MigrationFailed, text).hint(hint)
    }

    /// A migration has failed and the guest's disks are not all its own: a destination that had
    /// loaded it needs a while to notice. The engine's own attempt is made again and again, so that
    /// a guest that ran goes on; until then the VM is migrating, and refuses commands as such. What
    /// is then to be said.
    fn wait_for_disks(&self, error: ControlError, run: bool) -> ControlError {
        let end = Instant::now() + DISKS_BACK;
        while error.code == ErrorCode::DiskTaken && Instant::now() < end {
            // A guest that was paused stays so; one that has ended needs nothing.
            let ended = matches!(self.owner.life(), Life::Migrating { ended: Some(_), .. });
            let back = match run {
                true => self.owner.event(Event::Release).is_ok(),
                false => ended || self.disks.take_back(Locks::Needed),
            };
            if back {
                let hint = if run { "the guest goes on here" } else { "the guest is here, paused" };
                return ControlError::new(ErrorCode::MigrationFailed, error.message).hint(hint);
            }
            std::thread::sleep(AGAIN);
        }
        error
    }

    fn balloon(&self, what: &str) -> Result<Arc<Machine>, ControlError> {
        let m = self.machine(what)?;
        if m.balloon().is_none() {
            return Err(ControlError::new(ErrorCode::Unsupported, "this VM has no balloon")
                .hint("start it without --balloon off"));
        }
        Ok(m)
    }
}

/// Resident memory of this process in bytes.
fn rss_bytes(statm: &ProcFile) -> u64 {
    let text = statm.text();
    text.split(' ').nth(1).and_then(|p| p.parse::<u64>().ok()).unwrap_or(0) * PAGE
}

fn failed(e: impl std::fmt::Display) -> ControlError {
    ControlError::failed(e.to_string())
}

/// A state for the API.
fn shown(life: Life) -> VmState {
    match life {
        Life::Receiving => VmState::Receiving,
        Life::Running => VmState::Running,
        Life::Paused => VmState::Paused,
        Life::Migrating { .. } => VmState::Migrating,
        Life::Migrated => VmState::Migrated,
        Life::Unknown => VmState::MigrationUnknown,
        Life::Rebooting => VmState::Rebooting,
        Life::Ended(_) => VmState::Stopped,
    }
}

impl VmControl for Controller {
    fn info(&self) -> Info {
        let (machine, life) = self.owner.machine();
        let shape = machine.as_ref().map(|m| Shape::of(m.description()));
        let shape = shape.or_else(|| self.shape.get().cloned()).unwrap_or_default();
        Info {
            name: self.settings.name.clone(),
            pid: std::process::id(),
            state: self.shown(life),
            nr_vcpus: shape.nr_vcpus,
            ram_bytes: shape.ram_bytes,
            rss_bytes: rss_bytes(&self.statm),
            kernel: shape.kernel,
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            serial: Some(self.settings.serial.clone()),
            vsock: self.settings.vsock.path().map(|path| path.display().to_string()),
            forwards: self.settings.nets.forwards(),
            balloon: machine.and_then(|m| balloon_info(&m)),
            unlocked_disks: self.disks.forced(),
            disks: self.disks.info(),
            nets: self.settings.nets.info(),
            migrations: MigrationCounts::default(),
            last_migration: None,
        }
    }

    fn pause(&self) -> Result<(), ControlError> {
        self.command("pause", Event::Pause)
    }

    fn resume(&self, force: bool) -> Result<(), ControlError> {
        self.command("resume", Event::Resume { force })
    }

    fn stop(&self) -> Result<(), ControlError> {
        let pressed = self.owner.touch(Event::Touch, Machine::press_power_button);
        pressed.map(drop).map_err(|refusal| {
            let error = self.refused("stop", refusal);
            match refusal {
                Refusal::BeingHandedOver => error,
                _ => error.hint("`wherry kill` ends it in any state"),
            }
        })
    }

    fn kill(&self) {
        self.owner.kill();
    }

    fn balloon_set(&self, target_bytes: u64) -> Result<(), ControlError> {
        let what = "set the balloon of";
        let m = self.balloon(what)?;
        if target_bytes > m.ram().bytes() {
            return Err(ControlError::new(
                ErrorCode::BadRequest,
                format!("the target is larger than guest RAM ({} MiB)", m.ram().bytes() >> 20),
            ));
        }
        let pages = u32::try_from(target_bytes / PAGE).unwrap_or(u32::MAX);
        let set = self.owner.touch(Event::Touch, |m| m.balloon().map(|b| b.set_target(pages)));
        set.map(drop).map_err(|refusal| {
            let error = self.refused(what, refusal);
            match refusal {
                Refusal::State(Life::Paused) => error.hint("`wherry resume` it first"),
                _ => error,
            }
        })
    }

    fn balloon_stats(&self) -> Result<BalloonInfo, ControlError> {
        let m = self.balloon("look at the balloon of")?;
        // A machine that stands still is not asked, which would write to its memory; what it said
        // last is shown.
        refresh_statistics(&self.owner, STATISTICS_TIMEOUT);
        balloon_info(&m).ok_or_else(|| failed("the balloon is gone"))
    }

    fn migrate(
        &self,
        request: &MigrateRequest,
        tell: &mut dyn FnMut(Update),
    ) -> Result<Value, ControlError> {
        let cancel = CancelToken::new();
        let began = self.owner.migrate(&cancel);
        let (m, run) = began.map_err(|refusal| self.refused("migrate", refusal))?;
        // Nobody hands over what somebody else has.
        if !self.disks.take_back(Locks::Needed) {
            self.owner.engine_ended(false);
            return Err(self.refused("migrate", Refusal::DiskTaken));
        }
        let pages = m.ram().bytes() / PAGE;
        let mut tell = |update: Update| {
            if let Update::Progress(now) = &update {
                self.manager.status(&progress(&request.uri, now, pages));
            }
            tell(update);
        };
        // Also if this panics: a VM must not be left migrating.
        let result = catch_unwind(AssertUnwindSafe(|| {
            migrate::to(&self.owner, (&m, run), request, &mut tell, &cancel)
        }))
        .unwrap_or_else(|_| {
            Err(ControlError::new(
                ErrorCode::MigrationFailed,
                "the migration panicked: a defect of Wherry",
            ))
        });
        let moved = match &result {
            Ok(_) => true,
            // Moved, only without a report.
            Err(e) => e.code == ErrorCode::Failed && self.owner.handed_over(),
        };
        let result = result.map_err(|error| self.wait_for_disks(error, run));
        let (after, ended) = self.owner.engine_ended(moved);
        match (result, ended) {
            (Err(e), _) if after == Life::Unknown && e.code != ErrorCode::MigrationUnknown => {
                Err(ControlError { code: ErrorCode::MigrationUnknown, ..e })
            }
            (Err(e), Some(end))
                if e.code != ErrorCode::MigrationUnknown && after == Life::Ended(end) =>
            {
                let why = if end == End::Fatal { m.why() } else { String::new() };
                Err(self.ended_meanwhile(end, &why))
            }
            (result, _) => result,
        }
    }

    fn migrate_cancel(&self) -> Result<(), ControlError> {
        let late = "it is too late to cancel: the guest";
        let (code, text) = match (self.owner.cancel(), self.owner.life()) {
            (Some(true), _) => return Ok(()),
            (_, Life::Migrated) => {
                (ErrorCode::InvalidState, format!("{late} runs at its destination"))
            }
            (_, Life::Unknown) => {
                let text = format!("{late} was handed over, and whether it arrived is unknown");
                (ErrorCode::MigrationUnknown, text)
            }
            (Some(false), _) => (ErrorCode::InvalidState, format!("{late} is being handed over")),
            (None, life) => {
                let why = if matches!(self.seen(life), Life::Ended(_)) {
                    ": the VM has ended"
                } else {
                    ""
                };
                (ErrorCode::InvalidState, format!("no migration is under way{why}"))
            }
        };
        Err(ControlError::new(code, text))
    }

    fn check_console(&self) -> Result<(), ControlError> {
        self.console.check().map_err(|e| {
            ControlError::new(ErrorCode::Busy, e.to_string()).hint("leave one of them with Ctrl-]")
        })
    }

    fn attach_console(&self, client: UnixStream) -> Result<(), ControlError> {
        self.console.attach(client).map_err(failed)
    }
}

#[cfg(test)]
#[path = "controller_tests.rs"]
mod tests;
