//! One machine: RAM, vCPUs, devices, wired together on KVM.
//!
//! A machine is built empty from a [`Description`], then either boots a kernel or takes over the
//! state of another. It never comes back from a reset: a reboot builds a new one.
//!
//! **Pausing** stops the vCPUs first, then the devices: a vCPU may still kick a queue, and what it
//! kicked is either consumed before the state is taken or found again when the queues are looked at
//! on resume. **Resuming** is the reverse.

mod balloon;
mod devices;
mod event_loop;
mod hooks;
mod irq;
pub mod offer;
pub mod state;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use tracing::warn;
use wherry_devices::device::Devices;
use wherry_devices::power::Power;
use wherry_devices::serial::Serial;
use wherry_devices::virtio::balloon::BalloonHandle;
use wherry_rootfs::Reader;

pub use balloon::refresh_statistics;
pub use hooks::MachineHooks;
pub use state::{Description, Kernel, MachineState};

use crate::boot::disk::from_disk;
use crate::boot::files::Files;
use crate::boot::{acpi, loader, smbios};
use crate::cpu::clock::ClockReading;
use crate::cpu::state::{Destination, StateAccess};
use crate::cpu::{self, vm_state::VmStateV1};
use crate::disks::Disks;
use crate::life::ending::Ending;
use crate::life::owner::Vcpus;
use crate::life::{End, Gate, Locks, Refusal};
use crate::memory::{Backing, DirtySources, KvmLog, Ram};
use crate::sync::lock;
use crate::vcpu::{Vcpu, VcpuContext, install_kick_handler};
use devices::{Assembly, MachineHost};
use event_loop::EventLoop;

/// How long a device's requests may take to end before a pause.
const DRAIN: Duration = Duration::from_secs(5);

/// See the module's text.
pub struct Machine {
    // Fields are dropped in this order: threads that use the VM end before the VM does.
    vcpus: Vec<Vcpu>,
    access: StateAccess,
    _event_loop: EventLoop,
    devices: Devices,
    balloon: Option<BalloonHandle>,
    disks: Arc<Disks>,
    description: Description,
    log: Arc<DirtySources>,
    ram: Arc<Ram>,
    vm: Arc<VmFd>,
    /// Whether vCPUs and devices run, and who may start them.
    gate: Mutex<Gate>,
    pub(crate) ending: Arc<Ending>,
}

/// State that a machine under construction starts from.
type Restored<'a> = Option<&'a MachineState>;

impl Machine {
    /// Builds the machine with nothing in it, paused.
    ///
    /// # Errors
    /// KVM, memory or a device refuses; the text says which.
    pub fn build(description: &Description, hooks: MachineHooks) -> anyhow::Result<Self> {
        let (vm, ram) = Self::create_vm_and_ram(description, hooks.kvm.get()?, &hooks.memory)?;
        Self::assemble(description, &hooks, vm, ram, None)
    }

    /// VM and RAM, before any vCPU or device: where a migration's pages arrive.
    ///
    /// # Errors
    /// KVM lacks something, or the host cannot map the memory.
    pub fn create_vm_and_ram(
        description: &Description,
        kvm: &Kvm,
        memory: &Backing,
    ) -> anyhow::Result<(Arc<VmFd>, Arc<Ram>)> {
        cpu::vm::check_addresses(kvm, description.ram_bytes)?;
        let vm = Arc::new(kvm.create_vm().context("cannot create a VM")?);
        KvmLog::enable(&vm)?;
        cpu::vm::prepare(&vm)?;
        let ram = Arc::new(Ram::new(description.ram_bytes, memory)?);
        Ok((vm, ram))
    }

