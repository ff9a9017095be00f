//! The guest's end of a network that passt makes out of ordinary sockets of this user.
//!
//! passt may be slow, die, or send what is no frame, and none of that is the guest's end: it sees a
//! link that is down until another passt is there ([`passt`](super::passt) sees to that). Whoever
//! finds the link broken takes the stream away, which closes the socket; the other side, watching
//! passt or serving the guest, finds none. So there is never more than one, and nobody waits.
//!
//! What a device is told of is one descriptor for good, whatever becomes of the socket: a set that
//! the socket is in (epoll(7)), and with it an event for a link that came or went.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use wherry_devices::host::{Frames, HostFd, Offloads};
use wherry_devices::virtio::net::constants::HEADER;

use super::stream::Stream;
use crate::sync::lock;

/// The network. Clones are the same one.
#[derive(Clone)]
pub struct User(Arc<Shared>);

struct Shared {
    line: Mutex<Line>,
    news: Arc<Epoll>,
    /// In `news`: the link came or went, or is to be looked at.
    changed: EventFd,
    /// For who watches passt: the stream was taken away, or it is to quit.
    told: OwnedFd,
}

#[derive(Default)]
struct Line {
    stream: Option<Stream>,
    /// It had no room: `news` tells when it has.
    full: bool,
    /// Why there is none any more.
    why: Option<io::Error>,
}

impl User {
    /// A network whose link is down.
    ///
    /// # Errors
    /// The host has no descriptors left.
    pub fn new() -> io::Result<Self> {
        let news = Arc::new(Epoll::new()?);
        let changed = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let told = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        // Never read: each write is news.
        let each = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        news.ctl(ControlOperation::Add, changed.as_raw_fd(), each)?;
        Ok(Self(Arc::new(Shared { line: Mutex::default(), news, changed, told })))
    }

    /// There is a link, over this stream.
    ///
    /// # Errors
    /// The host has no memory left for it.
    pub fn connect(&self, stream: Stream) -> io::Result<()> {
        let mut line = lock(&self.0.line);
        self.0.listen(&stream, ControlOperation::Add, false)?;
        *line = Line { stream: Some(stream), full: false, why: None };
        self.0.change();
        Ok(())
    }

    /// There is no link, if there was one. Returns what was wrong with it, if anybody found out.
    pub fn disconnect(&self) -> Option<io::Error> {
        let mut line = lock(&self.0.line);
        if line.stream.take().is_some() {
            self.0.change();
        }
        line.why.take()
    }

    /// Whether there is a link.
    pub fn is_connected(&self) -> bool {
        lock(&self.0.line).stream.is_some()
    }

    /// Wakes who watches passt.
    pub fn tell(&self) {
        self.0.tell();
    }

    /// For who watches passt: waits until told so, or one of `fds` is readable. `false`: not by
    /// `until`.
    pub fn wait_told(&self, fds: &[BorrowedFd<'_>], until: Instant) -> bool {
        let mut all = vec![PollFd::new(&self.0.told, PollFlags::IN)];
        all.extend(fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
        let left = until.saturating_duration_since(Instant::now());
        let limit = Timespec::try_from(left).ok();
        // An interrupted wait is one that ended early, and so is one that failed.
        let woken = poll(&mut all, limit.as_ref()).unwrap_or(1) > 0;
        let _ = rustix::io::read(&self.0.told, &mut [0; 8]);
        woken
    }
}

impl Shared {
    fn change(&self) {
        // The only error is a counter that is about to overflow, which is news as well.
        let _ = self.changed.write(1);
    }

    fn tell(&self) {
        // The same.
        let _ = rustix::io::write(&self.told, &1u64.to_ne_bytes());
    }

    /// Listens for frames, and for room if it is `full`.
    fn listen(&self, stream: &Stream, how: ControlOperation, full: bool) -> io::Result<()> {
        let room = if full { EventSet::OUT } else { EventSet::empty() };
        let what = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED | room;
        self.news.ctl(how, stream.as_fd().as_raw_fd(), EpollEvent::new(what, 1))
    }

    /// Does something with the stream, and takes it away if it is broken.
    fn with<T>(
        &self,
        line: &mut Line,
        what: impl FnOnce(&mut Stream) -> io::Result<T>,
    ) -> io::Result<T> {
        let Some(stream) = &mut line.stream else { return Err(ErrorKind::NotConnected.into()) };
        let done = what(stream);
        let Err(e) = &done else { return done };
        if !matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) {
            let why = io::Error::new(e.kind(), e.to_string());
            (line.stream, line.why) = (None, Some(why));
            self.change();
            self.tell();
        }
        done
    }

    /// Listens for room as long as there is none.
    fn note_room(&self, line: &mut Line, full: bool) {
        if full != line.full
            && let Some(stream) = &line.stream
        {
            // It has been added, so that this cannot fail.
            let _ = self.listen(stream, ControlOperation::Modify, full);
            line.full = full;
        }
    }
}

impl Frames for User {
    fn read(&mut self, frame: &mut [u8]) -> io::Result<usize> {
        let Some((header, body)) = frame.split_at_mut_checked(HEADER) else {
            return Err(ErrorKind::InvalidInput.into());
        };
        header.fill(0);
        let read = self.0.with(&mut lock(&self.0.line), |stream| stream.read(body));
        read.map(|len| HEADER + len)
    }

    fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        let body = frame.get(HEADER..).unwrap_or_default();
        let mut line = lock(&self.0.line);
        let written = self.0.with(&mut line, |stream| {
            let written = stream.write(body);
            written.map(|()| stream.is_half_done())
        });
        let full = match &written {
            Ok(half_done) => *half_done,
            Err(e) => e.kind() == ErrorKind::WouldBlock,
        };
        self.0.note_room(&mut line, full);
        written.map(drop)
    }

    fn can_offload(&self) -> bool {
        false
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        let none = offloads == Offloads::default();
        if none { Ok(()) } else { Err(ErrorKind::Unsupported.into()) }
    }

    fn fd(&self) -> HostFd {
        self.0.news.clone()
    }

    fn link(&mut self) -> bool {
        let mut line = lock(&self.0.line);
        if line.full {
            let flushed = self.0.with(&mut line, Stream::flush);
            self.0.note_room(&mut line, flushed.is_err_and(|e| e.kind() == ErrorKind::WouldBlock));
        }
        line.stream.is_some()
    }

    fn wake(&mut self) {
        self.0.change();
    }
}

#[cfg(test)]
#[path = "user_tests.rs"]
mod tests;
