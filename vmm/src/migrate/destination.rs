//! The destination's machine in the engine's terms.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvm_ioctls::VmFd;
use wherry_migration::traits::{DestinationVm, GuestRam};
use wherry_migration::{CancelToken, DestinationConfig, Listener, Phase, Snapshot};

use crate::machine::controller::Controller;
use crate::machine::{Description, Machine, MachineHooks, MachineStateV1, open_kvm};
use crate::memory::{PAGE, Ram};

/// A guest's first steps after it arrived are slow: the host maps its memory page by page as it is touched.
const DONE_AFTER: Duration = Duration::from_millis(300);

/// A line of progress at least this often.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// A machine that arrives part by part: description, memory, state.
struct Arriving<'a> {
    hooks: MachineHooks,
    controller: &'a Controller,
    /// When the source said what it wants: the guest still ran there.
    begun: Instant,
    foundation: Option<(Description, Arc<VmFd>, Arc<Ram>)>,
    machine: Option<(Arc<Machine>, bool)>,
}

fn refuse(e: anyhow::Error) -> io::Error {
    io::Error::other(format!("{e:#}"))
}

/// The guest gets its hinted memory back a while after it began to run here, so that it does not stand still twice in one go.
fn give_back_later(machine: &Machine) {
    let Some(balloon) = machine.balloon().cloned() else {
        return;
    };
    let spawned = std::thread::Builder::new().name("give-back".into()).spawn({
        let balloon = balloon.clone();
        move || {
            std::thread::sleep(DONE_AFTER);
            balloon.announce_done();
        }
    });
    if spawned.is_err() {
        balloon.announce_done();
    }
}

impl DestinationVm for Arriving<'_> {
    fn prepare(&mut self, description: &[u8], nr_pages: u64) -> io::Result<Arc<dyn GuestRam>> {
        self.begun = Instant::now();
        let d = Description::decode(description).map_err(|e| refuse(e.into()))?;
        if d.ram_bytes / PAGE != nr_pages {
            return Err(io::Error::other("the machine description contradicts the size of guest RAM"));
        }
        let kvm = open_kvm().map_err(refuse)?;
        d.check_cpu(&kvm).map_err(refuse)?;
        let (vm, ram) = Machine::foundation(&d).map_err(refuse)?;
        self.foundation = Some((d, vm, ram.clone()));
        Ok(ram)
    }

    fn load(&mut self, state: &[u8]) -> io::Result<()> {
        let (d, vm, ram) = self.foundation.take().ok_or_else(|| io::Error::other("state before memory"))?;
        let mut state = MachineStateV1::decode(state).map_err(|e| refuse(e.into()))?;
        if let Some(warning) = state.vm.bound_clock(self.begun.elapsed()) {
            eprintln!("wherry: {warning}");
        }
        let machine = Machine::assemble(&d, &self.hooks, vm, ram, Some(&state)).map_err(refuse)?;
        self.machine = Some((Arc::new(machine), state.running));
        Ok(())
    }

    fn run(&mut self) -> io::Result<()> {
        let (machine, run) =
            self.machine.as_ref().ok_or_else(|| io::Error::other("hand-off before state"))?;
        // The machine in charge and running in one step: a command before it finds no guest, one after it this one.
        let owner = self.controller.owner();
        owner.arrive(machine.clone(), *run).map_err(io::Error::other)?;
        give_back_later(machine);
        Ok(())
    }
}

/// Waits for one source, takes its guest over and runs it (unless it was paused there).
///
/// # Errors
/// As [`wherry_migration::receive`]; its text says who owns the guest.
pub fn receive(
    listener: &Listener,
    hooks: MachineHooks,
    controller: &Controller,
    progress: bool,
) -> anyhow::Result<Arc<Machine>> {
    let cancel = CancelToken::new();
    let transport = super::accept(listener, &cancel)?;
    let said = Mutex::new((Phase::Handshake, Instant::now()));
    let say = move |now: &Snapshot| {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        if progress && (said.0 != now.phase || said.1.elapsed() >= SAY_EVERY) {
            *said = (now.phase, Instant::now());
            eprintln!("wherry: receiving, {}: {} MB so far", now.phase, now.bytes / 1_000_000);
        }
    };
    let mut arriving = Arriving { hooks, controller, begun: Instant::now(), foundation: None, machine: None };
    let received =
        wherry_migration::receive(transport, &mut arriving, &DestinationConfig::default(), &say, &cancel)?;
    if !received.acknowledged {
        eprintln!(
            "wherry: the guest runs here, but the source could not be told: end it there with `wherry kill`"
        );
    }
    match arriving.machine {
        Some((machine, _)) => Ok(machine),
        None => anyhow::bail!("the migration ended without a machine"),
    }
}
