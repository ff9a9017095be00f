//! Bitmaps with one bit per page of memory (or per 64-page word of one).
//!
//! Two kinds: [`Bitmap`] belongs to one thread, [`AtomicBitmap`] is shared between the sender and
//! the hint sink. Both keep the bits in `u64` words, page *n* in word `n / 64` at bit `n % 64`: the
//! layout of KVM's dirty log, so that a harvest is a copy.
//!
//! Invariant: bits at and beyond [`Bitmap::len`] are zero.
//!
//! Nothing here panics on a range that leaves the map: ranges are clipped. Single-bit reads outside
//! the map say `false`.

use std::sync::atomic::Ordering;

use crate::sync::AtomicU64;

/// Mask with the bits `from..to` set; `from <= to <= 64`.
fn bits(from: u64, to: u64) -> u64 {
    if from >= to {
        return 0;
    }
    (u64::MAX >> (64 - (to - from))) << from
}

/// The words touched by `first..first + nr` clipped to `len`, each with the mask of its touched
/// bits.
pub fn word_masks(len: u64, first: u64, nr: u64) -> impl Iterator<Item = (usize, u64)> {
    let end = first.saturating_add(nr).min(len);
    let first = first.min(end);
    let words = if first == end { 0..0 } else { first / 64..(end - 1) / 64 + 1 };
    words.map(move |w| {
        let base = w * 64;
        (w as usize, bits(first.max(base) - base, end.min(base + 64) - base))
    })
}

/// A plain bitmap of a fixed number of bits, all clear at first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bitmap {
    words: Vec<u64>,
    len: u64,
}

impl Bitmap {
    /// A map of `len` bits, all clear.
    pub fn new(len: u64) -> Self {
        Self { words: vec![0; len.div_ceil(64) as usize], len }
    }

    /// A map of `len` bits, all set.
    pub fn full(len: u64) -> Self {
        let mut map = Self::new(len);
        map.set_all();
        map
    }

    /// Number of bits.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the map has no bits at all (not: no bit set).
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The words; page `n` is bit `n % 64` of word `n / 64`.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Sets the bits of `mask` in a word. Bits outside the map are ignored.
    pub fn or_word(&mut self, word: usize, mask: u64) {
        for (w, valid) in word_masks(self.len, (word as u64).saturating_mul(64), 64) {
            self.words[w] |= mask & valid;
        }
    }

    /// Clears the unused bits of the last word.
    fn trim(&mut self) {
        let used = self.len % 64;
        if used != 0
            && let Some(last) = self.words.last_mut()
        {
            *last &= bits(0, used);
        }
    }

    /// Sets one bit. Bits outside the map are ignored.
    pub fn set(&mut self, bit: u64) {
        self.set_range(bit, 1);
    }

    /// Clears one bit. Bits outside the map are ignored.
    pub fn clear(&mut self, bit: u64) {
        self.clear_range(bit, 1);
    }

    /// Whether the bit is set; `false` outside the map.
    pub fn test(&self, bit: u64) -> bool {
        let word = usize::try_from(bit / 64).ok().and_then(|w| self.words.get(w));
        word.is_some_and(|w| w >> (bit % 64) & 1 == 1)
    }

    /// Sets `first..first + nr`, clipped to the map.
    pub fn set_range(&mut self, first: u64, nr: u64) {
        for (w, mask) in word_masks(self.len, first, nr) {
            self.words[w] |= mask;
        }
    }

    /// Clears `first..first + nr`, clipped to the map.
    pub fn clear_range(&mut self, first: u64, nr: u64) {
        for (w, mask) in word_masks(self.len, first, nr) {
            self.words[w] &= !mask;
        }
    }

    /// Sets every bit.
    pub fn set_all(&mut self) {
        self.words.fill(u64::MAX);
        self.trim();
    }

    /// Number of set bits.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// Sets the bits that are set in `other`. Maps are of the same length.
    pub fn or(&mut self, other: &Self) {
        self.zip(other, |a, b| a | b);
    }

