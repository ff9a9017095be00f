//! What describes a machine (sent in the handshake) and what its state is (sent while paused).
//!
//! Both are plain versioned data, decoded without trust by [`wherry_codec`].

use std::path::PathBuf;

use anyhow::Context;
use kvm_ioctls::{Kvm, VcpuFd};
use serde::{Deserialize, Serialize};
use wherry_codec::{self as codec, CodecError};

use crate::config::BalloonOptions;
use crate::cpu::compat::CpuDescriptionV1;
use crate::cpu::{state::VcpuStateV1, vm_state::VmStateV1};

/// Version of [`Description`] and [`MachineStateV1`].
const VERSION: u32 = 2;

/// What a reboot needs. At a destination these are the source's paths, kept for the next migration
/// but never opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// bzImage or ELF kernel.
    pub path: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Complete command line.
    pub cmdline: String,
}

/// The shape of a machine: all that is needed to build an empty one like it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Description {
    version: u32,
    /// Guest RAM in bytes.
    pub ram_bytes: u64,
    /// Number of vCPUs.
    pub nr_vcpus: u32,
    /// What the guest's CPUs can do, before the per-vCPU parts.
    pub cpu: CpuDescriptionV1,
    /// What the balloon offers.
    pub balloon: BalloonOptions,
    /// For a reboot.
    pub kernel: Kernel,
}

/// All state of a paused machine beside its RAM.
#[derive(Serialize, Deserialize)]
pub struct MachineStateV1 {
    version: u32,
    /// Whether the guest was running when the migration began; a paused guest arrives paused.
    pub running: bool,
    /// Interrupt controllers, timer, clock.
    pub vm: VmStateV1,
    /// One per vCPU, by id.
    pub vcpus: Vec<VcpuStateV1>,
    /// COM1.
    pub serial: wherry_devices::serial::SerialStateV1,
    /// Power registers.
    pub power: wherry_devices::power::PowerStateV1,
    /// The balloon, if there is one.
    pub balloon: Option<wherry_devices::virtio::balloon::BalloonDeviceStateV1>,
}

/// Why a description or a state is refused.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Not decodable, or with bytes left over.
    #[error("the {0} is malformed")]
    Malformed(&'static str, #[source] CodecError),
    /// From another version.
    #[error("the {0} has version {1}, this wherry knows {VERSION}")]
    Version(&'static str, u32),
    /// Out of the limits of this VMM.
    #[error("the machine has {0}, which is not supported here")]
    Unsupported(String),
}

impl Description {
    /// A new machine on this host.
    pub fn new(
        ram_bytes: u64,
        nr_vcpus: u32,
        balloon: BalloonOptions,
        kernel: Kernel,
    ) -> anyhow::Result<Self> {
        let kvm = super::open_kvm()?;
        let cpu = CpuDescriptionV1::new(&kvm, &probe(&kvm)?)?;
        Ok(Self { version: VERSION, ram_bytes, nr_vcpus, cpu, balloon, kernel })
    }

    /// For the handshake.
    ///
    /// # Errors
    /// Larger than the codec's limit.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode(self)
    }

    /// From the peer, which may lie.
    ///
    /// # Errors
    /// Malformed, of another version, or beyond this VMM's limits.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        use crate::config::{MAX_CMDLINE, MAX_RAM_BYTES, MAX_VCPUS, MIN_RAM_BYTES};
        let d: Self = decode(bytes, "machine description")?;
        if d.version != VERSION {
            return Err(StateError::Version("machine description", d.version));
        }
        if !(MIN_RAM_BYTES..=MAX_RAM_BYTES).contains(&d.ram_bytes)
            || !d.ram_bytes.is_multiple_of(4096)
        {
            return Err(StateError::Unsupported(format!("{} bytes of RAM", d.ram_bytes)));
        }
        if d.nr_vcpus == 0 || d.nr_vcpus > MAX_VCPUS {
            return Err(StateError::Unsupported(format!("{} vCPUs", d.nr_vcpus)));
        }
        if d.kernel.cmdline.len() > MAX_CMDLINE {
            return Err(StateError::Unsupported("a command line that is too long".into()));
        }
        Ok(d)
    }

    /// Refuses a host whose CPU cannot do what the guest was told, naming the features.
    ///
    /// # Errors
    /// Features are missing, or KVM does not say what it supports.
    pub fn check_cpu(&self, kvm: &Kvm) -> anyhow::Result<()> {
        Ok(self.cpu.check(kvm, &probe(kvm)?)?)
    }
}

/// A vCPU of no machine, to ask what one can do. It keeps its VM alive.
fn probe(kvm: &Kvm) -> anyhow::Result<VcpuFd> {
    let vm = kvm.create_vm().context("cannot create a VM")?;
    vm.create_vcpu(0).context("cannot create a vCPU")
}

impl MachineStateV1 {
    /// Assembles a state of this version.
    #[allow(clippy::too_many_arguments, reason = "one argument per part, used once")]
    pub fn new(
        running: bool,
        vm: VmStateV1,
        vcpus: Vec<VcpuStateV1>,
        serial: wherry_devices::serial::SerialStateV1,
        power: wherry_devices::power::PowerStateV1,
        balloon: Option<wherry_devices::virtio::balloon::BalloonDeviceStateV1>,
    ) -> Self {
        Self { version: VERSION, running, vm, vcpus, serial, power, balloon }
    }

    /// For the wire.
    ///
    /// # Errors
    /// Larger than the codec's limit.
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        codec::encode(self)
    }

    /// From the wire.
    ///
    /// # Errors
    /// Malformed or of another version. What the parts hold is checked when they are restored.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let s: Self = decode(bytes, "machine state")?;
        if s.version != VERSION {
            return Err(StateError::Version("machine state", s.version));
        }
        Ok(s)
    }
}

fn decode<T: Serialize + serde::de::DeserializeOwned>(
    bytes: &[u8],
    what: &'static str,
) -> Result<T, StateError> {
    codec::decode(bytes).map_err(|e| StateError::Malformed(what, e))
}
