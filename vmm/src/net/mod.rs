//! The host's ends of its VMs' networks.
//!
//! They are opened once, when the process starts, and stay open through reboots. A guest that comes
//! from elsewhere finds them by the names of its devices; what it had where it was is not asked
//! for.

mod tap;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use anyhow::Context;
use wherry_devices::device::Spec;
use wherry_devices::host::Frames;
use wherry_devices::virtio::net::KIND;

use crate::config::{NetBackend, NetEnd};
use tap::Tap;

/// All of a process's, by the name of the device. Clones are the same ones.
#[derive(Clone, Default)]
pub struct Nets(Arc<BTreeMap<String, Tap>>);

impl Nets {
    /// Opens them.
    ///
    /// # Errors
    /// One cannot be opened, and the text says which.
    pub fn open<'a>(ends: impl IntoIterator<Item = &'a NetEnd>) -> anyhow::Result<Self> {
        let mut all = BTreeMap::new();
        for NetEnd { id, backend } in ends {
            let opened = match backend {
                NetBackend::Tap(name) => Tap::open(name),
                NetBackend::Fd(fd) => Tap::inherited(*fd),
            };
            let tap = opened.with_context(|| format!("cannot give network `{id}` to the guest"))?;
            all.insert(id.clone(), tap);
        }
        Ok(Self(Arc::new(all)))
    }

    /// The one of this device.
    ///
    /// # Errors
    /// There is none.
    pub fn get(&self, id: &str) -> io::Result<Box<dyn Frames>> {
        match self.0.get(id) {
            Some(tap) => Ok(Box::new(tap.clone())),
            None => Err(io::Error::other(format!(
                "this host has no network `{id}`; give it one with --net id={id},tap=NAME"
            ))),
        }
    }

    /// Whether each of these devices that wants one has one.
    ///
    /// # Errors
    /// One has none.
    pub fn check(&self, devices: &[Spec]) -> io::Result<()> {
        let mut wanting = devices.iter().filter(|spec| *spec.kind == KIND);
        wanting.try_for_each(|spec| self.get(&spec.id).map(drop))
    }
}

#[cfg(test)]
mod tests {
    use wherry_devices::virtio::rng;

    use super::*;

    #[test]
    fn a_guest_whose_network_has_no_end_here_is_refused_by_name() {
        let net = Spec::new(&KIND, &()).unwrap().named("db");
        let rng = Spec::new(&rng::KIND, &()).unwrap();
        let nets = Nets::default();
        nets.check(std::slice::from_ref(&rng)).unwrap();
        let refused = nets.check(&[rng, net]).unwrap_err().to_string();
        assert!(refused.contains("no network `db`") && refused.contains("--net id=db,tap="));
    }
}
