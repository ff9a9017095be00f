//! How the process of a VM begins: it opens all that it will need, confines itself, and only then
//! has threads, a control socket, and a guest.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tracing::{error, info};
use wherry_migration::CancelToken;

use super::VmProcess;
use super::ends::{Ends, needs, open_console};
use crate::boot::smbios::{Firmware, uuid};
use crate::boot::source::Sources;
use crate::config::{ExitReason, ReceiveConfig, RunConfig, devices, with_vsock};
use crate::confine::limits::Sizes;
use crate::confine::{Use, enter};
use crate::control::{ControlError, RuntimeDir};
use crate::disks::Disks;
use crate::logging::COURSE;
use crate::machine::{Description, Kernel};
use crate::memory::Backing;
use crate::migrate;
use crate::net::Nets;
use crate::vsock::Vsock;

/// Boots a machine and runs it to its end. `begin` is called once this process is confined: before
/// that there must be no thread.
///
/// # Errors
/// Name in use, no usable KVM, a kernel or initrd that cannot be loaded, memory that the host
/// cannot map.
pub fn run(
    config: RunConfig,
    begin: impl FnOnce() -> Result<(), ControlError>,
) -> anyhow::Result<ExitReason> {
    let claim = RuntimeDir::from_env()?.claim(&config.name)?;
    let memory = Backing::open(config.memory_backing.as_deref().map(Path::new))?;
    let nets = Nets::open(config.nets.iter().map(|net| &net.end))?;
    let disks = Arc::new(Disks::new(config.disks)?);
    let described = disks.describe()?;
    let devices = devices(config.balloon.as_ref(), config.rng, &config.nets, described)?;
    let devices = with_vsock(devices, config.vsock.as_ref())?;
    let path = config.vsock.and_then(|vsock| vsock.path).map(PathBuf::from);
    let mut needs = needs(&claim, &memory)?;
    let vsock = Vsock::at(path.clone().unwrap_or_else(|| claim.vsock()));
    vsock.check(&devices)?;
    if let Some(path) = path {
        needs.beside(&path, Use::Remove)?;
    }
    // Without a path the first disk's own kernel boots, whichever that is at each reset.
    let path = config.kernel.unwrap_or_default().into();
    let kernel = Kernel { path, initrd: config.initrd.map(Into::into), cmdline: config.cmdline };
    // A host without a name calls its machines as others do.
    let host = std::fs::read("/proc/sys/kernel/hostname").unwrap_or_default();
    let uuid = uuid(&host, &config.name);
    let mut description = Description::new(config.ram_bytes, config.nr_vcpus, devices, kernel)?;
    description.reset.firmware = Firmware { uuid, credentials: config.credentials };
    description.reset.boots = config.reboot;
    description.reset.sources = Sources::open(&description.kernel)?;
    let console = open_console(&config.serial)?;
    let (ram, disk) = (config.ram_bytes, disks.largest_file()?);
    needs.largest_file = Sizes { ram, disk, console: console.largest_file() }.largest();
    disks.close_folders();
    let mut ends = Ends::open(nets, disks, vsock, memory)?;
    if description.kernel.is_in_disk() {
        ends.reader = ends.reader.ahead()?;
    }
    enter(needs)?;
    begin()?;
    ends.nets.begin()?;
    let host = VmProcess::start(claim, Some(&description), console, ends)?;
    host.controller.reboots.store(config.reboot, Ordering::SeqCst);
    let Some(machine) = host.boot(&description)? else { return Ok(ExitReason::Killed) };
    // Refused if it was killed meanwhile, which the run loop sees.
    let _ = host.owner().arrive(machine.clone(), true);
    host.controller.manager.ready(&host.owner().life().to_string());
    info!(
        target: COURSE,
        vcpus = u64::from(description.nr_vcpus),
        memory_bytes = description.ram_bytes,
        "the guest runs"
    );
    host.run(machine)
}

/// Waits for a guest, takes it over and runs it to its end. `begin` as of [`run`].
///
/// # Errors
/// As for [`run`], and every way in which the migration can fail; then the guest is still at the
/// source, or the text says that this is not known.
pub fn receive(
    config: ReceiveConfig,
    begin: impl FnOnce() -> Result<(), ControlError>,
) -> anyhow::Result<ExitReason> {
    let dir = RuntimeDir::from_env()?;
    let claim = dir.claim(&config.name)?;
    let memory = Backing::open(config.memory_backing.as_deref().map(Path::new))?;
    let nets = Nets::open(&config.nets)?;
    let mut ground = migrate::Ground::open(&config, dir.path())?;
    let disks = Arc::new(Disks::new(config.disks.clone())?);
    let mut needs = needs(&claim, &memory)?;
    disks.needs(&mut needs)?;
    if let Some(socket) = config.uri.strip_prefix("unix:") {
        needs.beside(Path::new(socket), Use::Remove)?;
    }
    let path = config.vsock.clone().map(PathBuf::from);
    if let Some(path) = &path {
        // Whether the guest has such a device its source says.
        needs.beside(path, Use::Sockets)?;
    }
    let vsock = Vsock::at(path.unwrap_or_else(|| claim.vsock()));
    let console = open_console(&config.serial)?;
    let (ram, disk) = (ground.most_memory(&config), disks.largest_file()?);
    let sizes = ram.map(|ram| Sizes { ram, disk, console: console.largest_file() });
    needs.largest_file = sizes.and_then(Sizes::largest);
    disks.bound(needs.largest_file.unwrap_or(0));
    let mut ends = Ends::open(nets, disks, vsock, memory)?;
    if config.reboot {
        // The guest that comes may boot from its disk.
        ends.reader = ends.reader.ahead()?;
    }
    ground.tell(&config)?;
    // Before anybody is listened to.
    enter(needs)?;
    begin()?;
    ends.nets.begin()?;
    let host = VmProcess::start(claim, None, console, ends)?;
    host.controller.manager.ready(&format!("waiting for a guest at {}", config.uri));
    // `kill` must end the wait for a source, too, and take its socket away.
    let (hooks, killed) = (host.hooks(), CancelToken::new());
    let (controller, cancel) = (host.controller.clone(), killed.clone());
    let received = host.unless_killed("receive", &killed, move || {
        let ends = (&*controller.owner, &controller.reboots);
        migrate::receive(ground, hooks, ends, &config, &cancel)
    });
    let machine = match (received, host.owner().machine().0) {
        (Ok(None), _) => return Ok(ExitReason::Killed),
        (Ok(Some(machine)), _) => machine,
        // It runs here, whatever failed after that.
        (Err(e), Some(machine)) => {
            // Ours first: a peer's words may be longer than a line.
            error!("the guest runs here: {e:#}");
            machine
        }
        (Err(e), None) => return Err(e),
    };
    host.run(machine)
}
