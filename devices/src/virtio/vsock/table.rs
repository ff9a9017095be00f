//! All connections, by what they are called: the host's end has a token, the guest's its ports.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;

use super::connection::{Connection, Left, Ports};
use crate::host::Stream;

/// Connections at once.
pub const MAX_CONNECTIONS: usize = 256;

/// Ports of the host's that its clients get. Firecracker's are the same.
pub const LOCAL_PORTS: RangeInclusive<u32> = 1 << 30..=(1 << 31) - 1;

/// See the module's text.
pub struct Table {
    all: BTreeMap<u64, Connection>,
    by_ports: BTreeMap<Ports, u64>,
    /// Those that have something for the guest, each once, in turn.
    queue: VecDeque<u64>,
    next_token: u64,
    /// The port that the host's next client gets. Saved: a guest must not hear of a connection that
    /// it takes for one from before it moved.
    pub next_port: u32,
}

impl Table {
    pub fn new() -> Self {
        Self {
            all: BTreeMap::new(),
            by_ports: BTreeMap::new(),
            queue: VecDeque::new(),
            next_token: 0,
            next_port: *LOCAL_PORTS.start(),
        }
    }

    /// All connections end.
    pub fn clear(&mut self) {
        self.all.clear();
        self.by_ports.clear();
        self.queue.clear();
    }

    pub fn is_full(&self) -> bool {
        self.all.len() >= MAX_CONNECTIONS
    }

    /// One that only the guest still holds.
    pub fn forsaken(&self) -> Option<Ports> {
        self.all.values().find(|one| one.is_forsaken()).map(|one| one.ports)
    }

    /// A token that no connection has had.
    pub fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    /// A port of the host's for a client that wants this port of the guest's.
    fn local_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            let next = host.wrapping_add(1);
            self.next_port = if LOCAL_PORTS.contains(&next) { next } else { *LOCAL_PORTS.start() };
            // There are far more ports than connections.
            if !self.by_ports.contains_key(&Ports { guest, host }) {
                return host;
            }
        }
    }

    /// A client of the host's wants this port of the guest's.
    pub fn add_client(&mut self, token: u64, guest: u32, stream: Box<dyn Stream>) {
        let ports = Ports { guest, host: self.local_port(guest) };
        self.add(token, Connection::to_guest(ports, stream));
    }

    /// One more.
    pub fn add(&mut self, token: u64, connection: Connection) {
        self.by_ports.insert(connection.ports, token);
        self.all.insert(token, connection);
        self.wake(token);
    }

    pub fn token_of(&self, ports: Ports) -> Option<u64> {
        self.by_ports.get(&ports).copied()
    }

    /// Does something with a connection, and notes what is left of it and whether it has something
    /// for the guest. Returns whether there is room for another one.
    pub fn with(&mut self, token: u64, act: impl FnOnce(&mut Connection) -> Left) -> bool {
        let Some(one) = self.all.get_mut(&token) else { return false };
        let (left, ports) = (act(one), one.ports);
        if left != Left::All && self.token_of(ports) == Some(token) {
            self.by_ports.remove(&ports);
        }
        match left {
            Left::All => {
                self.wake(token);
                false
            }
            Left::Bytes => false,
            Left::Nothing => self.all.remove(&token).is_some(),
        }
    }

    /// Puts it into the queue, if it has something for the guest.
    fn wake(&mut self, token: u64) {
        if let Some(one) = self.all.get_mut(&token)
            && one.has_word()
            && !std::mem::replace(&mut one.queued, true)
        {
            self.queue.push_back(token);
        }
    }

    /// Whether one has something for the guest.
    pub fn has_word(&self) -> bool {
        !self.queue.is_empty()
    }

    /// The next one in the queue, out of it.
    pub fn next_in_queue(&mut self) -> Option<u64> {
        let token = self.queue.pop_front()?;
        if let Some(one) = self.all.get_mut(&token) {
            one.queued = false;
        }
        Some(token)
    }
}