    /// Puts vCPUs and devices on VM and RAM, fresh or as saved. The machine is paused.
    ///
    /// # Errors
    /// KVM or a device refuses, or a part of the saved state is invalid.
    pub fn assemble(
        description: &Description,
        hooks: &MachineHooks,
        vm: Arc<VmFd>,
        ram: Arc<Ram>,
        mut restored: Option<MachineState>,
    ) -> anyhow::Result<Self> {
        install_kick_handler();
        let log = KvmLog::new(vm.clone(), ram.clone());
        log.map_ram().context("KVM does not take the guest memory")?;
        let log = Arc::new(DirtySources::new(log));

        let ending = Arc::new(Ending::new(hooks.wake.clone()));
        let giver = MachineHost { vm: &vm, ram: &ram, ending: &ending, hooks };
        let Assembly { devices, ports, mmio, subscribers } =
            devices::assemble(description, &giver, restored.as_mut())?;
        let restored = restored.as_ref();

        let (pio, mmio) = (Arc::new(ports), Arc::new(mmio));
        let context = VcpuContext { pio, mmio, ending: ending.clone() };
        let (vcpus, access) =
            build_vcpus(description, (hooks.kvm.get()?, &vm), &context, restored)?;
        if let Some(s) = restored {
            s.vm.restore_chips(&vm).context("cannot restore the interrupt controllers")?;
            devices.after_restore().context("cannot set a device's interrupt")?;
        }
        if let Some(serial) = devices.find::<Mutex<Serial>>() {
            lock(&serial).on_room(hooks.console.room());
            hooks.console.connect(Arc::new(move |bytes| lock(&serial).enqueue(bytes)));
        }
        Ok(Self {
            disks: hooks.disks.clone(),
            vcpus,
            access,
            _event_loop: EventLoop::spawn(subscribers, ending.clone())
                .context("cannot start the device thread")?,
            balloon: devices.find().map(BalloonHandle::new),
            devices,
            description: description.clone(),
            log,
            ram,
            vm,
            gate: Mutex::default(),
            ending,
        })
    }

    /// Loads a kernel and points the first vCPU at it. `reader` reads the first disk if that boots.
    ///
    /// # Errors
    /// The kernel, initrd or command line cannot be loaded.
    pub fn boot(&self, reader: &Reader) -> anyhow::Result<()> {
        let mem = self.ram.memory();
        let slots: Vec<u32> = self.description.devices.iter().filter_map(|d| d.slot).collect();
        let rsdp = acpi::write_tables(mem, self.description.nr_vcpus, &slots)?;
        let Description { kernel, reset, .. } = &self.description;
        smbios::write_tables(mem, &reset.firmware)?;
        let files = if kernel.is_in_disk() {
            let id = self.description.boot_disk().context("there is no disk to boot from")?;
            let image = self.disks.boots(id).context("the disk to boot from is not open")?;
            from_disk(reader, &image, &kernel.cmdline)?.files
        } else {
            Files::new(kernel, &reset.sources)?
        };
        let loaded = loader::load_files(mem, files, rsdp)?;
        let first = self.vcpus.first().context("a machine has at least one vCPU")?;
        cpu::regs::setup_boot_vcpu(&first.fd(), mem, &loaded.entry)
            .context("cannot set up the first vCPU")?;
        Ok(())
    }

    /// Why the guest crashed.
    pub fn why(&self) -> String {
        self.ending.why()
    }

    /// Bytes of the state that depend on what the guest does.
    pub fn state_bytes(&self, protocol: u16) -> u64 {
        self.devices.state_bytes(protocol)
    }

