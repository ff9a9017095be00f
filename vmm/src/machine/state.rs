//! What describes a machine (sent in the handshake) and what its state is (sent while paused).
//!
//! Both are [`records`](wherry_codec::records): a header, then each part with its name, kind and
//! version in front, decoded without trust. What is unknown is refused by name, what is missing is
//! named, and nothing is left over.

use std::path::PathBuf;

use anyhow::Context;
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};
use wherry_codec::records::{Format, Record, RecordError, Records, Writer};
use wherry_codec::{CodecError, encode};
use wherry_devices::device::{Saved, Spec};
use wherry_devices::kinds;
use wherry_devices::virtio::blk;

use crate::boot::layout::{VIRTIO_MMIO_SLOTS, ports};
pub use crate::boot::loader::Kernel;
use crate::boot::reset::Reset;
use crate::boot::source::Source;
use crate::config::{MAX_CMDLINE, MAX_RAM_BYTES, MAX_VCPUS, MIN_RAM_BYTES};
use crate::cpu::compat::CpuDescriptionV1;
use crate::cpu::{state::VcpuStateV1, vm_state::VmStateV1};
use crate::newer;

/// Linux takes no longer path (PATH_MAX).
const LONGEST_PATH: usize = 4096;

/// A machine has far fewer devices.
const MAX_DEVICES: usize = 64;

const DESCRIPTION: Format = Format {
    magic: *b"WHRYDESC",
    version: 1,
    flags: 0,
    most: 3 + MAX_DEVICES,
    what: "machine description",
};

const STATE: Format = Format {
    magic: *b"WHRYSTAT",
    version: 1,
    flags: RUNNING,
    most: 1 + MAX_VCPUS as usize + MAX_DEVICES,
    what: "machine state",
};
/// Flag of [`STATE`]: the guest was running.
const RUNNING: u32 = 1;

/// The record `machine`.
#[derive(Debug, Serialize, Deserialize)]
struct ShapeV1 {
    ram_bytes: u64,
    nr_vcpus: u32,
}

/// The record of a device.
#[derive(Debug, Serialize, Deserialize)]
struct DeviceV1 {
    slot: Option<u32>,
    options: Vec<u8>,
}

/// The shape of a machine: all that is needed to build an empty one like it.
#[derive(Debug, Clone)]
pub struct Description {
    /// Guest RAM in bytes.
    pub ram_bytes: u64,
    /// Number of vCPUs.
    pub nr_vcpus: u32,
    /// What the guest's CPUs can do, before the per-vCPU parts.
    pub cpu: CpuDescriptionV1,
    /// What it boots.
    pub kernel: Kernel,
    /// What it does at a reset, of which a destination is told by itself ([`super::offer`]).
    pub reset: Reset,
    /// The devices, in the order in which they are built.
    pub devices: Vec<Spec>,
}

/// All state of a paused machine beside its RAM.
pub struct MachineState {
    /// Whether the guest was running when the migration began; a paused guest arrives paused.
    pub running: bool,
    /// Interrupt controllers, timer, clock.
    pub vm: VmStateV1,
    /// One per vCPU, by id.
    pub vcpus: Vec<VcpuStateV1>,
    /// The devices.
    pub devices: Vec<Saved>,
}

/// Why a description or a state is refused.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A record, or the list of them.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Out of the limits of this VMM.
    #[error("the machine has {0}, which is not supported here")]
    Unsupported(String),
}

impl Description {
    /// A new machine on this host, which is nobody yet.
    pub fn new(
        ram_bytes: u64,
        nr_vcpus: u32,
        devices: Vec<Spec>,
        kernel: Kernel,
    ) -> anyhow::Result<Self> {
        let kvm = crate::kvm::open_kvm()?;
        let cpu = CpuDescriptionV1::new(&kvm, &probe(&kvm)?)?;
        let reset = Reset::default();
        Ok(Self { ram_bytes, nr_vcpus, cpu, kernel, reset, devices })
    }

