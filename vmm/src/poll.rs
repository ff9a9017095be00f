//! What can be done with a descriptor now.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

fn ask(fd: &impl AsFd, events: PollFlags, limit: Option<&Timespec>) -> io::Result<PollFlags> {
    let mut fds = [PollFd::new(fd, events)];
    poll(&mut fds, limit)?;
    Ok(fds[0].revents())
}

/// Which of `events` there are, beside errors and the other side's end.
pub fn look(fd: &impl AsFd, events: PollFlags) -> io::Result<PollFlags> {
    ask(fd, events, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))
}

/// As [`look`], when there is something to tell.
pub fn wait(fd: &impl AsFd, events: PollFlags) -> io::Result<PollFlags> {
    ask(fd, events, None)
}

/// Whether the peer is gone altogether (having shut down only its sending side, it may still read).
pub fn hung_up(stream: &UnixStream) -> bool {
    look(stream, PollFlags::empty()).is_ok_and(|now| !now.is_empty())
}

/// Waits until it is.
pub fn wait_until_hung_up(stream: &UnixStream) {
    while !wait(stream, PollFlags::empty()).is_ok_and(|now| !now.is_empty()) {}
}
