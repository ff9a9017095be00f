//! The disks of a VM on this host: which file is behind which device, and who has its lock.
//!
//! The host's own configuration says what there is, and where is found out once ([`place`]). A
//! description that comes from a peer names devices by id, never files; what it says of a disk is
//! compared with the file.
//!
//! # Who writes
//! Whoever runs the guest has the lock of each of its disks. At a migration the source flushes its
//! disks and lets go of the locks ([`Disks::let_go`]) when the guest stands still and nothing but
//! its state is still to be sent; the destination opens the files *anew* when it loads that state,
//! so that it reads what was written, and takes the locks before it says that it has loaded. A
//! source that is to go on takes them back first ([`Disks::take_back`]), and stays paused if
//! somebody else has one, or wrote to a disk meanwhile: its guest would go on with an old idea of
//! it. So at each moment at most one side writes, and the one that runs has the lock; but for
//! `resume --force`, which is a person's word.

pub mod claim;
mod config;
mod counted;
mod full;
mod lock;
mod place;

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use wherry_devices::device::Spec;
use wherry_devices::host::DiskFull;
use wherry_devices::virtio::blk::{self, Disk, DiskOptions, FileDisk, Limits, SECTOR, Throttled};

use claim::{Claim, Taken};
pub use config::DiskConfig;
use counted::{Counted, Counts};
use full::OnFull;
use lock::{Locked, Stamp};
use place::Place;

use crate::confine::{Needs, Use};
use crate::control::DiskInfo;
use crate::life::Locks;
use crate::life::wake::Wake;
use crate::sync::lock;

/// How long a flush may take while the guest stands still, as its requests may.
const FLUSH_PAUSED: Duration = Duration::from_secs(5);
/// How long one may take before: the guest runs.
pub const FLUSH_RUNNING: Duration = Duration::from_secs(60);

/// A disk as this VM has it open.
struct Open {
    disk: Arc<FileDisk>,
    claim: Claim<Stamp>,
    /// The file again, for who must not write it.
    boots: Arc<File>,
}

struct One {
    config: DiskConfig,
    /// None: everything is open, and nothing is opened any more.
    place: Mutex<Option<Place>>,
    counts: Arc<Counts>,
    open: Mutex<Option<Open>>,
}

/// See the module's text.
#[derive(Default)]
pub struct Disks {
    all: Vec<One>,
    /// What was in the way when the locks were last taken back: which disk, and why.
    taken: Mutex<Option<(usize, Taken)>>,
    /// Those for which the host had no room, since anybody looked.
    full: full::Ids,
    /// Bytes that a file may have that this process writes; 0: any number.
    largest: AtomicU64,
}

/// Does what cannot be interrupted, on a thread that is left to itself when the `limit` is over.
fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Option<T>> {
    let (tell, done) = channel();
    let work = move || drop(tell.send(work()));
    wherry_threads::of_kind("disk-flush").spawn(work)?;
    Ok(done.recv_timeout(limit).ok())
}

/// A disk cannot be used.
fn refuse(config: &DiskConfig, why: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("disk `{}` ({}): {why}", config.id, config.shown()))
}

impl Disks {
    /// What a command line says. Looks where they are, and opens none.
    ///
    /// # Errors
    /// One is not there.
    pub fn new(configs: impl IntoIterator<Item = DiskConfig>) -> io::Result<Self> {
        let one = |config: DiskConfig| {
            let place = Place::of(Path::new(&config.path)).map_err(|e| refuse(&config, e))?;
            let place = Mutex::new(Some(place));
            Ok(One { config, place, counts: Arc::default(), open: Mutex::default() })
        };
        let all = configs.into_iter().map(one).collect::<io::Result<_>>()?;
        Ok(Self { all, ..Self::default() })
    }

    /// What a new machine says of them, in order. Opens and locks them.
    ///
    /// # Errors
    /// One cannot be opened, or is in use.
    pub fn describe(&self) -> io::Result<Vec<Spec>> {
        let describe = |one: &One| {
            let disk = one.open()?;
            let options = one.config.options(disk.size());
            let spec = Spec::new(&blk::KIND, &options).map_err(|e| refuse(&one.config, e))?;
            Ok(spec.named(&one.config.id))
        };
        self.all.iter().map(describe).collect()
    }

