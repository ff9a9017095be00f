//! What a machine is built from. Filled in by the command line, read by the machine.

use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use wherry_codec::CodecError;
use wherry_codec::records::is_name;
use wherry_devices::device::Spec;
use wherry_devices::virtio::balloon::{self, BalloonConfig};
use wherry_devices::virtio::net::{self, NetOptions};
use wherry_devices::virtio::rng;
use wherry_devices::virtio::vsock::{self, VsockOptions};
use wherry_devices::{power, serial};

pub use crate::boot::credential::{Credential, check as check_credentials};
pub use crate::boot::layout::{MAX_VCPUS, MIN_RAM_BYTES};
pub use crate::disks::DiskConfig;

use crate::boot::layout::VIRTIO_MMIO_SLOTS;

/// Kernel command line when none is given: the serial console.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0";

/// Largest guest RAM in bytes, a page less than 8 TiB: KVM and the wire have no more. The host
/// usually allows less.
pub const MAX_RAM_BYTES: u64 = wherry_migration::wire::MAX_PAGES * 4096;

/// Longest kernel command line in bytes (Linux's COMMAND_LINE_SIZE on x86, less the final zero).
pub const MAX_CMDLINE: usize = 2047;

/// A machine to boot. Already validated: sizes are in range and multiples of a page, the name fits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunConfig {
    /// Name for the control socket.
    pub name: String,
    /// A kernel's file. `None`: what the first disk boots. No `PathBuf`, of which serde takes text
    /// alone.
    pub kernel: Option<OsString>,
    /// Initial RAM disk.
    pub initrd: Option<OsString>,
    /// Kernel command line, complete but for the words about a disk's root.
    pub cmdline: String,
    /// Number of vCPUs, 1 ..= [`MAX_VCPUS`].
    pub nr_vcpus: u32,
    /// Guest RAM in bytes, [`MIN_RAM_BYTES`] ..= [`MAX_RAM_BYTES`], a multiple of 4096.
    pub ram_bytes: u64,
    /// The folder on a tmpfs where its memory is; none for a memory file.
    pub memory_backing: Option<OsString>,
    /// Where the serial console goes.
    pub serial: SerialSink,
    /// Whether a guest's reboot starts it again; otherwise it ends the VM.
    pub reboot: bool,
    /// What the balloon offers, if there is one.
    pub balloon: Option<BalloonConfig>,
    /// Whether there is an entropy device.
    pub rng: bool,
    /// What the guest's systemd is told.
    pub credentials: Vec<Credential>,
    /// Its networks.
    pub nets: Vec<NetConfig>,
    /// Its disks.
    pub disks: Vec<DiskConfig>,
    /// Its sockets, if it has any.
    pub vsock: Option<VsockConfig>,
}

/// The sockets of a guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VsockConfig {
    /// What the guest sees of it.
    pub options: VsockOptions,
    /// The host's end. `None`: in the runtime folder, by the VM's name.
    pub path: Option<OsString>,
}

/// A network of a guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetConfig {
    /// The host's end.
    pub end: NetEnd,
    /// What the guest sees of it.
    pub options: NetOptions,
}

/// The host's end of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetEnd {
    /// The device's name.
    pub id: String,
    /// What it is.
    pub backend: NetBackend,
}

/// What a host's end of a network is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetBackend {
    /// The tap of this name.
    Tap(String),
    /// A tap that is open as this descriptor.
    Fd(RawFd),
    /// passt, on sockets of this user.
    User(UserNet),
}

/// A network that needs no privileges.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNet {
    /// Ports of this host that lead into the guest.
    pub forwards: Vec<Forward>,
    /// Longest packet, if that is known.
    pub mtu: Option<u16>,
}

/// A TCP port of this host that leads into the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// Where it listens.
    pub address: IpAddr,
    /// Its number here.
    pub host: u16,
    /// Its number in the guest.
    pub guest: u16,
}

/// Whether people may call a device so.
///
/// # Errors
/// A description cannot have such a name, or another part of it has it.
pub fn check_id(id: &str) -> Result<(), &'static str> {
    let parts = ["machine", "cpu", "kernel", "vm"];
    let devices = [&serial::KIND, &power::KIND, &balloon::KIND, &rng::KIND, &vsock::KIND];
    let taken = id.starts_with("vcpu-") || parts.contains(&id);
    if !is_name(id.as_bytes()) {
        return Err("id= wants 1 to 32 of a-z 0-9 -");
    }
    if taken || devices.iter().any(|kind| kind.id == id) {
        return Err("another part of the machine is called that; use another id=");
    }
    Ok(())
}

/// Whether there is a slot for each of a guest's disks, networks and what else it asks for. Balloon
/// and entropy device have theirs even where they are left out.
///
/// # Errors
/// There are too many.
pub fn check_slots(more: usize) -> Result<(), String> {
    let left = VIRTIO_MMIO_SLOTS as usize - 2;
    if more <= left {
        return Ok(());
    }
    Err(format!(
        "{more} disks, networks and other devices are too many: the machine has \
         {VIRTIO_MMIO_SLOTS} slots, of which balloon and entropy device have 2; {left} are left"
    ))
}

