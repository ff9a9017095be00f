//! Disks for tests, in memory: they hold what they are told to hold, and fail when they are told.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use vm_memory::VolatileSlice;
use wherry_devices::host::DiskFull;
use wherry_devices::virtio::blk::{Disk, DiskError, DiskOptions};

/// Size of the usual disk.
pub const SECTORS: u64 = 64;

/// The usual disk.
pub fn options() -> DiskOptions {
    DiskOptions {
        sectors: SECTORS,
        read_only: false,
        serial: "usual".into(),
        block_size: 512,
        discard: true,
        write_zeroes: true,
    }
}

/// Who is told that there is no room.
#[derive(Default)]
pub struct Notes {
    pub told: AtomicU64,
    /// Whether the machine will be paused.
    pub pauses: AtomicBool,
}
impl DiskFull for Notes {
    fn disk_full(&self, id: &str) -> bool {
        assert_eq!(id, "disk0");
        self.told.fetch_add(1, Ordering::SeqCst);
        self.pauses.load(Ordering::SeqCst)
    }
}

/// What a disk is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Read,
    Write,
    Flush,
    Discard,
    Zero(bool),
}

/// What a test does in a call.
pub type Hook = Arc<dyn Fn(Call) -> Result<(), DiskError> + Send + Sync>;

/// See the module's text.
pub struct MemDisk {
    pub read_only: bool,
    pub align: u64,
    pub content: Mutex<Vec<u8>>,
    pub calls: Mutex<Vec<(Call, u64, u64)>>,
    /// So many of its bytes, from the first on, are in the host's memory: nobody waits for them.
    pub cached: AtomicU64,
    /// Called before anything is done, and may fail it.
    pub before: Mutex<Option<Hook>>,
    /// Called after it was done, and may fail it.
    pub after: Mutex<Option<Hook>>,
    /// How often somebody came into a hurry.
    pub hurries: AtomicU64,
    /// Whether it holds what comes, and how many it does.
    pub gate: Mutex<(bool, usize)>,
    pub moved: Condvar,
}

impl MemDisk {
    pub fn new(content: Vec<u8>) -> Self {
        Self {
            read_only: false,
            align: 1,
            content: Mutex::new(content),
            calls: Mutex::default(),
            cached: AtomicU64::new(0),
            before: Mutex::default(),
            after: Mutex::default(),
            hurries: AtomicU64::new(0),
            gate: Mutex::default(),
            moved: Condvar::new(),
        }
    }

    /// The usual size, if it is empty.
    pub fn shared(mut content: Vec<u8>) -> Arc<Self> {
        content.resize((SECTORS * 512) as usize, 0);
        Arc::new(Self::new(content))
    }

    pub fn hurries(&self) -> u64 {
        self.hurries.load(Ordering::SeqCst)
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.content.lock().unwrap().clone()
    }

    pub fn calls(&self) -> Vec<(Call, u64, u64)> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    pub fn before(&self, hook: impl Fn(Call) -> Result<(), DiskError> + Send + Sync + 'static) {
        *self.before.lock().unwrap() = Some(Arc::new(hook));
    }

    pub fn after(&self, hook: impl Fn(Call) -> Result<(), DiskError> + Send + Sync + 'static) {
        *self.after.lock().unwrap() = Some(Arc::new(hook));
    }

    pub fn no_hooks(&self) {
        *self.before.lock().unwrap() = None;
        *self.after.lock().unwrap() = None;
    }

    /// From now on nothing ends, or all that was held does.
    pub fn hold(&self, on: bool) {
        self.gate.lock().unwrap().0 = on;
        self.moved.notify_all();
    }

    /// Returns when it holds `nr`.
    pub fn wait_held(&self, nr: usize) {
        let gate = self.gate.lock().unwrap();
        drop(self.moved.wait_while(gate, |gate| gate.1 < nr).unwrap());
    }

    fn call(
        &self,
        call: Call,
        at: u64,
        slices: &[VolatileSlice<'_>],
        len: u64,
        work: impl FnOnce(&mut [u8]),
    ) -> Result<(), DiskError> {
        let len = len + slices.iter().map(|s| s.len() as u64).sum::<u64>();
        for n in [at, len].into_iter().chain(slices.iter().map(|s| s.ptr_guard().as_ptr() as u64)) {
            assert!(call == Call::Flush || n.is_multiple_of(self.align), "{call:?} at {at}, {len}");
        }
        assert!(at + len <= self.size());
        let read = matches!(call, Call::Read | Call::Flush);
        assert!(read || !self.read_only, "{call:?}");
        self.calls.lock().unwrap().push((call, at, len));
        let mut gate = self.gate.lock().unwrap();
        if gate.0 {
            gate.1 += 1;
            self.moved.notify_all();
            gate = self.moved.wait_while(gate, |gate| gate.0).unwrap();
            gate.1 -= 1;
        }
        drop(gate);
        let before = self.before.lock().unwrap().clone();
        before.map_or(Ok(()), |hook| hook(call))?;
        work(&mut self.content.lock().unwrap()[at as usize..]);
        let after = self.after.lock().unwrap().clone();
        after.map_or(Ok(()), |hook| hook(call))
    }
}

impl Disk for MemDisk {
    fn size(&self) -> u64 {
        self.content.lock().unwrap().len() as u64
    }
    fn read_only(&self) -> bool {
        self.read_only
    }
    fn alignment(&self) -> u64 {
        self.align
    }
    fn read(&self, at: u64, into: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        self.call(Call::Read, at, into, 0, |mut content| {
            for slice in into {
                slice.copy_from(&content[..slice.len()]);
                content = &mut content[slice.len()..];
            }
        })
    }
    fn read_now(&self, at: u64, into: &[VolatileSlice<'_>]) -> bool {
        let content = self.content.lock().unwrap();
        let cached = self.cached.load(Ordering::SeqCst).min(content.len() as u64) as usize;
        let mut left = content[..cached].get(at as usize..).unwrap_or_default();
        into.iter().all(|slice| {
            slice.copy_from(left);
            let all = left.len() >= slice.len();
            left = left.get(slice.len()..).unwrap_or_default();
            all
        })
    }
    fn write(&self, at: u64, from: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        self.call(Call::Write, at, from, 0, |mut content| {
            for slice in from {
                slice.copy_to(&mut content[..slice.len()]);
                content = &mut content[slice.len()..];
            }
        })
    }
    fn flush(&self) -> Result<(), DiskError> {
        self.call(Call::Flush, 0, &[], 0, |_| {})
    }
    /// What is discarded reads as ones: nobody may rely on it.
    fn discard(&self, at: u64, len: u64) -> Result<(), DiskError> {
        self.call(Call::Discard, at, &[], len, |content| content[..len as usize].fill(0xff))
    }
    fn write_zeroes(&self, at: u64, len: u64, unmap: bool) -> Result<(), DiskError> {
        self.call(Call::Zero(unmap), at, &[], len, |content| content[..len as usize].fill(0))
    }
    fn hurry(&self, on: bool) {
        self.hurries.fetch_add(on.into(), Ordering::SeqCst);
    }
}
