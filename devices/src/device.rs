//! What every device does for its machine, whatever it is: the machine keeps a list and knows none
//! by name.
//!
//! A device is built from its part of the machine's description ([`Spec`]) and from what the host
//! gives ([`Host`]), fresh or as saved ([`Saved`]), or refused by name. `kinds.rs` lists the kinds
//! that there are.
//!
//! # Rules
//! - **Pausing drains.** When [`Device::pause`] has returned, nothing of the device is in flight
//!   and nothing writes guest memory. If that is not so in time, it says so and goes on as before.
//! - **Guest memory is marked dirty after it was written, whatever the result.** What goes through
//!   [`GuestMemory`](crate::GuestMemory) is; whoever has the kernel write into guest memory marks
//!   it when the kernel is through, and before the driver is told.
//! - **Resuming looks at everything again**: each queue, and the interrupt line. So no kick is lost
//!   to a pause or a move.
//! - **Nothing of the host's crosses over**: no path, no descriptor.

use std::any::Any;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use event_manager::MutEventSubscriber;
use serde::{Serialize, de::DeserializeOwned};
use vmm_sys_util::eventfd::EventFd;
use wherry_codec::CodecError;

use crate::host::Host;
use crate::{BusDevice, InterruptLine};

/// See the module's text. Called from any thread.
pub trait Device: Any + Send + Sync {
    /// Takes no new work, and waits until nothing is in flight. Idempotent.
    ///
    /// # Errors
    /// Something still is at `deadline`: the device goes on as before.
    fn pause(&self, deadline: Instant) -> Result<(), Busy>;

    /// Goes on, and looks at everything again. Idempotent.
    fn resume(&self);

    /// Bytes that its state takes now in this version beyond a few KiB, if it depends on what the
    /// guest does.
    fn state_bytes(&self, _version: u32) -> u64 {
        0
    }

    /// Its state in this version, of those in [`Kind::states`]. Paused devices only.
    ///
    /// # Errors
    /// It has no encoding.
    fn save(&self, version: u32) -> Result<Vec<u8>, CodecError>;

    /// The interrupt controllers are as saved, too: sets the interrupt line. Saved controllers know
    /// nothing of who holds a line high.
    ///
    /// # Errors
    /// The line cannot be set.
    fn after_restore(&self) -> io::Result<()> {
        Ok(())
    }

    /// The guest has arrived and runs here: tells it, or the network, what they must know. Called
    /// soon after the guest began to run; put off until the resume if it does not.
    fn announce(&self) {}
}

/// A device did not come to rest in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{in_flight} requests are still in flight")]
pub struct Busy {
    /// Requests that have not ended.
    pub in_flight: usize,
}

/// A device's part of a machine's description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// Its name, unique in the machine.
    pub id: String,
    /// What it is.
    pub kind: &'static Kind,
    /// The virtio-mmio slot that it sits in. `None`: at its kind's own ports.
    pub slot: Option<u32>,
    /// What the kind wants to know, encoded.
    pub options: Vec<u8>,
}

impl Spec {
    /// A device that bears its kind's name, as the only one of its kind does.
    ///
    /// # Errors
    /// The options have no encoding; plain data always has.
    pub fn new<O: Serialize>(kind: &'static Kind, options: &O) -> Result<Self, CodecError> {
        let options = wherry_codec::encode(options)?;
        Ok(Self { id: kind.id.into(), kind, slot: None, options })
    }

    /// The same with a name of its own: one of several of its kind.
    #[must_use]
    pub fn named(self, id: impl Into<String>) -> Self {
        Self { id: id.into(), ..self }
    }

    /// The same in a virtio-mmio slot.
    #[must_use]
    pub fn in_slot(self, slot: u32) -> Self {
        Self { slot: Some(slot), ..self }
    }
}

/// A saved device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// Its name.
    pub id: String,
    /// What it is.
    pub kind: &'static Kind,
    /// Version of its state, of those in [`Kind::states`].
    pub version: u32,
    /// Its state.
    pub bytes: Vec<u8>,
}

/// A kind of device.
#[derive(Debug)]
pub struct Kind {
    /// Its name in descriptions and states, for good.
    pub name: &'static str,
    /// Name of a device that is the only one of its kind, or the first.
    pub id: &'static str,
    /// Version of the options in the description.
    pub options: u32,
    /// Versions of the saved state that are read and written, oldest first, each with the first
    /// version of the migration protocol that carries it.
    pub states: &'static [(u16, u32)],
    /// Whether it sits in a virtio-mmio slot.
    pub virtio: bool,
    /// Builds one.
    pub build: fn(Build<'_>) -> Result<Built, BuildError>,
}

impl PartialEq for Kind {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}
impl Eq for Kind {}

impl Kind {
    /// The version of the saved state that a peer of this version of the protocol reads.
    pub fn state_for(&self, protocol: u16) -> u32 {
        let known = self.states.iter().rev().find(|(from, _)| *from <= protocol);
        known.or(self.states.first()).map_or(1, |(_, version)| *version)
    }

