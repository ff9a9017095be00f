//! The destination's machine as the engine's traits want it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use kvm_ioctls::VmFd;
use tracing::warn;
use wherry_migration::traits::{DestinationVm, FileId, GuestRam, Sink};
use wherry_migration::transport::tls::Token;
use wherry_migration::wire::MAX_PAGES;
use wherry_migration::{
    CancelToken, DestinationConfig, Listener, TransportError, await_source, receive_from,
};

use super::boot::{BootFiles, Here};
use super::token::{Told, tell};
use super::{course, listen};
use crate::config::ReceiveConfig;
use crate::control::{ControlError, ErrorCode};
use crate::life::owner::{Owner, Vcpus};
use crate::machine::{Description, Machine, MachineHooks, MachineState};
use crate::memory::{PAGE, Ram};
use crate::newer;
use crate::proc_file::ProcFile;

/// A guest's first steps after it arrived are slow: the host maps its memory page by page as it is
/// touched.
const ANNOUNCE_AFTER: Duration = Duration::from_millis(300);

/// What this host says of its memory.
const MEMINFO: &str = "/proc/meminfo";

/// Memory that this host has available, in bytes.
fn available_memory(meminfo: &ProcFile) -> Option<u64> {
    memory(meminfo, "MemAvailable:")
}

