//! Payloads about what a machine boots at a reset: a description, and files that may be large.
//!
//! The files are announced by length and digest, so that a destination that has one says so and it
//! is not sent. What is sent comes file by file, in order, each of its announced length.

use std::hash::Hasher;

use serde::{Deserialize, Serialize};

use super::error::WireError;

/// Most files.
pub const MAX_FILES: usize = 8;
/// Longest file in bytes; what receives it may set a lower limit.
pub const MAX_FILE: u64 = 1 << 30;
/// Longest description in bytes.
pub const MAX_DESCRIPTION: usize = 256 << 10;
/// Longest part of a file in one frame, in bytes.
pub const PART: usize = 1 << 20;
/// Longest payload of a Boot frame in bytes.
pub const MAX_PAYLOAD: usize = MAX_DESCRIPTION + 1024;

/// A file by what is in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FileId {
    /// Its length in bytes.
    pub len: u64,
    /// Its [`Digest`].
    pub digest: u64,
}

/// Payload of [`super::Kind::Boot`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Boot {
    /// For [`crate::traits::DestinationVm::boot`].
    pub description: Vec<u8>,
    /// The files that it takes.
    pub files: Vec<FileId>,
}

impl Boot {
    /// Nothing of it is beyond the limits.
    pub(crate) fn check(&self) -> Result<(), WireError> {
        if self.description.len() > MAX_DESCRIPTION {
            return Err(WireError::Boot("its description is too long"));
        }
        if self.files.len() > MAX_FILES {
            return Err(WireError::Boot("too many files"));
        }
        match self.files.iter().all(|file| file.len <= MAX_FILE) {
            true => Ok(()),
            false => Err(WireError::Boot("a file is too long")),
        }
    }
}

/// Payload of [`super::Kind::BootWanted`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BootWanted {
    /// For each file whether it is to be sent.
    pub files: Vec<bool>,
}

/// Digest of a file: XXH64. Two different files of one length are taken for equal once in 2^64; it
/// is no defence against an attacker, and a peer chooses what its guest boots anyway.
#[derive(Clone, Default)]
pub struct Digest(twox_hash::XxHash64);

impl Digest {
    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// Of all that came.
    #[must_use]
    pub fn finish(&self) -> u64 {
        self.0.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_a_limit_is_refused() {
        let file = FileId { len: MAX_FILE, digest: 0 };
        let fine = Boot { description: vec![0; MAX_DESCRIPTION], files: vec![file; MAX_FILES] };
        assert_eq!(fine.check(), Ok(()));
        let bytes = wherry_codec::encode(&fine).unwrap();
        assert!(bytes.len() <= MAX_PAYLOAD);
        let long = FileId { len: MAX_FILE + 1, digest: 0 };
        let description = vec![0; MAX_DESCRIPTION + 1];
        for wrong in [
            Boot { files: vec![file; MAX_FILES + 1], ..fine.clone() },
            Boot { files: vec![file, long], ..fine.clone() },
            Boot { description, ..fine },
        ] {
            assert!(matches!(wrong.check(), Err(WireError::Boot(_))));
        }
    }

    #[test]
    fn a_digest_is_of_the_bytes_and_not_of_their_pieces() {
        let digest = |pieces: &[&[u8]]| {
            let mut digest = Digest::default();
            pieces.iter().for_each(|piece| digest.update(piece));
            digest.finish()
        };
        assert_eq!(digest(&[b"ab", b"", b"c"]), digest(&[b"abc"]));
        assert_ne!(digest(&[b"abc"]), digest(&[b"abd"]));
    }
}