    /// Keeps only the bits that are set in `other` too. Maps are of the same length.
    pub fn and(&mut self, other: &Self) {
        self.zip(other, |a, b| a & b);
    }

    /// Clears the bits that are set in `other`. Maps are of the same length.
    pub fn and_not(&mut self, other: &Self) {
        self.zip(other, |a, b| a & !b);
    }

    fn zip(&mut self, other: &Self, f: impl Fn(u64, u64) -> u64) {
        debug_assert_eq!(self.len, other.len);
        for (a, &b) in self.words.iter_mut().zip(&other.words) {
            *a = f(*a, b);
        }
        self.trim();
    }

    /// The maximal runs of set bits, ascending, each as (first, number).
    pub fn runs(&self) -> Runs<'_> {
        self.runs_in(0, self.len)
    }

    /// The runs of set bits within `from..to`, cut at its ends.
    pub fn runs_in(&self, from: u64, to: u64) -> Runs<'_> {
        Runs { map: self, at: from, end: to.min(self.len) }
    }

    /// First bit at or after `from` whose value is `value`, or `len`.
    fn next(&self, from: u64, value: bool) -> u64 {
        let flip = if value { 0 } else { u64::MAX };
        let mut mask = !bits(0, from % 64);
        for (w, word) in self.words.iter().enumerate().skip((from / 64) as usize) {
            let found = (word ^ flip) & mask;
            if found != 0 {
                return (w as u64 * 64 + u64::from(found.trailing_zeros())).min(self.len);
            }
            mask = u64::MAX;
        }
        self.len
    }
}

/// Iterator over the runs of set bits; see [`Bitmap::runs`].
pub struct Runs<'a> {
    map: &'a Bitmap,
    at: u64,
    end: u64,
}

impl Iterator for Runs<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        let first = self.map.next(self.at, true);
        if first >= self.end {
            return None;
        }
        self.at = self.map.next(first, false).min(self.end);
        Some((first, self.at - first))
    }
}

/// The runs of set bits in one word, as (first bit, number).
pub fn word_runs(mut word: u64) -> impl Iterator<Item = (u32, u32)> {
    std::iter::from_fn(move || {
        if word == 0 {
            return None;
        }
        let first = word.trailing_zeros();
        let nr = (word >> first).trailing_ones();
        word &= !bits(u64::from(first), u64::from(first + nr));
        Some((first, nr))
    })
}

/// A bitmap shared between threads, changed one word at a time.
///
/// Every change is `AcqRel`: who takes a bit sees everything that was done before the bit was put
/// there.
#[derive(Debug)]
pub struct AtomicBitmap {
    words: Vec<AtomicU64>,
    len: u64,
}

impl AtomicBitmap {
    /// A map of `len` bits, all clear.
    pub fn new(len: u64) -> Self {
        Self::from(&Bitmap::new(len))
    }

    /// Number of bits.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the map has no bits at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of words.
    pub fn nr_words(&self) -> usize {
        self.words.len()
    }

    /// The word's bits now (0 outside the map).
    pub fn load(&self, word: usize) -> u64 {
        self.words.get(word).map_or(0, |w| w.load(Ordering::Acquire))
    }

    /// Takes all bits of a word: returns them and leaves none. One swap, and none at all if the
    /// word is empty.
    pub fn take(&self, word: usize) -> u64 {
        match self.words.get(word) {
            Some(w) if w.load(Ordering::Relaxed) != 0 => w.swap(0, Ordering::AcqRel),
            _ => 0,
        }
    }

    /// Sets the bits of `mask` in a word; returns those that were clear before.
    pub fn set_mask(&self, word: usize, mask: u64) -> u64 {
        let old = self.words.get(word).map(|w| w.fetch_or(mask, Ordering::AcqRel));
        old.map_or(0, |old| mask & !old)
    }

    /// Clears the bits of `mask` in a word; returns those that were set before.
    pub fn clear_mask(&self, word: usize, mask: u64) -> u64 {
        let old = self.words.get(word).map(|w| w.fetch_and(!mask, Ordering::AcqRel));
        old.map_or(0, |old| mask & old)
    }

