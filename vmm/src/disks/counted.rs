//! A disk that counts what is asked of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::VolatileSlice;
use wherry_devices::virtio::blk::disk::{Disk, DiskError, total};

use crate::control::DiskInfo;

/// Of one disk, through reboots.
#[derive(Default)]
pub struct Counts {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    flushes: AtomicU64,
    discards: AtomicU64,
    errors: AtomicU64,
}

impl Counts {
    /// For `info`.
    pub fn info(&self, id: &str) -> DiskInfo {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DiskInfo {
            id: id.to_owned(),
            reads: of(&self.reads),
            read_bytes: of(&self.read_bytes),
            writes: of(&self.writes),
            written_bytes: of(&self.written_bytes),
            flushes: of(&self.flushes),
            discards: of(&self.discards),
            errors: of(&self.errors),
        }
    }
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// See the module's text.
pub struct Counted {
    disk: Arc<dyn Disk>,
    counts: Arc<Counts>,
}

impl Counted {
    /// The same disk; `counts` go on.
    pub fn new(disk: Arc<dyn Disk>, counts: Arc<Counts>) -> Self {
        Self { disk, counts }
    }

    /// What was put off is done later, and counted then.
    fn count(&self, counter: &AtomicU64, done: Result<(), DiskError>) -> Result<(), DiskError> {
        match &done {
            Ok(()) => add(counter, 1),
            Err(DiskError::PutOff) => {}
            Err(_) => add(&self.counts.errors, 1),
        }
        done
    }
}

impl Disk for Counted {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn read_only(&self) -> bool {
        self.disk.read_only()
    }

    fn alignment(&self) -> u64 {
        self.disk.alignment()
    }

    fn read(&self, at: u64, into: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        self.count(&self.counts.reads, self.disk.read(at, into))?;
        add(&self.counts.read_bytes, total(into) as u64);
        Ok(())
    }

    fn read_now(&self, at: u64, into: &[VolatileSlice<'_>]) -> bool {
        let read = self.disk.read_now(at, into);
        if read {
            add(&self.counts.reads, 1);
            add(&self.counts.read_bytes, total(into) as u64);
        }
        read
    }

    fn write(&self, at: u64, from: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        self.count(&self.counts.writes, self.disk.write(at, from))?;
        add(&self.counts.written_bytes, total(from) as u64);
        Ok(())
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.count(&self.counts.flushes, self.disk.flush())
    }

    fn discard(&self, at: u64, len: u64) -> Result<(), DiskError> {
        self.count(&self.counts.discards, self.disk.discard(at, len))
    }

    fn write_zeroes(&self, at: u64, len: u64, unmap: bool) -> Result<(), DiskError> {
        self.count(&self.counts.discards, self.disk.write_zeroes(at, len, unmap))
    }

    fn hurry(&self, on: bool) {
        self.disk.hurry(on);
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::VolatileSlice;

    use super::*;
    use crate::disks::tests::{disks, image};

    #[test]
    fn what_a_disk_did_is_counted_through_reboots() {
        let dir = tempfile::tempdir().unwrap();
        let disks = disks(&image(dir.path(), "a", 8));
        let mut bytes = [0; 1536];
        let slices = [VolatileSlice::from(&mut bytes[..])];
        let first = disks.get("disk0").unwrap();
        first.write(0, &slices).unwrap();
        first.flush().unwrap();
        first.discard(0, 512).unwrap();
        first.write_zeroes(0, 512, false).unwrap();
        let second = disks.get("disk0").unwrap();
        second.read(0, &slices).unwrap();
        let now = u64::from(second.read_now(0, &slices));
        second.read(8 * 512, &slices).unwrap_err();
        let expected = DiskInfo {
            id: "disk0".into(),
            reads: 1 + now,
            read_bytes: 1536 * (1 + now),
            writes: 1,
            written_bytes: 1536,
            flushes: 1,
            discards: 2,
            errors: 1,
        };
        assert_eq!(disks.info(), [expected]);
    }
}
