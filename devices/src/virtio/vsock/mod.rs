//! The socket device (virtio 1.3, section 5.10): streams between programs of the guest and of the
//! host, without a network.
//!
//! A client of the host's reaches what listens at a port of the guest, and a program of the guest
//! what listens for it at the host ([`Sockets`]). Bytes are copied once on their way through guest
//! memory, by its accessors, which mark what they write; nothing is ever in flight.
//!
//! Nobody waits for anybody: bytes for the guest are read from the host when the guest has room and
//! a buffer; of the guest's there are never more than it was told there is room for. Refusals of
//! packets that belong to nothing are kept for the guest up to a number, and then the guest's
//! packets wait: they are never lost.
//!
//! **Moves.** Connections do not move. The source's end with its process, after the hand-off: a
//! guest that stays goes on with them. Where the guest arrives it is told that it has none
//! (`gate.rs`).

mod connection;
pub mod constants;
mod gate;
pub mod packet;
mod rx;
mod table;
mod tx;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::constants::*;
use self::gate::Gate;
use self::packet::Header;
use self::table::Table;
use super::mmio::{Completer, MmioDevice, MmioStateV1, regs};
use super::{Chain, Completion, HostFd, News, VirtioDevice};
use crate::GuestMemory;
use crate::device::{Cause, Kind};
use crate::host::Sockets;

pub use self::connection::BUFFER;
pub use self::gate::EventBufferV1;
pub use self::table::{LOCAL_PORTS, MAX_CONNECTIONS};

/// Refusals that wait for the guest. When there are so many its packets wait, too.
const MAX_REFUSALS: usize = 256;
/// Most descriptors taken from one chain.
const MAX_CHAIN: usize = QUEUE_SIZE as usize;
/// Chains in one batch.
const BATCH: usize = 64;

/// Smallest address that a guest may have (section 5.10.4).
pub const MIN_CID: u32 = 3;

/// The kind.
pub static KIND: Kind = Kind {
    name: "virtio-vsock",
    id: "vsock",
    options: 1,
    states: &[(2, 1)],
    virtio: true,
    build: |build| {
        let options: VsockOptions = build.options()?;
        options.check().map_err(|why| build.refuse(why))?;
        let sockets = build.host.vsock(&build.spec.id).map_err(|e| build.refuse(e))?;
        let vsock =
            Vsock::new(build.host.memory(), sockets, options).map_err(|e| build.refuse(e))?;
        MmioDevice::build(&build, vsock)
    },
};

/// What a guest sees of it for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockOptions {
    /// The guest's address. Nobody but its own host ever hears of it.
    pub cid: u32,
}

impl VsockOptions {
    /// Whether a guest can have that address.
    ///
    /// # Errors
    /// It cannot; the text says why.
    pub fn check(&self) -> Result<(), String> {
        // The last one stands for any.
        if (MIN_CID..u32::MAX).contains(&self.cid) {
            return Ok(());
        }
        Err(format!("a guest's cid is from {MIN_CID} to {}, not {}", u32::MAX - 1, self.cid))
    }
}

/// What is saved of it beside the transport: no connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockStateV1 {
    /// The host's port that the next client gets.
    pub next_port: u32,
    /// Resets that the guest was sent and has not answered.
    pub resets_sent: u32,
    /// Buffers for events that the device holds.
    pub events: Vec<EventBufferV1>,
}

/// The device behind the transport.
pub struct Vsock {
    mem: Arc<GuestMemory>,
    sockets: Box<dyn Sockets>,
    options: VsockOptions,
    /// The driver is live.
    live: bool,
    table: Table,
    /// Refusals of packets that belong to nothing.
    refusals: VecDeque<Header>,
    /// The guest's packets wait for room for refusals.
    tx_waits: bool,
    gate: Gate,
    completer: Option<Completer>,
    /// There is something for the guest, or to be looked at. Never read: what counts is the news of
    /// it.
    rx_wanted: Arc<EventFd>,
    /// The guest's packets are to be looked at.
    tx_wanted: Arc<EventFd>,
    /// The host's end is to be looked at, whatever it has said.
    look_due: bool,
    /// A packet on its way.
    bytes: Vec<u8>,
}

fn eventfd() -> io::Result<Arc<EventFd>> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Arc::new)
}

fn tell(event: &EventFd) {
    // The only error is a counter that is about to overflow, which takes centuries.
    let _ = event.write(1);
}

impl Vsock {
    fn new(
        mem: Arc<GuestMemory>,
        sockets: Box<dyn Sockets>,
        options: VsockOptions,
    ) -> io::Result<Self> {
        Ok(Self {
            mem,
            sockets,
            options,
            live: false,
            table: Table::new(),
            refusals: VecDeque::new(),
            tx_waits: false,
            gate: Gate::default(),
            completer: None,
            rx_wanted: eventfd()?,
            tx_wanted: eventfd()?,
            look_due: false,
            bytes: vec![0; MAX_PAYLOAD],
        })
    }

