//! From the command line to the end of the guest: claim the name, build, boot, wait, reboot or leave.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use anyhow::Context;

use super::controller::{Controller, Event, Identity};
use super::state::{Description, Kernel};
use super::{Machine, MachineHooks};
use crate::config::{ExitReason, ReceiveConfig, RunConfig, SerialSink};
use crate::console::Console;
use crate::control::{NameClaim, RuntimeDir, Server, VmControl, VmState, signals};
use crate::migrate;

/// A VM process: its name, its control socket, its console.
struct Host {
    controller: Arc<Controller>,
    console: Console,
    events: Receiver<Event>,
    reboot: bool,
    /// Last, so that the socket and the lock go after everything else.
    _server: Server,
}

impl Host {
    fn start(
        claim: NameClaim,
        kernel: Option<String>,
        serial: &SerialSink,
        reboot: bool,
    ) -> anyhow::Result<Self> {
        let name = claim.name().to_owned();
        let (console, pty) =
            Console::open(serial).with_context(|| format!("cannot open the serial console {serial}"))?;
        let (sender, events) = channel();
        let serial = Controller::describe_sink(serial, pty.as_deref());
        if let Some(path) = pty {
            eprintln!("wherry: the serial console of {name} is {}", path.display());
        }
        let identity = Identity { name, kernel, serial };
        let controller = Arc::new(Controller::new(identity, console.clone(), sender));
        let control: Arc<dyn VmControl> = controller.clone();
        signals::forward_to(&control);
        let server = Server::start(claim, control).context("cannot offer the control socket")?;
        Ok(Self { controller, console, events, reboot, _server: server })
    }

    fn hooks(&self) -> MachineHooks {
        let controller = self.controller.clone();
        MachineHooks { console: self.console.clone(), on_event: Arc::new(move |e| controller.send(e)) }
    }

    fn boot(&self, kernel: &Kernel, description: &Description) -> anyhow::Result<Arc<Machine>> {
        let machine = Machine::build(description, self.hooks())?;
        machine.boot(kernel)?;
        Ok(Arc::new(machine))
    }

    /// Runs `machine`, through reboots, until the VM ends, and lets all answers and the last words of the guest out.
    fn run(self, machine: Arc<Machine>) -> anyhow::Result<ExitReason> {
        let console = self.console.clone();
        let result = self.serve(machine);
        // The server goes first: nobody is to wait for an answer, or for the name, while RAM is given back (a second for a few GiB).
        drop(self);
        console.finish();
        result.map(|(reason, _machine)| reason)
    }

    fn serve(&self, mut machine: Arc<Machine>) -> anyhow::Result<(ExitReason, Arc<Machine>)> {
        loop {
            let event = self.events.recv().unwrap_or(Event::Kill);
            // A guest that ends while it migrates ends here, unless the hand-off was faster.
            let state = match event {
                Event::Migrated => VmState::Migrated,
                _ => self.controller.settle_migration(&event),
            };
            let reason = match (event, state) {
                (_, VmState::Migrated) => ExitReason::Migrated,
                // The guest may run elsewhere; what it did here before that must neither restart nor end anything.
                (e, VmState::MigrationUnknown) if e != Event::Kill => continue,
                (Event::Reset, _) if self.reboot => {
                    let description = machine.description().clone();
                    self.controller.set_machine(None, VmState::Stopped);
                    drop(machine);
                    let kernel = description.kernel.clone();
                    machine = self
                        .boot(&kernel, &description)
                        .context("the guest rebooted and cannot be started again")?;
                    machine.resume();
                    self.controller.set_machine(Some(machine.clone()), VmState::Running);
                    continue;
                }
                (Event::PowerOff, _) => ExitReason::PoweredOff,
                (Event::Reset, _) => ExitReason::Rebooted,
                (Event::Fatal(why), _) => ExitReason::Crashed(why),
                (Event::Kill | Event::Migrated, _) => ExitReason::Killed,
            };
            machine.pause();
            self.controller.set_machine(None, end_state(&reason));
            return Ok((reason, machine));
        }
    }
}

fn end_state(reason: &ExitReason) -> VmState {
    if *reason == ExitReason::Migrated { VmState::Migrated } else { VmState::Stopped }
}

/// Boots a machine and runs it to its end.
///
/// # Errors
/// Name in use, no usable KVM, a kernel or initrd that cannot be loaded, memory that the host cannot map.
pub fn run(config: RunConfig) -> anyhow::Result<ExitReason> {
    let claim = RuntimeDir::from_env()?.claim(&config.name)?;
    let kernel = Kernel { path: config.kernel, initrd: config.initrd, cmdline: config.cmdline };
    let shown = kernel.path.display().to_string();
    let description = Description::new(config.ram_bytes, config.nr_vcpus, config.balloon, kernel.clone())?;
    let host = Host::start(claim, Some(shown), &config.serial, config.reboot)?;
    let machine = host.boot(&kernel, &description)?;
    host.controller.set_machine(Some(machine.clone()), VmState::Running);
    machine.resume();
    host.run(machine)
}

/// Waits for a guest, takes it over and runs it to its end.
///
/// # Errors
/// As for [`run`], and every way in which the migration can fail; then the guest is still at the source, or the text says
/// that this is not known.
pub fn receive(config: ReceiveConfig) -> anyhow::Result<ExitReason> {
    let claim = RuntimeDir::from_env()?.claim(&config.name)?;
    let listener = migrate::listen(&config.uri)?;
    // The kernel's path came from the source and means nothing here: a guest that reboots ends.
    let host = Host::start(claim, None, &config.serial, false)?;
    let machine = {
        // `kill` must end the wait for a source, too.
        let hooks = host.hooks();
        let controller = host.controller.clone();
        let (done, result) = channel();
        let thread = std::thread::Builder::new().name("receive".into()).spawn(move || {
            let got = migrate::receive(&listener, hooks, &controller, config.progress);
            let _ = done.send(got);
            controller.send(Event::Migrated);
        })?;
        // The receiver's own event ends the wait, or a reason to leave. The guest may be faster than both.
        let mut early = Vec::new();
        loop {
            match host.events.recv() {
                Ok(Event::Migrated) => break,
                Ok(Event::Kill) | Err(_) => return Ok(ExitReason::Killed),
                Ok(event) => early.push(event),
            }
        }
        let _ = thread.join();
        early.into_iter().for_each(|event| host.controller.send(event));
        result.recv().context("the receiver ended without a result")??
    };
    host.run(machine)
}