    /// Bytes of the largest one that is a file.
    ///
    /// # Errors
    /// One is gone.
    pub fn largest_file(&self) -> io::Result<u64> {
        let size = |one: &One| one.file_size().map_err(|e| refuse(&one.config, e));
        let sizes = self.all.iter().map(size);
        sizes.collect::<io::Result<Vec<_>>>().map(|sizes| sizes.into_iter().max().unwrap_or(0))
    }

    /// A process that is to open them later keeps their folders.
    ///
    /// # Errors
    /// One is gone, or too many descriptors are open.
    pub fn needs(&self, needs: &mut Needs) -> io::Result<()> {
        for one in &self.all {
            let kept = one.beneath(Place::needed).map_err(|e| refuse(&one.config, e))?;
            needs.folder(kept, Use::Disk { written: !one.config.read_only })?;
        }
        Ok(())
    }

    /// The guest is in this process, which has its disks open for good: their folders are closed.
    pub fn close_folders(&self) {
        self.all.iter().for_each(|one| *lock(&one.place) = None);
    }

    /// None of them may be larger than this process may write files.
    pub fn bound(&self, largest: u64) {
        self.largest.store(largest, Ordering::Relaxed);
    }

    /// Whether these are the disks of a machine that is to arrive. Leaves nothing open.
    ///
    /// # Errors
    /// One is missing or another one, or there is one too many. By name.
    pub fn check(&self, devices: &[Spec]) -> io::Result<()> {
        let mut left: Vec<&One> = self.all.iter().collect();
        for spec in devices.iter().filter(|spec| *spec.kind == blk::KIND) {
            let at = left.iter().position(|one| one.config.id == spec.id).ok_or_else(|| {
                let text = format!(
                    "the guest has a disk `{0}`, and there is none here; start the receiver with \
                     --disk path=FILE,id={0}",
                    spec.id.escape_debug()
                );
                io::Error::other(text)
            })?;
            let one = left.swap_remove(at);
            let config = &one.config;
            let options: DiskOptions =
                wherry_codec::decode(&spec.options).map_err(|e| refuse(config, e))?;
            let disk = one.open_disk().map_err(|e| refuse(config, e))?;
            // The pause, in which it is opened, is then spared most of that.
            disk.forget();
            let largest = self.largest.load(Ordering::Relaxed);
            if largest > 0 && one.file_size()? > largest {
                let text = "it has grown since this receiver was started; start it again";
                return Err(refuse(config, text));
            }
            let (here, there) = (disk.size() / SECTOR, options.sectors);
            if here != there {
                let text = format!("it has {here} sectors here, and {there} at the source");
                return Err(refuse(config, text));
            }
            if config.read_only != options.read_only {
                let word = |read_only| if read_only { "read only" } else { "written" };
                let (here, there) = (word(config.read_only), word(options.read_only));
                return Err(refuse(
                    config,
                    format!("it is {here} here, and {there} at the source"),
                ));
            }
            let (here, there) = (&config.serial, &options.serial);
            if !here.is_empty() && here != there {
                let there = there.escape_debug();
                let text = format!(
                    "its serial number is `{here}` here, and `{there}` at the source; the guest \
                     brings it along, so leave serial= out"
                );
                return Err(refuse(config, text));
            }
        }
        left.first().map_or(Ok(()), |one| Err(refuse(&one.config, "the guest has no such disk")))
    }

    /// The disk behind a device, opened and locked.
    ///
    /// # Errors
    /// There is none, it cannot be opened, or it is in use.
    pub fn get(&self, id: &str) -> io::Result<Arc<dyn Disk>> {
        let one = self.all.iter().find(|one| one.config.id == id).ok_or_else(|| {
            io::Error::other(format!("this VM has no disk `{}`", id.escape_debug()))
        })?;
        let disk = one.open()?;
        let limits = Limits { bytes: one.config.bytes_per_second, ops: one.config.ops };
        let disk: Arc<dyn Disk> = match limits == Limits::default() {
            true => disk,
            false => Arc::new(Throttled::new(disk, limits)),
        };
        Ok(Arc::new(Counted::new(disk, one.counts.clone())))
    }

