//! Kernel and initrd without a place in this host's file system: they came with their guest, and
//! are kept for its resets and its next migration.
//!
//! They are in sealed memory files: outside the heap, and the same at each reset.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;

use anyhow::{Context, ensure};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use wherry_migration::CancelToken;
use wherry_migration::traits::{Digest, FileId};

use super::error::READ;
use super::part::Part;

/// Longest kernel that is carried, in bytes. (An initrd may be as long as the wire has files, and
/// its guest's memory.)
pub const MAX_KERNEL: u64 = 256 << 20;
/// Bytes read at a time.
const PIECE: usize = 1 << 20;

/// A file that is kept.
#[derive(Debug, Clone)]
pub struct Kept {
    file: Arc<File>,
    id: FileId,
}

impl Kept {
    /// What `file` has now, if it is no longer than `most`.
    ///
    /// # Errors
    /// It is, or cannot be read; or somebody cancels.
    pub fn read(file: Part, most: u64, cancel: &CancelToken) -> anyhow::Result<Self> {
        let mut arriving = Arriving::new()?;
        let id = read(file, most, &mut arriving.0, cancel)?;
        Ok(arriving.seal(id)?)
    }

    /// What is in it.
    pub fn id(&self) -> FileId {
        self.id
    }

    /// Its bytes, from the first on.
    pub fn part(&self) -> Part {
        Part::new(self.file.clone(), 0, self.id.len)
    }
}

/// A file that is being received.
#[derive(Debug)]
pub struct Arriving(File);

impl Arriving {
    /// Nothing of it yet.
    ///
    /// # Errors
    /// Too many open files.
    pub fn new() -> io::Result<Self> {
        let flags = MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC;
        Ok(Self(File::from(memfd_create("wherry-boot", flags)?)))
    }

    /// Where it is to be written.
    pub fn sink(&self) -> io::Result<Box<dyn Write>> {
        Ok(Box::new(self.0.try_clone()?))
    }

    /// It is complete, and remains as it is.
    ///
    /// # Errors
    /// It is of another length.
    pub fn seal(self, id: FileId) -> io::Result<Kept> {
        if self.0.metadata()?.len() != id.len {
            return Err(io::Error::other("a file that it boots is not complete"));
        }
        let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        fcntl_add_seals(&self.0, seals)?;
        Ok(Kept { file: Arc::new(self.0), id })
    }
}

/// Copies a file. Returns what it has.
///
/// # Errors
/// As for [`Kept::read`].
pub(super) fn read(
    mut file: Part,
    most: u64,
    copy: &mut impl Write,
    cancel: &CancelToken,
) -> anyhow::Result<FileId> {
    let mib = most >> 20;
    ensure!(file.len() <= most, "has {} MiB; {mib} are the most that is carried", file.len() >> 20);
    let (mut buffer, mut len, mut digest) = (vec![0; PIECE], 0, Digest::default());
    loop {
        ensure!(!cancel.is_cancelled(), "cancelled");
        let n = match file.read(&mut buffer) {
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e).context(READ),
        };
        let Some(piece) = buffer.get(..n).filter(|piece| !piece.is_empty()) else {
            return Ok(FileId { len, digest: digest.finish() });
        };
        digest.update(piece);
        copy.write_all(piece).context("there is no memory for a copy of it")?;
        len += n as u64;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::source::Source;
    use super::*;

    fn host(path: &Path) -> Source {
        Source::open(path).unwrap()
    }

    #[test]
    fn what_is_kept_is_what_the_file_had_and_cannot_be_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        let bytes: Vec<u8> = (0..3 * PIECE + 5).map(|at| (at / 7) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let cancel = CancelToken::new();
        let kept = host(&path).keep(MAX_KERNEL, &cancel).unwrap();
        assert_eq!(kept.id(), host(&path).id(MAX_KERNEL).unwrap());
        std::fs::write(&path, b"another").unwrap();
        assert_ne!(kept.id(), host(&path).id(MAX_KERNEL).unwrap());
        // Each reader has all of it.
        for _ in 0..2 {
            let mut read = Vec::new();
            kept.part().read_to_end(&mut read).unwrap();
            assert!(read == bytes);
        }
        (&*kept.file).write_all(b"x").unwrap_err();
        kept.file.set_len(3).unwrap_err();
        cancel.cancel();
        let error = host(&path).keep(MAX_KERNEL, &cancel).unwrap_err().to_string();
        assert_eq!(error, "cancelled");
    }

    #[test]
    fn what_is_too_long_is_refused_and_half_a_file_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("initrd");
        std::fs::write(&path, [7; 100]).unwrap();
        assert_eq!(host(&path).id(100).unwrap().len, 100);
        let error = host(&path).id(99).unwrap_err().to_string();
        assert!(error.contains("are the most"), "{error}");
        let arriving = Arriving::new().unwrap();
        arriving.sink().unwrap().write_all(&[7; 99]).unwrap();
        arriving.seal(FileId { len: 100, digest: 0 }).unwrap_err();
    }
}
