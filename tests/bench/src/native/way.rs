//! What is measured: by what, over what.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use wherry_migration::Compression;

use super::pause::usage::Usage;

/// Bytes in a MiB, and what a plain copy moves at once.
pub const MIB: u64 = 1 << 20;

/// What moves the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// One MiB that is written and read again and again, until it is as many bytes.
    PlainWarm,
    /// All of the memory, written from where the guest has it and read into new memory.
    PlainNew,
    /// Wherry's engine.
    Wherry,
    /// QEMU.
    Qemu,
    /// Wherry's engine and a guest with a lot of memory: see [`super::pause`].
    Pause,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::PlainWarm => "plain, warm to warm",
            Self::PlainNew => "plain, into new memory",
            Self::Wherry => "Wherry",
            Self::Qemu => "QEMU",
            Self::Pause => "Wherry's pause",
        })
    }
}

/// The kind of socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Socket {
    /// TCP over the loopback.
    Tcp,
    /// A Unix socket.
    Unix,
    /// TLS over TCP over the loopback.
    Tls,
}

impl Socket {
    /// All kinds, as tables have them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Tls, Self::Unix];

    /// That of the plain copy which stands beside it.
    pub fn plain(self) -> Self {
        if self == Self::Tls { Self::Tcp } else { self }
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Unix => "unix",
            Self::Tls => "tls",
        })
    }
}

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// What moves the bytes.
    pub variant: Variant,
    /// Over what.
    pub transport: Socket,
    /// Connections that carry memory.
    pub streams: u32,
    /// Whether it compresses.
    pub compression: Compression,
    /// Whether the destination's memory is in the folder of `--memory-backing`.
    pub backed: bool,
}

impl Way {
    /// All of them; those with a folder for memory, and QEMU's, if there is one.
    pub fn all(folder: bool, qemu: bool) -> Vec<Self> {
        let (none, lz4) = (Compression::None, Compression::Lz4);
        let mut all = Vec::new();
        for transport in Socket::ALL {
            let plain = transport.plain() == transport;
            let way = |variant, streams, compression| Self {
                variant,
                transport,
                streams,
                compression,
                backed: false,
            };
            let copies = [(Variant::PlainWarm, 1), (Variant::PlainNew, 1)];
            // What several connections cost, whoever uses them.
            let shared = [(Variant::PlainNew, 2), (Variant::PlainNew, 4)];
            let copies = copies.into_iter().chain(shared).filter(|_| plain);
            all.extend(copies.map(|(copy, streams)| way(copy, streams, none)));
            all.extend([1, 2, 4].map(|streams| way(Variant::Wherry, streams, none)));
            all.push(way(Variant::Wherry, 1, lz4));
            let backed = [1, 2].map(|n| Self { backed: true, ..way(Variant::Wherry, n, none) });
            all.extend(backed.iter().filter(|_| folder));
            let qemus = [1, 2].map(|streams| way(Variant::Qemu, streams, none));
            all.extend(qemus.iter().filter(|_| qemu && plain));
        }
        all
    }

    /// As in `wherry tcp 2 lz4`.
    pub fn name(&self) -> String {
        // As in the JSON.
        let variant = serde_json::to_string(&self.variant).unwrap_or_default();
        let variant = variant.trim_matches('"');
        let lz4 = if self.compression == Compression::Lz4 { " lz4" } else { "" };
        let folder = if self.backed { " folder" } else { "" };
        format!("{variant} {} {}{lz4}{folder}", self.transport, self.streams)
    }

    /// That of the pause.
    pub fn pause() -> Self {
        Self {
            variant: Variant::Pause,
            transport: Socket::Unix,
            streams: 1,
            compression: Compression::None,
            backed: false,
        }
    }
}

/// What a destination is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// What is measured.
    pub way: Way,
    /// Guest memory.
    pub bytes: u64,
    /// Of its content.
    pub seed: u64,
    /// A folder for the socket.
    pub dir: PathBuf,
    /// What the way's `backed` means.
    pub folder: Option<PathBuf>,
    /// How the memory is used, if not all of it is.
    pub usage: Option<Usage>,
}
