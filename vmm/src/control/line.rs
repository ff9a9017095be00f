//! Bounded lines over a Unix stream.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Reads newline-terminated lines of bounded length, with a deadline for the whole line (not for
/// each read, so that a peer that trickles bytes cannot hold the reader).
pub(crate) struct LineReader {
    stream: UnixStream,
    pending: Vec<u8>,
    /// Start of `pending` that is known to hold no newline.
    scanned: usize,
    max: usize,
}

/// Why there is no line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    /// The peer closed the connection, between lines.
    #[error("the connection was closed")]
    Closed,
    /// The peer closed the connection within a line.
    #[error("the connection was closed in the middle of a message")]
    Truncated,
    /// Longer than allowed.
    #[error("message longer than {0} bytes")]
    TooLong(usize),
    /// No complete line before the deadline.
    #[error("no complete message in time")]
    TimedOut,
    /// The socket failed.
    #[error("reading from the control socket failed")]
    Io(#[source] io::Error),
}

impl LineReader {
    /// Reads from `stream`; a line may be `max` bytes long, newline included.
    pub(crate) fn new(stream: UnixStream, max: usize) -> Self {
        Self { stream, pending: Vec::new(), scanned: 0, max }
    }

    /// The next line without its newline. `None` as timeout waits for ever.
    pub(crate) fn next_line(&mut self, timeout: Option<Duration>) -> Result<Vec<u8>, LineError> {
        let deadline = timeout.and_then(|t| Instant::now().checked_add(t));
        let mut chunk = [0u8; 4096];
        loop {
            if let Some(at) = self.pending[self.scanned..].iter().position(|b| *b == b'\n') {
                let end = self.scanned + at;
                if end >= self.max {
                    return Err(LineError::TooLong(self.max));
                }
                let rest = self.pending.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.pending, rest);
                line.pop();
                self.scanned = 0;
                return Ok(line);
            }
            self.scanned = self.pending.len();
            if self.pending.len() >= self.max {
                return Err(LineError::TooLong(self.max));
            }
            let left = match deadline {
                None => None,
                Some(deadline) => match deadline.checked_duration_since(Instant::now()) {
                    // A timeout of zero would mean "wait for ever" to the socket.
                    Some(left) if !left.is_zero() => Some(left),
                    _ => return Err(LineError::TimedOut),
                },
            };
            self.stream.set_read_timeout(left).map_err(LineError::Io)?;
            match self.stream.read(&mut chunk) {
                Ok(0) if self.pending.is_empty() => return Err(LineError::Closed),
                Ok(0) => return Err(LineError::Truncated),
                Ok(n) => self.pending.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e)
                    if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(LineError::Closed);
                }
                Err(e) => return Err(LineError::Io(e)),
            }
        }
    }

    /// The stream and what was read of it beyond the last line.
    pub(crate) fn into_parts(self) -> (UnixStream, Vec<u8>) {
        (self.stream, self.pending)
    }
}

/// Writes `value` as one line of JSON.
pub(crate) fn write_line<T: serde::Serialize>(
    stream: &mut UnixStream,
    value: &T,
) -> io::Result<()> {
    let mut line = serde_json::to_vec(value).map_err(io::Error::other)?;
    line.push(b'\n');
    stream.write_all(&line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(max: usize) -> (UnixStream, LineReader) {
        let (a, b) = UnixStream::pair().unwrap();
        (a, LineReader::new(b, max))
    }

    #[test]
    fn lines_are_split_and_the_rest_is_kept() {
        let (mut a, mut reader) = pair(16);
        a.write_all(b"one\n\ntwo\nraw").unwrap();
        assert_eq!(reader.next_line(None).unwrap(), b"one");
        assert_eq!(reader.next_line(None).unwrap(), b"");
        assert_eq!(reader.next_line(None).unwrap(), b"two");
        assert_eq!(reader.into_parts().1, b"raw");
    }

    #[test]
    fn the_bound_is_exact() {
        let (mut a, mut reader) = pair(8);
        a.write_all(b"1234567\n").unwrap();
        assert_eq!(reader.next_line(None).unwrap(), b"1234567");
        a.write_all(b"12345678\n").unwrap();
        assert!(matches!(reader.next_line(None), Err(LineError::TooLong(8))));
    }

    #[test]
    fn ends_are_told_apart() {
        let (a, mut reader) = pair(8);
        drop(a);
        assert!(matches!(reader.next_line(None), Err(LineError::Closed)));
        let (mut a, mut reader) = pair(8);
        a.write_all(b"12").unwrap();
        drop(a);
        assert!(matches!(reader.next_line(None), Err(LineError::Truncated)));
    }

    #[test]
    fn a_trickle_does_not_move_the_deadline() {
        let (mut a, mut reader) = pair(1024);
        let feeder = std::thread::spawn(move || {
            for _ in 0..100 {
                if a.write_all(b"x").is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let start = Instant::now();
        let line = reader.next_line(Some(Duration::from_millis(100)));
        assert!(matches!(line, Err(LineError::TimedOut)));
        assert!(start.elapsed() < Duration::from_millis(900));
        drop(reader);
        feeder.join().unwrap();
    }
}