    /// For the handshake, as this version of the protocol has it.
    ///
    /// # Errors
    /// None: plain data can always be encoded.
    pub fn encode(&self, version: u16) -> Result<Vec<u8>, CodecError> {
        let shape = ShapeV1 { ram_bytes: self.ram_bytes, nr_vcpus: self.nr_vcpus };
        let mut out = Writer::new(&DESCRIPTION, 0);
        push(&mut out, "machine", "machine", 1, &shape)?;
        push(&mut out, "cpu", "cpu", 1, &self.cpu)?;
        // Nobody opens these paths where they arrive, and the wire has text alone.
        let text = |path: &PathBuf| path.to_string_lossy().into_owned().into();
        let Kernel { path, initrd, cmdline } = &self.kernel;
        let (path, initrd) = (text(path), initrd.as_ref().map(text));
        let kernel = Kernel { path, initrd, cmdline: cmdline.clone() };
        push(&mut out, "kernel", "kernel", 1, &kernel)?;
        for Spec { id, kind, slot, options } in &self.devices {
            let device = DeviceV1 { slot: *slot, options: options.clone() };
            push(&mut out, id, kind.name, kind.options, &device)?;
        }
        newer::push(&mut out, version);
        Ok(out.finish())
    }

    /// From the peer, which may lie.
    ///
    /// # Errors
    /// Malformed, with something unknown in it, or beyond this VMM's limits.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let mut records = Records::read(&DESCRIPTION, bytes)?;
        newer::take(&mut records)?;
        let ShapeV1 { ram_bytes, nr_vcpus } = records.take("machine", "machine", 1)?;
        let cpu = records.take("cpu", "cpu", 1)?;
        let kernel: Kernel = records.take("kernel", "kernel", 1)?;
        let mut devices: Vec<Spec> = Vec::new();
        for record in records.take_rest() {
            let kind = kinds::of(&record, DESCRIPTION.what)?;
            let DeviceV1 { slot, options } =
                record.decode(DESCRIPTION.what, kind.name, kind.options)?;
            let free =
                |slot| slot < VIRTIO_MMIO_SLOTS && devices.iter().all(|d| d.slot != Some(slot));
            if !slot.map_or(ports(kind).is_some(), |slot| kind.virtio && free(slot)) {
                let place = format!("`{}` in slot {slot:?}", record.id);
                return Err(StateError::Unsupported(place));
            }
            devices.push(Spec { id: record.id.into(), kind, slot, options });
        }
        if !(MIN_RAM_BYTES..=MAX_RAM_BYTES).contains(&ram_bytes) || !ram_bytes.is_multiple_of(4096)
        {
            return Err(StateError::Unsupported(format!("{ram_bytes} bytes of RAM")));
        }
        if nr_vcpus == 0 || nr_vcpus > MAX_VCPUS {
            return Err(StateError::Unsupported(format!("{nr_vcpus} vCPUs")));
        }
        if kernel.cmdline.len() > MAX_CMDLINE {
            return Err(StateError::Unsupported("a command line that is too long".into()));
        }
        let reset = Reset { elsewhere: true, ..Reset::default() };
        Ok(Self { ram_bytes, nr_vcpus, cpu, kernel, reset, devices })
    }

    /// Where its kernel is, for people.
    pub fn shown_kernel(&self) -> String {
        if self.kernel.is_in_disk() {
            return "its own, in its first disk".into();
        }
        if !self.reset.elsewhere {
            return self.kernel.path.display().to_string();
        }
        // It is a peer's word: too long for a path, or no text for a terminal.
        let path = self.kernel.path.to_string_lossy();
        let path: String = path.chars().take(LONGEST_PATH).collect();
        let came = self.reset.sources.kernel.as_ref().is_some_and(Source::came);
        let came = if came { ", came with the guest" } else { "" };
        format!("{} of another host{came}", path.escape_debug())
    }

    /// The disk whose own kernel boots, if one does: the first.
    pub fn boot_disk(&self) -> Option<&str> {
        self.devices.iter().find(|spec| *spec.kind == blk::KIND).map(|spec| spec.id.as_str())
    }

    /// Refuses a host whose CPU cannot do what the guest was told, naming the features.
    ///
    /// # Errors
    /// Features are missing, or KVM does not say what it supports.
    pub fn check_cpu(&self, kvm: &Kvm) -> anyhow::Result<()> {
        self.cpu.check(kvm, &probe(kvm)?)
    }
}

