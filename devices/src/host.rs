//! What a host gives to its devices. The VMM implements it.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use crate::GuestMemory;
use crate::virtio::blk::disk::Disk;

/// All of it; each device asks for what it needs when it is built.
pub trait Host {
    /// Guest RAM.
    fn memory(&self) -> Arc<GuestMemory>;
    /// Where the guest's console output goes.
    fn console(&self) -> Box<dyn Write + Send>;
    /// Who is told that the guest ends itself.
    fn power(&self) -> Arc<dyn PowerSink>;
    /// Takes guest memory back.
    fn balloon(&self) -> Arc<dyn BalloonBackend>;
    /// Where random bytes come from. Never asked to wait.
    ///
    /// # Errors
    /// There is no source.
    fn entropy(&self) -> io::Result<Box<dyn Read + Send>>;
    /// The disk behind the device with this id.
    ///
    /// # Errors
    /// There is none, for people to read.
    fn disk(&self, id: &str) -> io::Result<Arc<dyn Disk>>;
    /// Who is told that there is no room left for a disk.
    fn disk_full(&self) -> Arc<dyn DiskFull>;
    /// The network behind the device of this name.
    ///
    /// # Errors
    /// This host was given none for it.
    fn net(&self, id: &str) -> io::Result<Box<dyn Frames>>;
    /// Where the streams of the socket device of this name end.
    ///
    /// # Errors
    /// This host has no place for them.
    fn vsock(&self, id: &str) -> io::Result<Box<dyn Sockets>>;
}

/// A descriptor of the host that a device wants to be told of.
pub type HostFd = Arc<dyn AsRawFd + Send + Sync>;

/// One end of a network. What it carries are Ethernet frames, each with the 12 bytes of `struct
/// virtio_net_hdr` in front (virtio 1.3, section 5.1.6).
pub trait Frames: Send {
    /// Takes the next frame, header in front. Returns its length. Never waits.
    ///
    /// # Errors
    /// There is none now ([`io::ErrorKind::WouldBlock`]), or the network is gone.
    fn read(&mut self, frame: &mut [u8]) -> io::Result<usize>;
    /// Sends a frame, header in front. Never waits.
    ///
    /// # Errors
    /// Not now, but there is news when it is worth another try ([`io::ErrorKind::WouldBlock`]); or
    /// not at all: it is lost.
    fn write(&mut self, frame: &[u8]) -> io::Result<()>;
    /// Whether frames may leave to the host, and to the guest, what [`Offloads`] has.
    fn can_offload(&self) -> bool;
    /// What the frames that are read may leave to the guest, from soon on. Never waits.
    ///
    /// # Errors
    /// The host does not do that; it is as before.
    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()>;
    /// Becomes readable when there is news: a frame, room for one after there was none, a link that
    /// came or went.
    fn fd(&self) -> HostFd;
    /// There is news: goes on with what is half done, without waiting. Returns whether there is a
    /// link; without one frames are lost.
    fn link(&mut self) -> bool {
        true
    }
    /// There is news again, if there was any that nobody has heard.
    fn wake(&mut self) {}
}

/// What a frame may leave to who gets it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// The checksum of TCP or UDP.
    pub csum: bool,
    /// Cutting it into segments, TCP over IPv4.
    pub tso4: bool,
    /// The same over IPv6.
    pub tso6: bool,
    /// Both with ECN.
    pub ecn: bool,
}

/// The host's end of a guest's stream sockets. Each stream gets a token, by which its news are
/// told; no two that are open have the same.
pub trait Sockets: Send {
    /// The next client that wants to be connected to the guest: to which of its ports, and its
    /// stream. `None`: there is none now. Never waits.
    fn accept(&mut self, token: u64) -> Option<(u32, Box<dyn Stream>)>;
    /// Connects to whoever listens for the guest at this port of the host. Never waits.
    ///
    /// # Errors
    /// Nobody does, or not now.
    fn connect(&mut self, token: u64, port: u32) -> io::Result<Box<dyn Stream>>;
    /// Streams that may have become readable or writable since the last time, and whether nobody is
    /// at their other end any more: it neither sends nor takes anything.
    fn news(&mut self, of: &mut Vec<(u64, bool)>);
    /// Becomes readable when there are clients or news.
    fn fd(&self) -> HostFd;
}

/// A stream of the host. It is closed when it is dropped.
pub trait Stream: Send {
    /// Takes bytes. 0: no more will come. Never waits.
    ///
    /// # Errors
    /// There are none now ([`io::ErrorKind::WouldBlock`]), or the stream is broken.
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize>;
    /// Gives bytes, as many as there is room for. Never waits.
    ///
    /// # Errors
    /// There is no room now ([`io::ErrorKind::WouldBlock`]), or nobody takes them any more.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// The guest has accepted the client whose stream this is; to the guest it has this port.
    ///
    /// # Errors
    /// The client cannot be told.
    fn accepted(&mut self, port: u32) -> io::Result<()>;
    /// The guest gives, or takes, no more.
    fn shutdown(&mut self, how: Shutdown);
}

/// Told that the host has no room left for what a guest writes.
pub trait DiskFull: Send + Sync {
    /// A write to the disk of the device with this id does not fit. Returns whether the machine is
    /// paused for it, or will be: the write is kept then, and tried again on resume. Otherwise it
    /// fails. Called on any thread, without locks, once for each such write: do not wait.
    fn disk_full(&self, id: &str) -> bool;
}

/// Told when the guest ends itself. Called on the vCPU thread that wrote the register, with the
/// device locked: set a flag and wake somebody, do not call back.
pub trait PowerSink: Send + Sync {
    /// The guest powered itself off.
    fn power_off(&self);
    /// The guest asked for a reset.
    fn reset(&self);
}

/// Gives guest memory back to the host.
pub trait BalloonBackend: Send + Sync {
    /// Makes `len` bytes from `gpa` on read as zero and frees their memory; whole pages in one RAM
    /// region. The pages count as dirty afterwards. Called with the device locked.
    fn discard(&self, gpa: u64, len: u64) -> io::Result<()>;

    /// The time, which limits how long one request may keep the device locked.
    fn now(&self) -> Instant {
        Instant::now()
    }
}
