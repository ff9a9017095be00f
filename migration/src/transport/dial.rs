//! Connecting to a destination, so that it can be cancelled at any time.
//!
//! A socket that does not block is asked again and again whether it is connected, with a sleep
//! between that a cancel ends.
//!
//! Names are looked up by whoever asks for the migration ([`look_up`]), not where the guest runs: a
//! lookup reads files and loads libraries. It cannot be interrupted, and is done aside.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use super::tls::{Caller, Client, TlsError};
use super::{Connections, Endpoint, Halves, TICK, Transport, TransportError};
use crate::aside::{Left, aside};
use crate::control::CancelToken;

/// Where a destination listens, with its addresses as they were [looked up](look_up): none if it is
/// a number, or no network's.
pub type At<'a> = (&'a Endpoint, &'a [SocketAddr]);

/// Connects to a listening destination whose address is no name. Ends at once when cancelled.
pub fn connect(
    to: &Endpoint,
    timeout: Duration,
    cancel: &CancelToken,
) -> Result<Box<dyn Transport>, TransportError> {
    connect_at((to, &[]), timeout, cancel)
}

/// The same with a name, waiting up to `timeout` for each of its addresses.
pub fn connect_at(
    to: At<'_>,
    timeout: Duration,
    cancel: &CancelToken,
) -> Result<Box<dyn Transport>, TransportError> {
    match to.0 {
        Endpoint::Tls(_) => Err(TlsError::NoFolder(to.0.to_string()).into()),
        _ => connect_by(to, None, timeout, cancel),
    }
}

impl Client {
    /// Connects to a destination, as [`connect`] does, and shakes hands, for `timeout` at most.
    ///
    /// # Errors
    /// As there; or what is wrong with the other side.
    pub fn connect(
        &self,
        to: &Endpoint,
        timeout: Duration,
        cancel: &CancelToken,
    ) -> Result<Box<dyn Transport>, TransportError> {
        self.connect_at((to, &[]), timeout, cancel)
    }

    /// The same with a name.
    ///
    /// # Errors
    /// As there.
    pub fn connect_at(
        &self,
        to: At<'_>,
        timeout: Duration,
        cancel: &CancelToken,
    ) -> Result<Box<dyn Transport>, TransportError> {
        match to.0 {
            Endpoint::Tls(address) => connect_by(to, Some(&self.caller(address)?), timeout, cancel),
            _ => Err(TlsError::NotTls(to.0.to_string()).into()),
        }
    }
}

/// Connects, over TLS if there is a `caller`.
fn connect_by(
    to: At<'_>,
    caller: Option<&Caller>,
    timeout: Duration,
    cancel: &CancelToken,
) -> Result<Box<dyn Transport>, TransportError> {
    let (stream, found) = dial(to, caller, timeout, cancel)?;
    Ok(Box::new(Dialled { stream, again: Dial(found, caller.cloned()) }))
}

/// A connection, and the way to where it went.
struct Dialled {
    stream: Box<dyn Transport>,
    again: Dial,
}

impl Transport for Dialled {
    fn split(self: Box<Self>) -> io::Result<Halves> {
        self.stream.split()
    }

    fn data_connections(&self) -> Option<Box<dyn Connections>> {
        Some(Box::new(self.again.clone()))
    }

    fn finds_damage(&self) -> bool {
        self.stream.finds_damage()
    }

    fn peer(&self) -> String {
        self.stream.peer()
    }
}

/// Connects to where the first connection went: a name may stand for several hosts.
#[derive(Clone)]
struct Dial(Endpoint, Option<Caller>);

impl Connections for Dial {
    fn need_both(&self) -> bool {
        self.1.is_some()
    }

    fn next(
        &self,
        cancel: &CancelToken,
        timeout: Duration,
    ) -> Result<Box<dyn Transport>, TransportError> {
        Ok(dial((&self.0, &[]), self.1.as_ref(), timeout, cancel)?.0)
    }
}

