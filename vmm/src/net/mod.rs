//! The host's ends of its VMs' networks.
//!
//! They are opened once, when the process starts, and stay open through reboots. A guest that comes
//! from elsewhere finds them by the names of its devices; what it had where it was is not asked
//! for.

mod counted;
mod later;
mod passt;
pub mod stream;
mod tap;
mod user;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use anyhow::Context;
use wherry_devices::device::Spec;
use wherry_devices::host::Frames;
use wherry_devices::virtio::net::{KIND, NetOptions};

use crate::config::{Forward, NetBackend, NetEnd};
use crate::control::NetInfo;
use counted::{Counted, Counts};
use passt::{Program, Watch};
use tap::Tap;
pub use tap::check_name;

/// All of a process's, by the name of the device. Clones are the same ones.
#[derive(Clone, Default)]
pub struct Nets(Arc<BTreeMap<String, One>>);

struct One {
    end: End,
    counts: Arc<Counts>,
}

enum End {
    Tap(Tap),
    User { watch: Watch, forwards: Vec<Forward> },
}

impl Nets {
    /// Opens them, without a thread: what it opens is the last that this process may.
    ///
    /// # Errors
    /// One cannot be opened, and the text says which.
    pub fn open<'a>(ends: impl IntoIterator<Item = &'a NetEnd>) -> anyhow::Result<Self> {
        let mut all = BTreeMap::new();
        for NetEnd { id, backend } in ends {
            let opened = match backend {
                NetBackend::Tap(name) => Tap::open(name).map(End::Tap),
                NetBackend::Fd(fd) => Tap::inherited(*fd).map(End::Tap),
                NetBackend::User(net) => Watch::start(Program::new(net))
                    .map(|watch| End::User { watch, forwards: net.forwards.clone() }),
            };
            let end = opened.with_context(|| format!("cannot give network `{id}` to the guest"))?;
            all.insert(id.clone(), One { end, counts: Arc::default() });
        }
        Ok(Self(Arc::new(all)))
    }

    /// Begins to watch what they need beside this process.
    ///
    /// # Errors
    /// There is no room for a thread.
    pub fn begin(&mut self) -> io::Result<()> {
        // There are no clones before they have begun.
        for (id, one) in Arc::get_mut(&mut self.0).into_iter().flatten() {
            if let End::User { watch, .. } = &mut one.end {
                watch.begin(id)?;
            }
        }
        Ok(())
    }

    /// The one of this device.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, id: &str) -> io::Result<Box<dyn Frames>> {
        let one = self.0.get(id).ok_or_else(|| {
            io::Error::other(format!(
                "this host has no network `{id}`; give it one with --net tap=NAME,id={id}"
            ))
        })?;
        let frames: Box<dyn Frames> = match &one.end {
            End::Tap(tap) => Box::new(tap.clone()),
            End::User { watch, .. } => Box::new(watch.user().clone()),
        };
        Ok(Box::new(Counted::new(frames, one.counts.clone())))
    }

    /// What they did.
    pub fn info(&self) -> Vec<NetInfo> {
        self.0.iter().map(|(id, one)| one.counts.info(id)).collect()
    }

    /// Ports of this host that lead to the guest.
    pub fn forwards(&self) -> Vec<Forward> {
        let of = |one: &One| match &one.end {
            End::Tap(_) => vec![],
            End::User { forwards, .. } => forwards.clone(),
        };
        self.0.values().flat_map(of).collect()
    }

    /// Whether each of these devices that wants one has one that does what its guest relies on.
    ///
    /// # Errors
    /// One has none.
    pub fn check(&self, devices: &[Spec]) -> io::Result<()> {
        for Spec { id, options, .. } in devices.iter().filter(|spec| *spec.kind == KIND) {
            let end = self.get(id)?;
            let options: NetOptions =
                wherry_codec::decode(options).map_err(|e| io::Error::other(e.to_string()))?;
            if options.offloads && !end.can_offload() {
                return Err(io::Error::other(format!(
                    "network `{id}` of the guest leaves checksums and segmentation to its host, \
                     which --net user does not do; give it a tap, or start the guest with \
                     offloads=off"
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use wherry_devices::virtio::rng;

    use super::*;
    use crate::control::ControlError;
    use crate::exit::Exit;

    fn net(offloads: bool) -> Spec {
        let options = NetOptions { mac: [2, 0, 0, 0, 0, 1], mtu: None, offloads };
        Spec::new(&KIND, &options).unwrap().named("db")
    }

    #[test]
    fn what_cannot_be_opened_is_said_with_its_name_and_ends_the_command() {
        // An interface that is no tap, or nothing that opens taps.
        let ends = [NetEnd { id: "db".into(), backend: NetBackend::Tap("lo".into()) }];
        let error = ControlError::from(Nets::open(&ends).err().unwrap());
        assert!(error.message.starts_with("cannot give network `db` to the guest: "), "{error}");
        assert_eq!(Exit::of(&error), Exit::Failed);
    }

    #[test]
    fn a_guest_whose_network_has_no_end_here_is_refused_by_name() {
        let rng = Spec::new(&rng::KIND, &()).unwrap();
        let nets = Nets::default();
        nets.check(std::slice::from_ref(&rng)).unwrap();
        let refused = nets.check(&[rng, net(true)]).unwrap_err().to_string();
        assert!(refused.contains("no network `db`") && refused.contains("--net tap=NAME,id=db"));
    }

    #[test]
    fn a_guest_that_leaves_work_to_its_host_is_refused_by_one_that_does_not_do_it() {
        let watch = Watch::start(Program::echo()).unwrap();
        let one = One { end: End::User { watch, forwards: vec![] }, counts: Arc::default() };
        let nets = Nets(Arc::new([("db".to_owned(), one)].into()));
        nets.check(&[net(false)]).unwrap();
        let refused = nets.check(&[net(true)]).unwrap_err().to_string();
        assert!(refused.contains("network `db`") && refused.contains("offloads=off"), "{refused}");
    }
}
