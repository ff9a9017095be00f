//! After a move: telling the network where the guest is now, or its frames go to the host where it
//! was until it happens to send something.
//!
//! Twice over. The host sends frames in the guest's name (RARP, which needs no address of the
//! guest's), so that switches learn its port whatever the guest does; the first of them goes out
//! when the device begins to run here. And the driver is asked to announce itself
//! (VIRTIO_NET_S_ANNOUNCE, section 5.1.6.5.4): it knows its addresses, and tells its neighbours.
//! Both again for a while, since frames are lost. A paused device sends nothing.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::timerfd::TimerFd;

use super::constants::{ETHERNET, HEADER};

/// How often.
pub const ROUNDS: u32 = 5;
/// From one round to the next, at first; each wait is [`LONGER`] than the one before.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// See [`FIRST_WAIT`].
const LONGER: Duration = Duration::from_millis(100);
/// Shortest frame that Ethernet has, without its checksum.
const SHORTEST: usize = 60;

/// Becomes readable when it is time, and no more when it is set anew.
pub struct Alarm(Mutex<TimerFd>);

impl Alarm {
    fn lock(&self) -> MutexGuard<'_, TimerFd> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsRawFd for Alarm {
    fn as_raw_fd(&self) -> RawFd {
        self.lock().as_raw_fd()
    }
}

/// What is left to announce.
pub struct Announcement {
    alarm: Arc<Alarm>,
    /// It came from elsewhere, and has not run here.
    arrived: bool,
    rounds_left: u32,
    /// The driver is asked, and has not answered.
    pub asked: bool,
}

impl Announcement {
    /// # Errors
    /// The host has no descriptors left.
    pub fn new() -> std::io::Result<Self> {
        let alarm = Arc::new(Alarm(Mutex::new(TimerFd::new()?)));
        Ok(Self { alarm, arrived: false, rounds_left: 0, asked: false })
    }

    pub fn alarm(&self) -> Arc<Alarm> {
        self.alarm.clone()
    }

    /// The device was restored with a driver that is up, asked or not.
    pub fn arrive(&mut self, asked: bool) {
        (self.arrived, self.asked) = (true, asked);
    }

    /// The device begins to run, or goes on. Whether the network is to be told at once.
    pub fn resume(&mut self) -> bool {
        self.wait();
        std::mem::take(&mut self.arrived)
    }

    /// The first round is to follow.
    pub fn begin(&mut self) {
        self.rounds_left = ROUNDS;
    }

    /// It is time. Whether this is a round.
    pub fn round(&mut self) -> bool {
        let due = self.rounds_left > 0;
        self.rounds_left = self.rounds_left.saturating_sub(1);
        self.wait();
        due
    }

    fn wait(&self) {
        let done = ROUNDS.saturating_sub(self.rounds_left + 1);
        if self.rounds_left > 0 {
            // Cannot fail with these times; without it there are fewer rounds.
            let _ = self.alarm.lock().reset(FIRST_WAIT + LONGER * done, None);
        }
    }

    /// The driver has announced itself.
    pub fn taken(&mut self) {
        self.asked = false;
    }

    /// The driver is gone.
    pub fn stop(&mut self) {
        (self.arrived, self.asked, self.rounds_left) = (false, false, 0);
        let _ = self.alarm.lock().clear();
    }
}

/// A RARP request to all (RFC 903): who has `mac`, which is mine? Behind an empty header.
pub fn rarp(mac: [u8; 6]) -> [u8; HEADER + SHORTEST] {
    const { assert!(ETHERNET + 28 <= SHORTEST) };
    let mut frame = [0; HEADER + SHORTEST];
    let words = [&[0; HEADER][..], &[0xff; 6], &mac, &[0x80, 0x35]];
    // Ethernet, IPv4, request reverse; sender's and target's address.
    let body = [&[0, 1, 8, 0, 6, 4, 0, 3][..], &mac, &[0; 4], &mac, &[0; 4]];
    let bytes = words.into_iter().chain(body).flatten();
    frame.iter_mut().zip(bytes).for_each(|(to, byte)| *to = *byte);
    frame
}
