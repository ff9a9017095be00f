//! A guest that does not run: memory, the machine's own dirty log and balloon, and somebody who
//! is told when to write the same pages again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use wherry_devices::device::Device;
use wherry_devices::virtio::balloon::{BalloonHandle, KIND};
use wherry_migration::bitmap::Bitmap;
use wherry_migration::traits::{DirtyLog, Machine};
use wherry_vmm::kvm::open_kvm;
use wherry_vmm::memory::{DirtySources, KvmLog, Ram};

use super::balloon;
use super::memory::{Peak, peak};
use super::usage::Usage;

/// How often KVM's copy is measured.
const COPIES: usize = 5;

/// Source of a migration: machine and dirty log.
pub struct Guest {
    ram: Arc<Ram>,
    usage: Usage,
    balloon: BalloonHandle,
    log: DirtySources,
    /// KVM's part of it again, to be measured by itself.
    kvm: Option<KvmLog>,
    writes: AtomicU64,
    left: std::sync::Mutex<Option<Left>>,
}

/// What is seen when the log is about to be turned off.
#[derive(Clone, Copy)]
pub struct Left {
    /// The least time that KVM takes to copy the bits of all memory.
    pub kvm: Option<Duration>,
    /// The process's memory.
    pub peak: Peak,
}

impl Guest {
    /// With its memory filled. `kvm`: whether to have KVM's dirty log, too; why not, if it cannot
    /// be had.
    pub fn new(ram: Arc<Ram>, usage: Usage) -> Result<(Self, Option<String>)> {
        usage.fill(&ram)?;
        let balloon = balloon::with(&ram, &usage.ballooned())?;
        let (kvm, why) = match kvm_logs(&ram) {
            Ok(logs) => (Some(logs), None),
            Err(why) => (None, Some(format!("{why:#}"))),
        };
        let (log, kvm) = match kvm {
            Some([log, copy]) => (DirtySources::new(log), Some(copy)),
            None => (DirtySources::of_devices(ram.clone()), None),
        };
        let (writes, left) = Default::default();
        Ok((Self { ram, usage, balloon, log, kvm, writes, left }, why))
    }

    /// Its balloon.
    pub fn balloon(&self) -> &BalloonHandle {
        &self.balloon
    }

    /// What was seen when the log was turned off.
    pub fn left(&self) -> Result<Left> {
        let left = self.left.lock().ok().and_then(|left| *left);
        left.context("the dirty log was never turned off")
    }

    /// Writes the pages that it writes, as a device does.
    pub fn write(&self) -> io::Result<()> {
        let nth = self.writes.fetch_add(1, SeqCst) + 1;
        self.usage.write(&self.ram, nth).map_err(io::Error::other)
    }
}

/// The log of a VM with this RAM and no vCPU, twice.
fn kvm_logs(ram: &Arc<Ram>) -> Result<[KvmLog; 2]> {
    let vm = open_kvm()?.create_vm().context("cannot create a VM")?;
    KvmLog::enable(&vm)?;
    let vm = Arc::new(vm);
    let logs = [0, 1].map(|_| KvmLog::new(vm.clone(), ram.clone()));
    logs[0].map_ram().context("KVM does not take the guest memory")?;
    Ok(logs)
}

impl DirtyLog for Guest {
    fn start(&self) -> io::Result<()> {
        self.log.start()
    }

    fn protect(&self, first: u64, nr: u64) -> io::Result<()> {
        self.log.protect(first, nr)
    }

    fn harvest(&self, out: &mut Bitmap) -> io::Result<()> {
        self.log.harvest(out)
    }

    /// After the hand-off, and no bit is set: as it was in the pause.
    fn stop(&self) -> io::Result<()> {
        let peak = peak();
        let copy = |kvm: &KvmLog| {
            let start = Instant::now();
            kvm.copy().map(|()| start.elapsed())
        };
        let times = self.kvm.iter().flat_map(|kvm| (0..COPIES).map(move |_| copy(kvm)));
        // What else the machine does can only add to it.
        let kvm = times.collect::<io::Result<Vec<_>>>()?.into_iter().min();
        let left = Left { kvm, peak };
        if let Ok(mut place) = self.left.lock() {
            *place = Some(left);
        }
        self.log.stop()
    }
}

impl Machine for Guest {
    fn before_pause(&self) -> io::Result<()> {
        self.write()
    }

    fn pause(&self) -> io::Result<()> {
        self.balloon.set_paused(true);
        Ok(())
    }

    fn resume(&self) -> io::Result<()> {
        Ok(())
    }

    fn hand_over(&self, _begun: bool) -> io::Result<()> {
        Ok(())
    }

    fn describe(&self, _version: u16) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }

    fn state_bytes(&self, version: u16) -> u64 {
        self.balloon.device().state_bytes(KIND.state_for(version))
    }

    fn save(&self, version: u16) -> io::Result<Vec<u8>> {
        self.balloon.device().save(KIND.state_for(version)).map_err(io::Error::other)
    }
}
