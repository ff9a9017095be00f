//! Ethernet frames over a stream socket, as passt and QEMU have them: each with its length in
//! front, in four bytes, big-endian.
//!
//! A stream has no frames of its own: a read may end anywhere, and so may a write. What has come of
//! a frame is kept until the rest is there, and so is what could not be written; until that is out
//! nothing else goes. The other side's lengths are not believed: one that no frame has ends the
//! stream, since nobody knows where the next one would begin.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use wherry_devices::virtio::net::constants::{HEADER, MAX_FRAME};

/// Longest frame either way.
pub const LONGEST: usize = MAX_FRAME - HEADER;
/// Bytes of a length.
const LENGTH: usize = 4;
/// Bytes that are read at once. The beginning of a frame and a whole one have room.
const BUFFER: usize = 2 * (LENGTH + LONGEST);

/// One end. Nothing here waits.
pub struct Stream {
    socket: UnixStream,
    /// What has come is from `start` to `end`.
    input: Vec<u8>,
    start: usize,
    end: usize,
    /// The rest of a frame, from `written` on.
    output: Vec<u8>,
    written: usize,
}

impl Stream {
    /// Over this socket.
    ///
    /// # Errors
    /// It cannot be made not to wait.
    pub fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let input = vec![0; BUFFER];
        Ok(Self { socket, input, start: 0, end: 0, output: Vec::new(), written: 0 })
    }

    /// The next frame, into the beginning of `frame`. Returns its length.
    ///
    /// # Errors
    /// It is not all there ([`ErrorKind::WouldBlock`]); some more of it has come, and others are to
    /// have their turn before this is called again ([`ErrorKind::Interrupted`]); or the stream is
    /// over.
    pub fn read(&mut self, frame: &mut [u8]) -> io::Result<usize> {
        if let Some(len) = self.take(frame)? {
            return Ok(len);
        }
        if self.input.len() - self.start < LENGTH + LONGEST {
            self.input.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let room = self.input.get_mut(self.end..).unwrap_or_default();
        match (&self.socket).read(room)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            more => self.end += more,
        }
        self.take(frame)?.ok_or_else(|| ErrorKind::Interrupted.into())
    }

    /// A frame that is all there.
    fn take(&mut self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        let come = self.input.get(self.start..self.end).unwrap_or_default();
        let Some((len, rest)) = come.split_first_chunk::<LENGTH>() else { return Ok(None) };
        let len = u32::from_be_bytes(*len) as usize;
        if len == 0 || len > LONGEST {
            let what = format!("a frame of {len} bytes, which there is not");
            return Err(io::Error::new(ErrorKind::InvalidData, what));
        }
        let Some(whole) = rest.get(..len) else { return Ok(None) };
        let to = frame.get_mut(..len).ok_or(ErrorKind::InvalidInput)?;
        to.copy_from_slice(whole);
        self.start += LENGTH + len;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
        Ok(Some(len))
    }

    /// Sends a frame. What does not fit now goes out with [`flush`](Self::flush).
    ///
    /// # Errors
    /// There is no room for any of it ([`ErrorKind::WouldBlock`]); or the stream is over.
    pub fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        self.flush()?;
        let len = u32::try_from(frame.len()).unwrap_or(u32::MAX).to_be_bytes();
        if !(1..=LONGEST).contains(&frame.len()) {
            return Err(ErrorKind::InvalidInput.into());
        }
        let parts = [IoSlice::new(&len), IoSlice::new(frame)];
        let written = (&self.socket).write_vectored(&parts)?;
        if written < LENGTH + frame.len() {
            self.output.extend(len.iter().chain(frame).skip(written));
        }
        Ok(())
    }

    /// Goes on with what was left of a frame.
    ///
    /// # Errors
    /// As [`write`](Self::write): something is still left.
    pub fn flush(&mut self) -> io::Result<()> {
        while let Some(rest @ [_, ..]) = self.output.get(self.written..) {
            match (&self.socket).write(rest)? {
                0 => return Err(ErrorKind::WriteZero.into()),
                more => self.written += more,
            }
        }
        self.output.clear();
        self.written = 0;
        Ok(())
    }

    /// Whether a part of a frame is left.
    pub fn is_half_done(&self) -> bool {
        !self.output.is_empty()
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
