//! Byte streams between source and destination: Unix and TCP sockets, TLS, their addresses, and the
//! bandwidth cap.
//!
//! Contract of the halves of a [`Transport`]: `read`, `write` and `flush` block for at most about
//! [`TICK`] and then return `WouldBlock` or `TimedOut`. The layer above ([`crate::link`]) loops,
//! and between two ticks looks whether it was cancelled, whether the peer gave up, and whether
//! nothing has moved for the stall time. So no thread is ever stuck in a system call, no signals
//! are needed, and nothing spins.

mod dial;
mod listen;
pub mod tls;

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use socket2::SockRef;
use thiserror::Error;

use crate::control::CancelToken;
pub use dial::{At, connect, connect_at, look_up};
pub use listen::Listener;

/// Longest time that a half blocks in one call.
pub const TICK: Duration = Duration::from_millis(100);

/// Bytes that the kernel takes from us before the network has room for them, on all connections
/// together. Left to itself it takes megabytes: over a slow link these are seconds that neither the
/// measured rate nor the predicted downtime knows of, and with the guest paused all of them have to
/// go out before its state. What is under way and not yet acknowledged comes on top and is not
/// limited by this, so long links keep their speed (`TCP_NOTSENT_LOWAT`, tcp(7)).
const UNSENT: u32 = 128 << 10;

/// The most of it: more would not be in the CPU's second cache any more when it goes out.
const MAX_UNSENT: u32 = 1 << 20;

/// The least of it on one connection.
const MIN_UNSENT: u32 = 16 << 10;

/// What the kernel may take ahead on one of `sharers` connections that carries `rate` bytes a
/// second: what goes out in a millisecond, but not less than [`UNSENT`] on all together. The sender
/// sleeps and wakes twice for each time that this much has gone out, which over a fast link costs
/// a quarter of its CPU time.
pub(crate) fn unsent(rate: f64, sharers: u32) -> u32 {
    let of = |all: u32| (all / sharers.max(1)).max(MIN_UNSENT);
    // A cast of a float ends at the bounds of the type.
    ((rate / 1000.0) as u32).clamp(of(UNSENT), of(MAX_UNSENT))
}

/// The writing half of a connection. It may keep some of what it has taken until it is flushed.
pub trait WriteHalf: Write + Send {
    /// The kernel should not take more than so many bytes ahead of the network.
    fn set_unsent(&self, _bytes: u32) {}

    /// Ends the connection in both directions, so that a blocked reader wakes up. Errors do not
    /// matter any more.
    fn shutdown(&self);
}

/// The two halves of a connection.
pub type Halves = (Box<dyn Read + Send>, Box<dyn WriteHalf>);

/// A connection that has not begun.
pub trait Transport: Send {
    /// Does what both ends have to do before the first byte of content, for `limit` at most; ends
    /// early, as [`TransportError::Cancelled`], once `leave` says so. A plain socket has nothing to
    /// do.
    fn greet(&mut self, _limit: Duration, _leave: &dyn Fn() -> bool) -> Result<(), TransportError> {
        Ok(())
    }

    /// Splits it into the two halves, which keep to the module's contract.
    fn split(self: Box<Self>) -> io::Result<Halves>;

    /// Where data connections between the same two ends come from, if they can be had.
    fn data_connections(&self) -> Option<Box<dyn Connections>> {
        None
    }

    /// Whether it ends rather than deliver a byte that the other end did not send, as TLS does. So
    /// do the data connections beside it.
    fn finds_damage(&self) -> bool {
        false
    }

    /// Who is at the other end, as far as that is known; for messages.
    fn peer(&self) -> String {
        "a local process".into()
    }
}

/// Data connections: the source opens them, the destination accepts them.
pub trait Connections: Send {
    /// Whether one is only made when the other end takes part in it, which so has to expect it.
    fn need_both(&self) -> bool {
        false
    }

    /// The next one. Waits for `timeout` at most.
    fn next(
        &self,
        cancel: &CancelToken,
        timeout: Duration,
    ) -> Result<Box<dyn Transport>, TransportError>;
}

impl WriteHalf for UnixStream {
    fn shutdown(&self) {
        let _ = UnixStream::shutdown(self, Shutdown::Both);
    }
}