/// A vCPU of no machine, to ask what one can do. It keeps its VM alive.
fn probe(kvm: &Kvm) -> anyhow::Result<VcpuFd> {
    let vm = kvm.create_vm().context("cannot create a VM")?;
    vm.create_vcpu(0).context("cannot create a vCPU")
}

impl MachineState {
    /// For the wire, as this version of the protocol has it.
    ///
    /// # Errors
    /// None: plain data can always be encoded.
    pub fn encode(&self, version: u16) -> Result<Vec<u8>, CodecError> {
        let mut out = Writer::new(&STATE, if self.running { RUNNING } else { 0 });
        push(&mut out, "vm", "vm", 1, &self.vm)?;
        for (nr, vcpu) in self.vcpus.iter().enumerate() {
            push(&mut out, &vcpu_id(nr), "vcpu", 1, vcpu)?;
        }
        for Saved { id, kind, version, bytes } in &self.devices {
            out.push(Record { id, kind: kind.name, version: *version, bytes });
        }
        newer::push(&mut out, version);
        Ok(out.finish())
    }

    /// From the wire.
    ///
    /// # Errors
    /// Malformed, or with something unknown in it. What the parts hold is checked when they are
    /// restored.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let mut records = Records::read(&STATE, bytes)?;
        newer::take(&mut records)?;
        let running = records.flags() & RUNNING != 0;
        let vm = records.take("vm", "vm", 1)?;
        let mut vcpus = Vec::new();
        while records.has(&vcpu_id(vcpus.len())) {
            vcpus.push(records.take(&vcpu_id(vcpus.len()), "vcpu", 1)?);
        }
        let mut devices = Vec::new();
        for record in records.take_rest() {
            let kind = kinds::of(&record, STATE.what)?;
            let Record { id, version, bytes, .. } = record;
            if !kind.reads(version) {
                record.is(STATE.what, kind.name, kind.state_for(u16::MAX))?;
            }
            devices.push(Saved { id: id.into(), kind, version, bytes: bytes.to_vec() });
        }
        Ok(Self { running, vm, vcpus, devices })
    }

    /// The state of a device of the description. Each is to be asked for once.
    ///
    /// # Errors
    /// It is missing, or of another kind.
    pub fn take_device(&mut self, spec: &Spec) -> Result<Saved, RecordError> {
        let missing = || RecordError::Missing(STATE.what, spec.id.clone());
        let at = self.devices.iter().position(|d| d.id == spec.id).ok_or_else(missing)?;
        let saved = self.devices.remove(at);
        if saved.kind == spec.kind {
            return Ok(saved);
        }
        let (kind, should) = (saved.kind.name.into(), spec.kind.name.into());
        Err(RecordError::OtherKind { what: STATE.what, id: saved.id, kind, should })
    }

    /// All devices of the description were asked for.
    ///
    /// # Errors
    /// There are others.
    pub fn no_device_left(&self) -> Result<(), RecordError> {
        let left = |d: &Saved| Err(RecordError::LeftOver(STATE.what, d.id.clone()));
        self.devices.first().map_or(Ok(()), left)
    }
}

fn vcpu_id(nr: usize) -> String {
    format!("vcpu-{nr}")
}

pub(super) fn push<T: Serialize>(
    out: &mut Writer,
    id: &str,
    kind: &str,
    version: u32,
    value: &T,
) -> Result<(), CodecError> {
    let bytes = encode(value)?;
    out.push(Record { id, kind, version, bytes: &bytes });
    Ok(())
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
