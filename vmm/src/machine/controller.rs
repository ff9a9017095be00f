//! The VM as its control API sees it, through reboots and migrations.

use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::Value;
use wherry_migration::CancelToken;

use super::Machine;
use crate::config::SerialSink;
use crate::console::Console;
use crate::control::{
    BalloonInfo, ControlError, ErrorCode, HintMode, Info, MigrateRequest, Update, VmControl, VmState,
};
use crate::migrate;

/// Why the run loop wakes up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The guest powered off.
    PowerOff,
    /// The guest reset itself (ACPI or triple fault).
    Reset,
    /// `kill`, or a signal.
    Kill,
    /// The guest runs elsewhere now.
    Migrated,
    /// A vCPU cannot go on.
    Fatal(String),
}

/// What a controller knows from the start.
pub struct Identity {
    /// Name of the VM.
    pub name: String,
    /// Kernel, for `info`.
    pub kernel: Option<String>,
    /// Console sink, for `info`.
    pub serial: String,
}

struct Inner {
    machine: Option<Arc<Machine>>,
    state: VmState,
}

/// Implements [`VmControl`] on whatever machine runs now.
pub struct Controller {
    identity: Identity,
    started: Instant,
    console: Console,
    events: Mutex<Sender<Event>>,
    inner: Mutex<Inner>,
    /// Held for the whole of a migration: one at a time, and the run loop can wait for its end.
    migrating: Mutex<()>,
    cancel: Mutex<Option<CancelToken>>,
    /// What the guest did that ended a migration.
    ended: Mutex<Option<String>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Controller {
    /// A controller without a machine yet.
    pub fn new(identity: Identity, console: Console, events: Sender<Event>) -> Self {
        Self {
            identity,
            started: Instant::now(),
            console,
            events: Mutex::new(events),
            inner: Mutex::new(Inner { machine: None, state: VmState::Receiving }),
            migrating: Mutex::new(()),
            cancel: Mutex::new(None),
            ended: Mutex::new(None),
        }
    }

    /// Name for the sink in `info`.
    pub fn describe_sink(sink: &SerialSink, pty: Option<&std::path::Path>) -> String {
        pty.map_or_else(|| sink.to_string(), |p| format!("pty {}", p.display()))
    }

    /// Puts a machine in charge (at start, after a reset, after it arrived).
    pub fn set_machine(&self, machine: Option<Arc<Machine>>, state: VmState) {
        let mut inner = lock(&self.inner);
        inner.machine = machine;
        inner.state = state;
    }

    /// Sends an event to the run loop.
    pub fn send(&self, event: Event) {
        // The loop may be gone already; then nobody needs to know.
        let _ = lock(&self.events).send(event);
    }

    /// Cancels a migration under way because of `event` and waits until it is over. Returns the state that it left.
    pub fn settle_migration(&self, event: &Event) -> VmState {
        if let Some(c) = &*lock(&self.cancel) {
            *lock(&self.ended) = match event {
                Event::PowerOff => Some("the guest powered off".into()),
                Event::Reset => Some("the guest reset itself".into()),
                Event::Fatal(why) => Some(format!("the guest crashed: {why}")),
                Event::Kill | Event::Migrated => None,
            };
            c.cancel();
        }
        let _over = lock(&self.migrating);
        lock(&self.inner).state
    }

    fn machine(&self) -> Result<Arc<Machine>, ControlError> {
        lock(&self.inner).machine.clone().ok_or_else(|| {
            ControlError::new(ErrorCode::InvalidState, "no guest has arrived yet")
                .hint("start `wherry migrate` at the source")
        })
    }

    fn state(&self) -> VmState {
        lock(&self.inner).state
    }

    fn set_state(&self, state: VmState) {
        lock(&self.inner).state = state;
    }

    fn balloon(&self) -> Result<Arc<Machine>, ControlError> {
        let m = self.machine()?;
        if m.balloon().is_none() {
            return Err(ControlError::new(ErrorCode::Unsupported, "this VM has no balloon")
                .hint("start it without --balloon off"));
        }
        Ok(m)
    }
}

fn failed(e: impl std::fmt::Display) -> ControlError {
    ControlError::new(ErrorCode::Failed, e.to_string())
}

fn wrong_state(what: &str, state: VmState) -> ControlError {
    ControlError::new(ErrorCode::InvalidState, format!("cannot {what} a VM that is {}", state.as_str()))
}

impl VmControl for Controller {
    fn info(&self) -> Info {
        let (machine, state) = {
            let inner = lock(&self.inner);
            (inner.machine.clone(), inner.state)
        };
        Info {
            name: self.identity.name.clone(),
            pid: std::process::id(),
            state,
            nr_vcpus: machine.as_ref().map_or(0, |m| m.nr_vcpus()),
            ram_bytes: machine.as_ref().map_or(0, |m| m.ram().bytes()),
            rss_bytes: super::rss_bytes(),
            kernel: self.identity.kernel.clone(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            serial: Some(self.identity.serial.clone()),
            balloon: machine.and_then(|m| m.balloon_info()),
            last_migration: None,
        }
    }

    fn pause(&self) -> Result<(), ControlError> {
        let m = self.machine()?;
        match self.state() {
            VmState::Running | VmState::Paused => {
                m.pause();
                self.set_state(VmState::Paused);
                Ok(())
            }
            other => Err(wrong_state("pause", other)),
        }
    }

    fn resume(&self, force: bool) -> Result<(), ControlError> {
        let m = self.machine()?;
        match self.state() {
            VmState::Running => Ok(()),
            VmState::Paused => {
                m.resume();
                self.set_state(VmState::Running);
                Ok(())
            }
            VmState::MigrationUnknown if force => {
                m.resume();
                self.set_state(VmState::Running);
                Ok(())
            }
            VmState::MigrationUnknown => Err(wrong_state("resume", VmState::MigrationUnknown)
                .hint("if the destination surely does not run it: `wherry resume --force`")),
            other => Err(wrong_state("resume", other)),
        }
    }

    fn stop(&self) -> Result<(), ControlError> {
        let m = self.machine()?;
        match self.state() {
            VmState::Running | VmState::Migrating => {
                m.press_power_button();
                Ok(())
            }
            other => Err(wrong_state("stop", other).hint("`wherry kill` ends it in any state")),
        }
    }

    fn kill(&self) {
        self.send(Event::Kill);
    }

    fn balloon_set(&self, target_bytes: u64) -> Result<(), ControlError> {
        let m = self.balloon()?;
        if target_bytes > m.ram().bytes() {
            return Err(ControlError::new(
                ErrorCode::BadRequest,
                format!("the target is larger than guest RAM ({} MiB)", m.ram().bytes() >> 20),
            ));
        }
        m.set_balloon_target(target_bytes);
        Ok(())
    }

    fn balloon_stats(&self) -> Result<BalloonInfo, ControlError> {
        let m = self.balloon()?;
        m.refresh_statistics(std::time::Duration::from_millis(500));
        m.balloon_info().ok_or_else(|| failed("the balloon is gone"))
    }

    fn migrate(&self, request: &MigrateRequest, tell: &mut dyn FnMut(Update)) -> Result<Value, ControlError> {
        let m = self.machine()?;
        let _one = self.migrating.try_lock().map_err(|_| {
            ControlError::new(ErrorCode::Busy, "a migration is under way").hint("`wherry cancel` stops it")
        })?;
        let before = match self.state() {
            s @ (VmState::Running | VmState::Paused) => s,
            other => return Err(wrong_state("migrate", other)),
        };
        let cancel = CancelToken::new();
        *lock(&self.cancel) = Some(cancel.clone());
        self.set_state(VmState::Migrating);
        let result = migrate::to(&m, request, before == VmState::Paused, tell, &cancel);
        *lock(&self.cancel) = None;
        let ended = lock(&self.ended).take();
        let result = match (result, ended) {
            (Err(e), Some(why)) if e.code == ErrorCode::Cancelled => {
                Err(ControlError::new(ErrorCode::MigrationFailed, format!("{why} while it migrated"))
                    .hint("a guest that rebooted goes on here and can be migrated again"))
            }
            (result, _) => result,
        };
        match &result {
            Ok(_) => {
                self.set_state(VmState::Migrated);
                self.send(Event::Migrated);
            }
            Err(e) if e.code == ErrorCode::MigrationUnknown => self.set_state(VmState::MigrationUnknown),
            Err(_) => self.set_state(before),
        }
        result
    }

    fn migrate_cancel(&self) -> Result<(), ControlError> {
        match &*lock(&self.cancel) {
            Some(c) => {
                c.cancel();
                Ok(())
            }
            None => Err(ControlError::new(ErrorCode::InvalidState, "no migration is under way")),
        }
    }

    fn attach_console(&self, client: UnixStream) -> Result<(), ControlError> {
        self.console.attach(client).map_err(failed)
    }
}

/// The engine's word for the API's.
pub fn hint_policy(mode: HintMode) -> wherry_migration::HintPolicy {
    match mode {
        HintMode::Auto => wherry_migration::HintPolicy::Auto,
        HintMode::On => wherry_migration::HintPolicy::On,
        HintMode::Off => wherry_migration::HintPolicy::Off,
    }
}
