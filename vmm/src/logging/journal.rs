//! journald's own protocol (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>): a datagram an entry.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

/// Where it listens. Read once, at the start of the process.
pub const SOCKET: &str = "/run/systemd/journal/socket";
/// By which a service manager says that a stream goes to the journal.
const VARIABLE: &str = "JOURNAL_STREAM";

/// Whether this descriptor leads to the journal.
pub fn has(stream: &impl AsFd) -> bool {
    let Ok(said) = std::env::var(VARIABLE) else { return false };
    rustix::fs::fstat(stream).is_ok_and(|stat| said == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// The fields of an entry.
#[derive(Default)]
pub struct Entry(Vec<u8>);

impl Entry {
    /// Adds one. The name is of capitals, digits and `_`.
    pub fn add(&mut self, name: &str, value: &str) {
        self.0.extend(name.as_bytes());
        // The form that takes any value.
        self.0.push(b'\n');
        self.0.extend((value.len() as u64).to_le_bytes());
        self.0.extend(value.as_bytes());
        self.0.push(b'\n');
    }
}

/// A connection that stays: the socket is the service manager's, also while journald is started
/// again.
pub struct Journal(UnixDatagram);

impl Journal {
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: impl AsRef<Path>) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    /// Never waits.
    ///
    /// # Errors
    /// It is far behind, or gone.
    pub fn send(&self, entry: &Entry) -> io::Result<()> {
        self.0.send(&entry.0).map(drop)
    }
}
