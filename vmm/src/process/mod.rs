//! The process of a VM, from its configuration to the end of the guest: claim the name, build,
//! boot, wait, reboot or leave.

mod balloon;
mod controller;
mod ends;
pub mod keyboard;
mod manager;
pub mod opening;
pub mod start;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{TryRecvError, channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use tracing::{info, warn};
use wherry_migration::CancelToken;
use wherry_rootfs::Reader;

use crate::config::ExitReason;
use crate::confine::seccomp;
use crate::console;
use crate::control::{NameClaim, Server, VmControl, signals};
use crate::kvm::KvmDevice;
use crate::life::owner::Owner;
use crate::life::{End, Event, Life};
use crate::logging::COURSE;
use crate::machine::{Description, Machine, MachineHooks};
use crate::memory::Backing;
use crate::net::Nets;
use controller::{Controller, VmSettings};
use ends::Ends;

/// A receiver that is killed has so long to take its socket away, and a boot to end.
const LAST_STEPS: Duration = Duration::from_secs(1);
/// How long a reboot waits for requests that a disk still has.
const DISKS_IDLE: Duration = Duration::from_secs(60);
/// Time between two looks at them.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Reboots within [`BRAKE_WITHIN`] that go through at once.
const BRAKE_AFTER: usize = 3;
/// See [`BRAKE_AFTER`].
const BRAKE_WITHIN: Duration = Duration::from_secs(10);
/// The wait before each further one.
const BRAKE_PAUSE: Duration = Duration::from_secs(1);

/// A VM process: its control socket, and what stands behind it.
struct VmProcess {
    controller: Arc<Controller>,
    nets: Nets,
    memory: Backing,
    kvm: KvmDevice,
    reader: Reader,
    /// Last, so that the socket and the lock go after everything else.
    _server: Server,
}

impl VmProcess {
    fn start(
        claim: NameClaim,
        expected: Option<&Description>,
        console: console::Opened,
        ends: Ends,
    ) -> anyhow::Result<Self> {
        let Ends { nets, disks, vsock, memory, kvm, reader, manager, statm } = ends;
        let name = claim.name().to_owned();
        if let Some(pty) = console.pty() {
            info!("the serial console of {name} is {}", pty.display());
        }
        let (console, serial) = console.start().context("cannot serve the serial console")?;
        let settings = VmSettings { name, serial, vsock, nets: nets.clone() };
        let mut controller = Controller::new(settings, console, disks);
        (controller.manager, controller.statm) = (manager, statm);
        let controller = Arc::new(controller);
        expected.into_iter().for_each(|description| controller.expect(description));
        let control: Arc<dyn VmControl> = controller.clone();
        signals::forward_to(&control);
        let server = Server::start(claim, control).context("cannot offer the control socket")?;
        seccomp::narrow_main();
        Ok(Self { controller, nets, memory, kvm, reader, _server: server })
    }

    fn owner(&self) -> &Arc<Owner<Machine>> {
        &self.controller.owner
    }

    fn hooks(&self) -> MachineHooks {
        let console = self.controller.console.clone();
        let (nets, disks) = (self.nets.clone(), self.controller.disks.clone());
        let (vsock, memory) = (self.controller.settings.vsock.clone(), self.memory.clone());
        let (kvm, wake) = (self.kvm.clone(), self.owner().wake());
        let reader = self.reader.clone();
        MachineHooks { console, kvm, reader, memory, nets, vsock, disks, wake }
    }

    /// A machine that is about to run its first instruction; none if the VM was killed before. What
    /// it boots may be where no read ends.
    fn boot(&self, description: &Description) -> anyhow::Result<Option<Arc<Machine>>> {
        let (description, hooks) = (description.clone(), self.hooks());
        self.unless_killed("boot", &CancelToken::new(), move || {
            let reader = hooks.reader.clone();
            let machine = Machine::build(&description, hooks)?;
            machine.boot(&reader)?;
            Ok(Arc::new(machine))
        })
    }

    /// What `work` returns, on a thread of its own. None if the VM is killed: then `killed` is
    /// cancelled, and the thread left to itself if that does not end it.
    fn unless_killed<T: Send + 'static>(
        &self,
        kind: &'static str,
        killed: &CancelToken,
        work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<Option<T>> {
        let (done, result) = channel();
        let owner = self.owner().clone();
        let thread = wherry_threads::of_kind(kind).spawn(move || {
            // Also if it panics: nobody must wait for it.
            let got = catch_unwind(AssertUnwindSafe(work))
                .unwrap_or_else(|_| Err(anyhow::anyhow!("a panic: a defect of Wherry")));
            let _ = done.send(got);
            owner.poke();
        })?;
        let got = self.owner().wait(|life| match (result.try_recv(), life) {
            (Ok(got), _) => Some(Some(got)),
            (Err(TryRecvError::Empty), Life::Ended(End::Kill)) => Some(None),
            (Err(TryRecvError::Empty), _) => None,
            (Err(TryRecvError::Disconnected), _) => {
                Some(Some(Err(anyhow::anyhow!("a thread ended without a result"))))
            }
        });
        let Some(got) = got else {
            killed.cancel();
            let _ = result.recv_timeout(LAST_STEPS);
            return Ok(None);
        };
        let _ = thread.join();
        got.map(Some)
    }

