//! Where clients and streams come together: one descriptor that has news when any of them has.
//!
//! It is an epoll of its own, in which everything is told once for each change; the device's event
//! loop is told by it. Whoever takes the news takes all of them, so that the next change is news
//! again.
//!
//! A guest's connections begin beneath the folder that the socket was made in, which is kept open:
//! whoever renames one of those around it leads none of them elsewhere.
//!
//! Nobody waits for a client. One that does not say what it wants in time, or whose guest does not
//! answer in time, is sent away; there are only so many that have not said it.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use socket2::{Domain, SockAddr, Socket, Type};
use vmm_sys_util::timerfd::TimerFd;
use wherry_devices::host::{HostFd, Sockets, Stream};
use wherry_devices::virtio::vsock::MAX_CONNECTIONS;
use wherry_migration::{Endpoint, Listener};

use super::client::{Client, Said};
use crate::folder;
use crate::sync::lock;

/// Clients that have not said yet what they want.
pub const MAX_CLIENTS: usize = 64;
/// All that can have news at once: streams, clients, the two of [`LISTENER`] and [`TIMER`].
const MAX_NEWS: usize = MAX_CONNECTIONS + MAX_CLIENTS + 2;

/// Tokens from here on are not the device's.
const OWN: u64 = 1 << 63;
const LISTENER: u64 = OWN;
const TIMER: u64 = OWN + 1;
const FIRST_CLIENT: u64 = OWN + 2;

/// How long a client may take.
#[derive(Clone, Copy)]
pub struct Patience {
    /// To say what it wants.
    pub line: Duration,
    /// Until its guest has answered, from then on.
    pub answer: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { line: Duration::from_secs(10), answer: Duration::from_secs(30) }
    }
}

/// See the module's text. Clones are the same one.
#[derive(Clone)]
pub struct Hub(Arc<Inner>);

struct Inner {
    epoll: Arc<OwnedFd>,
    listener: UnixListener,
    /// Takes the socket away in the end.
    _place: Listener,
    folder: OwnedFd,
    name: OsString,
    patience: Patience,
    state: Mutex<State>,
}

struct State {
    timer: TimerFd,
    /// There may be somebody at the listener.
    calling: bool,
    clients: BTreeMap<u64, Client>,
    /// Clients that may have said something.
    speaking: VecDeque<u64>,
    next_client: u64,
    /// Streams whose guest has not answered, and until when it may.
    asking: BTreeMap<u64, Instant>,
}

impl State {
    /// Rings when the first of those who wait is out of time.
    fn set_timer(&mut self) {
        let clients = self.clients.values().map(|client| client.due);
        let first = clients.chain(self.asking.values().copied()).min();
        // None of these can fail with such times; without it somebody waits longer.
        let _ = match first {
            None => self.timer.clear(),
            Some(due) => {
                let left = due.saturating_duration_since(Instant::now());
                self.timer.reset(left.max(Duration::from_millis(1)), None)
            }
        };
    }

    /// Sends clients away that are out of time. Returns the streams that are.
    fn overdue(&mut self, now: Instant) -> Vec<u64> {
        self.clients.retain(|_, client| client.due > now);
        let late = self.asking.iter().filter(|(_, due)| **due <= now);
        let late: Vec<u64> = late.map(|(token, _)| *token).collect();
        self.asking.retain(|_, due| *due > now);
        late
    }
}

/// Each change is told once.
fn both_ways() -> EventFlags {
    EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET
}

fn receiving() -> EventFlags {
    EventFlags::IN | EventFlags::ET
}