/// The devices of a new machine. A virtio device's slot is its place in the list, whether those
/// before it are there or not; what a description says once, its guest keeps. Disks are as
/// [`Disks::describe`](crate::disks::Disks::describe) has them.
///
/// # Errors
/// None: plain data can always be encoded.
pub fn devices(
    balloon: Option<&BalloonConfig>,
    rng: bool,
    nets: &[NetConfig],
    disks: Vec<Spec>,
) -> Result<Vec<Spec>, CodecError> {
    let net = |NetConfig { end, options }: &NetConfig| {
        Some(Spec::new(&net::KIND, options).map(|spec| spec.named(&end.id)))
    };
    let always = [
        balloon.map(|config| Spec::new(&balloon::KIND, &config)),
        rng.then(|| Spec::new(&rng::KIND, &())),
    ];
    let virtio = always.into_iter().chain(disks.into_iter().map(|disk| Some(Ok(disk))));
    let virtio = virtio.chain(nets.iter().map(net));
    let mut all = vec![Spec::new(&serial::KIND, &())?, Spec::new(&power::KIND, &())?];
    for (slot, spec) in (0..).zip(virtio) {
        all.extend(spec.transpose()?.map(|spec| spec.in_slot(slot)));
    }
    Ok(all)
}

/// The slots before it are those of balloon and entropy device.
const FIRST_FREE_SLOT: u32 = 2;

/// The same with a socket device, in the slot behind the others.
///
/// # Errors
/// None, as for [`devices`].
pub fn with_vsock(
    mut all: Vec<Spec>,
    vsock: Option<&VsockConfig>,
) -> Result<Vec<Spec>, CodecError> {
    if let Some(VsockConfig { options, .. }) = vsock {
        let last = all.iter().filter_map(|spec| spec.slot).max();
        let slot = last.map_or(0, |slot| slot + 1).max(FIRST_FREE_SLOT);
        all.push(Spec::new(&vsock::KIND, options)?.in_slot(slot));
    }
    Ok(all)
}

/// A machine to receive. Its shape comes from the source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReceiveConfig {
    /// Name for the control socket.
    pub name: String,
    /// Where to listen: `unix:/absolute/path`, `tcp:HOST:PORT` or `tls:HOST:PORT`.
    pub uri: String,
    /// For `tls:`: the folder with this host's certificates.
    pub tls: Option<OsString>,
    /// Of whom one the source's certificate has to be; empty: of anybody whom the authority knows.
    pub tls_peers: Vec<String>,
    /// For `tls:` in place of both: certificates for one source, which gets a token.
    pub token: Option<TokenTo>,
    /// How long to wait for a source. `None`: as long as it takes, or as a token is good.
    pub patience: Option<Duration>,
    /// Where the serial console goes.
    pub serial: SerialSink,
    /// Whether standard error is told how it goes.
    pub progress: bool,
    /// Most RAM in bytes that the guest may have. `None`: what the host has available when it
    /// comes.
    pub max_memory: Option<u64>,
    /// As of a machine to boot.
    pub memory_backing: Option<OsString>,
    /// What this host has for the guest's networks.
    pub nets: Vec<NetEnd>,
    /// Its disks on this host.
    pub disks: Vec<DiskConfig>,
    /// The host's end of its sockets, if it has any. `None`: in the runtime folder, by the VM's
    /// name.
    pub vsock: Option<OsString>,
    /// Kernel and initrd on this host, which spare sending the guest's if they are the same.
    pub kernel: Option<OsString>,
    /// See there.
    pub initrd: Option<OsString>,
    /// Whether a guest's reboot starts it again, as at the source; otherwise it ends the VM.
    pub reboot: bool,
}

/// Where a receiver's token goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenTo {
    /// A line on standard output.
    Line,
    /// The same, as JSON.
    Json,
    /// This file.
    File(OsString),
}

/// Where the serial console goes. Clients of the control socket can attach to it in every case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SerialSink {
    /// This process's standard input (raw, if a terminal) and output.
    Stdio,
    /// Output is appended to a file; no input.
    File {
        /// The file.
        path: OsString,
        /// Bytes that it may have; further output is lost.
        max: Option<u64>,
    },
    /// A pseudo-terminal, whose path `wherry info` tells.
    Pty,
    /// Only clients of the control socket.
    None,
}

impl fmt::Display for SerialSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SerialSink::Stdio => f.write_str("stdio"),
            SerialSink::File { path, max: None } => write!(f, "file:{}", path.display()),
            SerialSink::File { path, max: Some(max) } => {
                write!(f, "file:{},max={max}B", path.display())
            }
            SerialSink::Pty => f.write_str("pty"),
            SerialSink::None => f.write_str("none"),
        }
    }
}

/// How a machine's run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "exit", content = "detail", rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest powered off.
    PoweredOff,
    /// The guest rebooted and reboots end the VM.
    Rebooted,
    /// Ended by `wherry kill` or a signal.
    Killed,
    /// The guest runs at the destination now.
    Migrated,
    /// The guest cannot go on: triple fault, or KVM gave up. With the reason.
    Crashed(String),
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("the guest powered off"),
            Self::Rebooted => f.write_str("the guest rebooted"),
            Self::Killed => f.write_str("ended"),
            Self::Migrated => f.write_str("the guest runs at its destination"),
            Self::Crashed(why) => write!(f, "the guest crashed: {why}"),
        }
    }
}
