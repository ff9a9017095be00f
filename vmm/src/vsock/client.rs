//! A client that has not said yet what it wants.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::time::Instant;

/// Bytes of the longest line that somebody may write.
const MAX_LINE: usize = 32;

/// See the module's text.
pub struct Client {
    pub stream: UnixStream,
    /// It must have said it by then.
    pub due: Instant,
    line: Vec<u8>,
}

/// How far it is.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// There is more to come.
    Part,
    /// It wants this port of the guest's.
    Port(u32),
    /// Nothing that is understood, or it is gone.
    Nonsense,
}

impl Client {
    pub fn new(stream: UnixStream, due: Instant) -> Self {
        Self { stream, due, line: Vec::new() }
    }

    /// Reads what there is of its line, and no byte behind it, which is the guest's.
    pub fn read(&mut self) -> Said {
        loop {
            let mut byte = [0];
            match (&self.stream).read(&mut byte) {
                Ok(0) => return Said::Nonsense,
                Ok(_) if byte == *b"\n" => return port(&self.line),
                Ok(_) if self.line.len() >= MAX_LINE => return Said::Nonsense,
                Ok(_) => self.line.extend(byte),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Said::Part,
                Err(_) => return Said::Nonsense,
            }
        }
    }
}

fn port(line: &[u8]) -> Said {
    let text = std::str::from_utf8(line).unwrap_or_default();
    let number = text.strip_prefix("CONNECT ").filter(|text| !text.starts_with('+'));
    let port = number.and_then(|number| number.parse().ok());
    port.map_or(Said::Nonsense, Said::Port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_word_and_a_port() {
        assert_eq!(port(b"CONNECT 22"), Said::Port(22));
        assert_eq!(port(b"CONNECT 4294967295"), Said::Port(u32::MAX));
        for line in
            ["", "CONNECT", "CONNECT ", "CONNECT +1", "CONNECT -1", "CONNECT 4294967296", "GET /"]
        {
            assert_eq!(port(line.as_bytes()), Said::Nonsense, "{line}");
        }
        assert_eq!(port(b"CONNECT \xff"), Said::Nonsense);
    }
}