    /// All connections end, and what is on its way for the guest.
    fn clear(&mut self) {
        self.live = false;
        self.table.clear();
        self.refusals.clear();
        self.tx_waits = false;
        self.gate.clear();
    }

    /// If there is something for the guest, its queue is to be looked at.
    fn tell_rx(&self) {
        if !self.refusals.is_empty() || self.table.has_word() {
            tell(&self.rx_wanted);
        }
    }

    /// Does something with a connection.
    fn with(
        &mut self,
        token: u64,
        act: impl FnOnce(&mut connection::Connection) -> connection::Left,
    ) {
        if self.table.with(token, act) {
            // Somebody may wait for the room.
            self.look_due = true;
            tell(&self.rx_wanted);
        }
    }

    /// Whether there is room for one more connection. If not, and only the guest still holds one,
    /// that one makes room soon.
    fn has_room(&mut self) -> bool {
        if !self.table.is_full() {
            return true;
        }
        let Some(token) = self.table.forsaken().and_then(|ports| self.table.token_of(ports)) else {
            return false;
        };
        // The guest hears of it, and has what it was sent before.
        self.table.with(token, |one| {
            one.kill();
            connection::Left::All
        });
        false
    }

    /// Looks at the host's end: streams with news, and clients.
    fn look(&mut self) {
        self.look_due = false;
        let mut news = Vec::new();
        self.sockets.news(&mut news);
        for (token, gone) in news {
            self.with(token, |one| one.news(gone));
        }
        for _ in 0..MAX_CONNECTIONS {
            if self.live && !self.has_room() {
                return;
            }
            let token = self.table.token();
            let Some((port, stream)) = self.sockets.accept(token) else { return };
            // Without a driver nobody listens in the guest: the client is sent away.
            if self.live {
                self.table.add_client(token, port, stream);
            }
        }
        // There may be more.
        self.look_due = true;
        tell(&self.rx_wanted);
    }
}

impl VirtioDevice for Vsock {
    type State = VsockStateV1;

    fn device_type(&self) -> u32 {
        DEVICE_ID
    }

    /// Streams alone, which need no feature (section 5.10.3).
    fn features(&self) -> u64 {
        regs::F_VERSION_1 | regs::F_EVENT_IDX | regs::F_INDIRECT_DESC
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 3]
    }

    fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        let config = u64::from(self.options.cid).to_le_bytes();
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = config.get(at..).unwrap_or_default();
        data.iter_mut().zip(bytes).for_each(|(to, byte)| *to = *byte);
    }

    fn activate(&mut self) {
        self.live = true;
    }

    /// Ports go on from where they are: so they are not taken for those before.
    fn reset(&mut self) {
        self.clear();
    }

    fn batch(&self, _queue: usize) -> usize {
        BATCH
    }

    fn queue_stopped(&mut self, queue: usize) {
        if queue == EVENT {
            self.gate.held.clear();
        }
    }

    fn handle(&mut self, queue: usize, chain: Chain<'_>) -> Completion {
        match queue {
            RX => self.receive(chain),
            TX => self.transmit(chain),
            _ => {
                let shut = !self.gate.is_open();
                let became = self.gate.buffer(&self.mem, chain);
                if shut && self.gate.is_open() {
                    tell(&self.rx_wanted);
                }
                became
            }
        }
    }

    fn resumed(&mut self) {
        // News that came while it was paused were not looked at. Done in the event loop, after the
        // queues: buffers for events that were there before the reset do not answer it.
        self.look_due = true;
        tell(&self.rx_wanted);
    }

    fn state(&self, _: u32) -> VsockStateV1 {
        let (next_port, resets_sent) = (self.table.next_port, self.gate.sent);
        VsockStateV1 { next_port, resets_sent, events: self.gate.held.iter().copied().collect() }
    }

    fn load(&mut self, mmio: &MmioStateV1, state: &VsockStateV1) -> Result<bool, Cause> {
        let up = regs::status::FEATURES_OK | regs::status::DRIVER_OK;
        self.live = mmio.status & up == up;
        if !LOCAL_PORTS.contains(&state.next_port) {
            return Err(format!("it gives no port {} to clients", state.next_port).into());
        }
        if !self.live && (state.resets_sent > 0 || !state.events.is_empty()) {
            return Err("it has buffers of a driver that is not up".into());
        }
        self.table.next_port = state.next_port;
        self.gate.sent = state.resets_sent;
        self.gate.held = state.events.iter().copied().collect();
        self.gate.check()?;
        if self.live {
            self.gate.arrive();
        }
        Ok(false)
    }

    fn connect(&mut self, completer: Completer) {
        self.completer = Some(completer);
    }

    fn host_fds(&self) -> Vec<HostFd> {
        vec![self.sockets.fd(), self.rx_wanted.clone(), self.tx_wanted.clone()]
    }

    fn host_ready(&mut self, nth: usize) -> News {
        if nth == 2 {
            return News::Queue(TX);
        }
        if let Some(completer) = &self.completer {
            self.gate.tell(&self.mem, completer);
        }
        if nth == 0 || self.look_due {
            self.look();
        }
        News::Queue(RX)
    }
}
