//! The runtime folder, names, and the lock that makes a name belong to one process.
//!
//! For each VM there are two files: `NAME.lock`, held with flock for as long as the VMM lives, and `NAME.sock`. The kernel
//! releases the lock however the process ends, so a socket whose lock is free is stale and is replaced.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Longest socket path in bytes (`sun_path` less its final zero).
const MAX_SOCKET_PATH: usize = 107;

/// Why a name or the runtime folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// See [`check_name`].
    #[error("\"{0}\" is not a VM name: use 1 to 64 of A-Z a-z 0-9 . _ - and do not begin with . or -")]
    BadName(String),
    /// Another process holds the name.
    #[error("a VM named \"{0}\" runs already")]
    NameInUse(String),
    /// The folder belongs to someone else or others may write to it.
    #[error("{} is not safe to use: {reason}; set WHERRY_RUNTIME_DIR to a folder of your own", .path.display())]
    Unsafe {
        /// The folder.
        path: PathBuf,
        /// Why.
        reason: &'static str,
    },
    /// The folder is not an absolute path.
    #[error("the runtime folder \"{}\" is not an absolute path; correct WHERRY_RUNTIME_DIR or XDG_RUNTIME_DIR", .0.display())]
    Relative(PathBuf),
    /// The socket's path does not fit into a socket address.
    #[error("{} is too long for a socket path (107 bytes); set WHERRY_RUNTIME_DIR to a shorter one", .0.display())]
    PathTooLong(PathBuf),
    /// A file operation failed.
    #[error("cannot {action} {}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// How it failed.
        #[source]
        source: io::Error,
    },
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RuntimeError {
    let path = path.to_path_buf();
    move |source| RuntimeError::Io { action, path, source }
}

/// Accepts 1 to 64 characters of `A-Z a-z 0-9 . _ -`, not beginning with `.` or `-`.
pub fn check_name(name: &str) -> Result<(), RuntimeError> {
    let fits = (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        && !name.starts_with(['.', '-']);
    if fits {
        Ok(())
    } else {
        // What a terminal would interpret must not reach it through an error text.
        Err(RuntimeError::BadName(name.chars().take(80).flat_map(char::escape_default).collect()))
    }
}

/// The folder in which running VMs are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeDir {
    path: PathBuf,
}

impl RuntimeDir {
    /// `$WHERRY_RUNTIME_DIR`, else `$XDG_RUNTIME_DIR/wherry`, else `/run/wherry` for root, else `/tmp/wherry-UID`. Only names
    /// the folder; [`claim`](Self::claim) makes it.
    ///
    /// # Errors
    /// The variable holds a relative path: two commands could mean two folders by it.
    pub fn from_env() -> Result<Self, RuntimeError> {
        // SAFETY: geteuid has no preconditions and cannot fail.
        let uid = unsafe { libc::geteuid() };
        let var = |name| std::env::var_os(name).filter(|v| !v.is_empty());
        let dir = Self::choose(var("WHERRY_RUNTIME_DIR"), var("XDG_RUNTIME_DIR"), uid);
        if dir.path.is_absolute() { Ok(dir) } else { Err(RuntimeError::Relative(dir.path)) }
    }

    fn choose(own: Option<std::ffi::OsString>, xdg: Option<std::ffi::OsString>, uid: u32) -> Self {
        let path = match (own, xdg) {
            (Some(own), _) => PathBuf::from(own),
            (None, Some(xdg)) => PathBuf::from(xdg).join("wherry"),
            (None, None) if uid == 0 => PathBuf::from("/run/wherry"),
            (None, None) => PathBuf::from(format!("/tmp/wherry-{uid}")),
        };
        Self { path }
    }

    /// A given folder.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Path of a VM's control socket. The name must have passed [`check_name`].
    pub fn socket(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.sock"))
    }

