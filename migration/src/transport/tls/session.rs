//! A connection with TLS on it, and its two halves.
//!
//! # Invariant
//! Both halves share one TLS session behind a mutex, and neither waits for the network while it
//! holds it: with the lock the socket, which never blocks, takes and gives what it can; the wait
//! for more is a poll(2) without it. So a reader that waits for hours does not keep anybody from
//! writing, and what is written leaves in the order in which it was encrypted. With the lock some
//! bytes are looked at, once: a peer may send records without content (keys, tickets) without end,
//! and TLS bounds them by no number.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::Connection;

use super::super::{Halves, TICK, Transport, TransportError, WriteHalf, tune};
use super::words::{End, TlsError};
use crate::sync::lock;

/// What both ends say that they speak (ALPN, RFC 7301).
pub(super) const PROTOCOL: &[u8] = b"wherry-migration";

/// Bytes that are taken from the socket at once.
const ROOM: usize = 64 << 10;

/// Bytes of records without content in a row, after which the other side is not listened to any
/// more: a message of a handshake may have 64 KiB.
const MAX_IDLE: usize = 256 << 10;

/// A connection before it is split.
pub(super) struct Secured(Arc<Shared>);

/// What both halves have.
struct Shared {
    socket: TcpStream,
    session: Mutex<Session>,
}

/// TLS, and what has come and was not given to it yet.
struct Session {
    tls: Connection,
    own: End,
    came: Vec<u8>,
    /// Where that begins and ends.
    at: usize,
    end: usize,
    /// Bytes that have come since there last was content.
    idle: usize,
    /// Bytes that have gone out.
    gone: u64,
    /// Sending has failed: what is encrypted and has not left never does.
    failed: bool,
}

impl Secured {
    pub(super) fn new(socket: TcpStream, tls: Connection, own: End) -> Self {
        let came = vec![0; ROOM];
        let session = Session { tls, own, came, at: 0, end: 0, idle: 0, gone: 0, failed: false };
        Self(Arc::new(Shared { socket, session: Mutex::new(session) }))
    }
}

impl Transport for Secured {
    fn greet(&mut self, limit: Duration, leave: &dyn Fn() -> bool) -> Result<(), TransportError> {
        let began = Instant::now();
        let Shared { socket, .. } = &*self.0;
        let prepared = socket.set_nonblocking(true).and_then(|()| tune(socket));
        prepared.map_err(TlsError::Connection)?;
        let failed = |e| TlsError::broken(self.0.session().own.side, e);
        loop {
            // In each turn: a peer that always has one more byte must not hold on to us.
            if leave() {
                return Err(TransportError::Cancelled);
            }
            if began.elapsed() >= limit {
                return Err(TlsError::Late(limit).into());
            }
            let step = self.0.session().step(socket);
            match step {
                Ok(true) => break,
                Ok(false) => continue,
                Err(e) if is_later(&e) => {}
                Err(e) => return Err(failed(e).into()),
            }
            let writes = self.0.session().tls.wants_write();
            let out = if writes { PollFlags::OUT } else { PollFlags::empty() };
            match self.0.wait(PollFlags::IN | out) {
                Err(e) if !is_later(&e) => return Err(failed(e).into()),
                _ => {}
            }
        }
        let session = self.0.session();
        match session.tls.alpn_protocol() {
            Some(PROTOCOL) => Ok(()),
            _ => Err(TlsError::other_protocol(session.own.side).into()),
        }
    }

    fn split(self: Box<Self>) -> io::Result<Halves> {
        if self.0.session().tls.is_handshaking() {
            return Err(io::Error::other("TLS without a handshake"));
        }
        Ok((Box::new(Reads(self.0.clone())), Box::new(Writes(self.0))))
    }

    fn finds_damage(&self) -> bool {
        true
    }

    fn peer(&self) -> String {
        self.0.socket.peer()
    }
}

impl Shared {
    fn session(&self) -> MutexGuard<'_, Session> {
        lock(&self.session)
    }

    /// Waits for a tick at most. Whether the socket is ready.
    fn wait(&self, to: PollFlags) -> io::Result<bool> {
        let tick = Timespec::try_from(TICK).map_err(io::Error::other)?;
        Ok(poll(&mut [PollFd::new(&self.socket, to)], Some(&tick))? > 0)
    }

    fn push(&self) -> io::Result<()> {
        self.session().push(&self.socket)
    }
}

