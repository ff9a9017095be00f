//! Folders of the two ends of ssh: their owners' alone, and gone with them.
//!
//! Who has made one holds its lock (flock) for as long as the process lives. One that was killed
//! leaves its folder behind; the next that makes one beside it finds its lock free, and removes it.
//! Killed while it makes one, it leaves an empty one without its name, which stays.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, lchown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use wherry_vmm::control::ControlError;

/// What the folders here are called, before 128 bits in hexadecimal.
const NAMED: &str = "ssh-";

/// The socket in one of them.
const SOCKET: &str = "s";

/// A new folder that is only its owner's. Dropping it removes it, and what is in it.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// After all that is in it.
    _lock: File,
}

impl Folder {
    /// Makes it.
    pub fn make(path: PathBuf) -> Result<Self, ControlError> {
        Self::try_make(&path)
            .map_err(|e| ControlError::failed(format!("cannot make {}: {e}", path.display())))
    }

    fn try_make(path: &Path) -> io::Result<Self> {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        // It gets its name when it has its lock: nobody takes it for one that was left.
        let mut unlocked = std::ffi::OsString::from(".");
        unlocked.push(name);
        let unlocked = dir.join(unlocked);
        DirBuilder::new().mode(0o700).create(&unlocked)?;
        let made = locked(&unlocked).and_then(|lock| {
            renameat_with(CWD, &unlocked, CWD, path, RenameFlags::NOREPLACE)?;
            Ok(Self { path: path.into(), _lock: lock })
        });
        made.inspect_err(|_| drop(fs::remove_dir(&unlocked)))
    }

    /// The folder of ssh's end here, for a VM that has this `home`. A unit's VM is another user's,
    /// who connects: it gets a folder beside its home, if that is in a folder that nobody but root
    /// changes.
    pub fn beside_vm(home: &Path, id: &str) -> Result<Self, ControlError> {
        let failed =
            |e| ControlError::failed(format!("cannot have a folder at {}: {e}", home.display()));
        let owner = fs::metadata(home).map_err(failed)?.uid();
        if owner == rustix::process::geteuid().as_raw() {
            return Self::among_others(home, id);
        }
        let beside = home.parent().unwrap_or(home);
        let found = fs::symlink_metadata(beside).map_err(failed)?;
        if !found.is_dir() || found.uid() != 0 || found.mode() & 0o022 != 0 {
            let text = format!("the VM is another user's, who may change {}", beside.display());
            return Err(ControlError::failed(text).hint("migrate it as that user"));
        }
        let made = Self::among_others(beside, id)?;
        lchown(&made.path, Some(owner), None).map_err(failed)?;
        Ok(made)
    }

    fn among_others(dir: &Path, id: &str) -> Result<Self, ControlError> {
        let path = place(dir, id)?;
        sweep(dir);
        Self::make(path)
    }

    /// Where its socket is to be.
    pub fn socket(&self) -> PathBuf {
        self.path.join(SOCKET)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// A folder, and its lock.
fn locked(path: &Path) -> io::Result<File> {
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let folder = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    flock(&folder, FlockOperation::NonBlockingLockExclusive)?;
    Ok(folder)
}

/// Removes what those that were killed have left: their socket, and a folder with nothing else.
fn sweep(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix(NAMED));
        let is_id = |id: &str| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
        if !id.is_some_and(is_id) {
            continue;
        }
        let path = entry.path();
        if let Ok(_lock) = locked(&path) {
            let _ = fs::remove_file(path.join(SOCKET));
            let _ = fs::remove_dir(&path);
        }
    }
}

/// Where a folder is. ssh makes something of other letters in a path.
fn place(dir: &Path, id: &str) -> Result<PathBuf, ControlError> {
    let folder = dir.join(format!("{NAMED}{id}"));
    let plain = |c: &u8| c.is_ascii_alphanumeric() || b"/._-".contains(c);
    let bytes = folder.as_os_str().as_encoded_bytes();
    if bytes.iter().all(plain) && bytes.len() + 1 + SOCKET.len() <= 107 {
        return Ok(folder);
    }
    let text = format!("ssh makes no socket in {}", dir.display());
    Err(ControlError::failed(text)
        .hint("its path is too long, or has letters other than A-Z a-z 0-9 / . _ -"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_ssh_would_read_otherwise_is_refused() {
        assert!(place(Path::new("/run/user/0/wherry"), "1").is_ok());
        for wrong in ["/run/a b", "/run/%h", "/run/$x", "/a:b", &format!("/{}", "x".repeat(99))] {
            place(Path::new(wrong), "1").expect_err(wrong);
        }
    }

    #[test]
    fn what_nobody_has_any_more_is_removed_and_nothing_else() {
        let home = tempfile::tempdir().unwrap();
        let named = |name: &str| home.path().join(name);
        let id = |digit: &str| digit.repeat(32);
        let mine = Folder::beside_vm(home.path(), &id("1")).unwrap();
        fs::write(mine.socket(), "").unwrap();
        let (left, others) = (format!("ssh-{}", id("2")), format!("ssh-{}", id("3")));
        for name in [&left, &others, "ssh-2", "ssh-web"] {
            fs::create_dir(named(name)).unwrap();
        }
        fs::write(named(&left).join("s"), "").unwrap();
        fs::write(named(&others).join("web.sock"), "").unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("s"), "").unwrap();
        let link = format!("ssh-{}", id("4"));
        std::os::unix::fs::symlink(elsewhere.path(), named(&link)).unwrap();
        let second = Folder::beside_vm(home.path(), &id("5")).unwrap();
        // One that is there, be it empty, is nobody's to take.
        Folder::make(named("ssh-2")).unwrap_err();
        assert!(mine.socket().exists() && elsewhere.path().join("s").exists());
        assert!(!named(&left).exists() && named(&others).join("web.sock").exists());
        drop((mine, second));
        let all = fs::read_dir(home.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut all: Vec<_> = all.map(|name| name.into_string().unwrap()).collect();
        all.sort();
        let mut stay = ["ssh-2".into(), "ssh-web".into(), others, link];
        stay.sort();
        assert_eq!(all, stay);
    }
}
