//! Builds the devices of a description and puts them where the layout says.

use std::io::{self, Read, Write};
use std::sync::Arc;

use anyhow::Context;
use kvm_ioctls::{IoEventAddress, VmFd};
use wherry_devices::device::{Build, Devices, Subscriber};
use wherry_devices::host::{BalloonBackend, DiskFull, Frames, Host, PowerSink, Sockets};
use wherry_devices::virtio::blk::Disk;
use wherry_devices::virtio::mmio::regs::offset::QUEUE_NOTIFY;
use wherry_devices::virtio::rng::OsEntropy;
use wherry_devices::{Bus, GuestMemory};

use super::irq::KvmIrqLine;
use super::{Description, MachineHooks, MachineState};
use crate::boot::layout;
use crate::life::End;
use crate::life::ending::Ending;
use crate::memory::Ram;

/// The devices, and what to connect.
#[derive(Default)]
pub(super) struct Assembly {
    pub(super) devices: Devices,
    pub(super) ports: Bus,
    pub(super) mmio: Bus,
    pub(super) subscribers: Vec<Subscriber>,
}

/// What this process gives to a machine's devices.
pub(super) struct MachineHost<'a> {
    pub(super) vm: &'a Arc<VmFd>,
    pub(super) ram: &'a Arc<Ram>,
    pub(super) ending: &'a Arc<Ending>,
    pub(super) hooks: &'a MachineHooks,
}

impl PowerSink for Ending {
    fn power_off(&self) {
        self.note(End::PowerOff, "");
    }

    fn reset(&self) {
        self.note(End::Reset, "");
    }
}

impl Host for MachineHost<'_> {
    fn memory(&self) -> Arc<GuestMemory> {
        self.ram.memory().clone()
    }

    fn console(&self) -> Box<dyn Write + Send> {
        Box::new(self.hooks.console.output())
    }

    fn power(&self) -> Arc<dyn PowerSink> {
        self.ending.clone()
    }

    fn balloon(&self) -> Arc<dyn BalloonBackend> {
        self.ram.clone()
    }

    fn entropy(&self) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(OsEntropy))
    }

    fn disk(&self, id: &str) -> io::Result<Arc<dyn Disk>> {
        self.hooks.disks.get(id)
    }

    fn disk_full(&self) -> Arc<dyn DiskFull> {
        self.hooks.disks.on_full(self.hooks.wake.clone())
    }

    fn net(&self, id: &str) -> io::Result<Box<dyn Frames>> {
        self.hooks.nets.get(id)
    }

    /// A machine has one such device.
    fn vsock(&self, _: &str) -> io::Result<Box<dyn Sockets>> {
        self.hooks.vsock.get()
    }
}

/// Builds them all, paused. With a state each takes its part of it, and nothing of it is left.
pub(super) fn assemble(
    description: &Description,
    host: &MachineHost<'_>,
    mut state: Option<&mut MachineState>,
) -> anyhow::Result<Assembly> {
    let mut all = Assembly::default();
    for spec in &description.devices {
        let place = spec.slot.map_or_else(|| layout::ports(spec.kind), layout::virtio_mmio);
        let place = place.with_context(|| format!("there is no place for `{}`", spec.id))?;
        let saved = state.as_mut().map(|state| state.take_device(spec)).transpose()?;
        let irq = Arc::new(KvmIrqLine { vm: host.vm.clone(), gsi: place.gsi });
        let built = (spec.kind.build)(Build { spec, saved: saved.as_ref(), irq, host })?;
        let bus = if spec.kind.virtio { &mut all.mmio } else { &mut all.ports };
        bus.insert(place.base, place.len, built.bus)?;
        for (index, kick) in (0u32..).zip(&built.kicks) {
            let at = IoEventAddress::Mmio(place.base + QUEUE_NOTIFY);
            host.vm
                .register_ioevent(kick, &at, index)
                .context("cannot register a queue's notification")?;
        }
        all.subscribers.extend(built.subscriber);
        all.devices.push(spec.clone(), built.device);
    }
    if let Some(state) = state {
        state.no_device_left()?;
    }
    Ok(all)
}