    /// Runs `machine`, through reboots, until the VM ends, and lets all answers and the last words
    /// of the guest out.
    fn run(self, machine: Arc<Machine>) -> anyhow::Result<ExitReason> {
        let console = self.controller.console.clone();
        let result = self.serve(machine);
        // The server goes first: nobody is to wait for an answer, or for the name, while RAM is
        // given back (a second for a few GiB).
        drop(self);
        console.finish();
        result.map(|(reason, _machine)| reason)
    }

    fn serve(&self, machine: Arc<Machine>) -> anyhow::Result<(ExitReason, Option<Arc<Machine>>)> {
        let mut machine = Some(machine);
        let mut brake = Brake::new(BRAKE_PAUSE);
        loop {
            // The owner stopped the machine when it came to this.
            let end = self.owner().wait(|life| match life {
                Life::Migrated => Some(None),
                Life::Ended(end) => Some(Some(end)),
                _ => {
                    self.controller.tell_manager(life);
                    self.pause_for_room();
                    None
                }
            });
            if end == Some(End::Reset)
                && self.controller.reboots()
                && let Some(old) = machine.take()
            {
                machine = self.reboot(old, &mut brake)?;
                continue;
            }
            let reason = match end {
                None => ExitReason::Migrated,
                Some(End::PowerOff) => ExitReason::PoweredOff,
                Some(End::Reset) => ExitReason::Rebooted,
                Some(End::Fatal) => {
                    ExitReason::Crashed(machine.as_ref().map(|m| m.why()).unwrap_or_default())
                }
                Some(End::Kill) => ExitReason::Killed,
            };
            self.controller.manager.stopping(&reason.to_string());
            self.owner().clear();
            return Ok((reason, machine));
        }
    }

    /// Pauses a guest that writes more than the host has room for. What it wrote is kept, and tried
    /// again on resume, here or where it has arrived.
    fn pause_for_room(&self) {
        for id in self.controller.disks.full() {
            if self.owner().event(Event::Pause).is_err() {
                // On its way: asked again when that is over, or where it goes on.
                self.controller.disks.note_full(&id);
                continue;
            }
            no_room(&self.controller.settings.name, &id);
        }
    }

    /// A new machine in place of one that reset itself; none if the VM was killed meanwhile.
    fn reboot(&self, old: Arc<Machine>, brake: &mut Brake) -> anyhow::Result<Option<Arc<Machine>>> {
        let owner = self.owner();
        if owner.event(Event::Reboot).is_err() || owner.killed_within(brake.pause(Instant::now())) {
            return Ok(Some(old));
        }
        info!(target: COURSE, "the guest reboots");
        let description = old.description().clone();
        self.controller.replace(&description);
        self.controller.tell_manager(Life::Rebooting);
        drop(old);
        let booted = self.wait_for_disks(DISKS_IDLE).and_then(|idle| match idle {
            true => self.boot(&description),
            false => Ok(None),
        });
        let machine = booted.context("the guest rebooted and cannot be started again")?;
        if let Some(machine) = &machine {
            // Refused if it was killed meanwhile, which the run loop sees.
            let _ = owner.arrive(machine.clone(), true);
        }
        Ok(machine)
    }

