//! The runtime folder, names, and the lock that makes a name belong to one process.
//!
//! For each VM there are two files: `NAME.lock`, held with flock for as long as the VMM lives, and
//! `NAME.sock`; and for some `NAME.vsock`, where the guest's sockets end, `NAME.known_hosts`, and
//! `NAME.log`, which stays when the VM has ended.
//! The kernel releases the lock however the process ends, so a socket whose lock is free is stale
//! and is replaced.
//!
//! The folder may be in `/tmp`, where anyone can make one of that name first. So it is opened once,
//! not through a symbolic link, what was opened is looked at, and files are made and removed
//! relative to it. Sockets are bound by path, which is the same folder then: nobody else can move
//! one of ours out of `/tmp` or out of a folder that only we write to.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, RawMode};
use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

use super::{ControlError, ErrorCode};

/// Root's folder below `/`, and above those of units.
pub(super) const SYSTEM: &str = "run/wherry";

/// Longest socket path in bytes (`sun_path` less its final zero).
const MAX_SOCKET_PATH: usize = 107;

fn io_error<E: Into<io::Error>>(action: &str, path: &Path) -> impl FnOnce(E) -> ControlError {
    let text = format!("cannot {action} {}", path.display());
    move |source| {
        let source = source.into();
        let error = ControlError::failed(format!("{text}: {source}"));
        match source.kind() {
            io::ErrorKind::PermissionDenied => error.hint(
                "set WHERRY_RUNTIME_DIR to a folder of your own, or run as the user who owns this \
                 one",
            ),
            _ => error,
        }
    }
}

fn name_in_use(name: &str) -> ControlError {
    let text = format!("a VM named \"{name}\" runs already");
    // It may be anything: a receiver, for one, has no power button to press.
    ControlError::new(ErrorCode::NameInUse, text).hint(format!(
        "choose another name, or end that one with `wherry kill {name}` (with `wherry stop {name}` \
         if a guest runs that should power off)"
    ))
}

/// Accepts 1 to 64 characters of `A-Z a-z 0-9 . _ -`, not beginning with `.` or `-`.
pub fn check_name(name: &str) -> Result<(), ControlError> {
    let fits = (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        && !name.starts_with(['.', '-']);
    if fits {
        return Ok(());
    }
    // What a terminal would interpret must not reach it through an error text.
    let name: String = name.chars().take(80).flat_map(char::escape_default).collect();
    let text = format!(
        "\"{name}\" is not a VM name: use 1 to 64 of A-Z a-z 0-9 . _ - and do not begin with . or -"
    );
    Err(ControlError::usage(text))
}

/// The folder in which running VMs are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeDir {
    path: PathBuf,
    /// Below this are other folders that count, too. None: someone named this very folder; it is
    /// not one that we would look for by ourselves.
    root: Option<PathBuf>,
}

/// What the folder is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// To find VMs.
    Look,
    /// To make files.
    Claim,
}

/// Why a folder with this owner and mode is no good for the user `uid`, if so.
fn objection(owner: u32, mode: RawMode, uid: u32, named: bool, what: Use) -> Option<&'static str> {
    // Root may look into anyone's folder if told to: it could do anything there in any case. What
    // it made there, the owner could replace.
    let may_look = uid == 0 && named && what == Use::Look;
    if owner != uid && !may_look {
        return Some("it belongs to another user");
    }
    (mode & 0o022 != 0).then_some("others may write to it")
}

impl RuntimeDir {
    /// `$WHERRY_RUNTIME_DIR`, else `$XDG_RUNTIME_DIR/wherry`, else `/run/wherry` for root, else
    /// `/tmp/wherry-UID`. Only names the folder; [`claim`](Self::claim) makes it.
    ///
    /// # Errors
    /// The variable holds a relative path: two commands could mean two folders by it.
    pub fn from_env() -> Result<Self, ControlError> {
        let var = |name| std::env::var_os(name).filter(|v| !v.is_empty());
        let uid = rustix::process::geteuid().as_raw();
        Self::choose(var("WHERRY_RUNTIME_DIR"), var("XDG_RUNTIME_DIR"), uid)
    }

    fn choose(
        own: Option<OsString>,
        xdg: Option<OsString>,
        uid: u32,
    ) -> Result<Self, ControlError> {
        let root = Path::new("/");
        let found = |path| Self::below(path, root);
        let dir = match (own, xdg) {
            (Some(own), _) => Self::at(own),
            (None, Some(xdg)) => found(PathBuf::from(xdg).join("wherry")),
            (None, None) if uid == 0 => found(root.join(SYSTEM)),
            (None, None) => found(PathBuf::from(format!("/tmp/wherry-{uid}"))),
        };
        if dir.path.is_absolute() {
            return Ok(dir);
        }
        let path = dir.path.display();
        Err(ControlError::failed(format!(
            "the runtime folder \"{path}\" is not an absolute path; correct WHERRY_RUNTIME_DIR or \
             XDG_RUNTIME_DIR"
        )))
    }

