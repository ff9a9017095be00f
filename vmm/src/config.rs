//! What a machine is built from. Filled in by the command line, read by the machine.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Kernel command line when none is given: the serial console.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0";

/// Smallest guest RAM in bytes.
pub const MIN_RAM_BYTES: u64 = 128 << 20;

/// Largest guest RAM in bytes, a page less than 8 TiB: KVM and the wire have no more. The host
/// usually allows less.
pub const MAX_RAM_BYTES: u64 = wherry_migration::wire::MAX_PAGES * 4096;

/// Most vCPUs: their APIC ids are 8 bits wide, and the highest is the broadcast.
pub const MAX_VCPUS: u32 = 254;

/// Longest kernel command line in bytes (Linux's COMMAND_LINE_SIZE on x86, less the final zero).
pub const MAX_CMDLINE: usize = 2047;

/// A machine to boot. Already validated: sizes are in range and multiples of a page, the name fits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunConfig {
    /// Name for the control socket.
    pub name: String,
    /// bzImage or ELF kernel.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Complete kernel command line.
    pub cmdline: String,
    /// Number of vCPUs, 1 ..= [`MAX_VCPUS`].
    pub nr_vcpus: u32,
    /// Guest RAM in bytes, [`MIN_RAM_BYTES`] ..= [`MAX_RAM_BYTES`], a multiple of 4096.
    pub ram_bytes: u64,
    /// Where the serial console goes.
    pub serial: SerialSink,
    /// Whether a guest's reboot starts it again; otherwise it ends the VM.
    pub reboot: bool,
    /// The balloon.
    pub balloon: BalloonOptions,
}

/// A machine to receive. Its shape comes from the source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReceiveConfig {
    /// Name for the control socket.
    pub name: String,
    /// Where to listen: `unix:/absolute/path` or `tcp:HOST:PORT`.
    pub uri: String,
    /// Where the serial console goes.
    pub serial: SerialSink,
    /// Whether standard error is told how it goes.
    pub progress: bool,
    /// Most RAM in bytes that the guest may have. `None`: what the host has available when it
    /// comes.
    pub max_memory: Option<u64>,
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
        path: PathBuf,
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

/// What the balloon device offers. The driver may take less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonOptions {
    /// Whether the machine has a balloon at all.
    pub device: bool,
    /// Free page hints (VIRTIO_BALLOON_F_FREE_PAGE_HINT): what migration skips.
    pub hinting: bool,
    /// Free page reporting (VIRTIO_BALLOON_F_REPORTING): freed memory goes back to the host.
    pub reporting: bool,
    /// Guest memory statistics (VIRTIO_BALLOON_F_STATS_VQ).
    pub stats: bool,
    /// Deflate before the guest runs out of memory (VIRTIO_BALLOON_F_DEFLATE_ON_OOM).
    pub deflate_on_oom: bool,
    /// The guest tells its poison value (VIRTIO_BALLOON_F_PAGE_POISON).
    pub page_poison: bool,
}

impl Default for BalloonOptions {
    /// Everything.
    fn default() -> Self {
        Self {
            device: true,
            hinting: true,
            reporting: true,
            stats: true,
            deflate_on_oom: true,
            page_poison: true,
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
