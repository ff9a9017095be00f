//! Locks of disk images: one writer, or any number of readers.
//!
//! An OFD lock (fcntl(2)) of the whole file belongs to the open file, so it outlives no process and
//! is shared by none. Programs that do not ask for it are not kept out, nor are other hosts where a
//! file system does not carry locks, or the disk is a block device.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Takes the lock, shared for who only reads. False: somebody else has it.
pub(super) fn try_lock(file: &File, read_only: bool) -> io::Result<bool> {
    let kind = if read_only { libc::F_RDLCK } else { libc::F_WRLCK };
    match set(file, kind) {
        Ok(()) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(e) => Err(e),
    }
}

pub(super) fn unlock(file: &File) -> io::Result<()> {
    set(file, libc::F_UNLCK)
}

fn set(file: &File, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: zero is a valid value of all its fields: from the start of the file to its end.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    loop {
        // SAFETY: the descriptor is open, and the kernel only reads the lock.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Who has the file open, as far as this user may see: `wherry-vm (1234)`. For messages.
pub(super) fn users(file: &File) -> Option<String> {
    let own = file.metadata().ok()?;
    let same = |fd: &PathBuf| {
        std::fs::metadata(fd).is_ok_and(|of| (of.dev(), of.ino()) == (own.dev(), own.ino()))
    };
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let pid = process.file_name().to_string_lossy().parse::<u32>();
        let Some(pid) = pid.ok().filter(|pid| *pid != std::process::id()) else { continue };
        let Ok(fds) = std::fs::read_dir(process.path().join("fd")) else { continue };
        if fds.flatten().map(|fd| fd.path()).any(|fd| same(&fd)) {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.push(format!("{} ({pid})", name.trim().escape_debug()));
        }
    }
    (!found.is_empty()).then(|| found.join(", "))
}
