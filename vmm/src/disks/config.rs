//! One `--disk`.

use std::ffi::OsString;
use std::num::NonZeroU64;
use std::path::Path;

use serde::{Deserialize, Serialize};
use wherry_devices::virtio::blk::{DiskOptions, SECTOR};

/// A disk of a VM on this host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DiskConfig {
    /// Name of its device, unique in the machine.
    pub id: String,
    /// A raw image or a block device.
    pub path: OsString,
    /// The guest cannot write.
    pub read_only: bool,
    /// Past the host's page cache (`O_DIRECT`).
    pub direct: bool,
    /// What the guest reads as its serial number: at most 20 bytes.
    pub serial: String,
    /// Bytes read and written in a second at most.
    pub bytes_per_second: Option<NonZeroU64>,
    /// Requests in a second at most.
    pub ops: Option<NonZeroU64>,
    /// Whether its lock is taken. Without it nobody notices that two VMs write.
    pub lock: bool,
}

impl DiskConfig {
    /// A raw image as the guest finds it unless more is said: it may write, through the host's page
    /// cache, as fast as it can, under the image's lock.
    pub fn new(id: impl Into<String>, path: impl Into<OsString>) -> Self {
        Self {
            id: id.into(),
            path: path.into(),
            read_only: false,
            direct: false,
            serial: String::new(),
            bytes_per_second: None,
            ops: None,
            lock: true,
        }
    }

    /// The path, for messages.
    pub fn shown(&self) -> String {
        Path::new(&self.path).display().to_string()
    }

    /// What the guest sees of a disk of so many bytes.
    pub(super) fn options(&self, bytes: u64) -> DiskOptions {
        DiskOptions {
            sectors: bytes / SECTOR,
            read_only: self.read_only,
            serial: self.serial.clone(),
            block_size: SECTOR as u32,
            discard: !self.read_only,
            write_zeroes: !self.read_only,
        }
    }
}