impl WriteHalf for TcpStream {
    fn set_unsent(&self, bytes: u32) {
        // If it fails the kernel takes more ahead, which costs downtime over slow links and nothing
        // else.
        let _ = SockRef::from(self).set_tcp_notsent_lowat(bytes);
    }

    fn shutdown(&self) {
        let _ = TcpStream::shutdown(self, Shutdown::Both);
    }
}

/// The reading half of a socket. It waits in poll(2) and not in recv(2): who sleeps in recv is also
/// woken each time that the *writing* half gets room (the kernel's `woken_wake_function` does not
/// ask what happened), so the source's thread for answers would wake for every frame that goes out.
struct Reads<S>(S);

impl<S: AsFd> Read for Reads<S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let tick = Timespec::try_from(TICK).map_err(io::Error::other)?;
        loop {
            match recv(&self.0, &mut *buf, RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN) => {}
                read => return Ok(read?.0),
            }
            if poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&tick))? == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
    }
}

impl Transport for UnixStream {
    fn split(self: Box<Self>) -> io::Result<Halves> {
        self.set_nonblocking(false)?;
        self.set_write_timeout(Some(TICK))?;
        Ok((Box::new(Reads(self.try_clone()?)), self))
    }
}

impl Transport for TcpStream {
    fn split(self: Box<Self>) -> io::Result<Halves> {
        self.set_nonblocking(false)?;
        tune(&self)?;
        self.set_write_timeout(Some(TICK))?;
        Ok((Box::new(Reads(self.try_clone()?)), self))
    }

    fn peer(&self) -> String {
        self.peer_addr().map_or_else(|_| "somebody who has left".into(), |a| a.to_string())
    }
}

fn tune(socket: &TcpStream) -> io::Result<()> {
    // Frames are written whole; waiting to fill a segment would only lengthen the downtime.
    socket.set_nodelay(true)?;
    SockRef::from(socket).set_tcp_notsent_lowat(UNSENT)
}