    /// A given folder.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        // Without a slash at the end, which would follow a symbolic link.
        Self { path: path.into().components().collect(), root: None }
    }

    /// A folder that nobody named, on a host whose files are below `root`.
    pub(super) fn below(path: PathBuf, root: &Path) -> Self {
        Self { path, root: Some(root.to_owned()) }
    }

    /// Below which other folders count, if any do.
    pub(super) fn root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Path of a VM's control socket. The name must have passed [`check_name`].
    pub fn socket(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.sock"))
    }

    /// What `wherry ssh` knows of a VM's host keys. The name must have passed [`check_name`].
    pub fn known_hosts(&self, name: &str) -> PathBuf {
        self.path.join(known_hosts(name))
    }

    /// The log of a VM that has no terminal, to be added to.
    ///
    /// # Errors
    /// The folder or the file cannot be made.
    pub fn log(&self, name: &str) -> Result<File, ControlError> {
        check_name(name)?;
        let path = self.path.join(format!("{name}.log"));
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(
            self.create()?,
            format!("{name}.log"),
            flags,
            Mode::RUSR | Mode::WUSR,
        );
        Ok(file.map_err(io_error("open", &path))?.into())
    }

    /// Names that have a socket and a lock here, sorted. Some may be stale.
    pub(super) fn names_as(&self, uid: u32) -> Result<Vec<String>, ControlError> {
        let Some(folder) = self.open_as(uid, Use::Look)? else { return Ok(Vec::new()) };
        let entries = Dir::read_from(&folder).map_err(io_error("list", &self.path))?;
        let files: HashSet<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().to_str().ok().map(str::to_owned))
            .collect();
        // Other sockets, such as the one that a receiver waits at, have no lock.
        let locked = |name: &str| files.contains(&format!("{name}.lock"));
        let mut names: Vec<String> = files
            .iter()
            .filter_map(|file| file.strip_suffix(".sock"))
            .filter(|name| check_name(name).is_ok() && locked(name))
            .map(str::to_owned)
            .collect();
        names.sort();
        Ok(names)
    }

    /// Opens the folder to find VMs in it; `None` if there is none. Refuses one in which another
    /// user could plant or replace sockets.
    pub(crate) fn look(&self) -> Result<Option<OwnedFd>, ControlError> {
        self.open(Use::Look)
    }

    fn open(&self, what: Use) -> Result<Option<OwnedFd>, ControlError> {
        self.open_as(rustix::process::geteuid().as_raw(), what)
    }

    fn open_as(&self, uid: u32, what: Use) -> Result<Option<OwnedFd>, ControlError> {
        let refuse = |reason: &str| {
            let path = self.path.display();
            Err(ControlError::failed(format!(
                "{path} is not safe to use: {reason}; set WHERRY_RUNTIME_DIR to a folder of your \
                 own"
            )))
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = match rustix::fs::open(&self.path, flags, Mode::empty()) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP | Errno::NOTDIR) if self.path.is_symlink() => {
                return refuse("it is a symbolic link");
            }
            Err(Errno::LOOP | Errno::NOTDIR) => return refuse("it is not a folder"),
            Err(e) => return Err(io_error("open", &self.path)(e)),
        };
        let stat = rustix::fs::fstat(&folder).map_err(io_error("inspect", &self.path))?;
        match objection(stat.st_uid, stat.st_mode, uid, self.root.is_none(), what) {
            Some(reason) => refuse(reason),
            None => Ok(Some(folder)),
        }
    }

    /// Whether this user may look for VMs in it.
    pub(super) fn is_fit_for(&self, uid: u32) -> bool {
        self.open_as(uid, Use::Look).is_ok_and(|folder| folder.is_some())
    }

    fn create(&self) -> Result<OwnedFd, ControlError> {
        // Units' VMs have folders in root's, and users of their own. Its sockets are root's alone.
        let system = self.root().is_some_and(|root| root.join(SYSTEM) == self.path);
        let mode = if system { 0o755 } else { 0o700 };
        match fs::DirBuilder::new().recursive(true).mode(mode).create(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io_error("create the runtime folder", &self.path)(e));
            }
            _ => {}
        }
        self.open(Use::Claim)?.ok_or_else(|| io_error("open", &self.path)(Errno::NOENT))
    }

    /// Makes `name` this process's own until the claim is dropped or the process ends. Clears what
    /// a crashed process of that name left behind.
    pub fn claim(&self, name: &str) -> Result<NameClaim, ControlError> {
        check_name(name)?;
        let folder = self.create()?;
        // A unit's, which is found by the same name.
        if self.within(name).socket(name).exists() {
            return Err(name_in_use(name));
        }
        let socket = self.socket(name);
        let staging = self.path.join(staging(name));
        if staging.as_os_str().len().max(socket.as_os_str().len()) > MAX_SOCKET_PATH {
            return Err(ControlError::failed(format!(
                "{} is too long for a socket path (107 bytes); set WHERRY_RUNTIME_DIR to a \
                 shorter one",
                socket.display()
            )));
        }
        let lock_path = self.path.join(lock_file(name));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut lock = loop {
            let file = rustix::fs::openat(&folder, lock_file(name), flags, Mode::RUSR | Mode::WUSR)
                .map_err(io_error("open", &lock_path))?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Err(name_in_use(name)),
                Err(Errno::INTR) => continue,
                Err(e) => return Err(io_error("lock", &lock_path)(e)),
            }
            // The former owner removes the file before it lets go of the lock: make sure that what
            // we locked is still what the path names, else two processes could each hold "the"
            // lock.
            let ours = rustix::fs::fstat(&file).map_err(io_error("inspect", &lock_path))?;
            match rustix::fs::statat(&folder, lock_file(name), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(now) if (now.st_dev, now.st_ino) == (ours.st_dev, ours.st_ino) => {
                    break File::from(file);
                }
                _ => continue,
            }
        };
        // For people who look; the lock itself is what counts.
        let _ = lock.set_len(0);
        let _ = writeln!(lock, "{}", std::process::id());
        let claim = NameClaim { dir: self.clone(), folder, name: name.to_owned(), _lock: lock };
        claim.remove_files()?;
        Ok(claim)
    }
}

