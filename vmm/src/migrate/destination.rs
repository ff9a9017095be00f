//! The destination's machine as the engine's traits want it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use kvm_ioctls::VmFd;
use wherry_migration::error::describe;
use wherry_migration::traits::{DestinationVm, FileId, GuestRam, Sink};
use wherry_migration::wire::MAX_PAGES;
use wherry_migration::{
    CancelToken, DestinationConfig, Error, Listener, Phase, Snapshot, await_source, receive_from,
};

use super::boot::BootFiles;
use crate::config::ReceiveConfig;
use crate::kvm::open_kvm;
use crate::life::owner::{Owner, Vcpus};
use crate::machine::{Description, Machine, MachineHooks, MachineState};
use crate::memory::{PAGE, Ram};
use crate::newer;
use crate::sync::lock;

/// A guest's first steps after it arrived are slow: the host maps its memory page by page as it is
/// touched.
const ANNOUNCE_AFTER: Duration = Duration::from_millis(300);

/// A line of progress at least this often.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// Strangers that are named on standard error within a minute.
const STRANGERS_A_MINUTE: u32 = 10;

/// Says who was turned away, without letting a scanner fill the log.
struct Strangers {
    minute: Instant,
    named: u32,
    unnamed: u64,
}

impl Strangers {
    fn new(now: Instant) -> Self {
        Self { minute: now, named: 0, unnamed: 0 }
    }

    /// What to say about one more, if anything.
    fn line(&mut self, now: Instant, peer: &str, why: &Error) -> Option<String> {
        if now.saturating_duration_since(self.minute) >= Duration::from_secs(60) {
            (self.minute, self.named) = (now, 0);
        }
        if self.named == STRANGERS_A_MINUTE {
            self.unnamed += 1;
            return None;
        }
        self.named += 1;
        let others = match std::mem::take(&mut self.unnamed) {
            0 => String::new(),
            n => format!(" (and {n} others before)"),
        };
        let why = describe(why);
        Some(format!("wherry: turned away {peer}{others}: {why}; still waiting for the source"))
    }
}

/// Memory that this host has available, in bytes.
fn available_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

/// A machine that arrives part by part: description, memory, state.
struct DestinationMachine<'a> {
    hooks: MachineHooks,
    owner: &'a Owner<Machine>,
    /// When the source said what it wants: the guest still ran there.
    begun: Instant,
    vm_and_ram: Option<(Description, Arc<VmFd>, Arc<Ram>)>,
    /// What it boots at a reset.
    boot: BootFiles,
    /// Told whether it does.
    reboots: &'a AtomicBool,
    machine: Option<(Arc<Machine>, bool)>,
}

fn refuse(e: anyhow::Error) -> io::Error {
    io::Error::other(format!("{e:#}"))
}

fn dead(machine: &Machine) -> io::Error {
    io::Error::other(format!("its machine died on arrival: {}", machine.why()))
}

/// Devices announce themselves a while after the guest began to run here: it gets its hinted memory
/// back then, and is not to stand still twice in one go.
fn announce_later(machine: &Arc<Machine>) {
    let spawned = std::thread::Builder::new().name("announce".into()).spawn({
        let machine = Arc::downgrade(machine);
        move || {
            std::thread::sleep(ANNOUNCE_AFTER);
            if let Some(machine) = machine.upgrade() {
                machine.announce();
            }
        }
    });
    if spawned.is_err() {
        machine.announce();
    }
}

impl DestinationVm for DestinationMachine<'_> {
    fn prepare(&mut self, description: &[u8], nr_pages: u64) -> io::Result<Arc<dyn GuestRam>> {
        self.begun = Instant::now();
        let d = Description::decode(description).map_err(|e| refuse(e.into()))?;
        if d.ram_bytes / PAGE != nr_pages {
            return Err(io::Error::other(
                "the machine description contradicts the size of guest RAM",
            ));
        }
        self.hooks.disks.check(&d.devices)?;
        self.hooks.nets.check(&d.devices)?;
        self.hooks.vsock.check(&d.devices)?;
        let kvm = open_kvm().map_err(refuse)?;
        d.check_cpu(&kvm).map_err(refuse)?;
        let (vm, ram) = Machine::create_vm_and_ram(&d, &self.hooks.memory).map_err(refuse)?;
        self.vm_and_ram = Some((d, vm, ram.clone()));
        Ok(ram)
    }

    fn boot(&mut self, description: &[u8], files: &[FileId]) -> io::Result<Vec<Sink>> {
        let (machine, ..) =
            self.vm_and_ram.as_mut().ok_or_else(|| io::Error::other("no machine to boot"))?;
        self.boot.take(machine, description, files).map_err(refuse)
    }

    fn load(&mut self, state: &[u8]) -> io::Result<()> {
        let (mut d, vm, ram) =
            self.vm_and_ram.take().ok_or_else(|| io::Error::other("state before memory"))?;
        self.boot.finish(&mut d)?;
        let mut state = MachineState::decode(state).map_err(|e| refuse(e.into()))?;
        if let Some(warning) = state.vm.bound_clock(self.begun.elapsed()) {
            eprintln!("wherry: {warning}");
        }
        let running = state.running;
        let machine = Machine::assemble(&d, &self.hooks, vm, ram, Some(state)).map_err(refuse)?;
        if machine.ended().is_some() {
            // In time for the source to keep its guest.
            return Err(dead(&machine));
        }
        self.machine = Some((Arc::new(machine), running));
        Ok(())
    }

    fn run(&mut self) -> io::Result<()> {
        let (machine, run) =
            self.machine.as_ref().ok_or_else(|| io::Error::other("hand-off before state"))?;
        // Known before anybody sees the guest end.
        self.reboots.store(machine.description().reset.boots, Ordering::SeqCst);
        // The machine in charge and running in one step: a command before it finds no guest, one
        // after it this one.
        self.owner.arrive(machine.clone(), *run).map_err(|refusal| match machine.ended() {
            Some(_) => dead(machine),
            None => io::Error::other(refusal),
        })?;
        announce_later(machine);
        Ok(())
    }
}

