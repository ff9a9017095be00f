//! What both sides of a move must agree on, and what the driver reads of it (virtio 1.3, sections
//! 5.2.3 and 5.2.4).

use serde::{Deserialize, Serialize};

use super::disk::Disk;
use crate::virtio::mmio::regs;

/// Size of the only queue.
pub const QUEUE_SIZE: u16 = 256;
/// Descriptors in one chain at most: it cannot have more than the queue.
pub const MAX_CHAIN: usize = QUEUE_SIZE as usize;
/// Requests that are taken at most, the kept ones included.
pub const DEPTH: usize = 32;
/// The unit of everything, whatever the block size.
pub const SECTOR: u64 = 512;
/// Bytes of a serial number at most, and of the answer to GET_ID.
pub const ID_BYTES: usize = 20;
/// Ranges in one request at most.
pub const MAX_RANGES: u32 = 16;
/// Sectors in one range to discard at most: 1 GiB.
pub const MAX_DISCARD: u32 = 2 << 20;
/// Sectors in one range to zero at most: 64 MiB. A host that cannot do better writes them.
pub const MAX_ZEROES: u32 = 128 << 10;
/// Data segments in one request at most: with header and status they fill the queue.
pub const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// A physical block, whatever the host has: a guest that arrives elsewhere finds the same.
const PHYSICAL_BLOCK: u32 = 4096;

/// Feature bits (section 5.2.3).
#[allow(missing_docs)]
pub mod feature {
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const TOPOLOGY: u64 = 1 << 10;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// What the guest sees of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskOptions {
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// The guest cannot write.
    pub read_only: bool,
    /// Serial number, at most [`ID_BYTES`] bytes.
    pub serial: String,
    /// Logical block size in bytes: a power of two from 512 to 4096.
    pub block_size: u32,
    /// The guest may discard.
    pub discard: bool,
    /// The guest may have sectors zeroed.
    pub write_zeroes: bool,
}

/// Why a disk cannot be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskRefused {
    /// No size, or beyond what a file can have.
    #[error("a disk of {0} sectors is impossible")]
    Sectors(u64),
    /// Not a power of two from 512 to 4096, or the size is no multiple of it.
    #[error("its blocks cannot have {0} bytes")]
    BlockSize(u32),
    /// Too long.
    #[error("its serial number has {0} bytes, and {ID_BYTES} at most")]
    Serial(usize),
    /// The description says otherwise.
    #[error("the disk has {disk} sectors, the description says {described}")]
    Size {
        /// It has.
        disk: u64,
        /// It should have.
        described: u64,
    },
    /// The guest is to write.
    #[error("the disk can only be read, the description says that it is written")]
    ReadOnly,
    /// For `O_DIRECT`.
    #[error("its size is no multiple of {0} bytes, which direct access needs")]
    Alignment(u64),
}

impl DiskOptions {
    /// Whether they make sense, and this is the disk that they mean.
    ///
    /// # Errors
    /// They do not, or it is another one.
    pub fn check(&self, disk: &dyn Disk) -> Result<(), DiskRefused> {
        let Self { sectors, block_size, .. } = *self;
        if sectors == 0 || sectors > i64::MAX as u64 / SECTOR {
            return Err(DiskRefused::Sectors(sectors));
        }
        let possible = block_size.is_power_of_two() && (512..=4096).contains(&block_size);
        if !possible || !(sectors * SECTOR).is_multiple_of(block_size.into()) {
            return Err(DiskRefused::BlockSize(block_size));
        }
        if self.serial.len() > ID_BYTES {
            return Err(DiskRefused::Serial(self.serial.len()));
        }
        let has = disk.size() / SECTOR;
        if has != sectors {
            return Err(DiskRefused::Size { disk: has, described: sectors });
        }
        if disk.read_only() && !self.read_only {
            return Err(DiskRefused::ReadOnly);
        }
        let align = disk.alignment();
        if align > 1 && !(align.is_power_of_two() && (sectors * SECTOR).is_multiple_of(align)) {
            return Err(DiskRefused::Alignment(align));
        }
        Ok(())
    }

    pub(super) fn features(&self) -> u64 {
        let when = |on, bit| if on { bit } else { 0 };
        let transport = regs::F_VERSION_1 | regs::F_EVENT_IDX | regs::F_INDIRECT_DESC;
        let always = feature::SEG_MAX | feature::BLK_SIZE | feature::TOPOLOGY | feature::FLUSH;
        transport
            | always
            | when(self.read_only, feature::RO)
            | when(self.discards(), feature::DISCARD)
            | when(self.zeroes(), feature::WRITE_ZEROES)
    }

    pub(super) fn discards(&self) -> bool {
        self.discard && !self.read_only
    }

    pub(super) fn zeroes(&self) -> bool {
        self.write_zeroes && !self.read_only
    }

    /// Config space. Fields without their feature are zero.
    pub(super) fn space(&self) -> [u8; 60] {
        let mut space = [0; 60];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(field) = space.get_mut(at..at + bytes.len()) {
                field.copy_from_slice(bytes);
            }
        };
        put(0, &self.sectors.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &self.block_size.to_le_bytes());
        // Logical blocks in a physical one, as a power of two; none of them before the first.
        let blocks = (PHYSICAL_BLOCK / self.block_size.max(1)).max(1);
        put(24, &[blocks.ilog2() as u8, 0]);
        // Least size of good I/O in logical blocks.
        put(26, &1u16.to_le_bytes());
        put(34, &1u16.to_le_bytes());
        if self.discards() {
            put(36, &MAX_DISCARD.to_le_bytes());
            put(40, &MAX_RANGES.to_le_bytes());
            put(44, &(PHYSICAL_BLOCK / SECTOR as u32).to_le_bytes());
        }
        if self.zeroes() {
            put(48, &MAX_ZEROES.to_le_bytes());
            put(52, &MAX_RANGES.to_le_bytes());
            put(56, &[1]);
        }
        space
    }
}