    /// Waits until no request of a machine that is over is still with a disk: it would write
    /// beneath the next one. False if the VM was killed meanwhile.
    fn wait_for_disks(&self, limit: Duration) -> anyhow::Result<bool> {
        let end = Instant::now() + limit;
        while let Some(busy) = self.controller.disks.busy() {
            anyhow::ensure!(
                Instant::now() < end,
                "{busy} has not ended within {limit:?} what was asked of it before; the storage \
                 beneath it hangs"
            );
            if self.owner().killed_within(LOOK_AGAIN) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// A guest may write on each time it is resumed.
fn no_room(name: &str, disk: &str) {
    warn!(
        disk,
        "no room on this host for what {name} writes to disk `{disk}`; it is paused: make room, \
         then `wherry resume {name}`"
    );
}

/// Keeps a guest that resets itself again and again from building machines as fast as the host can.
struct Brake {
    reboots: VecDeque<Instant>,
    pause: Duration,
}

impl Brake {
    /// That waits so long before each reboot too many.
    fn new(pause: Duration) -> Self {
        Self { reboots: VecDeque::new(), pause }
    }

    /// A reboot at `now`: how long to wait before it.
    fn pause(&mut self, now: Instant) -> Duration {
        self.reboots.retain(|before| now.duration_since(*before) < BRAKE_WITHIN);
        self.reboots.push_back(now);
        if self.reboots.len() > BRAKE_AFTER { self.pause } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::ends::open_console;
    use super::*;
    use crate::config::{DiskConfig, SerialSink};
    use crate::control::RuntimeDir;
    use crate::disks::Disks;
    use crate::life::owner::Vcpus;
    use crate::logging::Format;
    use crate::logging::fixture::Heard;
    use crate::machine::fixture;

    fn no_console() -> console::Opened {
        open_console(&SerialSink::None).unwrap()
    }

    #[test]
    fn a_reboot_too_many_waits_and_a_kill_ends_the_wait() {
        // Without a kernel there can be no next machine.
        let Some(description) = fixture::description(1, None) else { return };
        let temp = tempfile::tempdir().unwrap();
        let claim = RuntimeDir::at(temp.path().join("run")).claim("vm").unwrap();
        let host = VmProcess::start(claim, None, no_console(), Ends::default()).unwrap();
        let machine = Arc::new(Machine::build(&description, host.hooks()).unwrap());
        host.owner().arrive(machine.clone(), false).unwrap();
        machine.ending.note(End::Reset, "");
        let mut brake = Brake::new(Duration::from_secs(3600));
        brake.reboots = [Instant::now(); BRAKE_AFTER].into();
        let left = std::thread::scope(|scope| {
            let rebooting = scope.spawn(|| host.reboot(machine.clone(), &mut brake));
            host.owner().wait(|life| (life == Life::Rebooting).then_some(()));
            host.owner().kill();
            rebooting.join().unwrap()
        });
        assert!(Arc::ptr_eq(&left.expect("it did not wait").unwrap(), &machine));
        assert_eq!(host.owner().life(), Life::Ended(End::Kill));
    }

    #[test]
    fn a_kill_ends_a_vm_that_still_reads_what_it_boots() {
        let Some(mut description) = fixture::description(1, None) else { return };
        let temp = tempfile::tempdir().unwrap();
        let claim = RuntimeDir::at(temp.path().join("run")).claim("vm").unwrap();
        let host = VmProcess::start(claim, None, no_console(), Ends::default()).unwrap();
        let (_gone, source) = fixture::file_that_hangs();
        description.reset.sources.kernel = Some(source);
        let booted = std::thread::scope(|scope| {
            let booting = scope.spawn(|| host.boot(&description));
            host.owner().kill();
            booting.join().unwrap()
        });
        assert!(booted.expect("the read ended first").is_none());
    }

    /// A request that a disk still has when its machine is over holds the disk, as this does.
    #[test]
    fn a_reboot_waits_for_what_a_disk_was_asked_before_and_ends_if_that_hangs() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("web.raw");
        std::fs::File::create(&path).unwrap().set_len(4096).unwrap();
        let config = DiskConfig::new("root", path);
        let disks = Arc::new(Disks::new([config]).unwrap());
        disks.describe().unwrap();
        let claim = RuntimeDir::at(temp.path().join("run")).claim("vm").unwrap();
        let ends = Ends { disks: disks.clone(), ..Ends::default() };
        let host = VmProcess::start(claim, None, no_console(), ends).unwrap();
        let wait = |limit| host.wait_for_disks(limit);
        assert!(wait(Duration::ZERO).unwrap());
        let request = disks.get("root").unwrap();
        let error = wait(Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains("disk `root`") && error.contains("hangs"), "{error}");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| wait(Duration::from_secs(3600)));
            drop(request);
            assert!(waiting.join().unwrap().unwrap());
        });
        // So does a whole reboot, before it builds a machine; and `kill` ends the wait.
        let _request = disks.get("root").unwrap();
        let Some(description) = fixture::description(1, None) else { return };
        let machine = Arc::new(Machine::build(&description, host.hooks()).unwrap());
        host.owner().arrive(machine.clone(), false).unwrap();
        machine.ending.note(End::Reset, "");
        let next = std::thread::scope(|scope| {
            let mut brake = Brake::new(Duration::ZERO);
            let host = &host;
            let rebooting = scope.spawn(move || host.reboot(machine, &mut brake));
            host.owner().wait(|life| (life == Life::Rebooting).then_some(()));
            host.owner().kill();
            rebooting.join().unwrap()
        });
        // The next one would have failed: it has no kernel.
        assert!(next.is_ok_and(|next| next.is_none_or(|m| m.ended() == Some(End::Reset))));
    }

    #[test]
    fn a_guest_that_fills_its_disk_again_and_again_does_not_fill_the_log() {
        let heard = Heard::new(Format::Human);
        let lines = heard.flood(|_| no_room("web", "root"));
        assert!(lines[0].ends_with("`root`; it is paused: make room, then `wherry resume web`\n"));
    }

    #[test]
    fn three_reboots_go_through_and_the_fourth_within_ten_seconds_waits() {
        let mut brake = Brake::new(BRAKE_PAUSE);
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        for ms in [0, 10, 20] {
            assert_eq!(brake.pause(at(ms)), Duration::ZERO);
        }
        assert_eq!(brake.pause(at(30)), BRAKE_PAUSE);
        assert_eq!(brake.pause(at(1030)), BRAKE_PAUSE);
        assert_eq!(brake.pause(at(20_000)), Duration::ZERO, "a while later nothing is left of it");
    }
}
