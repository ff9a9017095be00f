//! The network device (virtio 1.3, section 5.1): one pair of queues and a control queue.
//!
//! Every frame is copied once on its way through, into or out of guest memory through its
//! accessors, which mark what they write; nothing is ever in flight. A frame that cannot be
//! delivered or sent is lost, as on a wire: so are those that wait at the host when the guest
//! moves.
//!
//! A driver that has no room for frames ends their reading, and its next kick goes on with it. The
//! network is asked by news only, so that frames that nobody takes cost nothing. A network that has
//! no room ends the taking of the driver's frames in the same way; one that is gone takes them all,
//! for a driver must not wait for what may never come, and is shown as a link that is down.
//!
//! What frames may leave to the guest ([`Offloads`](crate::host::Offloads)) is a setting of the
//! host's end of the network, which each host has its own of: it is set when the driver comes up,
//! when it asks for it, and when the device is restored.

mod announce;
pub mod constants;
mod control;
mod header;
mod incoming;
mod rx;
mod tx;

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::announce::Announcement;
use self::constants::*;
use self::incoming::Incoming;
use super::mmio::{MmioDevice, MmioStateV1, regs};
use super::{Chain, Completion, HostFd, More, News, VirtioDevice};
use crate::GuestMemory;
use crate::device::{Cause, Kind};
use crate::host::Frames;

/// Size of the queues for frames.
pub const QUEUE_SIZE: u16 = 256;
/// Size of the control queue; Linux has one command out at a time.
pub const CTRL_QUEUE_SIZE: u16 = 64;
/// Most descriptors taken from one chain.
const MAX_CHAIN: usize = QUEUE_SIZE as usize;
/// Most descriptors that one frame is spread over: as long as that takes, nobody else has the
/// device. Drivers use one or two for a chain, and 17 pages hold the longest frame.
const MAX_PIECES: usize = 2 * QUEUE_SIZE as usize;
/// Chains in one batch.
const BATCH: usize = 64;
/// Smallest MTU (section 5.1.4.1).
pub const MIN_MTU: u16 = 68;

/// The kind.
pub static KIND: Kind = Kind {
    name: "virtio-net",
    id: "net0",
    options: 1,
    states: &[(2, 1)],
    virtio: true,
    build: |build| {
        let options: NetOptions = build.options()?;
        options.check().map_err(|why| build.refuse(why))?;
        let frames = build.host.net(&build.spec.id).map_err(|e| build.refuse(e))?;
        if options.offloads && !frames.can_offload() {
            return Err(build.refuse("the guest's network has offloads, this host's has none"));
        }
        let net = Net::new(build.host.memory(), frames, options).map_err(|e| build.refuse(e))?;
        MmioDevice::build(&build, net)
    },
};

/// What a guest sees of its network for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetOptions {
    /// Its address.
    pub mac: [u8; 6],
    /// Longest packet in bytes that the network takes, if that is known.
    pub mtu: Option<u16>,
    /// Whether checksums and segmentation may be left to the other side.
    pub offloads: bool,
}

impl NetOptions {
    /// Whether there is such a network.
    ///
    /// # Errors
    /// There is none; the text says why.
    pub fn check(&self) -> Result<(), String> {
        let [first, ..] = self.mac;
        if first & 1 != 0 || self.mac == [0; 6] {
            return Err("the address of a network device is not one of a single device".into());
        }
        match self.mtu {
            Some(mtu) if mtu < MIN_MTU => Err(format!("an MTU is {MIN_MTU} or more, not {mtu}")),
            _ => Ok(()),
        }
    }
}

/// What is saved of it beside the transport.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetStateV1 {
    /// What frames may leave to the guest, as bits of features.
    pub guest_offloads: u64,
    /// The driver is asked to announce itself, and has not answered.
    pub announce: bool,
}

/// The device behind the transport.
pub struct Net {
    mem: Arc<GuestMemory>,
    frames: Box<dyn Frames>,
    options: NetOptions,
    /// Negotiated.
    features: u64,
    /// The driver is live.
    live: bool,
    /// There is a link.
    link: bool,
    /// A frame from the guest waits for room in the network.
    tx_waits: bool,
    /// There may be more frames for the guest than when it was last looked at.
    pressed: bool,
    guest_offloads: u64,
    announcement: Announcement,
    incoming: Incoming,
    outgoing: Vec<u8>,
}

impl Net {
    fn new(
        mem: Arc<GuestMemory>,
        mut frames: Box<dyn Frames>,
        options: NetOptions,
    ) -> io::Result<Self> {
        let link = frames.link();
        Ok(Self {
            mem,
            frames,
            options,
            features: 0,
            live: false,
            link,
            tx_waits: false,
            pressed: false,
            guest_offloads: 0,
            announcement: Announcement::new()?,
            incoming: Incoming::new(),
            outgoing: Vec::with_capacity(MAX_FRAME),
        })
    }

    /// Whether this was negotiated.
    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    fn set_offloads(&mut self, bits: u64) -> io::Result<()> {
        self.guest_offloads = bits;
        self.frames.set_offloads(header::to_guest(bits))
    }

    /// Says in the guest's name where it is.
    fn tell_network(&mut self) {
        // It is said more than once.
        let _ = self.frames.write(&announce::rarp(self.options.mac));
    }

