//! The reference: the same bytes through the same kind of socket, and nothing else.
//!
//! Into new memory means what a simple program would do: read(2) straight into the mapping of guest
//! memory that nobody has touched. Each page is allocated and zeroed on the way. Over several
//! connections each has a thread at either end, and every n-th piece.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use vm_memory::{GuestAddress, GuestMemoryBackend, ReadVolatile, WriteVolatile};
use wherry_migration::Endpoint;
use wherry_vmm::memory::{Backing, Piece, Ram};

use super::content;
use super::way::{MIB, Variant};

/// Connects as source, so many times.
pub fn connect(to: &Endpoint, nr: u32) -> Result<Vec<File>> {
    let one = |_| {
        let socket: OwnedFd = match to {
            Endpoint::Tcp(address) => TcpStream::connect(address)?.into(),
            Endpoint::Unix(path) => UnixStream::connect(path)?.into(),
            Endpoint::Tls(_) => bail!("not a plain copy"),
        };
        Ok(socket.into())
    };
    (0..nr).map(one).collect()
}

/// Where a destination listens.
pub enum Listener {
    /// On the loopback.
    Tcp(TcpListener),
    /// On a path.
    Unix(UnixListener),
}

impl Listener {
    /// Listens, and says where.
    pub fn bind(at: &Endpoint) -> Result<(Self, Endpoint)> {
        Ok(match at {
            Endpoint::Tcp(address) => {
                let listener = TcpListener::bind(address)?;
                let address = listener.local_addr()?.to_string();
                (Self::Tcp(listener), Endpoint::Tcp(address))
            }
            Endpoint::Unix(path) => (Self::Unix(UnixListener::bind(path)?), at.clone()),
            Endpoint::Tls(_) => bail!("not a plain copy"),
        })
    }

    /// Waits for the source, so many times.
    pub fn accept(&self, nr: u32) -> Result<Vec<File>> {
        let one = |_| {
            let socket: OwnedFd = match self {
                Self::Tcp(listener) => listener.accept()?.0.into(),
                Self::Unix(listener) => listener.accept()?.0.into(),
            };
            Ok(socket.into())
        };
        (0..nr).map(one).collect()
    }
}

/// The source's end. Returns when the destination has all.
pub fn send(sockets: Vec<File>, variant: Variant, ram: &Ram, warm: &[u8]) -> Result<()> {
    side_by_side(sockets, |mut socket, share| {
        socket.write_all(&[share.nth])?;
        match variant {
            Variant::PlainWarm => {
                (0..ram.bytes() / MIB).try_for_each(|_| socket.write_all(warm))?;
            }
            Variant::PlainNew => share.of(ram, |piece| Ok(socket.write_all_volatile(piece)?))?,
            Variant::Wherry | Variant::Qemu | Variant::Pause => bail!("not a plain copy"),
        }
        let mut end = [0];
        socket.read_exact(&mut end).context("the destination has not got all")
    })
}

/// What a destination has got.
pub enum Got {
    /// The last piece of the same.
    Warm(Vec<u8>),
    /// Guest memory.
    New(Ram),
}

impl Got {
    /// Compares it with what was sent.
    pub fn check(&self, seed: u64) -> Result<()> {
        match self {
            Self::Warm(piece) => content::compare(piece, 0, seed),
            Self::New(ram) => content::check(ram, seed),
        }
    }
}

/// The destination's end. `warm` is a MiB that was in use before.
pub fn receive(
    mut sockets: Vec<File>,
    variant: Variant,
    bytes: u64,
    mut warm: Vec<u8>,
) -> Result<Got> {
    match variant {
        Variant::PlainWarm => {
            let [socket] = &mut sockets[..] else { bail!("one connection takes it all") };
            socket.read_exact(&mut [0])?;
            (0..bytes / MIB).try_for_each(|_| socket.read_exact(&mut warm))?;
            socket.write_all(&[1])?;
            Ok(Got::Warm(warm))
        }
        Variant::PlainNew => {
            let ram = Ram::new(bytes, &Backing::Memfd)?;
            side_by_side(sockets, |mut socket, Share { nr, .. }| {
                // Connections come in any order.
                let mut nth = [0];
                socket.read_exact(&mut nth)?;
                let share = Share { nth: nth[0], nr };
                share.of(&ram, |piece| Ok(socket.read_exact_volatile(piece)?))?;
                Ok(socket.write_all(&[1])?)
            })?;
            Ok(Got::New(ram))
        }
        Variant::Wherry | Variant::Qemu | Variant::Pause => bail!("not a plain copy"),
    }
}

/// Which pieces a connection carries.
#[derive(Clone, Copy)]
struct Share {
    nth: u8,
    nr: usize,
}

impl Share {
    /// Its part of guest memory in pieces of a MiB, where it is mapped.
    fn of(self, ram: &Ram, mut each: impl FnMut(&mut Piece<'_>) -> Result<()>) -> Result<()> {
        for region in ram.regions() {
            ensure!(region.len.is_multiple_of(MIB), "guest memory is not in whole MiB");
            let pieces = (region.gpa..region.gpa + region.len).step_by(MIB as usize);
            for at in pieces.skip(self.nth.into()).step_by(self.nr) {
                each(&mut ram.memory().get_slice(GuestAddress(at), MIB as usize)?)?;
            }
        }
        Ok(())
    }
}

/// One alone on this thread, several on threads of their own.
fn side_by_side(
    mut sockets: Vec<File>,
    each: impl Fn(File, Share) -> Result<()> + Sync,
) -> Result<()> {
    let (nr, each) = (sockets.len(), &each);
    if nr == 1 {
        return sockets.pop().map_or(Ok(()), |socket| each(socket, Share { nth: 0, nr }));
    }
    thread::scope(|scope| {
        let threads: Vec<_> = (0..)
            .zip(sockets)
            .map(|(nth, socket)| scope.spawn(move || each(socket, Share { nth, nr })))
            .collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(done) => done,
            Err(_) => bail!("a thread of a plain copy panicked"),
        })
    })
}
