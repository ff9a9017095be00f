//! A network that counts its frames.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use wherry_devices::host::{Frames, HostFd, Offloads};
use wherry_devices::virtio::net::constants::HEADER;

use crate::control::NetInfo;

/// Of one network, through reboots.
#[derive(Default)]
pub struct Counts {
    received: AtomicU64,
    received_bytes: AtomicU64,
    sent: AtomicU64,
    sent_bytes: AtomicU64,
    lost: AtomicU64,
}

impl Counts {
    /// For `info`.
    pub fn info(&self, id: &str) -> NetInfo {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        NetInfo {
            id: id.to_owned(),
            received: of(&self.received),
            received_bytes: of(&self.received_bytes),
            sent: of(&self.sent),
            sent_bytes: of(&self.sent_bytes),
            lost: of(&self.lost),
        }
    }
}

/// A frame of this length, its header for the device included.
fn count(frames: &AtomicU64, bytes: &AtomicU64, len: usize) {
    frames.fetch_add(1, Ordering::Relaxed);
    bytes.fetch_add(len.saturating_sub(HEADER) as u64, Ordering::Relaxed);
}

/// See the module's text.
pub struct Counted {
    frames: Box<dyn Frames>,
    counts: Arc<Counts>,
}

impl Counted {
    /// The same network; `counts` go on.
    pub fn new(frames: Box<dyn Frames>, counts: Arc<Counts>) -> Self {
        Self { frames, counts }
    }
}

impl Frames for Counted {
    fn read(&mut self, frame: &mut [u8]) -> io::Result<usize> {
        let len = self.frames.read(frame)?;
        count(&self.counts.received, &self.counts.received_bytes, len);
        Ok(len)
    }

    fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        let sent = self.frames.write(frame);
        match &sent {
            Ok(()) => count(&self.counts.sent, &self.counts.sent_bytes, frame.len()),
            // Not now: it comes again.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => {
                self.counts.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
        sent
    }

    fn can_offload(&self) -> bool {
        self.frames.can_offload()
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        self.frames.set_offloads(offloads)
    }

    fn fd(&self) -> HostFd {
        self.frames.fd()
    }

    fn link(&mut self) -> bool {
        self.frames.link()
    }

    fn wake(&mut self) {
        self.frames.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// Has frames of this length, and takes what is no longer than it.
    struct Fake(usize);

    impl Frames for Fake {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            if self.0 == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(self.0) }
        }
        fn write(&mut self, frame: &[u8]) -> io::Result<()> {
            match (self.0, frame.len()) {
                (0, _) => Err(io::ErrorKind::WouldBlock.into()),
                (room, len) if len > room => Err(io::Error::other("too long")),
                _ => Ok(()),
            }
        }
        fn can_offload(&self) -> bool {
            true
        }
        fn set_offloads(&mut self, _: Offloads) -> io::Result<()> {
            Ok(())
        }
        fn fd(&self) -> HostFd {
            Arc::new(File::open("/dev/null").unwrap())
        }
    }

    #[test]
    fn frames_are_counted_when_they_went_through() {
        let counts = Arc::<Counts>::default();
        let net = |len| Counted::new(Box::new(Fake(len)), counts.clone());
        let (mut open, mut full) = (net(HEADER + 60), net(0));
        assert_eq!(open.read(&mut []).unwrap(), HEADER + 60);
        open.write(&[0; HEADER + 20]).unwrap();
        open.write(&[0; HEADER + 40]).unwrap();
        open.write(&[0; HEADER + 100]).unwrap_err();
        // A tap that is full is asked again with the same frame.
        full.write(&[0; HEADER + 20]).unwrap_err();
        full.read(&mut []).unwrap_err();
        let expected = NetInfo {
            id: "net0".into(),
            received: 1,
            received_bytes: 60,
            sent: 2,
            sent_bytes: 60,
            lost: 1,
        };
        assert_eq!(counts.info("net0"), expected);
    }
}
