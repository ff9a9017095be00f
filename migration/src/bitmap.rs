//! Bitmaps with one bit per page of memory (or per 64-page word of one).
//!
//! Two kinds: [`Bitmap`] belongs to one thread, [`AtomicBitmap`] is shared between the sender and
//! the hint sink. Both keep the bits in `u64` words, page *n* in word `n / 64` at bit `n % 64`: the
//! layout of KVM's dirty log, so that a harvest is a copy.
//!
//! Invariants: bits at and beyond [`Bitmap::len`] are zero. Where a word of a [`Bitmap`] is not
//! zero its bit in the summary is set, one bit a word. So what is done to a map costs by the words
//! that have bits, and a look at the summary: one word of it for each 16 MiB of memory.
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

/// The bits that are set, ascending.
fn ones(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros() as usize)?;
        word &= word - 1;
        Some(bit)
    })
}

/// What maps cost on this thread, for tests.
#[cfg(test)]
pub(crate) mod cost {
    use std::cell::Cell;

    thread_local! {
        /// Words looked at or changed, of maps and of their summaries.
        pub(crate) static WORDS: Cell<u64> = const { Cell::new(0) };
        /// Words of the maps that were made.
        pub(crate) static MADE: Cell<u64> = const { Cell::new(0) };
    }
}

/// Counts what is looked at, in tests.
fn look(nr: usize) {
    #[cfg(test)]
    cost::WORDS.set(cost::WORDS.get() + nr as u64);
    let _ = nr;
}

/// Counts what is made, in tests.
fn made(nr: usize) {
    #[cfg(test)]
    cost::MADE.set(cost::MADE.get() + nr as u64);
    let _ = nr;
}

/// A plain bitmap of a fixed number of bits, all clear at first.
#[derive(Debug)]
pub struct Bitmap {
    words: Vec<u64>,
    /// The summary: which words may have bits.
    used: Vec<u64>,
    len: u64,
}

impl Bitmap {
    /// A map of `len` bits, all clear.
    pub fn new(len: u64) -> Self {
        let nr = len.div_ceil(64) as usize;
        made(nr);
        Self { words: vec![0; nr], used: vec![0; nr.div_ceil(64)], len }
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
            self.put(w, mask & valid);
        }
    }

    /// Sets valid bits of a word.
    fn put(&mut self, word: usize, mask: u64) {
        look(1);
        self.words[word] |= mask;
        self.used[word / 64] |= 1 << (word % 64);
    }

    /// Changes each word that may have bits to what `f` makes of its number and it, which has no
    /// others.
    fn change(&mut self, f: impl Fn(usize, u64) -> u64) {
        look(self.used.len());
        for (at, used) in self.used.iter_mut().enumerate() {
            for bit in ones(*used) {
                look(1);
                let word = &mut self.words[at * 64 + bit];
                *word = f(at * 64 + bit, *word);
                if *word == 0 {
                    *used &= !(1 << bit);
                }
            }
        }
    }

    /// The words that have bits, ascending, with their numbers.
    pub fn nonzero(&self) -> impl Iterator<Item = (usize, u64)> {
        look(self.used.len());
        let used = self.used.iter().enumerate();
        let words = used.flat_map(|(at, used)| ones(*used).map(move |bit| at * 64 + bit));
        let words = words.map(|word| {
            look(1);
            (word, self.words[word])
        });
        words.filter(|(_, bits)| *bits != 0)
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
            self.put(w, mask);
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
        self.set_range(0, self.len);
    }

    /// Clears every bit.
    pub fn clear_all(&mut self) {
        self.change(|_, _| 0);
    }

    /// Number of set bits.
    pub fn count(&self) -> u64 {
        self.nonzero().map(|(_, bits)| u64::from(bits.count_ones())).sum()
    }

    /// Sets the bits that are set in `other`. Maps are of the same length.
    pub fn or(&mut self, other: &Self) {
        debug_assert_eq!(self.len, other.len);
        other.nonzero().for_each(|(word, bits)| self.put(word, bits));
    }

    /// Keeps only the bits that are set in `other` too. Maps are of the same length.
    pub fn and(&mut self, other: &Self) {
        debug_assert_eq!(self.len, other.len);
        self.change(|word, bits| bits & other.words[word]);
    }

    /// Clears the bits that are set in `other`. Maps are of the same length.
    pub fn and_not(&mut self, other: &Self) {
        debug_assert_eq!(self.len, other.len);
        self.change(|word, bits| bits & !other.words[word]);
    }

    /// The maximal runs of set bits, ascending, each as (first, number).
    pub fn runs(&self) -> Runs<'_> {
        self.runs_in(0, self.len)
    }

    /// The runs of set bits within `from..to`, cut at its ends.
    pub fn runs_in(&self, from: u64, to: u64) -> Runs<'_> {
        Runs { map: self, at: from, end: to.min(self.len) }
    }

    /// First set bit at or after `from`, or `len`.
    pub(crate) fn next_set(&self, from: u64) -> u64 {
        let first = (from / 64) as usize;
        let mask = !bits(0, from % 64);
        let mut used = !bits(0, first as u64 % 64);
        for (at, words) in self.used.iter().enumerate().skip(first / 64) {
            look(1);
            for word in ones(words & used).map(|bit| at * 64 + bit) {
                look(1);
                let found = self.words[word] & if word == first { mask } else { u64::MAX };
                if found != 0 {
                    return word as u64 * 64 + u64::from(found.trailing_zeros());
                }
            }
            used = u64::MAX;
        }
        self.len
    }

    /// First clear bit at or after `from`, or `len`.
    fn next_clear(&self, from: u64) -> u64 {
        let mut mask = !bits(0, from % 64);
        for (w, word) in self.words.iter().enumerate().skip((from / 64) as usize) {
            look(1);
            let found = !word & mask;
            if found != 0 {
                return (w as u64 * 64 + u64::from(found.trailing_zeros())).min(self.len);
            }
            mask = u64::MAX;
        }
        self.len
    }
}

