//! Reading a trace, which may be a file that anybody wrote: the one place where its lines become
//! events, with one set of limits. What to make of a line that is wrong is for the caller to say: a
//! drawing leaves it out, a replay refuses the trace.

use std::io::{self, BufRead, Read};

use crate::event::Event;

/// Longest line in bytes: a map of 4096 cells in a guest of 16 TiB has a tenth of it.
pub const MAX_LINE: u64 = 4 << 20;
/// Lines that are read: enough for hours of migration.
pub const MAX_LINES: u64 = 400_000;
/// Rounds that are kept.
pub const MAX_ROUNDS: usize = 1000;
/// A year: no migration takes longer.
pub const MAX_TIME_US: u64 = 365 * 86_400 * 1_000_000;

/// What is wrong with a line.
#[derive(Debug)]
pub enum Bad {
    /// It is too long. What follows it in a file is the rest of it.
    TooLong,
    /// There were enough before.
    TooMany,
    /// It is not JSON, or not an event: what the parser says.
    NoEvent(String),
}

/// Turns lines into events, and counts them.
#[derive(Debug, Default)]
pub struct Lines(u64);

impl Lines {
    /// The event of the next line; none if it is blank.
    ///
    /// # Errors
    /// See [`Bad`].
    pub fn event(&mut self, line: &[u8]) -> Result<Option<Event>, Bad> {
        self.0 += 1;
        if line.len() as u64 >= MAX_LINE {
            return Err(Bad::TooLong);
        }
        if self.0 > MAX_LINES {
            return Err(Bad::TooMany);
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        serde_json::from_slice(line).map(Some).map_err(|e| Bad::NoEvent(e.to_string()))
    }

    /// The number of the last line, from 1.
    pub fn number(&self) -> u64 {
        self.0
    }
}

/// The next line of a file, or as much of it as is taken; false at its end.
///
/// # Errors
/// The file cannot be read.
pub fn next_line(from: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    Ok(from.take(MAX_LINE).read_until(b'\n', line)? > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_numbered_and_limited() {
        let mut lines = Lines::default();
        assert!(matches!(lines.event(b" \n"), Ok(None)));
        assert!(matches!(lines.event(b"{}"), Err(Bad::NoEvent(_))));
        assert!(matches!(lines.event(br#"{"t_us":7,"event":"phase"}"#), Ok(Some(_))));
        assert_eq!(lines.number(), 3);
        assert!(matches!(Lines(MAX_LINES).event(b"\n"), Err(Bad::TooMany)));

        let long = vec![b'x'; MAX_LINE as usize + 1];
        let (mut rest, mut line) = (&long[..], Vec::new());
        assert!(next_line(&mut rest, &mut line).unwrap());
        assert!(matches!(lines.event(&line), Err(Bad::TooLong)));
        assert!(next_line(&mut rest, &mut line).unwrap() && line == b"x");
        assert!(!next_line(&mut rest, &mut line).unwrap() && line.is_empty());
    }
}