impl Session {
    /// Sends what is encrypted, as far as the socket takes it. Once that has failed nothing is sent
    /// any more: a HandOff of which nothing was taken must not leave later.
    fn push(&mut self, mut socket: &TcpStream) -> io::Result<()> {
        while self.tls.wants_write() && !self.failed {
            match self.tls.write_tls(&mut socket) {
                Ok(n) if n > 0 => self.gone += n as u64,
                Err(e) if is_later(&e) => return Err(e),
                broken => {
                    self.failed = true;
                    broken?;
                }
            }
        }
        if self.failed { Err(ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    }

    /// Gives TLS some of what has come, or notes that nothing will.
    fn pull(&mut self, mut socket: &TcpStream) -> io::Result<()> {
        if self.at == self.end {
            (self.at, self.end) = (0, 0);
            self.end = socket.read(&mut self.came)?;
        }
        let mut rest = self.came.get(self.at..self.end).unwrap_or_default();
        let taken = self.tls.read_tls(&mut rest)?;
        self.at += taken;
        if !self.tls.is_handshaking() {
            self.idle += taken;
            if self.idle > MAX_IDLE {
                let what = "the other side sends TLS records with nothing in them";
                return Err(io::Error::new(ErrorKind::InvalidData, what));
            }
        }
        if let Err(e) = self.tls.process_new_packets() {
            // An alert, which the other side may still read.
            let _ = self.push(socket);
            return Err(io::Error::new(ErrorKind::InvalidData, TlsError::refused(self.own, &e)));
        }
        Ok(())
    }

    /// Goes on with the handshake, without waiting. Whether it is done.
    fn step(&mut self, socket: &TcpStream) -> io::Result<bool> {
        match self.push(socket) {
            Err(e) if is_later(&e) && !self.tls.is_handshaking() => return Err(e),
            Err(e) if !is_later(&e) => return Err(e),
            _ if !self.tls.is_handshaking() => return Ok(true),
            _ => self.pull(socket)?,
        }
        // Nothing has come, and nothing will.
        if self.end == 0 { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(false) }
    }

    /// Content of at least one record, if one has come. `Interrupted`: something else has.
    fn read(&mut self, socket: &TcpStream, buf: &mut [u8]) -> io::Result<usize> {
        match self.content(buf) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => self.pull(socket)?,
            read => return read,
        }
        match self.content(buf) {
            Err(e) if e.kind() == ErrorKind::WouldBlock => Err(ErrorKind::Interrupted.into()),
            read => read,
        }
    }

    fn content(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.tls.reader().read(buf) {
            // Nobody said good-bye: it was cut off.
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => {
                Err(ErrorKind::ConnectionReset.into())
            }
            Ok(n) => {
                self.idle = 0;
                Ok(n)
            }
            later => later,
        }
    }
}

fn is_later(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

struct Reads(Arc<Shared>);

impl Read for Reads {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let now = self.0.session().read(&self.0.socket, buf);
        match now {
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            done => return done,
        }
        if !self.0.wait(PollFlags::IN)? {
            return Err(ErrorKind::WouldBlock.into());
        }
        // What has come may be less than a record: whoever called looks whether to go on.
        self.0.session().read(&self.0.socket, buf)
    }
}

struct Writes(Arc<Shared>);

impl Write for Writes {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }

    /// What it takes has begun to leave; [`flush`](Write::flush) sends the rest. A write that fails
    /// has taken nothing: HandOff is sent or is not.
    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.flush()?;
        if !self.0.wait(PollFlags::OUT)? {
            return Err(ErrorKind::WouldBlock.into());
        }
        let mut session = self.0.session();
        let before = session.gone;
        let taken = session.tls.writer().write_vectored(parts)?;
        match session.push(&self.0.socket) {
            Err(e) if !is_later(&e) && session.gone == before => Err(e),
            _ => Ok(taken),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.0.push() {
            Err(e) if is_later(&e) => {}
            done => return done,
        }
        match self.0.wait(PollFlags::OUT)? {
            true => self.0.push(),
            false => Err(ErrorKind::WouldBlock.into()),
        }
    }
}

impl WriteHalf for Writes {
    fn set_unsent(&self, bytes: u32) {
        self.0.socket.set_unsent(bytes);
    }

    fn shutdown(&self) {
        let mut session = self.0.session();
        session.tls.send_close_notify();
        // As far as there is room: the end of the connection says the same.
        let _ = session.push(&self.0.socket);
        drop(session);
        WriteHalf::shutdown(&self.0.socket);
    }
}

#[cfg(test)]
mod tests;
