//! Payload of a Digests frame: what a chunk of the destination's memory holds.
//!
//! ```text
//! u64 first page, u32 number of pages
//! nothing more if the whole chunk is zero (untouched memory costs 12 bytes per 64 MiB); else
//! one bit a page in u64 words: the page is not zero
//! per set bit: u64 digest of the page, ascending
//! ```
//!
//! Zero is said by the bit and not by a digest, so a hole, a page of zeros and a page never sent
//! are one and the same here. The receiver knows which chunk it asked for, hence the only legal
//! length of every part ([`Digests::decode`]).

use super::error::WireError;
use crate::bitmap::word_masks;
use crate::units::PAGE_SIZE;

/// Pages in one frame at most: 64 MiB of memory, 130 KiB on the wire.
pub const CHUNK_PAGES: u32 = 16 << 10;
const HEAD: usize = 12;
/// Longest payload in bytes.
pub const MAX_PAYLOAD: usize = HEAD + CHUNK_PAGES as usize / 8 + CHUNK_PAGES as usize * 8;

/// Digest of a page with content: XXH64. Two different pages are taken for equal once in 2^64; it
/// is no defence against an attacker.
pub fn digest(page: &[u8]) -> u64 {
    twox_hash::XxHash64::oneshot(0, page)
}

/// Digests of one chunk. Bounded by [`CHUNK_PAGES`]; reused from chunk to chunk.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Digests {
    first: u64,
    nr: u32,
    content: Vec<u64>,
    digests: Vec<u64>,
}

impl Digests {
    /// An all-zero chunk of `nr` pages (at most [`CHUNK_PAGES`]) from page `first` on.
    pub fn begin(&mut self, first: u64, nr: u32) {
        (self.first, self.nr) = (first, nr.min(CHUNK_PAGES));
        self.content.clear();
        self.content.resize(self.nr.div_ceil(64) as usize, 0);
        self.digests.clear();
    }

    /// Adds a page that is not zero. Pages come in ascending order; those outside the chunk are
    /// ignored.
    pub fn push(&mut self, page: u64, bytes: &[u8]) {
        debug_assert_eq!(bytes.len(), PAGE_SIZE);
        let at = page.wrapping_sub(self.first);
        if at < u64::from(self.nr)
            && let Some(word) = self.content.get_mut((at / 64) as usize)
        {
            *word |= 1 << (at % 64);
            self.digests.push(digest(bytes));
        }
    }

