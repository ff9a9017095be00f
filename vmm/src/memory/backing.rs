//! Where guest RAM is on this host: a memory file, or a file without a name on a tmpfs of the
//! administrator's.
//!
//! Why a tmpfs: how large its pages are is said when it is mounted (`huge=always`), for a memory
//! file by a switch for the whole host, which is off where nobody has turned it on. All else is the
//! same: a memory file is a file on a tmpfs of the kernel's own.
//!
//! Why not hugetlbfs: it has no `pwrite`, and gives memory back in its own large pages alone, while
//! a guest's balloon gives back 4 KiB and expects them to be zero.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, fstatfs, fstatvfs, memfd_create, openat};

/// `TMPFS_MAGIC` of `linux/magic.h`.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// What guest RAM is made of.
#[derive(Debug, Clone, Default)]
pub enum Backing {
    /// A memory file.
    #[default]
    Memfd,
    /// A file in this folder.
    Folder(Arc<OwnedFd>),
}

impl Backing {
    /// The folder, which stays open, or a memory file.
    ///
    /// # Errors
    /// It is not a folder on a tmpfs.
    pub fn open(folder: Option<&Path>) -> anyhow::Result<Self> {
        let Some(path) = folder else { return Ok(Self::Memfd) };
        let what = || format!("--memory-backing {}", path.display());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = openat(CWD, path, flags, Mode::empty()).with_context(what)?;
        let kind = fstatfs(&folder).with_context(what)?.f_type;
        ensure!(
            u64::try_from(kind) == Ok(TMPFS_MAGIC),
            "{}: not on a tmpfs; `mount -t tmpfs -o huge=always,size=0 tmpfs DIR` makes one",
            what()
        );
        Ok(Self::Folder(Arc::new(folder)))
    }

    /// The folder, if there is one.
    pub fn folder(&self) -> Option<&OwnedFd> {
        match self {
            Self::Memfd => None,
            Self::Folder(folder) => Some(folder),
        }
    }

    /// A new file of this length, which goes when it is closed.
    ///
    /// # Errors
    /// No permission, or less room than `bytes`: a guest that touches what is not there would end.
    pub(super) fn file(&self, bytes: u64) -> io::Result<File> {
        let file = match self {
            Self::Memfd => memfd_create("wherry-guest-ram", MemfdFlags::CLOEXEC)?,
            Self::Folder(folder) => {
                let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
                let file = openat(folder, ".", flags, Mode::RUSR | Mode::WUSR)?;
                let room = fstatvfs(&file)?;
                let free = room.f_bavail.saturating_mul(room.f_frsize);
                // One that is mounted with size=0 has no limit, and says 0.
                if room.f_blocks > 0 && free < bytes {
                    let text = format!(
                        "the tmpfs of --memory-backing has {} MiB left; mount it with size=0, or \
                         use less --memory",
                        free >> 20
                    );
                    return Err(io::Error::other(text));
                }
                file
            }
        };
        let file = File::from(file);
        file.set_len(bytes)?;
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_on_a_tmpfs_is_refused() {
        assert!(matches!(Backing::open(None), Ok(Backing::Memfd)));
        for (path, why) in [("/proc", "not on a tmpfs"), ("/dev/shm/none/here", "No such file")] {
            let error = format!("{:#}", Backing::open(Some(Path::new(path))).unwrap_err());
            assert!(error.contains(path) && error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_file_on_a_tmpfs_has_no_name() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let file = Backing::open(Some(dir.path())).unwrap().file(8192).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 8192);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn more_memory_than_the_tmpfs_has_is_refused() {
        let backing = Backing::open(Some(Path::new("/dev/shm"))).unwrap();
        let room = fstatvfs(match &backing {
            Backing::Folder(folder) => folder,
            Backing::Memfd => unreachable!(),
        });
        // It has a limit unless somebody took it away.
        if room.unwrap().f_blocks > 0 {
            let error = backing.file(1 << 52).unwrap_err().to_string();
            assert!(error.contains("MiB left"), "{error}");
        }
    }
}
