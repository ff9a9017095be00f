//! How large files get, and how many descriptors there are.
//!
//! The process of a VM writes three kinds of files: its guest's memory (a memory file is a file),
//! disks, and the console's log. None of them gets larger than the largest of them may be, so
//! whoever breaks into the process cannot fill the host's disks by a file that is open. A write
//! beyond it is an error, not the end: SIGXFSZ is ignored.

use rustix::process::Resource;
use wherry_migration::wire::boot::MAX_FILE;
use wherry_rootfs::sandbox::{SandboxError, lower};

/// More than all clients, streams, connections, vCPUs and devices have together.
const DESCRIPTORS: u64 = 4096;
/// A line behind the limit of the console's file says that it is reached.
const LINE: u64 = 4096;

/// What a VM writes.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Bytes of guest RAM.
    pub ram: u64,
    /// Bytes of the largest disk that is a file.
    pub disk: u64,
    /// Bytes that the console's output may have where it goes to a file; `None`: any number.
    pub console: Option<u64>,
}

impl Sizes {
    /// The largest file; `None`: any size. A kernel or initrd that travels with its guest is a
    /// memory file here, too.
    pub fn largest(self) -> Option<u64> {
        let console = self.console?.saturating_add(LINE);
        Some(self.ram.max(self.disk).max(console).max(MAX_FILE))
    }
}

/// Sets the limits, hard and soft. A limit that is lower stays.
pub(super) fn set(largest_file: Option<u64>) -> Result<(), SandboxError> {
    lower(Resource::Core, "on cores", 0)?;
    lower(Resource::Nofile, "on descriptors", DESCRIPTORS)?;
    largest_file.map_or(Ok(()), |bytes| lower(Resource::Fsize, "on the size of files", bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_file_is_that_of_ram_disks_and_the_consoles() {
        const GIB: u64 = 1 << 30;
        let largest = |ram, disk, console| Sizes { ram, disk, console }.largest();
        assert_eq!(largest(GIB / 2, 4 * GIB, Some(0)), Some(4 * GIB));
        assert_eq!(largest(8 * GIB, 4 * GIB, Some(0)), Some(8 * GIB));
        assert_eq!(largest(GIB, 0, Some(9 * GIB)), Some(9 * GIB + LINE));
        assert_eq!(largest(GIB, 0, Some(u64::MAX)), Some(u64::MAX));
        // What travels with a small guest is longer than all of it.
        assert_eq!(largest(GIB / 8, 0, Some(0)), Some(MAX_FILE));
        assert_eq!(largest(GIB, GIB, None), None);
    }
}