    /// Whether states of this version are read.
    pub fn reads(&self, version: u32) -> bool {
        self.states.iter().any(|(_, known)| *known == version)
    }
}

/// What a device is built from.
pub struct Build<'a> {
    /// Its part of the description.
    pub spec: &'a Spec,
    /// Its state, if it is not fresh.
    pub saved: Option<&'a Saved>,
    /// Its interrupt line.
    pub irq: Arc<dyn InterruptLine>,
    /// What the host gives.
    pub host: &'a dyn Host,
}

/// Why a device refuses, for people to read.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a device could not be built.
#[derive(Debug, thiserror::Error)]
#[error("cannot {} `{id}` ({kind})", if *.restore { "restore" } else { "build" })]
pub struct BuildError {
    id: String,
    kind: &'static str,
    restore: bool,
    source: Cause,
}

impl Build<'_> {
    /// The options of the description.
    ///
    /// # Errors
    /// Malformed.
    pub fn options<O: Serialize + DeserializeOwned>(&self) -> Result<O, BuildError> {
        wherry_codec::decode(&self.spec.options).map_err(|e| self.refuse(e))
    }

    /// The saved state, if there is one.
    ///
    /// # Errors
    /// Malformed.
    pub fn state<S: Serialize + DeserializeOwned>(&self) -> Result<Option<S>, BuildError> {
        let state = self.saved.map(|saved| wherry_codec::decode(&saved.bytes)).transpose();
        state.map_err(|e| self.refuse(e))
    }

    /// Says which device it was.
    pub fn refuse(&self, source: impl Into<Cause>) -> BuildError {
        let Spec { id, kind, .. } = self.spec;
        let restore = self.saved.is_some();
        BuildError { id: id.clone(), kind: kind.name, restore, source: source.into() }
    }
}

/// A device's end of the event loop: its kicks, its completions, its host descriptors.
pub type Subscriber = Box<dyn MutEventSubscriber + Send>;

/// A device that is built, and what the machine has to connect. It is paused.
pub struct Built {
    /// The device.
    pub device: Arc<dyn Device>,
    /// For the bus.
    pub bus: Arc<Mutex<dyn BusDevice>>,
    /// An eventfd per queue, in order: ioeventfds on the slot's QueueNotify with the index as
    /// 4-byte datamatch.
    pub kicks: Vec<Arc<EventFd>>,
    /// For the event loop.
    pub subscriber: Option<Subscriber>,
}

/// The devices of a machine.
#[derive(Default)]
pub struct Devices(Vec<(Spec, Arc<dyn Device>)>);

impl Devices {
    /// One more.
    pub fn push(&mut self, spec: Spec, device: Arc<dyn Device>) {
        self.0.push((spec, device));
    }

    /// The first of this type, for who does more with it than the list does.
    pub fn find<D: Device>(&self) -> Option<Arc<D>> {
        self.0.iter().find_map(|(_, device)| {
            let any: Arc<dyn Any + Send + Sync> = device.clone();
            any.downcast().ok()
        })
    }

    /// Pauses all, in order.
    ///
    /// # Errors
    /// One is not at rest by `deadline`: none is paused, and the text names it.
    pub fn pause(&self, deadline: Instant) -> Result<(), String> {
        for (nth, (spec, device)) in self.0.iter().enumerate() {
            if let Err(busy) = device.pause(deadline) {
                self.0.iter().take(nth).rev().for_each(|(_, device)| device.resume());
                return Err(format!("device `{}`: {busy}", spec.id));
            }
        }
        Ok(())
    }

    /// Resumes all, the last one first.
    pub fn resume(&self) {
        self.0.iter().rev().for_each(|(_, device)| device.resume());
    }

    /// Bytes of all states that depend on what the guest does, for a peer of this version of the
    /// protocol.
    pub fn state_bytes(&self, protocol: u16) -> u64 {
        let of = |(spec, device): &(Spec, Arc<dyn Device>)| {
            device.state_bytes(spec.kind.state_for(protocol))
        };
        self.0.iter().map(of).sum()
    }

    /// Saves all for a peer of this version of the protocol.
    ///
    /// # Errors
    /// One cannot be encoded.
    pub fn save(&self, protocol: u16) -> Result<Vec<Saved>, CodecError> {
        let save = |(spec, device): &(Spec, Arc<dyn Device>)| {
            let (id, kind) = (spec.id.clone(), spec.kind);
            let version = kind.state_for(protocol);
            Ok(Saved { id, kind, version, bytes: device.save(version)? })
        };
        self.0.iter().map(save).collect()
    }

    /// The interrupt controllers are as saved, too.
    ///
    /// # Errors
    /// A line cannot be set.
    pub fn after_restore(&self) -> io::Result<()> {
        self.0.iter().try_for_each(|(_, device)| device.after_restore())
    }

    /// The guest has arrived and runs here.
    pub fn announce(&self) {
        self.0.iter().for_each(|(_, device)| device.announce());
    }
}