/// Why there is no connection.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The text is not an address.
    #[error("'{0}' is not an address; use tcp:HOST:PORT, tls:HOST:PORT or unix:PATH")]
    Address(String),
    /// Someone listens there already.
    #[error("{0} is already in use")]
    InUse(Endpoint),
    /// Something that is not a socket is in the way.
    #[error("{0} exists and is not a socket")]
    NotASocket(PathBuf),
    /// The name has no address.
    #[error("cannot resolve {0}")]
    Resolve(Endpoint, #[source] io::Error),
    /// More connections were asked for than this kind of connection can have.
    #[error("this connection cannot have further ones beside it")]
    Single,
    /// Nobody connected in this time.
    #[error("no connection in {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// So many wait to be asked who they are that this one was put out.
    #[error("too many others connect")]
    Crowded,
    /// Could not connect.
    #[error("cannot connect to {0}")]
    Connect(Endpoint, #[source] io::Error),
    /// Could not listen.
    #[error("cannot listen on {0}")]
    Listen(Endpoint, #[source] io::Error),
    /// There is no TLS on it.
    #[error("no TLS")]
    Tls(#[from] tls::TlsError),
    /// [`CancelToken::cancel`] was called while waiting.
    #[error("cancelled")]
    Cancelled,
}

/// Where a destination listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Endpoint {
    /// `tcp:HOST:PORT`; IPv6 hosts in brackets. Holds `HOST:PORT`.
    Tcp(String),
    /// `tls:HOST:PORT`: TLS over TCP.
    Tls(String),
    /// `unix:PATH`.
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp(address) => write!(f, "tcp:{address}"),
            Endpoint::Tls(address) => write!(f, "tls:{address}"),
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Endpoint {
    type Err = TransportError;

    fn from_str(text: &str) -> Result<Self, TransportError> {
        let bad = || TransportError::Address(text.to_owned());
        match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Ok(Endpoint::Unix(path.into())),
            Some((scheme @ ("tcp" | "tls"), address)) => {
                let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
                let bracketed = host.starts_with('[') && host.ends_with(']');
                let host_ok = !host.is_empty() && (bracketed || !host.contains(':'));
                if !host_ok || port.parse::<u16>().is_err() {
                    return Err(bad());
                }
                let of = if scheme == "tls" { Endpoint::Tls } else { Endpoint::Tcp };
                Ok(of(address.to_owned()))
            }
            _ => Err(bad()),
        }
    }
}

/// A token bucket: keeps a stream to a number of bytes per second by sleeping.
#[derive(Debug)]
pub struct Throttle {
    rate: f64,
    /// When the bytes handed out so far are paid for.
    due: Instant,
}

impl Throttle {
    /// Unused time is credited up to this much, so that short stalls do not lower the rate.
    pub const BURST: Duration = Duration::from_millis(20);

    /// `rate` bytes per second, at least 1.
    pub fn new(rate: u64) -> Self {
        Self { rate: rate.max(1) as f64, due: Instant::now() }
    }

    /// Most bytes to write before asking again: 10 ms worth, 4 KiB to 1 MiB.
    pub fn piece(&self) -> usize {
        (self.rate / 100.0).clamp(4096.0, (1 << 20) as f64) as usize
    }

    /// Accounts for `bytes` and returns how long to sleep before writing them.
    pub fn charge(&mut self, bytes: usize, now: Instant) -> Duration {
        let earliest = now.checked_sub(Self::BURST).unwrap_or(now);
        self.due = self.due.max(earliest);
        let wait = self.due.saturating_duration_since(now);
        self.due += Duration::from_secs_f64(bytes as f64 / self.rate);
        wait
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn addresses() {
        let parse = |text: &str| text.parse::<Endpoint>();
        assert_eq!(parse("unix:/a:b").unwrap(), Endpoint::Unix("/a:b".into()));
        for good in ["tcp:host:1", "tls:host:1", "tcp:[::1]:65535", "tcp:127.0.0.1:0"] {
            assert_eq!(parse(good).unwrap().to_string(), good);
        }
        for bad in [
            "",
            "unix:",
            "tcp:host",
            "tls:host",
            "tcp::1",
            "tcp:host:",
            "tcp:h:65536",
            "tcp:::1:5",
            "udp:h:1",
            "/path",
        ] {
            let text = parse(bad).unwrap_err().to_string();
            assert!(text.contains("tcp:HOST:PORT"), "{text}");
        }
    }

    #[test]
    fn the_kernel_is_kept_from_hoarding() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let same = stream.try_clone().unwrap();
        let (_, output) = Box::new(stream).split().unwrap();
        assert_eq!(SockRef::from(&same).tcp_notsent_lowat().unwrap(), UNSENT);
        output.set_unsent(4 * UNSENT);
        assert_eq!(SockRef::from(&same).tcp_notsent_lowat().unwrap(), 4 * UNSENT);
    }

    #[test]
    fn the_kernel_takes_a_millisecond_ahead_within_bounds() {
        let ahead = |megabytes, sharers| unsent(f64::from(megabytes) * 1e6, sharers);
        assert_eq!([0, 125].map(|rate| ahead(rate, 1)), [UNSENT; 2]);
        assert_eq!(ahead(500, 1), 500_000);
        assert_eq!([2000, u32::MAX].map(|rate| ahead(rate, 1)), [MAX_UNSENT; 2]);
        assert_eq!([10, 100, 1000].map(|rate| ahead(rate, 4)), [UNSENT / 4, 100_000, 256 << 10]);
        assert_eq!([10, 1000].map(|rate| ahead(rate, 64)), [MIN_UNSENT; 2]);
        assert_eq!(unsent(f64::NAN, 0), UNSENT);
    }

    #[test]
    fn reading_says_when_there_is_nothing_and_sees_the_end() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut input, _) = Box::new(a).split().unwrap();
        let mut buf = [0; 8];
        assert_eq!(input.read(&mut buf).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        (&b).write_all(b"abc").unwrap();
        assert_eq!(input.read(&mut buf).unwrap(), 3);
        drop(b);
        assert_eq!(input.read(&mut buf).unwrap(), 0);
    }

    #[test]
    fn throttle_keeps_its_rate() {
        let mut throttle = Throttle::new(10_000_000);
        let start = Instant::now();
        let mut now = start;
        let mut bytes = 0;
        while now < start + Duration::from_secs(1) {
            now += throttle.charge(65536, now);
            bytes += 65536;
        }
        assert!((9_700_000..10_400_000).contains(&bytes), "{bytes}");
        // Idle time is not saved up.
        now += Duration::from_secs(60);
        let mut free = 0;
        while throttle.charge(65536, now).is_zero() {
            free += 65536;
        }
        assert!(free <= 400_000, "{free}");
    }
}
