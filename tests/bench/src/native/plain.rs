//! The reference: the same bytes through the same kind of socket, and nothing else.
//!
//! Into new memory means what a simple program would do: read(2) straight into the mapping of guest
//! memory that nobody has touched. Each page is allocated and zeroed on the way.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use anyhow::{Context, Result, bail, ensure};
use vm_memory::{GuestAddress, GuestMemoryBackend, ReadVolatile, WriteVolatile};
use wherry_migration::Endpoint;
use wherry_vmm::memory::{Backing, Piece, Ram};

use super::content;
use super::way::{MIB, Variant};

/// Connects as source.
pub fn connect(to: &Endpoint) -> Result<File> {
    let socket: OwnedFd = match to {
        Endpoint::Tcp(address) => TcpStream::connect(address)?.into(),
        Endpoint::Unix(path) => UnixStream::connect(path)?.into(),
        Endpoint::Tls(_) => bail!("not a plain copy"),
    };
    Ok(socket.into())
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

    /// Waits for the source.
    pub fn accept(&self) -> Result<File> {
        let socket: OwnedFd = match self {
            Self::Tcp(listener) => listener.accept()?.0.into(),
            Self::Unix(listener) => listener.accept()?.0.into(),
        };
        Ok(socket.into())
    }
}

/// The source's end. Returns when the destination has all.
pub fn send(socket: &mut File, variant: Variant, ram: &Ram, warm: &[u8]) -> Result<()> {
    match variant {
        Variant::PlainWarm => (0..ram.bytes() / MIB).try_for_each(|_| socket.write_all(warm))?,
        Variant::PlainNew => pieces(ram, |piece| Ok(socket.write_all_volatile(piece)?))?,
        Variant::Wherry | Variant::Qemu | Variant::Pause => bail!("not a plain copy"),
    }
    let mut end = [0];
    socket.read_exact(&mut end).context("the destination has not got all")
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
pub fn receive(socket: &mut File, variant: Variant, bytes: u64, mut warm: Vec<u8>) -> Result<Got> {
    let got = match variant {
        Variant::PlainWarm => {
            (0..bytes / MIB).try_for_each(|_| socket.read_exact(&mut warm))?;
            Got::Warm(warm)
        }
        Variant::PlainNew => {
            let ram = Ram::new(bytes, &Backing::Memfd)?;
            pieces(&ram, |piece| Ok(socket.read_exact_volatile(piece)?))?;
            Got::New(ram)
        }
        Variant::Wherry | Variant::Qemu | Variant::Pause => bail!("not a plain copy"),
    };
    socket.write_all(&[1])?;
    Ok(got)
}

/// Guest memory in pieces of a MiB, where it is mapped.
fn pieces(ram: &Ram, mut each: impl FnMut(&mut Piece<'_>) -> Result<()>) -> Result<()> {
    for region in ram.regions() {
        ensure!(region.len.is_multiple_of(MIB), "guest memory is not in whole MiB");
        for offset in (0..region.len).step_by(MIB as usize) {
            let at = GuestAddress(region.gpa + offset);
            each(&mut ram.memory().get_slice(at, MIB as usize)?)?;
        }
    }
    Ok(())
}
