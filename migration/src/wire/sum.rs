//! Checksums of payloads. They guard against damage, not against an attacker.

use std::hash::Hasher;
use std::hint::black_box;
use std::sync::OnceLock;
use std::time::Instant;

use super::{FEATURE_CRC32, FEATURE_UNSUMMED, Kind};

/// By what a payload is summed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sum {
    /// XXH64, its halves XORed: as fast as memory with plain multiplications.
    Xxh64,
    /// CRC32 (IEEE 802.3), which takes a third of that time where a CPU has carry-less
    /// multiplication. Software emulation may do it bit by bit.
    Crc32,
    /// Not at all: the sum is 0. Every byte of the connection is authenticated already.
    None,
}

impl Sum {
    /// Of frames of this kind between two sides that use these features.
    #[must_use]
    pub fn of(kind: Kind, features: u64) -> Self {
        match kind {
            Kind::Pages | Kind::PagesLz4 if features & FEATURE_UNSUMMED != 0 => Self::None,
            Kind::Pages | Kind::PagesLz4 if features & FEATURE_CRC32 != 0 => Self::Crc32,
            _ => Self::Xxh64,
        }
    }

    /// Of a payload that is these parts one after another.
    #[must_use]
    pub fn over(self, parts: &[&[u8]]) -> u32 {
        match self {
            Self::Xxh64 => {
                let mut hash = twox_hash::XxHash64::with_seed(0);
                parts.iter().for_each(|part| hash.write(part));
                let sum = hash.finish();
                (sum ^ sum >> 32) as u32
            }
            Self::Crc32 => {
                let mut hash = ContentSum::default();
                parts.iter().for_each(|part| hash.update(part));
                hash.behind(&[])
            }
            Self::None => 0,
        }
    }
}

/// The CRC32 of content whose pages come one by one.
#[derive(Clone, Default, Debug)]
pub struct ContentSum(crc32fast::Hasher);

impl ContentSum {
    /// The next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Of a payload that is this, and behind it the content.
    #[must_use]
    pub fn behind(&self, table: &[u8]) -> u32 {
        let mut all = crc32fast::Hasher::new();
        all.update(table);
        all.combine(&self.0);
        all.finalize()
    }
}

/// Whether a CRC32 is the faster one on this machine: measured once, in some microseconds. That a
/// CPU has carry-less multiplication does not say so: it may be emulated.
#[must_use]
pub fn crc32_is_faster() -> bool {
    static FASTER: OnceLock<bool> = OnceLock::new();
    *FASTER.get_or_init(|| {
        let bytes = vec![0xa5; 16 << 10];
        // The fastest of a few: others may want the CPU meanwhile.
        let time = |sum: Sum| {
            let once = |_| {
                let start = Instant::now();
                black_box(sum.over(&[black_box(&bytes)]));
                start.elapsed()
            };
            (0..8).map(once).min()
        };
        time(Sum::Crc32) < time(Sum::Xxh64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_is_of_the_bytes_and_not_of_their_parts() {
        let bytes: Vec<u8> = (0..10_000u32).map(|n| ((n * n) >> 3) as u8).collect();
        for sum in [Sum::Xxh64, Sum::Crc32] {
            let whole = sum.over(&[&bytes]);
            for at in [0, 1, 17, 4096, 9999] {
                let (a, b) = bytes.split_at(at);
                assert_eq!(sum.over(&[a, &[], b]), whole);
            }
        }
        assert_eq!(Sum::Crc32.over(&[b"123", b"456789"]), 0xcbf4_3926);
    }

    #[test]
    fn a_sum_of_content_is_that_of_the_payload_once_its_table_is_known() {
        let pages: Vec<Vec<u8>> = (1..4).map(|n| vec![n; 4096]).collect();
        let mut content = ContentSum::default();
        assert_eq!(content.behind(b"table"), Sum::Crc32.over(&[b"table"]));
        for nr in 1..=3 {
            content.update(&pages[nr - 1]);
            let payload = [b"table", &pages[..nr].concat()[..]].concat();
            assert_eq!(content.behind(b"table"), Sum::Crc32.over(&[&payload]));
        }
    }
}