    /// State of all but RAM, for a peer of this version of the protocol. Paused machines only.
    /// `run_after`: whether it goes on running where it arrives.
    ///
    /// # Errors
    /// KVM does not give a part of it.
    pub fn save(&self, run_after: bool, protocol: u16) -> anyhow::Result<MachineState> {
        let clock = ClockReading::read(&self.vm).context("cannot read the clock")?;
        let vcpus = (0..)
            .zip(&self.vcpus)
            .map(|(id, v)| {
                let saved = self.access.save(&self.vm, &v.fd(), id, clock.clock_ns);
                saved.with_context(|| format!("cannot save vCPU {id}"))
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        let vm = VmStateV1::save(&self.vm, clock).context("cannot save interrupt controllers")?;
        let devices = self.devices.save(protocol).context("cannot save the devices")?;
        Ok(MachineState { running: run_after, vm, vcpus, devices })
    }

    /// Presses the ACPI power button.
    pub fn press_power_button(&self) {
        if let Some(power) = self.devices.find::<Mutex<Power>>() {
            // The guest's word for a failing interrupt line is silence; `stop` times out and says
            // so.
            let _ = lock(&power).press_power_button();
        }
    }

    /// The balloon, if there is one.
    pub fn balloon(&self) -> Option<&BalloonHandle> {
        self.balloon.as_ref()
    }

    /// Its disks on this host.
    pub fn disks(&self) -> &Arc<Disks> {
        &self.disks
    }

    /// The guest has arrived and runs here.
    pub fn announce(&self) {
        self.devices.announce();
    }

    /// Guest RAM.
    pub fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    /// The dirty log.
    pub fn log(&self) -> &Arc<DirtySources> {
        &self.log
    }

    /// What it was built from.
    pub fn description(&self) -> &Description {
        &self.description
    }
}

impl Vcpus for Machine {
    fn gate(&self) -> &Mutex<Gate> {
        &self.gate
    }

    fn halt(&self) -> Result<(), Refusal> {
        for v in &self.vcpus {
            v.request_park();
        }
        for (id, v) in (0..).zip(&self.vcpus) {
            v.wait_parked();
            self.access.note_parked(&self.vm, &v.fd(), id);
        }
        self.devices.pause(Instant::now() + DRAIN).map_err(|why| {
            warn!("cannot stop the machine: {why}");
            Refusal::Unfinished
        })
    }

    fn ready(&self, how: Locks) -> Result<(), Refusal> {
        if self.disks.take_back(how) { Ok(()) } else { Err(Refusal::DiskTaken) }
    }

    fn go(&self) {
        self.access.note_running();
        self.devices.resume();
        for v in &self.vcpus {
            // Only spares the guest a watchdog's warning; and before its first run there is nothing
            // to tell.
            let _ = cpu::state::note_pause(&v.fd());
            v.run();
        }
    }

    fn ended(&self) -> Option<End> {
        self.ending.end()
    }
}

/// vCPUs, parked: fresh, or as saved (the VM's clock goes first, since vCPUs derive theirs from
/// it).
fn build_vcpus(
    description: &Description,
    (kvm, vm): (&Kvm, &VmFd),
    context: &VcpuContext,
    restored: Restored<'_>,
) -> anyhow::Result<(Vec<Vcpu>, StateAccess)> {
    let nr = description.nr_vcpus;
    let fds = (0..nr)
        .map(|id| vm.create_vcpu(u64::from(id)).with_context(|| format!("cannot create vCPU {id}")))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let first = fds.first().context("a machine has at least one vCPU")?;
    let access =
        StateAccess::new(kvm, vm, first).context("cannot find out what state a vCPU has")?;
    match restored {
        Some(s) => restore_vcpus(description, vm, &access, &fds, s)?,
        None => {
            for (id, fd) in (0..).zip(&fds) {
                cpu::regs::init_vcpu(fd, &description.cpu, id, nr)
                    .with_context(|| format!("cannot set up vCPU {id}"))?;
            }
        }
    }
    let vcpus = (0..)
        .zip(fds)
        .map(|(id, fd)| Vcpu::spawn(id, fd, context.clone()).context("cannot start a vCPU thread"))
        .collect::<anyhow::Result<Vec<_>>>()?;
    Ok((vcpus, access))
}

fn restore_vcpus(
    description: &Description,
    vm: &VmFd,
    access: &StateAccess,
    fds: &[VcpuFd],
    state: &MachineState,
) -> anyhow::Result<()> {
    if state.vcpus.len() != fds.len() {
        anyhow::bail!("the state has {} vCPUs, the machine {}", state.vcpus.len(), fds.len());
    }
    state.vm.restore_clock(vm).context("cannot restore the clock")?;
    let (cpu, nr_vcpus) = (&description.cpu, description.nr_vcpus);
    let to = Destination { cpu, nr_vcpus, vm, clock_ns: state.vm.clock_ns };
    for (id, (fd, saved)) in (0u32..).zip(fds.iter().zip(&state.vcpus)) {
        if saved.id != id {
            anyhow::bail!("the state of vCPU {id} is that of vCPU {}", saved.id);
        }
        access.restore(fd, saved, &to).with_context(|| format!("cannot restore vCPU {id}"))?;
    }
    Ok(())
}

#[cfg(test)]
pub mod fixture;
#[cfg(test)]
mod tests;