/// A line of that file, in bytes.
fn memory(meminfo: &ProcFile, name: &str) -> Option<u64> {
    let info = meminfo.text();
    let line = info.lines().find_map(|line| line.strip_prefix(name))?;
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

/// Nobody has come with the token in its time.
fn expired(time: Duration) -> ControlError {
    let text =
        format!("nobody came with the token within {} s: it is no longer good", time.as_secs());
    ControlError::new(ErrorCode::TokenExpired, text)
        .hint("`wherry receive` makes a new one each time")
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
    let spawned = wherry_threads::of_kind("announce").spawn({
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
        let kvm = self.hooks.kvm.get().map_err(refuse)?;
        d.check_cpu(kvm).map_err(refuse)?;
        let (vm, ram) = Machine::create_vm_and_ram(&d, kvm, &self.hooks.memory).map_err(refuse)?;
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
            warn!("{warning}");
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
        self.hooks.disks.close_folders();
        announce_later(machine);
        Ok(())
    }
}

/// What a receiver has open before anybody is waited for.
pub struct Ground {
    listener: Listener,
    here: Here,
    meminfo: ProcFile,
    /// By which a source is let in, if it needs one.
    token: Option<Token>,
    told: Told,
}

impl Ground {
    /// Listens for a source, and follows the paths that the command line names. The files of VMs in
    /// the `runtime` folder are not to listen at.
    ///
    /// # Errors
    /// As for [`listen`].
    pub fn open(wanted: &ReceiveConfig, runtime: &Path) -> anyhow::Result<Self> {
        let (listener, token) = listen(wanted, runtime)?;
        Ok(Self {
            listener,
            token,
            told: Told::default(),
            here: Here::open(wanted.kernel.as_deref(), wanted.initrd.as_deref()),
            meminfo: ProcFile::open(MEMINFO),
        })
    }

    /// Tells the token, if there is one: before anybody can see that this receiver is up.
    ///
    /// # Errors
    /// As for [`tell`].
    pub fn tell(&mut self, wanted: &ReceiveConfig) -> anyhow::Result<()> {
        if let (Some(token), Some(to)) = (self.token.take(), &wanted.token) {
            self.told = tell(&token, to)?;
        }
        Ok(())
    }

    /// The most memory that a guest may bring; `None`: nobody knows.
    pub fn most_memory(&self, wanted: &ReceiveConfig) -> Option<u64> {
        wanted.max_memory.or_else(|| memory(&self.meminfo, "MemTotal:"))
    }
}

/// Waits for a source, takes its guest over and runs it (unless it was paused there). Whoever else
/// connects is turned away, and the wait goes on, until `cancel` ends it, or the token that was
/// `told` is no longer good.
///
/// # Errors
/// As [`wherry_migration::receive_from`]; its text says who owns the guest.
pub fn receive(
    ground: Ground,
    hooks: MachineHooks,
    (owner, reboots): (&Owner<Machine>, &AtomicBool),
    wanted: &ReceiveConfig,
    cancel: &CancelToken,
) -> anyhow::Result<Arc<Machine>> {
    // Before a source waits for it.
    let &ReceiveConfig { reboot, progress, max_memory, .. } = wanted;
    let Ground { listener, here, meminfo, token: _, told } = ground;
    let boot = BootFiles::new(here, reboot);
    let mut config =
        DestinationConfig { versions: newer::versions(), ..DestinationConfig::default() };
    let good_for = told.good_for;
    config.patience = good_for.or(wanted.patience).unwrap_or(config.patience);
    let source = match await_source(listener, &config, cancel, &mut course::turned_away) {
        Err(TransportError::TimedOut(time)) if good_for.is_some() => {
            return Err(expired(time).into());
        }
        source => source.context("no source connected")?,
    };
    // It is used, whatever becomes of the migration.
    drop(told);
    if let Some(most) = max_memory.or_else(|| available_memory(&meminfo)) {
        config.max_pages = (most / PAGE).min(MAX_PAGES);
    }
    let course = course::Arriving::begin(progress);
    let mut arriving = DestinationMachine {
        hooks,
        owner,
        begun: Instant::now(),
        vm_and_ram: None,
        boot,
        reboots,
        machine: None,
    };
    let received = receive_from(source, &mut arriving, &config, &course, cancel);
    if received.is_err() && owner.machine().0.is_none() {
        // The source waits for them, and freeing memory takes its time.
        arriving.hooks.disks.abandon();
    }
    course.ended(&received);
    received.map_err(|e| {
        let e = anyhow::Error::from(e);
        if good_for.is_some() {
            e.context("the token is used, and the guest did not come")
        } else {
            e
        }
    })?;
    if !arriving.boot.told {
        warn!(
            "the source is an older wherry and does not say what the guest boots: a reboot ends it \
             here"
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
    use crate::config::TokenTo;
    use crate::control::{MigrateRequest, Update};
    use crate::exit::Exit;
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
            boot: BootFiles::new(Here::default(), true),
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
    fn a_token_that_nobody_came_with_ends_the_wait_by_name() {
        let Some(_) = fixture::description(1, None) else { return };
        let runtime = tempfile::tempdir().unwrap();
        let at = super::super::tests::receiver("tcp:127.0.0.1:0".into(), None);
        let mut ground = Ground::open(&at, runtime.path()).unwrap();
        ground.told.good_for = Some(Duration::from_millis(200));
        let (owner, reboots) = (Owner::default(), AtomicBool::new(false));
        let wanted = super::super::tests::receiver("tcp:127.0.0.1:1".into(), None);
        let ends = (&owner, &reboots);
        let cancel = CancelToken::new();
        let ended = receive(ground, fixture::hooks(), ends, &wanted, &cancel);
        let error = ControlError::from(ended.err().expect("a guest came"));
        assert_eq!(Exit::of(&error), Exit::TokenExpired, "{error}");
        assert!(error.message.contains("no longer good"), "{error}");
    }

    #[test]
    fn a_token_is_used_and_gone_while_the_source_that_came_with_it_still_sends() {
        let Some(description) = fixture::description(1, None) else { return };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let mut wanted = super::super::tests::receiver("tls:127.0.0.1:0".into(), None);
        wanted.token = Some(TokenTo::File(path.clone().into()));
        let mut ground = Ground::open(&wanted, folder.path()).unwrap();
        ground.tell(&wanted).unwrap();
        let uri = ground.listener.endpoint().unwrap().to_string();
        let token: Token = std::fs::read_to_string(&path).unwrap().parse().unwrap();
        let mut request =
            MigrateRequest { token: Some(Box::new(token)), ..MigrateRequest::new(uri) };
        // It would take a minute.
        request.bandwidth_bytes_s = Some(super::super::LEAST_BANDWIDTH);
        let source = Arc::new(Owner::default());
        let machine = Arc::new(Machine::build(&description, fixture::hooks()).unwrap());
        machine.ram().write(0, &[1; 60 * super::super::LEAST_BANDWIDTH as usize]).unwrap();
        source.arrive(machine.clone(), false).unwrap();
        let come = |tell: &mut dyn FnMut(Update), cancel: &CancelToken| {
            super::super::to(&source, (&machine, false), &request, tell, cancel).unwrap_err()
        };
        // Before its first round the receiver has answered, which it does once it has let it in.
        let (mut left, cancelled) = (None, CancelToken::new());
        let mut look = |update| {
            if matches!(update, Update::Progress(now) if now["phase"] == "rounds") {
                left.get_or_insert(std::fs::read_to_string(&path).unwrap());
                cancelled.cancel();
            }
        };
        let (owner, reboots) = (Owner::default(), AtomicBool::new(false));
        let (ends, cancel) = ((&owner, &reboots), CancelToken::new());
        let (first, second, there) = std::thread::scope(|scope| {
            let receiver =
                scope.spawn(|| receive(ground, fixture::hooks(), ends, &wanted, &cancel));
            let came = (come(&mut look, &cancelled), come(&mut |_| (), &CancelToken::new()));
            cancel.cancel();
            (came.0, came.1, receiver.join().unwrap())
        });
        let there = format!("{:#}", there.err().expect("a guest came"));
        assert!(there.contains("the token is used, and the guest did not come"), "{there}");
        assert_eq!((first.code, left.as_deref()), (ErrorCode::Cancelled, Some("")), "{first}");
        let hint = second.hint.as_deref().unwrap_or_default();
        assert!(hint.contains("a token is good once"), "{second}");
    }

    #[test]
    fn a_receiver_with_little_patience_ends_by_itself() {
        let Some(_) = fixture::description(1, None) else { return };
        let runtime = tempfile::tempdir().unwrap();
        let mut wanted = super::super::tests::receiver("tcp:127.0.0.1:0".into(), None);
        wanted.patience = Some(Duration::from_millis(200));
        let ground = Ground::open(&wanted, runtime.path()).unwrap();
        let (owner, reboots) = (Owner::default(), AtomicBool::new(false));
        let cancel = CancelToken::new();
        let ends = (&owner, &reboots);
        let ended = receive(ground, fixture::hooks(), ends, &wanted, &cancel);
        let error = format!("{:#}", ended.err().expect("a guest came"));
        assert_eq!(error, "no source connected: no connection in 200 ms");
    }

    #[test]
    fn the_host_says_how_much_memory_it_has() {
        assert!(available_memory(&ProcFile::open(MEMINFO)).unwrap() > 1 << 20);
    }
}