impl Clone for Bitmap {
    fn clone(&self) -> Self {
        made(self.words.len());
        Self { words: self.words.clone(), used: self.used.clone(), len: self.len }
    }
}

/// The same bits.
impl PartialEq for Bitmap {
    fn eq(&self, other: &Self) -> bool {
        // Not the summary: it may have a bit for a word that has none.
        (&self.words, self.len) == (&other.words, other.len)
    }
}

impl Eq for Bitmap {}

/// Iterator over the runs of set bits; see [`Bitmap::runs`].
pub struct Runs<'a> {
    map: &'a Bitmap,
    at: u64,
    end: u64,
}

impl Iterator for Runs<'_> {
    type Item = (u64, u64);

    fn next(&mut self) -> Option<(u64, u64)> {
        let first = self.map.next_set(self.at);
        if first >= self.end {
            return None;
        }
        self.at = self.map.next_clear(first).min(self.end);
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
        let nr = len.div_ceil(64) as usize;
        made(nr);
        // In place: of zeroes that nobody writes the host need not have any.
        Self { words: vec![0; nr].into_iter().map(AtomicU64::new).collect(), len }
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

    /// Gives a word these bits and no others. Nobody else has the map.
    pub fn put(&mut self, word: usize, bits: u64) {
        look(1);
        if let Some(w) = self.words.get_mut(word) {
            *w = AtomicU64::new(bits);
        }
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
        look(self.words.len());
        let words = self.words.iter();
        words.map(|w| u64::from(w.load(Ordering::Acquire).count_ones())).sum()
    }

    /// A plain copy, each word read once.
    pub fn snapshot(&self) -> Bitmap {
        look(self.words.len());
        let mut map = Bitmap::new(self.len);
        for (word, bits) in self.words.iter().map(|w| w.load(Ordering::Acquire)).enumerate() {
            if bits != 0 {
                map.put(word, bits);
            }
        }
        map
    }
}

impl From<&Bitmap> for AtomicBitmap {
    fn from(map: &Bitmap) -> Self {
        made(map.words.len());
        Self { words: map.words.iter().map(|&w| AtomicU64::new(w)).collect(), len: map.len }
    }
}

#[cfg(test)]
mod tests;