fn lock_file(name: &str) -> String {
    format!("{name}.lock")
}

/// See [`RuntimeDir::known_hosts`]. It is the VM's: one of the same name has other keys.
fn known_hosts(name: &str) -> String {
    format!("{name}.known_hosts")
}

/// Where a socket is until it is complete.
fn staging(name: &str) -> String {
    format!(".{name}.new")
}

/// A name that is ours. Dropping it removes the socket and the lock file.
#[derive(Debug)]
pub struct NameClaim {
    dir: RuntimeDir,
    folder: OwnedFd,
    name: String,
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

    /// The folder of its files.
    pub fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// Where the guest's sockets end, if nobody says otherwise.
    pub fn vsock(&self) -> PathBuf {
        self.dir.path.join(format!("{}.vsock", self.name))
    }

    fn socket_file(&self) -> String {
        format!("{}.sock", self.name)
    }

    fn remove_files(&self) -> Result<(), ControlError> {
        for file in [self.socket_file(), staging(&self.name), known_hosts(&self.name)] {
            match rustix::fs::unlinkat(&self.folder, &file, AtFlags::empty()) {
                Err(e) if e != Errno::NOENT => {
                    return Err(io_error("remove", &self.dir.path.join(file))(e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Listens on the control socket. It appears under its name complete: bound, listening and with
    /// mode 0600.
    pub fn listen(&self) -> Result<UnixListener, ControlError> {
        let hint = |error: ControlError| match error.hint {
            Some(_) => error,
            None => error.hint(
                "set WHERRY_RUNTIME_DIR to a folder on a local file system, such as /run or \
                 /dev/shm",
            ),
        };
        let action = "make a socket at";
        let (from, to) = (staging(&self.name), self.socket_file());
        let new = self.dir.path.join(&from);
        let listener = private_listener(&new).map_err(io_error(action, &new)).map_err(hint)?;
        rustix::fs::renameat(&self.folder, from, &self.folder, to)
            .map_err(io_error(action, &self.socket()))
            .map_err(hint)?;
        Ok(listener)
    }
}

/// A socket that only its owner can connect to. Linux gives the file the mode that the unbound
/// socket has (less the umask), so there is neither a moment in which it is open to others nor a
/// path to be changed afterwards.
fn private_listener(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(128)?;
    Ok(OwnedFd::from(socket).into())
}

impl Drop for NameClaim {
    fn drop(&mut self) {
        let _ = self.remove_files();
        // Before the lock is released (fields drop after this body); see the check in `claim`.
        let _ = rustix::fs::unlinkat(&self.folder, lock_file(&self.name), AtFlags::empty());
    }
}

#[cfg(test)]
#[path = "runtime_tests.rs"]
mod tests;