    /// Whether the bit is set; `false` outside the map.
    pub fn test(&self, bit: u64) -> bool {
        self.load((bit / 64) as usize) >> (bit % 64) & 1 == 1
    }

    /// Sets one bit; returns whether it was clear.
    pub fn set(&self, bit: u64) -> bool {
        bit < self.len && self.set_mask((bit / 64) as usize, 1 << (bit % 64)) != 0
    }

    /// Number of set bits, each word read once.
    pub fn count(&self) -> u64 {
        let words = self.words.iter();
        words.map(|w| u64::from(w.load(Ordering::Acquire).count_ones())).sum()
    }

    /// A plain copy, each word read once.
    pub fn snapshot(&self) -> Bitmap {
        let words = self.words.iter().map(|w| w.load(Ordering::Acquire)).collect();
        Bitmap { words, len: self.len }
    }
}

impl From<&Bitmap> for AtomicBitmap {
    fn from(map: &Bitmap) -> Self {
        Self { words: map.words.iter().map(|&w| AtomicU64::new(w)).collect(), len: map.len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn full_map_has_no_bit_beyond_its_length() {
        for len in [0, 1, 63, 64, 65, 128, 130] {
            assert_eq!(Bitmap::full(len).count(), len);
        }
    }

    #[test]
    fn ranges_are_clipped() {
        let mut map = Bitmap::new(70);
        map.set_range(60, u64::MAX);
        assert_eq!(map.runs().collect::<Vec<_>>(), [(60, 10)]);
        map.clear_range(u64::MAX, 5);
        map.set(u64::MAX);
        assert!(!map.test(u64::MAX) && map.test(60) && !map.test(59));
        map.clear_range(64, 6);
        map.or_word(1, 1 << 63 | 8);
        map.or_word(2, 1);
        map.or_word(usize::MAX, 1);
        assert_eq!(map.runs().collect::<Vec<_>>(), [(60, 4), (67, 1)]);
    }

    #[test]
    fn words_of_an_atomic_map_are_taken_once() {
        let mut map = Bitmap::new(130);
        map.set_range(3, 126);
        let shared = AtomicBitmap::from(&map);
        assert_eq!(shared.clear_mask(1, 0xf0), 0xf0);
        assert_eq!(shared.take(1), !0xf0);
        assert_eq!(shared.take(1), 0);
        assert_eq!(shared.set_mask(1, 3), 3);
        assert_eq!(shared.set_mask(1, 7), 4);
        assert_eq!(shared.take(77), 0);
        assert_eq!(shared.count(), 61 + 3 + 1);
    }

    proptest! {
        #[test]
        fn runs_and_ranges_agree_with_a_vector(len in 1u64..300,
            ops in prop::collection::vec((0u64..320, 0u64..200, any::<bool>()), 0..20)) {
            let mut map = Bitmap::new(len);
            let mut model = vec![false; len as usize];
            for (first, nr, value) in ops {
                if value { map.set_range(first, nr) } else { map.clear_range(first, nr) }
                for bit in first..(first + nr).min(len) { model[bit as usize] = value; }
            }
            prop_assert_eq!(map.count(), model.iter().filter(|b| **b).count() as u64);
            let mut seen = vec![false; len as usize];
            let mut last_end = None;
            for (first, nr) in map.runs() {
                prop_assert!(nr > 0 && last_end != Some(first));
                last_end = Some(first + nr);
                for bit in first..first + nr { seen[bit as usize] = true; }
            }
            prop_assert_eq!(&seen, &model);
            let (from, to) = (len / 3, len - len / 4);
            let inside: Vec<u64> = map.runs_in(from, to).flat_map(|(f, n)| f..f + n).collect();
            prop_assert_eq!(inside, (from..to).filter(|&b| model[b as usize]).collect::<Vec<_>>());
            for (w, word) in map.words().iter().enumerate() {
                for (first, nr) in word_runs(*word) {
                    for bit in first..first + nr { prop_assert!(model[w * 64 + bit as usize]); }
                }
            }
        }
    }
}