/// Connects, and says to which of its addresses.
fn dial(
    (to, at): At<'_>,
    caller: Option<&Caller>,
    timeout: Duration,
    cancel: &CancelToken,
) -> Result<(Box<dyn Transport>, Endpoint), TransportError> {
    let failed = |e| TransportError::Connect(to.clone(), e);
    match to {
        Endpoint::Unix(path) => {
            let address = SockAddr::unix(path).map_err(failed)?;
            let socket = open(to, Domain::UNIX, &address, timeout, cancel)?;
            Ok((Box::new(UnixStream::from(socket)), to.clone()))
        }
        Endpoint::Tcp(address) | Endpoint::Tls(address) => {
            let number = address.parse().ok();
            let none = || io::Error::new(ErrorKind::NotFound, "the name has no address");
            let mut last = TransportError::Resolve(to.clone(), none());
            for address in number.iter().chain(at).copied() {
                let domain = Domain::for_address(address);
                match open(to, domain, &address.into(), timeout, cancel) {
                    Ok(socket) => {
                        let (socket, found) = (TcpStream::from(socket), address.to_string());
                        // Who answers and is not who should gets no second chance elsewhere.
                        return Ok(match caller {
                            Some(caller) => {
                                (caller.secure(socket, timeout, cancel)?, Endpoint::Tls(found))
                            }
                            None => (Box::new(socket), Endpoint::Tcp(found)),
                        });
                    }
                    Err(TransportError::Cancelled) => return Err(TransportError::Cancelled),
                    Err(e) => last = e,
                }
            }
            Err(last)
        }
    }
}

/// Connects to one address of `to`.
fn open(
    to: &Endpoint,
    domain: Domain,
    address: &SockAddr,
    timeout: Duration,
    cancel: &CancelToken,
) -> Result<Socket, TransportError> {
    let failed = |e| TransportError::Connect(to.clone(), e);
    let socket = Socket::new(domain, Type::STREAM, None).map_err(failed)?;
    socket.set_nonblocking(true).map_err(failed)?;
    let began = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if cancel.is_cancelled() {
            return Err(TransportError::Cancelled);
        }
        // Asked again, it says what has become of the first time.
        match socket.connect(address) {
            Ok(()) => return Ok(socket),
            Err(e) if is_under_way(&e) => {}
            Err(e) => return Err(failed(e)),
        }
        if began.elapsed() >= timeout {
            return Err(failed(ErrorKind::TimedOut.into()));
        }
        cancel.sleep(pause);
        pause = (2 * pause).min(TICK / 4);
    }
}

/// Under way, or (Unix sockets) the listener's queue is full.
fn is_under_way(e: &io::Error) -> bool {
    const EALREADY: i32 = 114;
    const EINPROGRESS: i32 = 115;
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
        || matches!(e.raw_os_error(), Some(EALREADY | EINPROGRESS))
}

/// The addresses of a destination that is called by a name, for [`connect_at`]: none if it needs no
/// lookup. Waits for `timeout` at most.
///
/// # Errors
/// The name is not known, or nobody answers.
pub fn look_up(
    to: &Endpoint,
    timeout: Duration,
    cancel: &CancelToken,
) -> Result<Vec<SocketAddr>, TransportError> {
    let (Endpoint::Tcp(name) | Endpoint::Tls(name)) = to else { return Ok(Vec::new()) };
    if name.parse::<SocketAddr>().is_ok() {
        return Ok(Vec::new());
    }
    let name = name.clone();
    find_by(to, timeout, cancel, move || Ok(name.to_socket_addrs()?.collect()))
}

