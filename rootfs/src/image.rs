//! An image and windows of it, read at absolute positions.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use ext4_view::Ext4Read;

/// Bytes that are read at once; file systems ask for 4 KiB at a time.
const CHUNK: usize = 64 << 10;
/// What O_DIRECT wants of positions, lengths and memory, at most.
const ALIGN: usize = 4096;

/// A file or block device and its last chunk.
struct Image {
    file: File,
    len: u64,
    /// [`CHUNK`] bytes from the first aligned one.
    memory: Vec<u8>,
    /// Position of the chunk, if there is one.
    at: Option<u64>,
}

impl Image {
    /// The chunk at `at`, as far as the image has it. Reads are aligned, so that an image that was
    /// opened with O_DIRECT can be read.
    fn chunk(&mut self, at: u64) -> io::Result<&[u8]> {
        let start = self.memory.as_ptr().align_offset(ALIGN);
        let buffer = &mut self.memory[start..start + CHUNK];
        let have = usize::try_from(self.len - at).unwrap_or(CHUNK).min(CHUNK);
        if self.at != Some(at) {
            self.at = None;
            let mut got = 0;
            while got < have {
                match self.file.read_at(&mut buffer[got..], at + got as u64) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(n) => got += n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
            self.at = Some(at);
        }
        Ok(&buffer[..have])
    }
}

/// A part of an image: all of it, or a partition.
#[derive(Clone)]
pub(crate) struct Window {
    image: Rc<RefCell<Image>>,
    start: u64,
    len: u64,
}

impl Window {
    /// All of `file`, whose position is not kept.
    pub(crate) fn whole(mut file: File) -> io::Result<Self> {
        // A block device has no length in its metadata.
        let len = file.seek(SeekFrom::End(0))?;
        let memory = vec![0; CHUNK + ALIGN];
        let image = Rc::new(RefCell::new(Image { file, len, memory, at: None }));
        Ok(Self { image, start: 0, len })
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// A part of it; `None` if it does not lie in it.
    pub(crate) fn part(&self, start: u64, len: u64) -> Option<Self> {
        let end = start.checked_add(len)?;
        let image = self.image.clone();
        (end <= self.len).then(|| Self { image, start: self.start + start, len })
    }

    /// Fills `buffer` from `offset`.
    pub(crate) fn read(&self, offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut image = self.image.borrow_mut();
        let mut position = self.start + offset;
        while !buffer.is_empty() {
            let within = (position % CHUNK as u64) as usize;
            let chunk = image.chunk(position - within as u64)?;
            let there = chunk.get(within..).unwrap_or_default();
            let n = there.len().min(buffer.len());
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (now, rest) = buffer.split_at_mut(n);
            now.copy_from_slice(&there[..n]);
            (buffer, position) = (rest, position + n as u64);
        }
        Ok(())
    }

    /// The bytes at `offset`, or `None` where the window has fewer.
    pub(crate) fn bytes<const N: usize>(&self, offset: u64) -> io::Result<Option<[u8; N]>> {
        let mut bytes = [0; N];
        match self.read(offset, &mut bytes) {
            Ok(()) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(e) => Err(e),
        }
    }
}

impl Ext4Read for Window {
    fn read(
        &mut self,
        start: u64,
        to: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(Window::read(self, start, to)?)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_window_reads_its_own_bytes_across_chunks_and_no_others() {
        let mut file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..3 * CHUNK + 77).map(|i| (i / 7) as u8).collect();
        file.write_all(&bytes).unwrap();
        let whole = Window::whole(file).unwrap();
        let part = whole.part(100, 2 * CHUNK as u64).unwrap();
        for (offset, len) in [(0, 10), (CHUNK - 105, 30), (0, 2 * CHUNK), (2 * CHUNK - 1, 1)] {
            let mut got = vec![0; len];
            part.read(offset as u64, &mut got).unwrap();
            assert_eq!(got, bytes[100 + offset..][..len], "{offset} {len}");
        }
        let mut last = [0; 77];
        whole.read(3 * CHUNK as u64, &mut last).unwrap();
        assert_eq!(last, bytes[3 * CHUNK..]);
        for (offset, len) in [(2 * CHUNK as u64, 1), (u64::MAX, 1), (1, 2 * CHUNK)] {
            let error = part.read(offset, &mut vec![0; len]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
        assert!(whole.part(u64::MAX, 1).is_none() && whole.part(0, whole.len() + 1).is_none());
    }
}