    /// There is news of the network.
    fn network_news(&mut self) -> News {
        let link = self.frames.link();
        self.pressed = true;
        if std::mem::replace(&mut self.link, link) != link {
            if link && self.live {
                // Its other end may be new, and has not heard of the guest.
                self.tell_network();
            }
            return News::All;
        }
        if std::mem::take(&mut self.tx_waits) { News::Queues } else { News::Queue(RX) }
    }

    /// One round of announcing, if one is due. Returns whether the driver is to read config space.
    fn announce_round(&mut self) -> bool {
        if !self.announcement.round() {
            return false;
        }
        self.tell_network();
        let ask = self.has(feature::GUEST_ANNOUNCE) && !self.announcement.asked;
        self.announcement.asked |= ask;
        ask
    }

    fn config(&self) -> [u8; 12] {
        let [a, b, c, d, e, f] = self.options.mac;
        let announce = if self.announcement.asked { S_ANNOUNCE } else { 0 };
        let link = if self.link { S_LINK_UP } else { 0 };
        let [s, t] = (link | announce).to_le_bytes();
        let [m, n] = self.options.mtu.unwrap_or(0).to_le_bytes();
        [a, b, c, d, e, f, s, t, 0, 0, m, n]
    }
}

impl VirtioDevice for Net {
    type State = NetStateV1;

    fn device_type(&self) -> u32 {
        DEVICE_ID
    }

    fn features(&self) -> u64 {
        use feature::*;
        let transport = regs::F_VERSION_1 | regs::F_EVENT_IDX | regs::F_INDIRECT_DESC;
        let always = transport | MAC | STATUS | CTRL_VQ | GUEST_ANNOUNCE | MRG_RXBUF;
        let offloads = GUEST_OFFLOADS | HOST_OFFLOADS | CTRL_GUEST_OFFLOADS;
        always
            | if self.options.mtu.is_some() { MTU } else { 0 }
            | if self.options.offloads { offloads } else { 0 }
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE, QUEUE_SIZE, CTRL_QUEUE_SIZE]
    }

    /// Whatever was negotiated, or not yet.
    fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        let config = self.config();
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = config.get(at..).unwrap_or_default();
        data.iter_mut().zip(bytes).for_each(|(to, byte)| *to = *byte);
    }

    fn negotiated(&mut self, features: u64) {
        self.features = features;
    }

    fn activate(&mut self) {
        self.live = true;
        // A host that refuses leaves less to the guest, which is none the worse for it, or more:
        // such frames do not pass.
        let _ = self.set_offloads(self.features & feature::GUEST_OFFLOADS);
    }

    fn reset(&mut self) {
        (self.features, self.live, self.tx_waits) = (0, false, false);
        let _ = self.set_offloads(0);
        self.announcement.stop();
        self.incoming.clear();
    }

    fn batch(&self, _queue: usize) -> usize {
        BATCH
    }

    fn handle(&mut self, queue: usize, chain: Chain<'_>) -> Completion {
        match queue {
            RX => self.receive(chain),
            TX => self.transmit(chain),
            _ => self.control(chain),
        }
    }

    /// A frame that does not fit waits for the driver, but not for one that has no more room: not
    /// if another frame comes, and it has made no more available meanwhile.
    fn undone(&mut self, _queue: usize, parts: usize, more: More) -> bool {
        let pressed = std::mem::take(&mut self.pressed);
        let stuck = match more {
            More::Maybe => false,
            More::Unlikely => pressed && self.incoming.tried == parts,
            More::Never => true,
        };
        if stuck {
            self.incoming.clear()
        } else {
            self.incoming.restart()
        }
        self.incoming.tried = if stuck { 0 } else { parts };
        stuck
    }

    fn resumed(&mut self) {
        if self.announcement.resume() {
            self.tell_network();
        }
        self.frames.wake();
    }

    fn state(&self, _: u32) -> NetStateV1 {
        NetStateV1 { guest_offloads: self.guest_offloads, announce: self.announcement.asked }
    }

    fn load(&mut self, mmio: &MmioStateV1, state: &NetStateV1) -> Result<bool, Cause> {
        let has = |bit| mmio.status & bit != 0;
        let negotiated = has(regs::status::FEATURES_OK);
        self.features = if negotiated { mmio.driver_features & self.features() } else { 0 };
        self.live = negotiated && has(regs::status::DRIVER_OK);
        let agreed = if self.live { self.features } else { 0 };
        if state.guest_offloads & !(agreed & feature::GUEST_OFFLOADS) != 0 {
            return Err(format!("offloads {:#x} were not agreed on", state.guest_offloads).into());
        }
        if state.announce && agreed & feature::GUEST_ANNOUNCE == 0 {
            return Err("a driver is asked to announce itself, and does not know how".into());
        }
        self.set_offloads(state.guest_offloads)?;
        if self.live {
            self.announcement.arrive(state.announce);
        }
        Ok(false)
    }

    fn announce(&mut self) -> bool {
        if !self.live {
            return false;
        }
        self.announcement.begin();
        self.announce_round();
        // Also a driver that is not asked: the link may be down where it was, and is not here.
        true
    }

    fn host_fds(&self) -> Vec<HostFd> {
        vec![self.frames.fd(), self.announcement.alarm()]
    }

    fn host_ready(&mut self, nth: usize) -> News {
        match nth {
            0 => self.network_news(),
            _ if self.announce_round() => News::Config,
            _ => News::Nothing,
        }
    }
}
