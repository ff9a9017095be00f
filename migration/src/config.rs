//! How to migrate, and how to receive.

use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::wire::sum::crc32_is_faster;
use crate::wire::version::VERSIONS;
use crate::wire::{FEATURE_CRC32, FEATURE_UNSUMMED, FEATURES, MAX_PAGES};

/// Which way to honour hints.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HintMode {
    /// Find out.
    #[default]
    Auto,
    /// Protect first, then trust.
    Protected,
    /// Protect at the hint, then look.
    CheckedZero,
}

/// Whether to ask for hints.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HintPolicy {
    /// Where they pay.
    #[default]
    Auto,
    /// Always, if the guest's driver can.
    On,
    /// Never.
    Off,
}

impl HintPolicy {
    /// The word for it, on the command line and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        }
    }
}

/// What to do when the guest does not converge.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnTimeout {
    /// Give up; the guest goes on at the source.
    #[default]
    Fail,
    /// Switch over however long the downtime will be.
    Force,
}

/// Whether content is compressed on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// No.
    #[default]
    None,
    /// As LZ4 blocks, where that saves anything: for links that are slower than the CPU compresses.
    Lz4,
}

impl Compression {
    /// Whether there is none.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }

    /// As options and traces have it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
        }
    }
}

/// How to migrate.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// Whether to ask the guest for hints.
    pub hints: HintPolicy,
    /// How to honour them in round one.
    pub hint_mode: HintMode,
    /// Bytes per second on the wire at most, the last round included; `None` for no cap.
    pub bandwidth: Option<u64>,
    /// Whether to compress. The destination must be able to unpack it, or refuses.
    pub compression: Compression,
    /// Connections that carry memory, 1 to [`MAX_STREAMS`](crate::wire::MAX_STREAMS). With 1 the
    /// first connection carries it; with more, as many data connections beside the first do.
    pub streams: u32,
    /// Switch over when the predicted downtime is at most this.
    pub downtime_limit: Duration,
    /// Rounds with the guest running, at most. At least 1.
    pub max_rounds: u32,
    /// What then.
    pub on_timeout: OnTimeout,
    /// Give up on a peer that neither takes nor sends anything for this long.
    pub stall_timeout: Duration,
    /// How long a frame may take, once begun.
    pub frame_limit: FrameLimit,
    /// Longest time from pausing the guest to the hand-off, however its bytes trickle; then it goes
    /// on here. `None`: ten times the predicted downtime, 10 s at least, and with `verify` the
    /// time that reading its RAM at 100 MB/s takes.
    pub pause_limit: Option<Duration>,
    /// Longest wait for the first hint.
    pub first_hint_wait: Duration,
    /// Length of a pacing slice.
    pub slice: Duration,
    /// Longest time for which the guest is kept hinting under one id; Linux's driver does not yield
    /// while it hints.
    pub hint_time: Duration,
    /// Time that it gets for itself before the next id.
    pub hint_rest: Duration,
    /// Compare all memory before the hand-off, and give up if any of it is wrong: see
    /// [`crate::verify`].
    pub verify: bool,
    /// What pausing, state and hand-off add to the downtime, for the prediction.
    pub switchover_estimate: Duration,
    /// Whether to offer CRC32 for memory.
    pub crc32: bool,
    /// Protocol versions to offer.
    pub versions: RangeInclusive<u16>,
}

impl Default for SourceConfig {
    fn default() -> Self {
        Self {
            hints: HintPolicy::Auto,
            hint_mode: HintMode::Auto,
            bandwidth: None,
            compression: Compression::None,
            streams: 1,
            downtime_limit: Duration::from_millis(300),
            max_rounds: 30,
            on_timeout: OnTimeout::Fail,
            stall_timeout: Duration::from_secs(30),
            frame_limit: FrameLimit::default(),
            pause_limit: None,
            first_hint_wait: Duration::from_millis(250),
            slice: Duration::from_millis(20),
            hint_time: Duration::from_millis(40),
            hint_rest: Duration::from_millis(10),
            verify: false,
            switchover_estimate: Duration::from_millis(10),
            crc32: crc32_is_faster(),
            versions: VERSIONS,
        }
    }
}

/// How to receive.
#[derive(Clone, Debug)]
pub struct DestinationConfig {
    /// Give up on a source that sends nothing for this long. A source that is idle sends an Idle
    /// every second.
    pub stall_timeout: Duration,
    /// How long to wait for a source. It then is not there yet, even if it has begun to introduce
    /// itself.
    pub patience: Duration,
    /// Time that a peer has, from connecting on, for its whole introduction.
    pub hello_timeout: Duration,
    /// Time for all data connections of the source, which it opens before it announces them.
    pub streams_timeout: Duration,
    /// How long any other frame may take, once begun.
    pub frame_limit: FrameLimit,
    /// Most pages of guest RAM to accept, looked at before anything is allocated for them.
    pub max_pages: u64,
    /// Whether to take CRC32 for memory from a source that offers it.
    pub crc32: bool,
    /// Protocol versions to take.
    pub versions: RangeInclusive<u16>,
}

impl DestinationConfig {
    /// Features that it knows, on a connection that finds damage itself or does not.
    pub(crate) fn features(&self, finds_damage: bool) -> u64 {
        let without = |has: bool, feature: u64| if has { 0 } else { feature };
        FEATURES & !without(self.crc32, FEATURE_CRC32) & !without(finds_damage, FEATURE_UNSUMMED)
    }
}

impl Default for DestinationConfig {
    fn default() -> Self {
        Self {
            stall_timeout: Duration::from_secs(30),
            patience: Duration::MAX,
            hello_timeout: Duration::from_secs(5),
            streams_timeout: Duration::from_secs(10),
            frame_limit: FrameLimit::default(),
            max_pages: MAX_PAGES,
            crc32: crc32_is_faster(),
            versions: VERSIONS,
        }
    }
}

/// How long a frame may take from its first byte to its last, however its bytes trickle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLimit {
    /// Any frame.
    pub time: Duration,
    /// And its payload, at this many bytes per second.
    pub rate: u64,
}

impl Default for FrameLimit {
    fn default() -> Self {
        Self { time: Duration::from_secs(30), rate: 4096 }
    }
}

impl FrameLimit {
    /// For a payload of so many bytes.
    pub(crate) fn of(&self, len: u32) -> Duration {
        self.time + Duration::from_secs_f64(f64::from(len) / self.rate.max(1) as f64)
    }
}
