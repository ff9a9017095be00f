//! Clients and listeners of a host, that a test plays.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use wherry_devices::host::{HostFd, Sockets, Stream};

/// One stream, as both its ends see it.
#[derive(Default)]
struct Pipe {
    to_guest: VecDeque<u8>,
    /// No more comes for the guest.
    ended: bool,
    /// Nobody holds the host's end.
    gone: bool,
    from_guest: Vec<u8>,
    /// Bytes that the host takes before it is asked again.
    room: usize,
    /// The port that the client was told.
    accepted: Option<u32>,
    shut: Vec<Shutdown>,
    /// The device has closed it.
    closed: bool,
}

#[derive(Default)]
struct Seen {
    clients: VecDeque<(u32, End)>,
    listening: BTreeSet<u32>,
    arrived: Vec<(u32, End)>,
    by_token: BTreeMap<u64, End>,
    /// So many more clients come, as soon as they can.
    endless: u32,
}

/// The host's side of all streams.
#[derive(Clone)]
pub struct Peers(Arc<Mutex<Seen>>, Arc<EventFd>);

/// What a program of the host holds of a stream.
#[derive(Clone)]
pub struct End(Arc<Mutex<Pipe>>, Arc<Mutex<Vec<bool>>>, Arc<EventFd>);

/// What the device holds of it.
struct Held(End);

impl Peers {
    pub fn new() -> Self {
        Self(Arc::default(), Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()))
    }

    /// A hundred clients want something at once.
    pub fn crowd() -> Self {
        let peers = Self::new();
        peers.seen().endless = 100;
        peers.1.write(1).unwrap();
        peers
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap()
    }

    fn end(&self) -> End {
        let end = End(Arc::default(), Arc::default(), self.1.clone());
        end.pipe().room = usize::MAX;
        end
    }

    /// A client wants a port of the guest's.
    pub fn client(&self, port: u32) -> End {
        let end = self.end();
        self.seen().clients.push_back((port, end.clone()));
        self.1.write(1).unwrap();
        end
    }

    pub fn listen(&self, port: u32) {
        self.seen().listening.insert(port);
    }

    /// Streams that the guest opened since: to which port.
    pub fn arrived(&self) -> Vec<(u32, End)> {
        std::mem::take(&mut self.seen().arrived)
    }

    /// Clients that wait.
    pub fn waiting(&self) -> usize {
        self.seen().clients.len()
    }
}

impl End {
    fn pipe(&self) -> MutexGuard<'_, Pipe> {
        self.0.lock().unwrap()
    }

    fn tell(&self) {
        let gone = self.pipe().gone;
        self.1.lock().unwrap().push(gone);
        self.2.write(1).unwrap();
    }

    pub fn send(&self, bytes: &[u8]) {
        self.pipe().to_guest.extend(bytes);
        self.tell();
    }

    /// No more comes.
    pub fn finish(&self) {
        self.pipe().ended = true;
        self.tell();
    }

    /// It goes away altogether.
    pub fn leave(&self) {
        (self.pipe().ended, self.pipe().gone) = (true, true);
        self.tell();
    }

    /// Takes so many bytes from now on.
    pub fn set_room(&self, room: usize) {
        self.pipe().room = room;
        self.tell();
    }

    /// Bytes of the guest's that came since.
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.pipe().from_guest)
    }

    /// The port that the client was told.
    pub fn accepted(&self) -> Option<u32> {
        self.pipe().accepted
    }

    /// What the device has shut.
    pub fn shut(&self) -> Vec<Shutdown> {
        self.pipe().shut.clone()
    }

    /// Whether the device has closed it.
    pub fn closed(&self) -> bool {
        self.pipe().closed
    }

    /// Bytes for the guest that nobody has read.
    pub fn unread(&self) -> usize {
        self.pipe().to_guest.len()
    }
}

impl Sockets for Peers {
    fn accept(&mut self, token: u64) -> Option<(u32, Box<dyn Stream>)> {
        let endless = self.end();
        let mut seen = self.seen();
        let next = seen.clients.pop_front().or_else(|| {
            seen.endless = seen.endless.checked_sub(1)?;
            Some((seen.endless, endless))
        });
        let (port, end) = next?;
        seen.by_token.insert(token, end.clone());
        Some((port, Box::new(Held(end))))
    }
    fn connect(&mut self, token: u64, port: u32) -> io::Result<Box<dyn Stream>> {
        let end = self.end();
        let mut seen = self.seen();
        if !seen.listening.contains(&port) {
            return Err(ErrorKind::ConnectionRefused.into());
        }
        seen.arrived.push((port, end.clone()));
        seen.by_token.insert(token, end.clone());
        Ok(Box::new(Held(end)))
    }
    fn news(&mut self, of: &mut Vec<(u64, bool)>) {
        let mut seen = self.seen();
        seen.by_token.retain(|token, end| {
            let told = std::mem::take(&mut *end.1.lock().unwrap());
            of.extend(told.into_iter().map(|gone| (*token, gone)));
            !end.pipe().closed
        });
    }
    fn fd(&self) -> HostFd {
        self.1.clone()
    }
}

impl Stream for Held {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut pipe = self.0.pipe();
        if pipe.to_guest.is_empty() {
            return if pipe.ended { Ok(0) } else { Err(ErrorKind::WouldBlock.into()) };
        }
        let len = bytes.len().min(pipe.to_guest.len());
        assert!(len > 0, "nobody reads nothing");
        let taken: Vec<u8> = pipe.to_guest.drain(..len).collect();
        bytes[..len].copy_from_slice(&taken);
        Ok(len)
    }
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut pipe = self.0.pipe();
        assert!(!pipe.shut.contains(&Shutdown::Write) && !bytes.is_empty());
        if pipe.gone {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let len = bytes.len().min(pipe.room);
        if len == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        if pipe.room != usize::MAX {
            pipe.room -= len;
        }
        pipe.from_guest.extend(&bytes[..len]);
        Ok(len)
    }
    fn accepted(&mut self, port: u32) -> io::Result<()> {
        self.0.pipe().accepted = Some(port);
        Ok(())
    }
    fn shutdown(&mut self, how: Shutdown) {
        self.0.pipe().shut.push(how);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.pipe().closed = true;
    }
}
