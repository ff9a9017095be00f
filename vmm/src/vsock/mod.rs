//! The host's end of a guest's sockets, by Firecracker's convention, which needs no privileges and
//! no register of addresses: a client connects to a Unix socket, writes `CONNECT PORT` and a
//! newline, and reads `OK` and its own port when a program of the guest has accepted; the bytes
//! behind are the stream's. A guest that connects to a port of the host's gets whoever listens in
//! that socket's folder at its name with `_PORT` behind it.
//!
//! The socket is this user's alone. It is made before a guest runs, or arrives, and stays through
//! reboots.

mod client;
mod hub;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use wherry_devices::device::Spec;
use wherry_devices::host::Sockets;
use wherry_devices::virtio::vsock::KIND;

use crate::sync::lock;
use hub::{Hub, Patience};

/// Longest path in bytes: with `_PORT` behind it, it still is one of a socket.
pub const MAX_PATH: usize = 107 - "_4294967295".len();

/// Longest file name in bytes: the same beneath its folder, as [`hub`] connects there.
pub const MAX_NAME: usize = MAX_PATH - "/proc/self/fd/4095/".len();

/// Where a process has that end. Clones are the same one.
#[derive(Clone, Default)]
pub struct Vsock(Arc<Place>);

#[derive(Default)]
struct Place {
    path: PathBuf,
    hub: Mutex<Option<Hub>>,
}

impl Vsock {
    /// At this path, once a guest needs it.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(Arc::new(Place { path: path.into(), hub: Mutex::default() }))
    }

    /// For the device.
    ///
    /// # Errors
    /// The socket cannot be made, and the text says why.
    pub fn get(&self) -> io::Result<Box<dyn Sockets>> {
        let mut hub = lock(&self.0.hub);
        if let Some(hub) = &*hub {
            return Ok(Box::new(hub.clone()));
        }
        let path = &self.0.path;
        let (len, name) = (path.as_os_str().len(), path.file_name().unwrap_or_default().len());
        if name == 0 || name > MAX_NAME || len > MAX_PATH {
            return Err(io::Error::other(format!(
                "the path of a guest's sockets, {}, has {len} bytes, {name} of them its name; it \
                 must have at most {MAX_PATH}, 1 to {MAX_NAME} of them its name: choose another \
                 with --vsock path=FILE",
                path.display()
            )));
        }
        let new = Hub::open(path, Patience::default())?;
        Ok(Box::new(hub.insert(new).clone()))
    }

    /// Makes the socket, if one of these devices needs it.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn check(&self, devices: &[Spec]) -> io::Result<()> {
        let wanted = devices.iter().any(|spec| *spec.kind == KIND);
        if wanted { self.get().map(drop) } else { Ok(()) }
    }

    /// The socket, if there is one.
    pub fn path(&self) -> Option<&Path> {
        lock(&self.0.hub).as_ref().map(|_| &*self.0.path)
    }
}

#[cfg(test)]
mod tests;