    /// As sent.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(&self.first.to_le_bytes());
        out.extend_from_slice(&self.nr.to_le_bytes());
        if self.digests.is_empty() {
            return;
        }
        for word in self.content.iter().chain(&self.digests) {
            out.extend_from_slice(&word.to_le_bytes());
        }
    }

    /// Takes a payload of an untrusted peer, which must be about exactly this chunk.
    pub fn decode(&mut self, payload: &[u8], first: u64, nr: u32) -> Result<(), WireError> {
        let bad = WireError::Digests;
        self.begin(first, nr);
        let (head, rest) = payload.split_first_chunk().ok_or(bad("cut short"))?;
        let (pages, rest) = rest.split_first_chunk().ok_or(bad("cut short"))?;
        if u64::from_le_bytes(*head) != first || u32::from_le_bytes(*pages) != self.nr {
            return Err(bad("of another chunk"));
        }
        if rest.is_empty() {
            return Ok(());
        }
        let (map, digests) =
            rest.split_at_checked(self.content.len() * 8).ok_or(bad("map cut short"))?;
        let number = |raw: &[u8]| raw.try_into().map_or(0, u64::from_le_bytes);
        for (word, raw) in self.content.iter_mut().zip(map.chunks_exact(8)) {
            *word = number(raw);
        }
        let mut pages = 0;
        for (word, mask) in word_masks(u64::from(self.nr), 0, u64::from(self.nr)) {
            let found = self.content.get(word).copied().unwrap_or(0);
            if found & !mask != 0 {
                return Err(bad("pages outside the chunk"));
            }
            pages += found.count_ones() as usize;
        }
        if pages == 0 || digests.len() != pages * 8 {
            return Err(bad("number of digests"));
        }
        self.digests.extend(digests.chunks_exact(8).map(number));
        Ok(())
    }

    /// Calls `differs` for every page of which the two chunks do not say the same. Both are about
    /// the same pages.
    pub fn compare(&self, other: &Self, mut differs: impl FnMut(u64)) {
        let (mut ours, mut theirs) = (self.digests.iter(), other.digests.iter());
        for (at, (&a, &b)) in self.content.iter().zip(&other.content).enumerate() {
            let mut left = a | b;
            while left != 0 {
                let bit = left.trailing_zeros();
                left &= left - 1;
                let ours = if a >> bit & 1 == 1 { ours.next() } else { None };
                let theirs = if b >> bit & 1 == 1 { theirs.next() } else { None };
                if ours != theirs {
                    differs(self.first + at as u64 * 64 + u64::from(bit));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chunk(first: u64, nr: u32, pages: &[(u64, u8)]) -> Digests {
        let mut chunk = Digests::default();
        chunk.begin(first, nr);
        for &(page, value) in pages {
            chunk.push(page, &[value; PAGE_SIZE]);
        }
        chunk
    }

    fn differing(a: &Digests, b: &Digests) -> Vec<u64> {
        let mut found = vec![];
        a.compare(b, |page| found.push(page));
        found
    }

    #[test]
    fn chunks_survive_the_wire_and_untouched_memory_costs_nothing() {
        let (mut raw, mut back) = (vec![], Digests::default());
        for pages in [&[][..], &[(130, 1)], &[(128, 1), (129, 2), (191, 3), (192, 4), (227, 5)]] {
            let sent = chunk(128, 100, pages);
            sent.encode(&mut raw);
            assert_eq!(raw.len(), if pages.is_empty() { 12 } else { 12 + 16 + pages.len() * 8 });
            back.decode(&raw, 128, 100).unwrap();
            assert_eq!(back, sent);
        }
        let full: Vec<_> = (0..u64::from(CHUNK_PAGES)).map(|page| (page, 1)).collect();
        chunk(0, CHUNK_PAGES, &full).encode(&mut raw);
        assert_eq!(raw.len(), MAX_PAYLOAD);
    }

    #[test]
    fn only_exact_payloads_are_accepted() {
        let mut good = vec![];
        chunk(64, 70, &[(64, 1), (133, 2)]).encode(&mut good);
        let mut into = Digests::default();
        assert!(into.decode(&good, 64, 70).is_ok());
        assert!(into.decode(&good, 0, 70).is_err() && into.decode(&good, 64, 71).is_err());
        for cut in 0..good.len() {
            // Twelve bytes alone say: all zero.
            assert_eq!(into.decode(&good[..cut], 64, 70).is_ok(), cut == 12, "{cut}");
        }
        let mut long = good.clone();
        long.extend([0; 8]);
        assert!(into.decode(&long, 64, 70).is_err());
        let mut outside = good.clone();
        outside[12 + 8] = 0x80;
        assert_eq!(
            into.decode(&outside, 64, 70),
            Err(WireError::Digests("pages outside the chunk"))
        );
        let mut empty = good[..12].to_vec();
        empty.extend([0; 16]);
        assert!(into.decode(&empty, 64, 70).is_err(), "two ways to say the same");
    }

    proptest! {
        #[test]
        fn exactly_the_differing_pages_are_found(a in prop::collection::vec(0u8..3, 150),
            b in prop::collection::vec(0u8..3, 150)) {
            let of = |values: &[u8]| {
                let pages = values.iter().enumerate().filter(|(_, v)| **v != 0);
                chunk(1000, 150, &pages.map(|(at, &v)| (1000 + at as u64, v)).collect::<Vec<_>>())
            };
            let differ = (0..150).filter(|&at| a[at] != b[at]);
            let expected: Vec<u64> = differ.map(|at| 1000 + at as u64).collect();
            prop_assert_eq!(differing(&of(&a), &of(&b)), expected);
        }

        #[test]
        fn no_payload_panics(raw in prop::collection::vec(any::<u8>(), 0..200), head: bool,
            nr in 1u32..200) {
            let mut raw = raw;
            if head {
                let mut new = 7u64.to_le_bytes().to_vec();
                new.extend(nr.to_le_bytes());
                raw.splice(0..0, new);
            }
            let mut chunk = Digests::default();
            if chunk.decode(&raw, 7, nr).is_ok() {
                chunk.compare(&Digests::default(), |_| ());
            }
        }
    }
}
