//! Where a disk's file is: a folder that is kept open, and a name in it.
//!
//! # Invariant
//! A path is resolved once, when the VM starts, with all its links: whoever says `/dev/vg/web`
//! means what that leads to. From then on nothing of a disk is opened by a path. It is opened
//! beneath its folder, on the thread that starts the VM or the one that receives a guest, and
//! never by a link. What was found at the start was none, so one in its place was put there
//! since, and whoever may write in the folder would choose which file a guest gets. A file
//! that was *renamed* into place is the disk: that is how images are replaced.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, open, openat, statat};
use rustix::io::Errno;

/// See the module's text.
pub(super) struct Place {
    folder: OwnedFd,
    /// The last part of a resolved path: neither a way out of the folder nor one into another.
    name: OsString,
}

impl Place {
    /// Of a file that is there.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let path = path.canonicalize()?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::IsADirectory.into());
        };
        let how = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut folder = open("/", how, Mode::empty())?;
        for part in parent.iter().skip(1) {
            folder = openat(&folder, part, how, Mode::empty())?;
        }
        Ok(Self { folder, name: name.to_owned() })
    }

    /// What a confined process needs to open it later: the folder, since another image may be
    /// renamed into place. Of a device, that alone: beside it are all others.
    pub(super) fn needed(&self) -> io::Result<OwnedFd> {
        match self.file()? {
            Some(_) => self.folder.try_clone(),
            None => {
                let how = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                Ok(openat(&self.folder, &self.name, how, Mode::empty())?)
            }
        }
    }

    /// Bytes of what is there now, if that is a file.
    pub(super) fn file_size(&self) -> io::Result<u64> {
        Ok(self.file()?.unwrap_or(0))
    }

    fn file(&self) -> io::Result<Option<u64>> {
        let stat = statat(&self.folder, &self.name, AtFlags::SYMLINK_NOFOLLOW)?;
        let file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        Ok(file.then(|| u64::try_from(stat.st_size).unwrap_or(0)))
    }

    /// Opens what is there now.
    pub(super) fn open(&self, how: OFlags) -> io::Result<File> {
        // A named pipe in place of an image must not hold anybody up.
        let how = how | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        match openat(&self.folder, &self.name, how, Mode::empty()) {
            Ok(file) => Ok(file.into()),
            Err(Errno::LOOP) => {
                let text = "it is a symbolic link now, and was none when this VM was started";
                Err(io::Error::other(text))
            }
            Err(e) => Err(e.into()),
        }
    }
}