impl Hub {
    /// Makes the socket at `path`; what a process that is gone left there is replaced.
    ///
    /// # Errors
    /// It cannot be made, or somebody listens there.
    pub fn open(path: &Path, patience: Patience) -> io::Result<Self> {
        let folder = folder::around(path)?;
        let place = Listener::bind(&Endpoint::Unix(path.to_owned())).map_err(io::Error::other)?;
        let listener = UnixListener::from(place.as_fd().try_clone_to_owned()?);
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let timer = TimerFd::new().map_err(io::Error::from)?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), receiving())?;
        // SAFETY: `timer` is open, and borrowed for this call alone.
        let borrowed = unsafe { BorrowedFd::borrow_raw(timer.as_raw_fd()) };
        epoll::add(&epoll, borrowed, EventData::new_u64(TIMER), receiving())?;
        let state = State {
            timer,
            calling: true,
            clients: BTreeMap::new(),
            speaking: VecDeque::new(),
            next_client: FIRST_CLIENT,
            asking: BTreeMap::new(),
        };
        Ok(Self(Arc::new(Inner {
            epoll: Arc::new(epoll),
            listener,
            _place: place,
            folder,
            name: path.file_name().unwrap_or_default().to_owned(),
            patience,
            state: Mutex::new(state),
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }

    /// The guest has answered this one, or it is over.
    fn answered(&self, token: u64) {
        self.state().asking.remove(&token);
    }

    fn held(&self, token: u64, stream: UnixStream) -> Box<dyn Stream> {
        Box::new(HostStream { stream, hub: self.clone(), token })
    }

    /// Lets one more client in. `false`: there is none, or no room.
    fn let_in(&self, state: &mut State) -> bool {
        if !state.calling || state.clients.len() >= MAX_CLIENTS {
            return false;
        }
        let stream = match self.0.listener.accept() {
            Ok((stream, _)) => stream,
            Err(e) => {
                // Without descriptors, say, the next news are as good as these.
                state.calling = e.kind() != ErrorKind::WouldBlock;
                return matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted);
            }
        };
        let (id, data) = (state.next_client, EventData::new_u64(state.next_client));
        state.next_client = id.checked_add(1).unwrap_or(FIRST_CLIENT);
        let added = stream
            .set_nonblocking(true)
            .and_then(|()| Ok(epoll::add(&self.0.epoll, &stream, data, receiving())?));
        if added.is_ok() {
            let due = Instant::now() + self.0.patience.line;
            state.clients.insert(id, Client::new(stream, due));
            state.speaking.push_back(id);
            state.set_timer();
        }
        true
    }

    /// The stream of a client that has said what it wants.
    fn hand_over(&self, state: &mut State, id: u64, token: u64) -> Option<UnixStream> {
        let Client { stream, .. } = state.clients.remove(&id)?;
        let data = EventData::new_u64(token);
        epoll::modify(&self.0.epoll, &stream, data, both_ways()).ok()?;
        state.asking.insert(token, Instant::now() + self.0.patience.answer);
        state.set_timer();
        Some(stream)
    }
}

impl Sockets for Hub {
    fn accept(&mut self, token: u64) -> Option<(u32, Box<dyn Stream>)> {
        let mut state = self.state();
        loop {
            let Some(id) = state.speaking.pop_front() else {
                if self.let_in(&mut state) {
                    continue;
                }
                return None;
            };
            match state.clients.get_mut(&id).map(Client::read) {
                None | Some(Said::Part) => {}
                Some(Said::Nonsense) => drop(state.clients.remove(&id)),
                Some(Said::Port(port)) => {
                    if let Some(stream) = self.hand_over(&mut state, id, token) {
                        return Some((port, self.held(token, stream)));
                    }
                }
            }
        }
    }

    fn connect(&mut self, token: u64, port: u32) -> io::Result<Box<dyn Stream>> {
        let mut path = OsString::from(format!("/proc/self/fd/{}/", self.0.folder.as_raw_fd()));
        path.push(&self.0.name);
        path.push(format!("_{port}"));
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        // Refused if too many wait there, too.
        socket.connect(&SockAddr::unix(path)?)?;
        let stream = UnixStream::from(OwnedFd::from(socket));
        epoll::add(&self.0.epoll, &stream, EventData::new_u64(token), both_ways())?;
        Ok(self.held(token, stream))
    }

    fn news(&mut self, of: &mut Vec<(u64, bool)>) {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(MAX_NEWS);
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Fails only with arguments that are wrong.
        let _ = epoll::wait(&self.0.epoll, spare_capacity(&mut events), Some(&at_once));
        let mut state = self.state();
        for epoll::Event { flags, data, .. } in events {
            match data.u64() {
                LISTENER => state.calling = true,
                TIMER => {
                    of.extend(state.overdue(Instant::now()).into_iter().map(|token| (token, true)));
                    state.set_timer();
                }
                id if id >= FIRST_CLIENT => state.speaking.push_back(id),
                token => {
                    let gone = EventFlags::HUP | EventFlags::ERR;
                    of.push((token, flags.intersects(gone)));
                }
            }
        }
    }

    fn fd(&self) -> HostFd {
        self.0.epoll.clone()
    }
}

/// A stream that the device holds.
struct HostStream {
    stream: UnixStream,
    hub: Hub,
    token: u64,
}

impl Stream for HostStream {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        (&self.stream).read(bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&self.stream).write(bytes)
    }

    fn accepted(&mut self, port: u32) -> io::Result<()> {
        self.hub.answered(self.token);
        let line = format!("OK {port}\n");
        // The first bytes of a socket fit.
        match (&self.stream).write(line.as_bytes())? == line.len() {
            true => Ok(()),
            false => Err(ErrorKind::WriteZero.into()),
        }
    }

    fn shutdown(&mut self, how: Shutdown) {
        // Fails if the other side is gone, which the next read or write tells.
        let _ = self.stream.shutdown(how);
    }
}

impl Drop for HostStream {
    fn drop(&mut self) {
        self.hub.answered(self.token);
    }
}