    /// Names that have a socket here, sorted. Some may be stale.
    pub fn names(&self) -> Result<Vec<String>, RuntimeError> {
        let entries = match fs::read_dir(&self.path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(io_error("list", &self.path))?,
        };
        self.check_owner()?;
        let mut names: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter_map(|file| file.strip_suffix(".sock").map(str::to_owned))
            .filter(|name| check_name(name).is_ok())
            .collect();
        names.sort();
        Ok(names)
    }

    /// Refuses a folder in which another user could plant or replace sockets.
    pub(crate) fn check_owner(&self) -> Result<(), RuntimeError> {
        let refuse = |reason| RuntimeError::Unsafe { path: self.path.clone(), reason };
        let meta = fs::metadata(&self.path).map_err(io_error("inspect", &self.path))?;
        if !meta.is_dir() {
            return Err(refuse("it is not a folder"));
        }
        // SAFETY: geteuid has no preconditions and cannot fail.
        let uid = unsafe { libc::geteuid() };
        // Root may look into anyone's folder: it could do anything there in any case.
        if meta.uid() != uid && uid != 0 {
            return Err(refuse("it belongs to another user"));
        }
        if meta.mode() & 0o022 != 0 {
            return Err(refuse("others may write to it"));
        }
        Ok(())
    }

    fn create(&self) -> Result<(), RuntimeError> {
        match fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io_error("create the runtime folder", &self.path)(e));
            }
            _ => {}
        }
        self.check_owner()
    }

    /// Makes `name` this process's own until the claim is dropped or the process ends. Clears what a crashed process of that
    /// name left behind.
    pub fn claim(&self, name: &str) -> Result<NameClaim, RuntimeError> {
        check_name(name)?;
        self.create()?;
        let socket = self.socket(name);
        if self.staging(name).as_os_str().len().max(socket.as_os_str().len()) > MAX_SOCKET_PATH {
            return Err(RuntimeError::PathTooLong(socket));
        }
        let lock_path = self.path.join(format!("{name}.lock"));
        let mut lock = loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
                .open(&lock_path)
                .map_err(io_error("open", &lock_path))?;
            // SAFETY: the descriptor is open for the whole call; flock touches no memory.
            if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
                let error = io::Error::last_os_error();
                return Err(match error.kind() {
                    io::ErrorKind::WouldBlock => RuntimeError::NameInUse(name.to_owned()),
                    io::ErrorKind::Interrupted => continue,
                    _ => io_error("lock", &lock_path)(error),
                });
            }
            // The former owner removes the file before it lets go of the lock: make sure that what we locked is
            // still what the path names, else two processes could each hold "the" lock.
            let ours = file.metadata().map_err(io_error("inspect", &lock_path))?;
            match fs::symlink_metadata(&lock_path) {
                Ok(now) if (now.dev(), now.ino()) == (ours.dev(), ours.ino()) => break file,
                _ => continue,
            }
        };
        // For people who look; the lock itself is what counts.
        let _ = lock.set_len(0);
        let _ = writeln!(lock, "{}", std::process::id());
        let claim = NameClaim { dir: self.clone(), name: name.to_owned(), lock_path, _lock: lock };
        claim.remove_socket()?;
        Ok(claim)
    }

    fn staging(&self, name: &str) -> PathBuf {
        self.path.join(format!(".{name}.new"))
    }
}

/// A name that is ours. Dropping it removes the socket and the lock file.
#[derive(Debug)]
pub struct NameClaim {
    dir: RuntimeDir,
    name: String,
    lock_path: PathBuf,
    _lock: File,
}