    /// A disk from which a machine boots, which cannot be written through this.
    pub fn boots(&self, id: &str) -> Option<Arc<File>> {
        let one = self.all.iter().find(|one| one.config.id == id)?;
        lock(&one.open).as_ref().map(|open| open.boots.clone())
    }

    /// A disk that somebody beside this has open: a machine that is over has not given all of it
    /// back, and may still write.
    pub fn busy(&self) -> Option<String> {
        let busy = |one: &&One| {
            lock(&one.open).as_ref().is_some_and(|open| Arc::strong_count(&open.disk) > 1)
        };
        let one = self.all.iter().find(busy)?;
        Some(format!("disk `{}` ({})", one.config.id, one.config.shown()))
    }

    /// What was written so far is on the disks.
    ///
    /// # Errors
    /// A disk may have lost something, or has not done it within `limit`: it hangs, and nobody else
    /// is to wait for it.
    pub fn flush(&self, limit: Duration) -> io::Result<()> {
        let end = Instant::now() + limit;
        for one in self.all.iter().filter(|one| !one.config.read_only) {
            let Some(disk) = lock(&one.open).as_ref().map(|open| open.disk.clone()) else {
                continue;
            };
            let left = end.saturating_duration_since(Instant::now());
            match within(left, move || disk.flush())? {
                Some(flushed) => flushed.map_err(|e| refuse(&one.config, e))?,
                None => return Err(refuse(&one.config, format!("no flush within {limit:?}"))),
            }
        }
        Ok(())
    }

    /// The guest stands still, and another host may take it: all that it wrote is on the disks, and
    /// their locks are free.
    ///
    /// # Errors
    /// A disk may have lost something. Its lock, and those of the disks after it, are still ours.
    pub fn let_go(&self) -> io::Result<()> {
        self.flush(FLUSH_PAUSED)?;
        for one in self.all.iter().filter(|one| one.config.lock) {
            if let Some(Open { disk, claim, .. }) = &mut *lock(&one.open) {
                claim.let_go(&mut one.lockable(disk)).map_err(|e| refuse(&one.config, e))?;
            }
        }
        Ok(())
    }

    /// The guest does not run here and never will: the locks are free before its memory is.
    pub fn abandon(&self) {
        for one in &self.all {
            if let Some(Open { disk, claim, .. }) = &mut *lock(&one.open) {
                claim.abandon(&mut one.lockable(disk));
            }
        }
    }

    /// Whether a lock that should be ours is not.
    pub fn lost(&self) -> bool {
        let mut claimed = self.all.iter().filter(|one| one.config.lock);
        claimed.any(|one| lock(&one.open).as_ref().is_some_and(|open| !open.claim.is_ours()))
    }

    /// What they did.
    pub fn info(&self) -> Vec<DiskInfo> {
        self.all.iter().map(|one| one.counts.info(&one.config.id)).collect()
    }

    /// Those without which the guest was let go on.
    pub fn forced(&self) -> Vec<String> {
        let forced =
            |one: &&One| lock(&one.open).as_ref().is_some_and(|open| open.claim.is_forced());
        self.all.iter().filter(forced).map(|one| one.config.id.clone()).collect()
    }

    /// Takes all locks back, before the guest goes on here. If it is forced it goes on without
    /// those that somebody else has, and whatever was written. False: it cannot go on, and
    /// [`taken`](Self::taken) says why. Does not wait.
    pub fn take_back(&self, how: Locks) -> bool {
        let (mut first, mut goes) = (None, true);
        for (nth, one) in self.all.iter().enumerate() {
            let Some(open) = &mut *lock(&one.open) else { continue };
            let force = open.claim.is_forced_by(how);
            if let Err(taken) = one.lock(open, force) {
                goes &= force;
                first.get_or_insert((nth, taken));
            }
        }
        *lock(&self.taken) = first;
        goes
    }

