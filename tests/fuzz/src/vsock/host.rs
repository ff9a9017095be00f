//! The host's programs: clients of the device's socket, and listeners beside it, by the convention
//! that `wherry_vmm::vsock` has.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use socket2::{Domain, SockAddr, Socket, Type};
use tempfile::TempDir;
use wherry_devices::host::Sockets;
use wherry_devices::virtio::vsock::LOCAL_PORTS;
use wherry_vmm::vsock::Vsock;

use super::streams::{Reader, Streams};
use crate::guest::Backend;

/// Ports of the host that somebody may listen at.
pub(super) const LISTENING: [u32; 2] = [5, 6];
/// Streams at once, each of which takes two descriptors.
const MOST: usize = 32;

/// A program's end of a stream.
struct End {
    /// `None`: it is closed.
    stream: Option<UnixStream>,
    /// The stream to the guest.
    id: u32,
    /// The answer to `CONNECT`, as far as it came. `None`: there is none, or it has been read.
    line: Option<Vec<u8>>,
    /// It asked for nothing that there is: nothing may come.
    nonsense: bool,
    reader: Reader,
}

struct Programs {
    /// Each device has its socket in a place of its own.
    dir: TempDir,
    places: u32,
    vsock: Vsock,
    listeners: BTreeMap<u32, UnixListener>,
    ends: Vec<End>,
}

/// All of them.
pub(super) struct Peers(Mutex<Programs>);

fn place(dir: &Path, nr: u32) -> PathBuf {
    dir.join(nr.to_string())
}

impl Programs {
    fn listen(&mut self, port: u32) {
        let path = self.dir.path().join(format!("{}_{port}", self.places));
        // It was listened at before.
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(path).expect("a socket");
        listener.set_nonblocking(true).expect("a socket");
        self.listeners.insert(port, listener);
    }

    fn add(&mut self, stream: UnixStream, id: u32, line: Option<Vec<u8>>, nonsense: bool) {
        let reader = Reader::default();
        self.ends.push(End { stream: Some(stream), id, line, nonsense, reader });
    }

    fn has_room(&self) -> bool {
        self.ends.iter().filter(|end| end.stream.is_some()).count() < MOST
    }
}

impl Peers {
    pub(super) fn new() -> Arc<Self> {
        let dir = tempfile::tempdir().expect("a folder");
        let (listeners, ends) = (BTreeMap::new(), Vec::new());
        let programs = Programs { dir, places: 0, vsock: Vsock::default(), listeners, ends };
        Arc::new(Self(Mutex::new(programs)))
    }

    fn programs(&self) -> MutexGuard<'_, Programs> {
        self.0.lock().unwrap()
    }

    /// Somebody listens at this port from now on, or nobody.
    pub(super) fn listen(&self, port: u32, on: bool) {
        let mut programs = self.programs();
        match on {
            true => programs.listen(port),
            false => drop(programs.listeners.remove(&port)),
        }
    }

    /// A client that says this. `sense`: it is to be connected.
    pub(super) fn client(&self, says: &str, sense: bool, to_guest: &mut Streams) {
        let mut programs = self.programs();
        if !programs.has_room() {
            return;
        }
        let path = place(programs.dir.path(), programs.places);
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
        socket.set_nonblocking(true).expect("a socket");
        // Many may wait there.
        if socket.connect(&SockAddr::unix(path).expect("short")).is_err() {
            return;
        }
        let mut stream = UnixStream::from(std::os::fd::OwnedFd::from(socket));
        stream.write_all(says.as_bytes()).expect("a few bytes fit");
        programs.add(stream, to_guest.open(), Some(Vec::new()), !sense);
    }

    /// Those that the guest connected to are let in.
    pub(super) fn let_in(&self, to_guest: &mut Streams) {
        let mut programs = self.programs();
        let mut new = Vec::new();
        for listener in programs.listeners.values() {
            while let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(true).expect("a socket");
                new.push(stream);
            }
        }
        for stream in new {
            // The others find nobody.
            if programs.has_room() {
                programs.add(stream, to_guest.open(), None, false);
            }
        }
    }

    /// Which of them.
    fn with<R>(&self, nth: u8, act: impl FnOnce(&mut End) -> R) -> Option<R> {
        let mut programs = self.programs();
        let mut open: Vec<_> =
            programs.ends.iter_mut().filter(|end| end.stream.is_some()).collect();
        let nr = open.len().max(1);
        open.get_mut(usize::from(nth) % nr).map(|end| act(end))
    }

    /// One sends so many bytes, as far as they fit.
    pub(super) fn send(&self, nth: u8, len: usize, to_guest: &mut Streams) {
        self.with(nth, |end| {
            // What is sent before the answer belongs to the stream, too.
            if let Some(stream) = end.stream.as_mut().filter(|_| !end.nonsense)
                && let Ok(sent) = stream.write(&to_guest.next(end.id, len))
            {
                to_guest.sent(end.id, sent);
            }
        });
    }

    /// One reads what there is, up to so many bytes. Returns what it has read of its stream in all.
    pub(super) fn read(&self, nth: u8, most: usize, to_host: Option<&mut Streams>) -> usize {
        let read = |end: &mut End| {
            let (mut bytes, mut got) = (vec![0; most.max(1)], 0);
            while got < bytes.len()
                && let Some(stream) = &mut end.stream
            {
                match stream.read(&mut bytes[got..]) {
                    Ok(0) => break,
                    Ok(nr) => got += nr,
                    Err(e) if e.kind() == ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
            if let Some(to_host) = to_host {
                end.came(&bytes[..got], to_host);
            }
            end.reader.at
        };
        self.with(nth, read).unwrap_or(0)
    }

    /// One ends a direction, or goes altogether.
    pub(super) fn close(&self, nth: u8, how: u8) {
        self.with(nth, |end| match (&end.stream, how % 4) {
            // Fails if nobody is at the other end.
            (Some(stream), 0) => drop(stream.shutdown(Shutdown::Write)),
            (Some(stream), 1) => drop(stream.shutdown(Shutdown::Read)),
            _ => end.stream = None,
        });
    }

    /// All go, those who have not been let in, too.
    pub(super) fn leave(&self) {
        self.let_in(&mut Streams::default());
        self.programs().ends.clear();
    }
}

impl End {
    fn came(&mut self, mut bytes: &[u8], to_host: &mut Streams) {
        assert!(!self.nonsense || bytes.is_empty(), "an answer to nonsense");
        if let Some(line) = &mut self.line {
            while let Some((first, rest)) = bytes.split_first() {
                bytes = rest;
                if *first == b'\n' {
                    let port = std::str::from_utf8(line).ok().and_then(|l| l.strip_prefix("OK "));
                    let port = port.and_then(|port| port.parse::<u32>().ok());
                    assert!(port.is_some_and(|port| LOCAL_PORTS.contains(&port)), "{line:?}");
                    self.line = None;
                    break;
                }
                line.push(*first);
            }
        }
        self.reader.take(to_host, bytes);
    }
}

impl Backend for Peers {
    /// Each device is in a process of its own.
    fn vsock(&self) -> Box<dyn Sockets> {
        let mut programs = self.programs();
        programs.places += 1;
        programs.vsock = Vsock::at(place(programs.dir.path(), programs.places));
        for port in LISTENING {
            programs.listen(port);
        }
        programs.vsock.get().expect("a socket")
    }
}
