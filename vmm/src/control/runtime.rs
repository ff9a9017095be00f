//! The runtime folder, names, and the lock that makes a name belong to one process.
//!
//! For each VM there are two files: `NAME.lock`, held with flock for as long as the VMM lives, and
//! `NAME.sock`. The kernel releases the lock however the process ends, so a socket whose lock is
//! free is stale and is replaced.
//!
//! The folder may be in `/tmp`, where anyone can make one of that name first. So it is opened once,
//! not through a symbolic link, what was opened is looked at, and files are made and removed
//! relative to it. Sockets are bound by path, which is the same folder then: nobody else can move
//! one of ours out of `/tmp` or out of a folder that only we write to.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, RawMode};
use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

/// Longest socket path in bytes (`sun_path` less its final zero).
const MAX_SOCKET_PATH: usize = 107;

/// Why a name or the runtime folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// See [`check_name`].
    #[error(
        "\"{0}\" is not a VM name: use 1 to 64 of A-Z a-z 0-9 . _ - and do not begin with . or -"
    )]
    BadName(String),
    /// Another process holds the name.
    #[error("a VM named \"{0}\" runs already")]
    NameInUse(String),
    /// The folder belongs to someone else or others may write to it.
    #[error("{} is not safe to use: {reason}; set WHERRY_RUNTIME_DIR to a folder of your own",
        .path.display())]
    Unsafe {
        /// The folder.
        path: PathBuf,
        /// Why.
        reason: &'static str,
    },
    /// The folder is not an absolute path.
    #[error("the runtime folder \"{}\" is not an absolute path; correct WHERRY_RUNTIME_DIR or \
             XDG_RUNTIME_DIR", .0.display())]
    Relative(PathBuf),
    /// The socket's path does not fit into a socket address.
    #[error("{} is too long for a socket path (107 bytes); set WHERRY_RUNTIME_DIR to a \
             shorter one", .0.display())]
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