/// What `find` finds, on a thread of its own.
fn find_by(
    to: &Endpoint,
    timeout: Duration,
    cancel: &CancelToken,
    find: impl FnOnce() -> io::Result<Vec<SocketAddr>> + Send + 'static,
) -> Result<Vec<SocketAddr>, TransportError> {
    let failed = |e| TransportError::Resolve(to.clone(), e);
    match aside("resolve", Some(timeout), cancel, find) {
        Ok(found) => found.map_err(failed),
        Err(Left::Cancelled) => Err(TransportError::Cancelled),
        Err(Left::Late) => Err(failed(ErrorKind::TimedOut.into())),
        Err(Left::Failed(e)) => Err(failed(e)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    /// Waits for what never comes; somebody cancels meanwhile.
    fn cancelled<T>(wait: impl FnOnce(&CancelToken) -> Result<T, TransportError> + Send + 'static) {
        let cancel = CancelToken::new();
        let (ended, end) = channel();
        let token = cancel.clone();
        thread::spawn(move || ended.send(wait(&token).err()).unwrap());
        assert!(end.recv_timeout(Duration::from_millis(200)).is_err(), "it answers");
        cancel.cancel();
        let result = end.recv_timeout(Duration::from_secs(20)).expect("not cancelled");
        assert!(matches!(result, Some(TransportError::Cancelled)), "{result:?}");
    }

    #[test]
    fn a_name_that_is_not_found_is_not_waited_for() {
        let to = Endpoint::Tcp("host:1".into());
        let (keep, kept) = channel::<()>();
        let kept = std::sync::Arc::new(std::sync::Mutex::new(kept));
        let never = move || {
            let _ = kept.lock().unwrap().recv();
            Ok(vec![])
        };
        let ((tell, told), at, find) = (channel(), to.clone(), never.clone());
        thread::spawn(move || tell.send(find_by(&at, Duration::ZERO, &CancelToken::new(), find)));
        let late = told.recv_timeout(Duration::from_secs(20)).expect("waited for").unwrap_err();
        let kind = |e: &TransportError| match e {
            TransportError::Resolve(_, e) => Some(e.kind()),
            _ => None,
        };
        assert_eq!(kind(&late), Some(ErrorKind::TimedOut), "{late:?}");
        cancelled(move |cancel| find_by(&to, Duration::from_secs(600), cancel, never));
        drop(keep);
    }

    #[test]
    fn connecting_is_cancelled_at_once() {
        // Their queues are full, so a data connection waits.
        let dir = std::env::temp_dir().join(format!("wherry-dial-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("sock");
        let (unix, unix_at) = (UnixListener::bind(&path).unwrap(), Endpoint::Unix(path));
        let tcp = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        tcp.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        tcp.listen(0).unwrap();
        let tcp_at = Endpoint::Tcp(tcp.local_addr().unwrap().as_socket().unwrap().to_string());
        for to in [unix_at, tcp_at] {
            let mut queued = vec![];
            while let Ok(stream) = connect(&to, Duration::from_millis(300), &CancelToken::new()) {
                queued.push(stream);
                assert!(queued.len() < 10_000, "the queue of {to} has no end");
            }
            cancelled(move |cancel| connect(&to, Duration::from_secs(600), cancel));
        }
        drop((unix, tcp));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn nobody_there_is_an_error_at_once() {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = Endpoint::Tcp(format!("localhost:{}", gone.local_addr().unwrap().port()));
        drop(gone);
        let (limit, cancel) = (Duration::from_secs(600), CancelToken::new());
        for to in [at, Endpoint::Unix("/nobody/there".into())] {
            let addresses = look_up(&to, limit, &cancel).unwrap();
            let failed = connect_at((&to, &addresses), limit, &cancel).err().unwrap();
            assert!(matches!(failed, TransportError::Connect(..)), "{failed:?}");
        }
    }

    #[test]
    fn a_name_is_looked_up_by_who_asks_and_its_addresses_are_tried_in_turn() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap();
        let (limit, cancel) = (Duration::from_secs(600), CancelToken::new());
        let to = Endpoint::Tcp(format!("localhost:{}", there.port()));
        let found = look_up(&to, limit, &cancel).unwrap();
        assert!(found.contains(&there), "{found:?}");
        // Nobody is at the first.
        let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
        connect_at((&to, &[nobody, there]), limit, &cancel).unwrap();
        // Where the guest runs no name is looked up.
        let unknown = connect(&to, limit, &cancel).err().unwrap();
        assert!(matches!(unknown, TransportError::Resolve(..)), "{unknown:?}");
        for number in [Endpoint::Tcp(there.to_string()), Endpoint::Unix("/x".into())] {
            assert_eq!(look_up(&number, limit, &cancel).unwrap(), []);
        }
    }
}