    /// What is in the way of a guest that cannot go on.
    pub fn taken(&self) -> Option<String> {
        let (nth, why) = lock(&self.taken).clone()?;
        let one = self.all.get(nth)?;
        let file = lock(&one.open).as_ref().map(|open| open.disk.clone());
        Some(one.explain(&why, file.as_deref()))
    }

    /// The disks for which there was no room since anybody asked.
    pub fn full(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.full))
    }

    /// What disks' threads tell that there is no room: it is [noted](Self::full), and `wake` poked.
    pub fn on_full(&self, wake: Arc<Wake>) -> Arc<dyn DiskFull> {
        Arc::new(OnFull { ids: self.full.clone(), wake })
    }

    /// The host has no room for what the guest writes to this one.
    pub fn note_full(&self, id: &str) {
        lock(&self.full).push(id.to_owned());
    }
}

impl One {
    /// The disk, locked. Opened once: what a guest that reboots finds is what it wrote.
    fn open(&self) -> io::Result<Arc<FileDisk>> {
        let mut open = lock(&self.open);
        let (fresh, found) = (open.is_none(), open.take());
        let found = found.map_or_else(|| self.open_anew(), Ok);
        let mut found = found.map_err(|e| refuse(&self.config, e))?;
        let force = found.claim.is_forced_by(Locks::AsBefore);
        if let Err(taken) = self.lock(&mut found, force)
            && !force
        {
            // A receiver's next attempt opens it anew.
            drop(open);
            return Err(io::Error::other(self.explain(&taken, Some(&found.disk))));
        }
        if fresh {
            // What this host keeps of it may be older than what another wrote.
            found.disk.flush().map_err(|e| refuse(&self.config, e))?;
            found.disk.forget();
        }
        Ok(open.insert(found).disk.clone())
    }

    fn lock(&self, open: &mut Open, force: bool) -> Result<(), Taken> {
        if !self.config.lock {
            return Ok(());
        }
        if !open.claim.is_ours() {
            open.claim.take(&mut self.lockable(&open.disk), force)?;
            open.disk.forget();
        }
        Ok(())
    }

    fn open_anew(&self) -> io::Result<Open> {
        let disk = self.open_disk()?;
        let file = self.beneath(|place| place.open(OFlags::RDONLY))?;
        let which = |file: &File| file.metadata().map(|of| (of.dev(), of.ino()));
        if which(&file)? != which(disk.file())? {
            return Err(io::Error::other("it was replaced while it was opened; try again"));
        }
        Ok(Open { disk: Arc::new(disk), claim: Claim::default(), boots: Arc::new(file) })
    }

    /// The file, without its lock.
    fn open_disk(&self) -> io::Result<FileDisk> {
        let mut how = if self.config.read_only { OFlags::RDONLY } else { OFlags::RDWR };
        how.set(OFlags::DIRECT, self.config.direct);
        FileDisk::new(self.beneath(|place| place.open(how))?)
    }

    fn file_size(&self) -> io::Result<u64> {
        self.beneath(Place::file_size)
    }

    fn beneath<T>(&self, work: impl FnOnce(&Place) -> io::Result<T>) -> io::Result<T> {
        let place = lock(&self.place);
        work(place.as_ref().ok_or_else(|| io::Error::other("its folder is closed"))?)
    }

    fn lockable<'a>(&self, disk: &'a FileDisk) -> Locked<'a> {
        Locked { file: disk.file(), read_only: self.config.read_only }
    }

    /// For people. Looks at all processes: not to be called with a lock held.
    fn explain(&self, why: &Taken, disk: Option<&FileDisk>) -> String {
        let users = disk.filter(|_| *why == Taken::InUse).and_then(|disk| lock::users(disk.file()));
        let users = users.map_or_else(String::new, |users| format!("; {users} has it open"));
        format!("disk `{}` ({}): {why}{users}", self.config.id, self.config.shown())
    }
}

#[cfg(test)]
mod device_tests;
#[cfg(test)]
pub(crate) mod tests;