/// Waits for a source, takes its guest over and runs it (unless it was paused there). Whoever else
/// connects is turned away, and the wait goes on, until `cancel` ends it.
///
/// # Errors
/// As [`wherry_migration::receive_from`]; its text says who owns the guest.
pub fn receive(
    listener: Listener,
    hooks: MachineHooks,
    (owner, reboots): (&Owner<Machine>, &AtomicBool),
    wanted: &ReceiveConfig,
    cancel: &CancelToken,
) -> anyhow::Result<Arc<Machine>> {
    // Before a source waits for it.
    let ReceiveConfig { kernel, initrd, reboot, .. } = wanted;
    let boot = BootFiles::new(kernel.as_deref(), initrd.as_deref(), *reboot);
    let &ReceiveConfig { progress, max_memory, .. } = wanted;
    let mut strangers = Strangers::new(Instant::now());
    let mut turned_away = |peer: &str, why: &Error| {
        if let Some(line) = strangers.line(Instant::now(), peer, why) {
            eprintln!("{line}");
        }
    };
    let mut config =
        DestinationConfig { versions: newer::versions(), ..DestinationConfig::default() };
    let source =
        await_source(listener, &config, cancel, &mut turned_away).context("no source connected")?;
    if let Some(most) = max_memory.or_else(available_memory) {
        config.max_pages = (most / PAGE).min(MAX_PAGES);
    }
    let said = Mutex::new((Phase::Handshake, Instant::now()));
    let say = move |now: &Snapshot| {
        let mut said = lock(&said);
        if progress && (said.0 != now.phase || said.1.elapsed() >= SAY_EVERY) {
            *said = (now.phase, Instant::now());
            eprintln!("wherry: receiving, {}: {} MB so far", now.phase, now.bytes / 1_000_000);
        }
    };
    let mut arriving = DestinationMachine {
        hooks,
        owner,
        begun: Instant::now(),
        vm_and_ram: None,
        boot,
        reboots,
        machine: None,
    };
    let received = receive_from(source, &mut arriving, &config, &say, cancel);
    if received.is_err() && owner.machine().0.is_none() {
        // The source waits for them, and freeing memory takes its time.
        arriving.hooks.disks.abandon();
    }
    let received = received?;
    if !received.acknowledged {
        eprintln!(
            "wherry: the guest runs here, but the source could not be told: end it there with \
             `wherry kill`"
        );
    }
    if !arriving.boot.told {
        eprintln!(
            "wherry: the source is an older wherry and does not say what the guest boots: a reboot \
             ends it here"
        );
    }
    match arriving.machine {
        Some((machine, _)) => Ok(machine),
        None => anyhow::bail!("the migration ended without a machine"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::fixture;

    /// On KVM where there is one. A source whose clock stands in 1970 does not make the guest
    /// older by all the time since.
    #[test]
    fn a_guest_that_arrives_is_no_older_than_its_migration_took() {
        let Some(description) = fixture::description(1, None) else { return };
        let hooks = fixture::hooks();
        let machine = Machine::build(&description, hooks.clone()).unwrap();
        let mut state = machine.save(true, u16::MAX).unwrap();
        state.vm.realtime_ns = 0;
        let owner = Owner::default();
        let mut arriving = DestinationMachine {
            hooks,
            owner: &owner,
            begun: Instant::now(),
            vm_and_ram: None,
            boot: BootFiles::new(None, None, true),
            reboots: &AtomicBool::new(false),
            machine: None,
        };
        let bytes = description.encode(u16::MAX).unwrap();
        arriving.prepare(&bytes, description.ram_bytes / PAGE).unwrap();
        arriving.load(&state.encode(u16::MAX).unwrap()).unwrap();
        let (arrived, _) = arriving.machine.unwrap();
        let clock_ns = arrived.save(true, u16::MAX).unwrap().vm.clock_ns;
        let aged = Duration::from_nanos(clock_ns - state.vm.clock_ns);
        assert!(aged < Duration::from_secs(3600), "{aged:?}");
    }

    #[test]
    fn a_scanner_does_not_fill_the_log() {
        let start = Instant::now();
        let mut strangers = Strangers::new(start);
        let mut lines = |n: u64, now| -> Vec<String> {
            (0..n).filter_map(|_| strangers.line(now, "10.0.0.9:1", &Error::Closed)).collect()
        };
        let first = lines(100, start);
        assert_eq!(first.len(), 10);
        assert!(
            first[0].starts_with("wherry: turned away 10.0.0.9:1: the peer closed"),
            "{}",
            first[0]
        );
        let later = lines(1, start + Duration::from_secs(61));
        assert!(later[0].contains("(and 90 others before)"), "{later:?}");
    }

    #[test]
    fn the_host_says_how_much_memory_it_has() {
        assert!(available_memory().unwrap() > 1 << 20);
    }
}
