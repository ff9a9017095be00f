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

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

/// See the module's text.
pub(super) struct Place {
    folder: OwnedFd,
    name: OsString,
}

impl Place {
    /// Of a file that is there.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let path = path.canonicalize()?;
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::IsADirectory.into());
        };
        let how = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = openat2(CWD, folder, how, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
        Ok(Self { folder, name: name.to_owned() })
    }

    /// Opens what is there now.
    pub(super) fn open(&self, how: OFlags) -> io::Result<File> {
        // A named pipe in place of an image must not hold anybody up.
        let how = how | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let within =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match openat2(&self.folder, &self.name, how, Mode::empty(), within) {
            Ok(file) => Ok(file.into()),
            Err(Errno::LOOP) => {
                let text = "it is a symbolic link now, and was none when this VM was started";
                Err(io::Error::other(text))
            }
            Err(e) => Err(e.into()),
        }
    }
}
