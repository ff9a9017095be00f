//! Folders that are kept open.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};

/// The one in which the file of this path is, or would be.
///
/// # Errors
/// It cannot be opened.
pub fn around(path: &Path) -> io::Result<OwnedFd> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // Not `open`, another system call, which no thread may make.
    Ok(openat(CWD, folder.unwrap_or(Path::new(".")), flags, Mode::empty())?)
}
