//! A network that a test holds the other end of.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use wherry_devices::host::{Frames, HostFd, Offloads};
use wherry_devices::virtio::net::NetOptions;
use wherry_devices::virtio::net::constants::HEADER;

pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// What has come and gone.
#[derive(Default)]
pub struct Seen {
    /// For the guest.
    pub coming: VecDeque<Vec<u8>>,
    /// From the guest.
    pub sent: Vec<Vec<u8>>,
    /// As set, one after the other.
    pub offloads: Vec<Offloads>,
    /// How often somebody looked for a frame.
    pub reads: u32,
    /// There is always one more frame, an empty one.
    endless: bool,
    /// It has no offloads.
    pub plain: bool,
    /// The device is to have none.
    without: bool,
    pub mtu: Option<u16>,
    /// It takes so many frames from the guest, and no more.
    pub room: Option<usize>,
    /// There is no link.
    pub down: bool,
}

#[derive(Clone)]
pub struct Wire(Arc<Mutex<Seen>>, Arc<EventFd>);

impl Wire {
    fn with(seen: Seen) -> Self {
        let news = EventFd::new(EFD_NONBLOCK).unwrap();
        news.write(1).unwrap();
        Self(Arc::new(Mutex::new(seen)), Arc::new(news))
    }

    /// With frames that a test sends.
    pub fn new() -> Self {
        Self::with(Seen::default())
    }

    /// With as many frames as anybody wants, all alike.
    pub fn endless() -> Self {
        Self::with(Seen { endless: true, ..Seen::default() })
    }

    /// One without offloads, and a device that knows.
    pub fn plain() -> Self {
        Self::with(Seen { plain: true, without: true, ..Seen::default() })
    }

    pub fn options(&self) -> NetOptions {
        let seen = self.seen();
        NetOptions { mac: MAC, mtu: seen.mtu, offloads: !seen.without }
    }

    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap()
    }

    /// A frame for the guest, header in front.
    pub fn send(&self, frame: Vec<u8>) {
        self.seen().coming.push_back(frame);
        self.tell();
    }

    /// There is news.
    pub fn tell(&self) {
        self.1.write(1).unwrap();
    }

    /// Frames that the guest, or the host in its name, has sent since.
    pub fn take(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.seen().sent)
    }
}

impl Frames for Wire {
    fn read(&mut self, frame: &mut [u8]) -> io::Result<usize> {
        let mut seen = self.seen();
        seen.reads += 1;
        let endless = seen.endless.then(|| vec![0; HEADER]);
        let next = seen.coming.pop_front().or(endless).ok_or(io::ErrorKind::WouldBlock)?;
        let len = next.len().min(frame.len());
        frame[..len].copy_from_slice(&next[..len]);
        Ok(len)
    }
    fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        let mut seen = self.seen();
        if seen.down {
            return Err(io::ErrorKind::NotConnected.into());
        }
        if let Some(room) = &mut seen.room {
            *room = room.checked_sub(1).ok_or(io::ErrorKind::WouldBlock)?;
        }
        seen.sent.push(frame.to_vec());
        Ok(())
    }
    fn can_offload(&self) -> bool {
        !self.seen().plain
    }
    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        self.seen().offloads.push(offloads);
        Ok(())
    }
    fn fd(&self) -> HostFd {
        self.1.clone()
    }
    fn link(&mut self) -> bool {
        !self.seen().down
    }
    fn wake(&mut self) {
        self.tell();
    }
}
