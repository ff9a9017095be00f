//! Listening for a source.
//!
//! A Unix socket belongs to whoever holds the lock of the file beside it, `PATH.lock`. So a second
//! listener finds out that the first is there without connecting to it, and what a process that
//! was killed left behind is replaced by one process only. The socket has mode 0600 from the moment
//! at which it appears.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket as RawSocket, Type};

use super::tls::{Server, TlsError};
use super::{Connections, Endpoint, TICK, Transport, TransportError};
use crate::control::CancelToken;

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, Place),
}

/// A Unix socket's path that is ours. Dropping it removes the socket and the lock file.
struct Place {
    path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

/// Waits for a source. A Unix socket's file is removed when the listener and the connections that
/// have not begun are dropped.
#[derive(Clone)]
pub struct Listener {
    socket: Arc<Socket>,
    /// Over TLS, with these certificates.
    tls: Option<Server>,
}

impl Listener {
    /// Listens. A Unix socket file that nobody listens on any more is replaced.
    pub fn bind(at: &Endpoint) -> Result<Self, TransportError> {
        match at {
            Endpoint::Tls(_) => Err(TlsError::NoFolder(at.to_string()).into()),
            _ => Self::bind_by(at, None),
        }
    }

    /// The same, over TLS if there are certificates for it.
    fn bind_by(at: &Endpoint, tls: Option<Server>) -> Result<Self, TransportError> {
        let failed = |e: io::Error| match e.kind() {
            ErrorKind::AddrInUse => TransportError::InUse(at.clone()),
            _ => TransportError::Listen(at.clone(), e),
        };
        let socket = match at {
            Endpoint::Tcp(address) | Endpoint::Tls(address) => {
                let listener = TcpListener::bind(address.as_str()).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                Socket::Tcp(listener)
            }
            Endpoint::Unix(path) => {
                let place = claim(at, path)?;
                let listener = bind_private(path).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                Socket::Unix(listener, place)
            }
        };
        Ok(Self { socket: Arc::new(socket), tls })
    }

    /// Where it listens: for `tcp:HOST:0` the port that was chosen.
    pub fn endpoint(&self) -> io::Result<Endpoint> {
        let tcp = if self.tls.is_some() { Endpoint::Tls } else { Endpoint::Tcp };
        Ok(match &*self.socket {
            Socket::Tcp(listener) => tcp(listener.local_addr()?.to_string()),
            Socket::Unix(_, place) => Endpoint::Unix(place.path.clone()),
        })
    }
}

impl Server {
    /// Listens, as [`Listener::bind`] does. Whoever connects is asked for a certificate.
    ///
    /// # Errors
    /// As there.
    pub fn listen(&self, at: &Endpoint) -> Result<Listener, TransportError> {
        match at {
            Endpoint::Tls(_) => Listener::bind_by(at, Some(self.clone())),
            _ => Err(TlsError::NotTls(at.to_string()).into()),
        }
    }
}

/// For who accepts by itself. It does not wait.
impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &*self.socket {
            Socket::Tcp(listener) => listener.as_fd(),
            Socket::Unix(listener, _) => listener.as_fd(),
        }
    }
}

impl Connections for Listener {
    fn next(
        &self,
        cancel: &CancelToken,
        timeout: Duration,
    ) -> Result<Box<dyn Transport>, TransportError> {
        let began = Instant::now();
        while !cancel.is_cancelled() {
            let accepted: io::Result<Box<dyn Transport>> = match &*self.socket {
                Socket::Tcp(listener) => listener.accept().and_then(|(s, _)| match &self.tls {
                    Some(server) => server.secure(s),
                    None => Ok(Box::new(s) as _),
                }),
                Socket::Unix(listener, _) => listener.accept().map(|(s, _)| Box::new(s) as _),
            };
            match accepted {
                Ok(stream) => return Ok(stream),
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                // Nobody is there, the one that was is gone, or there are no descriptors for it:
                // none of these is a reason to listen no more.
                Err(_) if began.elapsed() >= timeout => {
                    return Err(TransportError::TimedOut(timeout));
                }
                Err(_) => cancel.sleep(TICK / 4),
            }
        }
        Err(TransportError::Cancelled)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        // Before the lock is released (fields drop after this body); see the check in `claim`.
        let _ = fs::remove_file(&self.lock_path);
    }
}

/// Takes the lock of a socket's path and removes what a process that is gone left there.
fn claim(at: &Endpoint, path: &Path) -> Result<Place, TransportError> {
    const O_NOFOLLOW: i32 = 0o400_000;
    let failed = |e| TransportError::Listen(at.clone(), e);
    let mut lock_path = path.as_os_str().to_owned();
    lock_path.push(".lock");
    let lock_path = PathBuf::from(lock_path);
    let lock = loop {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600).custom_flags(O_NOFOLLOW);
        let file = options.open(&lock_path).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(TransportError::InUse(at.clone())),
            Err(Errno::INTR) => continue,
            Err(e) => return Err(failed(e.into())),
        }
        // The former owner removes the file before it lets go of the lock: what we locked must
        // still be what the path names.
        let ours = file.metadata().map_err(failed)?;
        match fs::symlink_metadata(&lock_path) {
            Ok(now) if (now.dev(), now.ino()) == (ours.dev(), ours.ino()) => break file,
            _ => {}
        }
    };
    let refuse = |cause| {
        // Not ours to remove from here on, but for the lock.
        let _ = fs::remove_file(&lock_path);
        Err(cause)
    };
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return refuse(failed(e)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return refuse(TransportError::NotASocket(path.to_owned()));
        }
        // No listener of ours holds it. Refused means that no other program does either.
        Ok(_) => match UnixStream::connect(path) {
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
                if let Err(e) = fs::remove_file(path) {
                    return refuse(failed(e));
                }
            }
            _ => return refuse(TransportError::InUse(at.clone())),
        },
    }
    Ok(Place { path: path.to_owned(), lock_path, _lock: lock })
}

