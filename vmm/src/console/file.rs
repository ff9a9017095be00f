//! The file of `--serial file:PATH`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

const FULL: &[u8] = b"\n[wherry: the limit of this file is reached; further output is lost]\n";

/// Takes output up to a size, then a note, then nothing.
pub(super) struct Limited {
    file: File,
    /// Bytes that it may have; `None` without a limit.
    most: Option<u64>,
    /// Bytes that still fit.
    left: Option<u64>,
    full: bool,
}

impl Limited {
    /// Appends to `path`, whose size is to be at most `max` and a line.
    pub(super) fn append(path: &Path, max: Option<u64>) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let len = file.metadata()?.len();
        let left = max.map(|max| max.saturating_sub(len));
        Ok(Self { file, most: max.map(|max| max.max(len)), left, full: false })
    }

    /// Bytes that it may have, without that line; `None` if there is no limit.
    pub(super) fn most(&self) -> Option<u64> {
        self.most
    }
}

impl Write for Limited {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let Some(left) = self.left else { return self.file.write(buf) };
        if self.full {
            return Ok(buf.len());
        }
        if left == 0 {
            // Before the note: it is written once, whether or not it can be.
            self.full = true;
            self.file.write_all(FULL)?;
            return Ok(buf.len());
        }
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let written = self.file.write(buf.get(..most).unwrap_or(buf))?;
        self.left = Some(left.saturating_sub(written as u64));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_grows_to_its_limit_and_says_so_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let read = || std::fs::read(&path).unwrap();
        let mut out = Limited::append(&path, None).unwrap();
        out.write_all(&[b'a'; 10]).unwrap();
        let mut out = Limited::append(&path, Some(15)).unwrap();
        assert_eq!(out.most(), Some(15));
        out.write_all(b"bbbbb").unwrap();
        assert_eq!(read(), b"aaaaaaaaaabbbbb");
        out.write_all(b"ccc").unwrap();
        out.write_all(b"ddd").unwrap();
        assert_eq!(read(), [b"aaaaaaaaaabbbbb", FULL].concat());
        // Started again with the same limit.
        let mut out = Limited::append(&path, Some(15)).unwrap();
        out.write_all(b"eee").unwrap();
        assert_eq!(read(), [b"aaaaaaaaaabbbbb", FULL, FULL].concat());
    }
}
