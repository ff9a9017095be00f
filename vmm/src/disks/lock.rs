//! Locks of disk images: one writer, or any number of readers.
//!
//! An OFD lock (fcntl(2)) of the whole file belongs to the open file, so it outlives no process and
//! is shared by none. Programs that do not ask for it are not kept out, nor are other hosts where a
//! file system does not carry locks, or the disk is a block device.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::confine::has_entered;
use crate::process::start::PROGRAM;

use super::claim::Lockable;

/// A file, and whether it is only read.
pub(super) struct Locked<'a> {
    pub(super) file: &'a File,
    pub(super) read_only: bool,
}

/// The length of a regular file and the time of its last change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp(u64, i64, i64);

impl Lockable for Locked<'_> {
    type Stamp = Stamp;

    fn try_lock(&mut self) -> io::Result<bool> {
        let kind = if self.read_only { libc::F_RDLCK } else { libc::F_WRLCK };
        match set(self.file, kind) {
            Ok(()) => Ok(true),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn unlock(&mut self) -> io::Result<()> {
        set(self.file, libc::F_UNLCK)
    }

    /// A block device has none.
    fn stamp(&mut self) -> io::Result<Option<Stamp>> {
        let meta = self.file.metadata()?;
        Ok(meta.is_file().then(|| Stamp(meta.len(), meta.mtime(), meta.mtime_nsec())))
    }
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

/// Who has the file open, as far as this user may see: `wherry-vm (1234)`. For messages, while this
/// process is not confined yet.
pub(super) fn users(file: &File) -> Option<String> {
    if has_entered() {
        return None;
    }
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
            found.push(format!("{} ({pid})", name(&process.path())));
        }
    }
    (!found.is_empty()).then(|| found.join(", "))
}

/// A process, for people: of a VM what it is called, which is its first argument.
fn name(process: &Path) -> String {
    let text = |file, most| {
        let mut bytes = Vec::new();
        // What cannot be read is not shown.
        let _ = File::open(process.join(file)).and_then(|f| f.take(most).read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let program = text("comm", 64);
    match (program.trim(), text("cmdline", 256).split('\0').nth(1)) {
        (PROGRAM, Some(vm)) => format!("the VM `{}`", vm.escape_debug()),
        (program, _) => program.escape_debug().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vms_are_called_by_their_names() {
        let process = tempfile::tempdir().unwrap();
        for (comm, cmdline, shown) in [
            ("wherry-vm\n", "wherry-vm\0web\x005\0", "the VM `web`"),
            ("wherry-vm\n", "wherry-vm\0\x1b[1m\0", "the VM `\\u{1b}[1m`"),
            ("wherry-vm\n", "", "wherry-vm"),
            ("qemu-img\n", "qemu-img\0info\0", "qemu-img"),
        ] {
            std::fs::write(process.path().join("comm"), comm).unwrap();
            std::fs::write(process.path().join("cmdline"), cmdline).unwrap();
            assert_eq!(name(process.path()), shown);
        }
        assert_eq!(name("/nowhere".as_ref()), "");
    }
}
