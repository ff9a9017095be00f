//! Why an image is not booted from.

use std::io;

use ext4_view::Ext4Error;
use serde::{Deserialize, Serialize};

/// The kind of a [`Refusal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Why {
    /// Nothing on it could be a root file system.
    NoRoot,
    /// It holds something that is not ext4.
    OtherFormat,
    /// Its partition table is damaged, or none that is read here.
    Table,
    /// A root file system without a kernel.
    NoKernel,
    /// Its initrd is a link that leads nowhere.
    NoInitrd,
    /// An initrd must find the root by its UUID, and there is none.
    NoUuid,
    /// Kernel or initrd is larger than allowed.
    TooLarge,
    /// The image ends before its content does.
    Truncated,
    /// The file system contradicts itself.
    Damaged,
    /// The file system has a feature that cannot be read.
    Unsupported,
    /// The image cannot be read.
    Read,
    /// What was found cannot be handed over.
    Write,
    /// The process that reads cannot be confined.
    Confine,
}

impl Why {
    fn text(self) -> &'static str {
        match self {
            Self::NoRoot => "no root file system found",
            Self::OtherFormat => "no root file system that can be read",
            Self::Table => "its partition table cannot be used",
            Self::NoKernel => "no kernel in its root file system",
            Self::NoInitrd => "the initrd of its kernel is missing",
            Self::NoUuid => "its root file system has no UUID",
            Self::TooLarge => "what it would boot is too large",
            Self::Truncated => "the image is truncated",
            Self::Damaged => "its file system is damaged",
            Self::Unsupported => "its file system has a feature that is not supported",
            Self::Read => "the image cannot be read",
            Self::Write => "what was found cannot be handed over",
            Self::Confine => "the process that reads it cannot be confined",
        }
    }
}

/// Why an image is not booted from, in words for the person who gave it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{}: {detail}", why.text())]
pub struct Refusal {
    /// The kind.
    pub why: Why,
    /// What was found.
    pub detail: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(why: Why, detail: impl Into<String>) -> Self {
        Self { why, detail: detail.into() }
    }

    /// The image could not be read at `what`.
    pub(crate) fn io(what: &str, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                Self::new(Why::Truncated, format!("{what} lies behind its end"))
            }
            _ => Self::new(Why::Read, format!("{what}: {error}")),
        }
    }

    /// The file system could not be read at `what`.
    pub(crate) fn ext4(what: &str, error: &Ext4Error) -> Self {
        if let Some(error) = error.as_io().and_then(|e| e.downcast_ref::<io::Error>()) {
            return Self::io(what, error);
        }
        let why = match error {
            Ext4Error::Incompatible(_) | Ext4Error::Encrypted => Why::Unsupported,
            _ => Why::Damaged,
        };
        Self::new(why, format!("{what}: {error}"))
    }

    /// The same of a partition.
    pub(crate) fn of_partition(self, number: u32) -> Self {
        Self { detail: format!("partition {number}: {}", self.detail), ..self }
    }
}
