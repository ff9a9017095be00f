//! The disks of a VM on this host: which file is behind which device, and who has its lock.
//!
//! The host's own configuration says what there is. A description that comes from a peer names
//! devices by id, never files; what it says of a disk is compared with the file.
//!
//! # Who writes
//! Whoever runs the guest has the lock of each of its disks. At a migration the source flushes its
//! disks and lets go of the locks when the guest stands still and its state is saved
//! ([`Disks::let_go`]); the destination opens the files *anew* when it loads that state, so that it
//! reads what was written, and takes the locks before it says that it has loaded. A source that is
//! to go on takes them back first ([`Disks::take_back`]), and stays paused if somebody else was
//! faster. So at each moment at most one side writes, and the one that runs has the lock; but for
//! `resume --force`, which is a person's word.

mod config;
mod lock;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use wherry_devices::device::Spec;
use wherry_devices::virtio::blk::{self, Disk, DiskOptions, FileDisk, Limits, SECTOR, Throttled};

pub use config::DiskConfig;

use crate::sync::lock;

/// How long a source that goes on waits for its locks: the destination's process may just be
/// ending.
const PATIENCE: Duration = Duration::from_secs(2);
/// Time between two attempts.
const AGAIN: Duration = Duration::from_millis(50);

/// A disk as this VM has it open.
struct Open {
    disk: Arc<FileDisk>,
    /// Whether we have its lock.
    locked: bool,
}

struct One {
    config: DiskConfig,
    open: Mutex<Option<Open>>,
}

/// See the module's text.
#[derive(Default)]
pub struct Disks {
    all: Vec<One>,
    /// Who was in the way when the locks were last taken back.
    taken: Mutex<Option<Taken>>,
    /// Those for which the host had no room, since anybody looked.
    full: Mutex<Vec<String>>,
}

/// A disk's lock is somebody else's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("disk `{id}` ({path}) is in use{by}")]
pub struct Taken {
    id: String,
    path: String,
    /// "" or " by NAME (PID)".
    by: String,
}

/// A disk cannot be used.
fn refuse(config: &DiskConfig, why: impl std::fmt::Display) -> io::Error {
    io::Error::other(format!("disk `{}` ({}): {why}", config.id, config.shown()))
}

impl Disks {
    /// What a command line says.
    pub fn new(configs: impl IntoIterator<Item = DiskConfig>) -> Self {
        let one = |config| One { config, open: Mutex::default() };
        Self { all: configs.into_iter().map(one).collect(), ..Self::default() }
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
            let config = &left.swap_remove(at).config;
            let options: DiskOptions =
                wherry_codec::decode(&spec.options).map_err(|e| refuse(config, e))?;
            let disk = config.open().and_then(FileDisk::new).map_err(|e| refuse(config, e))?;
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
        Ok(if limits == Limits::default() { disk } else { Arc::new(Throttled::new(disk, limits)) })
    }

    /// The disk that the machine boots from: its first.
    pub fn boots(&self) -> Option<Arc<FileDisk>> {
        lock(&self.all.first()?.open).as_ref().map(|open| open.disk.clone())
    }

    /// The guest stands still, and another host may take it: all that it wrote is on the disks, and
    /// their locks are free.
    ///
    /// # Errors
    /// A disk may have lost something. Its lock, and those of the disks after it, are still ours.
    pub fn let_go(&self) -> io::Result<()> {
        for one in &self.all {
            if let Some(open) = &mut *lock(&one.open) {
                if !one.config.read_only {
                    open.disk.flush().map_err(|e| refuse(&one.config, e))?;
                }
                lock::unlock(open.disk.file()).map_err(|e| refuse(&one.config, e))?;
                open.locked = false;
            }
        }
        Ok(())
    }

    /// Whether a lock that should be ours is not.
    pub fn lost(&self) -> bool {
        self.all
            .iter()
            .any(|one| one.config.lock && lock(&one.open).as_ref().is_some_and(|open| !open.locked))
    }

    /// Takes all locks back, before the guest goes on here. With `force` it goes on without those
    /// that somebody else has. False: it cannot go on, and [`taken`](Self::taken) says why.
    pub fn take_back(&self, force: bool) -> bool {
        let taken = self.take_all(force).err();
        let all = taken.is_none();
        *lock(&self.taken) = taken;
        all
    }

    fn take_all(&self, force: bool) -> Result<(), Taken> {
        let end = Instant::now() + if force { Duration::ZERO } else { PATIENCE };
        for one in &self.all {
            while let Err(taken) = one.take() {
                if Instant::now() >= end {
                    if force {
                        eprintln!("wherry: {taken}; the guest goes on all the same");
                        break;
                    }
                    return Err(taken);
                }
                std::thread::sleep(AGAIN);
            }
        }
        Ok(())
    }

    /// Who is in the way of a guest that cannot go on.
    pub fn taken(&self) -> Option<String> {
        lock(&self.taken).as_ref().map(ToString::to_string)
    }

    /// The disks for which there was no room since anybody asked.
    pub fn full(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.full))
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
        let found = match &mut *open {
            Some(found) => found,
            none => {
                let disk = self.config.open().and_then(FileDisk::new);
                let disk = Arc::new(disk.map_err(|e| refuse(&self.config, e))?);
                none.insert(Open { disk, locked: false })
            }
        };
        let disk = found.disk.clone();
        if let Err(taken) = self.lock(found) {
            // Opened anew at the next attempt.
            *open = None;
            return Err(io::Error::other(taken));
        }
        Ok(disk)
    }

    /// Takes the lock of a disk that is open.
    fn take(&self) -> Result<(), Taken> {
        lock(&self.open).as_mut().map_or(Ok(()), |open| self.lock(open))
    }

    fn lock(&self, open: &mut Open) -> Result<(), Taken> {
        if open.locked || !self.config.lock {
            return Ok(());
        }
        let file = open.disk.file();
        // A file system without locks is as good as somebody who has them: who knows better says
        // `lock=off`.
        let (taken, why) = match lock::try_lock(file, self.config.read_only) {
            Ok(taken) => (taken, None),
            Err(e) => (false, Some(format!(", or cannot be locked: {e}; lock=off does not ask"))),
        };
        open.locked = taken;
        if taken {
            return Ok(());
        }
        let by = why.or_else(|| Some(format!(" by {}", lock::users(file)?)));
        let (id, path) = (self.config.id.clone(), self.config.shown());
        Err(Taken { id, path, by: by.unwrap_or_default() })
    }
}

impl DiskConfig {
    /// Opens the file, without its lock.
    fn open(&self) -> io::Result<File> {
        // A named pipe in place of an image must not hold anybody up.
        let mut flags = libc::O_NONBLOCK;
        if self.direct {
            flags |= libc::O_DIRECT;
        }
        OpenOptions::new().read(true).write(!self.read_only).custom_flags(flags).open(&self.path)
    }
}

#[cfg(test)]
mod tests;