/// A listening socket that only this user can connect to.
fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let socket = RawSocket::new(Domain::UNIX, Type::STREAM, None)?;
    // Linux gives the file the mode of the unbound socket, less the umask: so there is no moment
    // at which others could connect, and the umask, which all threads share, is left alone.
    let file = File::from(OwnedFd::from(socket));
    file.set_permissions(Permissions::from_mode(0o600))?;
    let socket = RawSocket::from(OwnedFd::from(file));
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(128)?;
    Ok(UnixListener::from(OwnedFd::from(socket)))
}

#[cfg(test)]
mod tests {
    use super::super::{Halves, connect};
    use super::*;

    /// A connection, and the listener that it came from.
    struct Accepted(Box<dyn Transport>, Listener);

    impl Transport for Accepted {
        fn greet(
            &mut self,
            limit: Duration,
            leave: &dyn Fn() -> bool,
        ) -> Result<(), TransportError> {
            self.0.greet(limit, leave)
        }

        fn split(self: Box<Self>) -> io::Result<Halves> {
            self.0.split()
        }

        fn data_connections(&self) -> Option<Box<dyn Connections>> {
            Some(Box::new(self.1.clone()))
        }

        fn finds_damage(&self) -> bool {
            self.0.finds_damage()
        }
    }

    impl Listener {
        /// Waits for somebody to connect, whoever it is.
        pub(crate) fn accept(
            &self,
            cancel: &CancelToken,
        ) -> Result<Box<dyn Transport>, TransportError> {
            Ok(Box::new(Accepted(self.next(cancel, Duration::MAX)?, self.clone())))
        }
    }

    #[test]
    fn unix_listener_replaces_stale_sockets_only() {
        let dir = std::env::temp_dir().join(format!("wherry-listen-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("sock");
        let at = Endpoint::Unix(path.clone());
        // A leftover: bound, never removed.
        drop(UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&at).unwrap();
        assert!(matches!(Listener::bind(&at), Err(TransportError::InUse(_))));
        let client = connect(&at, TICK, &CancelToken::new()).unwrap();
        drop(listener.accept(&CancelToken::new()).unwrap());
        drop((client, listener));
        assert!(!path.exists(), "socket file left behind");
        fs::write(&path, "data").unwrap();
        assert!(matches!(Listener::bind(&at), Err(TransportError::NotASocket(_))));
        assert_eq!(fs::read(&path).unwrap(), b"data");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn tcp_port_in_use_says_so() {
        let listener = Listener::bind(&Endpoint::Tcp("127.0.0.1:0".into())).unwrap();
        let at = listener.endpoint().unwrap();
        let Err(second) = Listener::bind(&at) else { panic!("bound twice") };
        assert!(second.to_string().contains("already in use"), "{second}");
        let cancel = CancelToken::new();
        cancel.cancel();
        assert!(matches!(listener.accept(&cancel), Err(TransportError::Cancelled)));
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn no_umask_lets_others_in() {
        const SOCKET: &str = "WHERRY_TEST_SOCKET";
        if let Some(path) = std::env::var_os(SOCKET) {
            // The umask is the process's, so this one has it for itself.
            let path = PathBuf::from(path);
            let _listener = Listener::bind(&Endpoint::Unix(path.clone())).unwrap();
            assert_eq!(mode(&path), 0o600);
            return;
        }
        let dir = std::env::temp_dir().join(format!("wherry-umask-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let test = concat!(module_path!(), "::no_umask_lets_others_in");
        let (_, test) = test.split_once("::").unwrap();
        for umask in ["0", "002", "022", "077", "0177"] {
            let path = dir.join(umask);
            let child = std::process::Command::new("sh")
                .args(["-c", "umask $0 && exec \"$@\"", umask])
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", test, "--nocapture"])
                .env(SOCKET, &path)
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&child.stdout);
            assert!(child.status.success() && said.contains("1 passed"), "{umask}: {child:?}");
        }
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_unix_socket_is_its_owners_alone_and_a_second_listener_does_not_disturb_it() {
        let dir = std::env::temp_dir().join(format!("wherry-private-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("sock");
        let at = Endpoint::Unix(path.clone());
        let first = Listener::bind(&at).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert!(matches!(Listener::bind(&at), Err(TransportError::InUse(_))));
        let none = first.next(&CancelToken::new(), Duration::ZERO);
        assert!(matches!(none, Err(TransportError::TimedOut(_))), "the second one connected");
        drop(first);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "files left behind");
        fs::remove_dir_all(&dir).unwrap();
    }
}