impl NameClaim {
    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Path of the control socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.socket(&self.name)
    }

    fn remove_socket(&self) -> Result<(), RuntimeError> {
        for path in [self.socket(), self.dir.staging(&self.name)] {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", &path)(e)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Listens on the control socket. It appears under its name complete: bound, listening and with mode 0600.
    pub fn listen(&self) -> Result<UnixListener, RuntimeError> {
        let staging = self.dir.staging(&self.name);
        let listener = UnixListener::bind(&staging).map_err(io_error("make a socket at", &staging))?;
        fs::set_permissions(&staging, fs::Permissions::from_mode(0o600))
            .map_err(io_error("protect", &staging))?;
        let socket = self.socket();
        fs::rename(&staging, &socket).map_err(io_error("make a socket at", &socket))?;
        Ok(listener)
    }
}

impl Drop for NameClaim {
    fn drop(&mut self) {
        let _ = self.remove_socket();
        // Before the lock is released (fields drop after this body); see the check in `claim`.
        let _ = fs::remove_file(&self.lock_path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn dir() -> (tempfile::TempDir, RuntimeDir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = RuntimeDir::at(temp.path().join("run"));
        (temp, dir)
    }

    #[test]
    fn names() {
        for good in ["a", "web-1", "A.b_c", &"x".repeat(64)] {
            check_name(good).unwrap();
        }
        for bad in ["", ".", "..", ".a", "-a", "a/b", "a b", "ä", "a\n", "a\0", &"x".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        let text = check_name("\x1b[2J").unwrap_err().to_string();
        assert!(!text.contains('\x1b'), "{text}");
    }

    #[test]
    fn folder_choice() {
        let choose = |own: Option<&str>, xdg: Option<&str>, uid| {
            RuntimeDir::choose(own.map(Into::into), xdg.map(Into::into), uid).path
        };
        assert_eq!(choose(Some("/a"), Some("/b"), 0), Path::new("/a"));
        assert_eq!(choose(None, Some("/b"), 5), Path::new("/b/wherry"));
        assert_eq!(choose(None, None, 0), Path::new("/run/wherry"));
        assert_eq!(choose(None, None, 5), Path::new("/tmp/wherry-5"));
    }

    #[test]
    fn a_name_has_one_owner_and_is_free_afterwards() {
        let (_temp, dir) = dir();
        let claim = dir.claim("vm").unwrap();
        assert!(matches!(dir.claim("vm"), Err(RuntimeError::NameInUse(_))));
        let other = dir.claim("vm2").unwrap();
        let _listener = claim.listen().unwrap();
        assert_eq!(dir.names().unwrap(), ["vm"]);
        UnixStream::connect(dir.socket("vm")).unwrap();
        assert_eq!(fs::metadata(dir.socket("vm")).unwrap().mode() & 0o777, 0o600);
        drop(claim);
        drop(other);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        dir.claim("vm").unwrap();
    }

    #[test]
    fn what_a_crash_left_is_replaced() {
        let (_temp, dir) = dir();
        dir.create().unwrap();
        drop(UnixListener::bind(dir.socket("vm")).unwrap());
        fs::write(dir.path().join("vm.lock"), "999999999\n").unwrap();
        let claim = dir.claim("vm").unwrap();
        let _listener = claim.listen().unwrap();
        UnixStream::connect(dir.socket("vm")).unwrap();
    }

    #[test]
    fn claims_race_without_two_winners() {
        let (_temp, dir) = dir();
        let owners = AtomicU32::new(0);
        let wins = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        if let Ok(claim) = dir.claim("vm") {
                            assert_eq!(owners.fetch_add(1, Ordering::SeqCst), 0);
                            wins.fetch_add(1, Ordering::SeqCst);
                            owners.fetch_sub(1, Ordering::SeqCst);
                            drop(claim);
                        }
                    }
                });
            }
        });
        assert!(wins.load(Ordering::SeqCst) > 0);
    }

    #[test]
    fn unsafe_folders_and_long_paths_are_refused() {
        let (_temp, dir) = dir();
        dir.create().unwrap();
        assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o777, 0o700);
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(dir.claim("vm"), Err(RuntimeError::Unsafe { .. })));
        let temp = tempfile::tempdir().unwrap();
        let long = RuntimeDir::at(temp.path().join("d".repeat(100)));
        assert!(matches!(long.claim("vm"), Err(RuntimeError::PathTooLong(_))));
    }
}