fn io_error<E: Into<io::Error>>(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(E) -> RuntimeError {
    let path = path.to_path_buf();
    move |source| RuntimeError::Io { action, path, source: source.into() }
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
    /// Someone named this very folder; it is not one that we would look for by ourselves.
    named: bool,
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
    pub fn from_env() -> Result<Self, RuntimeError> {
        let var = |name| std::env::var_os(name).filter(|v| !v.is_empty());
        let uid = rustix::process::geteuid().as_raw();
        let dir = Self::choose(var("WHERRY_RUNTIME_DIR"), var("XDG_RUNTIME_DIR"), uid);
        if dir.path.is_absolute() { Ok(dir) } else { Err(RuntimeError::Relative(dir.path)) }
    }

    fn choose(own: Option<std::ffi::OsString>, xdg: Option<std::ffi::OsString>, uid: u32) -> Self {
        let found = |path| Self { path, named: false };
        match (own, xdg) {
            (Some(own), _) => Self::at(own),
            (None, Some(xdg)) => found(PathBuf::from(xdg).join("wherry")),
            (None, None) if uid == 0 => found(PathBuf::from("/run/wherry")),
            (None, None) => found(PathBuf::from(format!("/tmp/wherry-{uid}"))),
        }
    }

    /// A given folder.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        // Without a slash at the end, which would follow a symbolic link.
        Self { path: path.into().components().collect(), named: true }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Path of a VM's control socket. The name must have passed [`check_name`].
    pub fn socket(&self, name: &str) -> PathBuf {
        self.path.join(format!("{name}.sock"))
    }

    /// Names that have a socket and a lock here, sorted. Some may be stale.
    pub fn names(&self) -> Result<Vec<String>, RuntimeError> {
        let Some(folder) = self.look()? else { return Ok(Vec::new()) };
        let entries = Dir::read_from(&folder).map_err(io_error("list", &self.path))?;
        let files: Vec<String> = entries
            .filter_map(|entry| entry.ok()?.file_name().to_str().ok().map(str::to_owned))
            .collect();
        // Other sockets, such as the one that a receiver waits at, have no lock.
        let locked = |name: &str| files.iter().any(|file| file.strip_suffix(".lock") == Some(name));
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
    pub(crate) fn look(&self) -> Result<Option<OwnedFd>, RuntimeError> {
        match self.open(Use::Look) {
            Err(RuntimeError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    fn open(&self, what: Use) -> Result<OwnedFd, RuntimeError> {
        self.open_as(rustix::process::geteuid().as_raw(), what)
    }

    fn open_as(&self, uid: u32, what: Use) -> Result<OwnedFd, RuntimeError> {
        let refuse = |reason| RuntimeError::Unsafe { path: self.path.clone(), reason };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::open(&self.path, flags, Mode::empty()).map_err(|e| match e {
            Errno::LOOP | Errno::NOTDIR if self.path.is_symlink() => {
                refuse("it is a symbolic link")
            }
            Errno::LOOP | Errno::NOTDIR => refuse("it is not a folder"),
            e => io_error("open", &self.path)(e),
        })?;
        let stat = rustix::fs::fstat(&folder).map_err(io_error("inspect", &self.path))?;
        match objection(stat.st_uid, stat.st_mode, uid, self.named, what) {
            Some(reason) => Err(refuse(reason)),
            None => Ok(folder),
        }
    }

    fn create(&self) -> Result<OwnedFd, RuntimeError> {
        match fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(io_error("create the runtime folder", &self.path)(e));
            }
            _ => {}
        }
        self.open(Use::Claim)
    }

    /// Makes `name` this process's own until the claim is dropped or the process ends. Clears what
    /// a crashed process of that name left behind.
    pub fn claim(&self, name: &str) -> Result<NameClaim, RuntimeError> {
        check_name(name)?;
        let folder = self.create()?;
        let socket = self.socket(name);
        let staging = self.path.join(staging(name));
        if staging.as_os_str().len().max(socket.as_os_str().len()) > MAX_SOCKET_PATH {
            return Err(RuntimeError::PathTooLong(socket));
        }
        let lock_path = self.path.join(lock_file(name));
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut lock = loop {
            let file = rustix::fs::openat(&folder, lock_file(name), flags, Mode::RUSR | Mode::WUSR)
                .map_err(io_error("open", &lock_path))?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Err(RuntimeError::NameInUse(name.to_owned())),
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
        claim.remove_sockets()?;
        Ok(claim)
    }
}

fn lock_file(name: &str) -> String {
    format!("{name}.lock")
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

    fn socket_file(&self) -> String {
        format!("{}.sock", self.name)
    }

    fn remove_sockets(&self) -> Result<(), RuntimeError> {
        for file in [self.socket_file(), staging(&self.name)] {
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
    pub fn listen(&self) -> Result<UnixListener, RuntimeError> {
        let new = self.dir.path.join(staging(&self.name));
        let listener = private_listener(&new).map_err(io_error("make a socket at", &new))?;
        let (from, to) = (staging(&self.name), self.socket_file());
        rustix::fs::renameat(&self.folder, from, &self.folder, to)
            .map_err(io_error("make a socket at", &self.socket()))?;
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
        let _ = self.remove_sockets();
        // Before the lock is released (fields drop after this body); see the check in `claim`.
        let _ = rustix::fs::unlinkat(&self.folder, lock_file(&self.name), AtFlags::empty());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
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
    #[test]
    fn a_folder_behind_a_link_is_not_used() {
        let (temp, dir) = dir();
        dir.create().unwrap();
        let victim = dir.path().join("vm.lock");
        fs::write(&victim, "keep").unwrap();
        let _other = UnixListener::bind(dir.socket("vm")).unwrap();
        let link = temp.path().join("link");
        symlink(dir.path(), &link).unwrap();
        for path in [link.clone(), link.join(""), link.join(".")] {
            let linked = RuntimeDir::at(&path);
            let text = linked.claim("vm").unwrap_err().to_string();
            assert!(text.contains("it is a symbolic link"), "{text}");
            assert!(matches!(linked.names(), Err(RuntimeError::Unsafe { .. })), "{path:?}");
            assert!(super::super::Client::connect(&linked, "vm").is_err());
        }
        assert_eq!(fs::read_to_string(&victim).unwrap(), "keep");
        assert!(dir.socket("vm").exists());
        // Nor one that leads nowhere yet.
        symlink(temp.path().join("later"), temp.path().join("dangling")).unwrap();
        assert!(RuntimeDir::at(temp.path().join("dangling")).claim("vm").is_err());
        assert!(!temp.path().join("later").exists());
    }

    #[test]
    fn a_lock_that_is_a_link_is_not_followed() {
        let (temp, dir) = dir();
        dir.create().unwrap();
        let victim = temp.path().join("victim");
        fs::write(&victim, "keep").unwrap();
        symlink(&victim, dir.path().join("vm.lock")).unwrap();
        assert!(dir.claim("vm").is_err());
        assert_eq!(fs::read_to_string(&victim).unwrap(), "keep");
    }

    #[test]
    fn whose_folder_may_be_used() {
        let (me, other, root) = (5, 6, 0);
        for (owner, mode, uid, named, look, claim) in [
            (me, 0o700, me, false, true, true),
            (me, 0o755, me, false, true, true),
            (me, 0o775, me, true, false, false),
            (me, 0o702, me, true, false, false),
            (other, 0o700, me, true, false, false),
            (root, 0o755, me, true, false, false),
            (root, 0o700, root, false, true, true),
            (other, 0o700, root, true, true, false),
            // Not the one that root looks for by itself: someone was there first.
            (other, 0o700, root, false, false, false),
            (other, 0o777, root, true, false, false),
        ] {
            let may = |what| objection(owner, mode, uid, named, what).is_none();
            assert_eq!((may(Use::Look), may(Use::Claim)), (look, claim), "{owner} {mode:o} {uid}");
        }
    }

    #[test]
    fn root_makes_no_files_in_the_folder_of_another_user() {
        let (_temp, dir) = dir();
        dir.create().unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(dir.path(), Some(1234), None).unwrap();
            assert!(matches!(dir.claim("vm"), Err(RuntimeError::Unsafe { .. })));
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        }
        dir.open_as(0, Use::Look).unwrap();
        assert!(dir.open_as(0, Use::Claim).is_err());
    }

    #[test]
    fn sockets_without_a_lock_are_nobodys_name() {
        let (_temp, dir) = dir();
        let claim = dir.claim("vm").unwrap();
        let _listener = claim.listen().unwrap();
        let _move = UnixListener::bind(dir.socket("move")).unwrap();
        assert_eq!(dir.names().unwrap(), ["vm"]);
    }
}
