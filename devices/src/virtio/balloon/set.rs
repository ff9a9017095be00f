//! A set of RAM pages: which are in the balloon.

use serde::{Deserialize, Serialize};

use super::constants::PAGE_SHIFT;
use super::ram::Ram;

/// Words in a part: 16 MiB of RAM.
const PART: usize = 64;

/// Pages of a part, of which there is at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    /// Bit n: word n has bits.
    used: u64,
    words: [u64; PART],
}

/// An exact set of RAM pages: one bit a page, whatever the guest does.
///
/// A part is there if, and only if, it has a page. So the set takes memory, and what is done to it
/// costs, by the parts that have pages, and by 8 bytes for each 16 MiB of RAM.
#[derive(Debug, Clone)]
pub(super) struct PageSet {
    ram: Ram,
    parts: Vec<Option<Box<Part>>>,
    count: u64,
}

/// A saved set: the form that is the smallest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SavedPages {
    /// Runs of flat page numbers: (first, how many), ascending, with gaps between them.
    Runs(Vec<(u64, u64)>),
    /// Bit n of word m is page 64 m + n.
    Bits(Vec<u64>),
    /// Since version 2: words of such bits, ascending by their numbers, without empty ones.
    Words(Vec<(u32, u64)>),
}

/// The bits that are set, ascending.
fn ones(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros() as usize)?;
        word &= word - 1;
        Some(bit)
    })
}

impl PageSet {
    pub(super) fn new(ram: Ram) -> Self {
        let nr = usize::try_from(ram.pages().div_ceil(64)).unwrap_or(usize::MAX);
        Self { ram, parts: vec![None; nr.div_ceil(PART)], count: 0 }
    }

    /// An empty one for the same memory.
    pub(super) fn another(&self) -> Self {
        Self::new(self.ram.clone())
    }

    /// Pages in the set.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Words that all RAM has; the last one may have pages beyond it.
    fn nr_words(&self) -> u64 {
        self.ram.pages().div_ceil(64)
    }

    pub(super) fn clear(&mut self) {
        self.parts.fill(None);
        self.count = 0;
    }

    /// Puts a guest frame in. `None`: not RAM. Otherwise whether it was new.
    pub(super) fn insert(&mut self, gfn: u64) -> Option<bool> {
        let index = self.ram.index(gfn)?;
        self.put(usize::try_from(index / 64).ok()?, 1 << (index % 64)).map(|new| new != 0)
    }

    /// Takes a guest frame out. `None`: not RAM. Otherwise whether it was there.
    pub(super) fn remove(&mut self, gfn: u64) -> Option<bool> {
        let index = self.ram.index(gfn)?;
        let (at, bit) = (usize::try_from(index / 64).ok()?, 1 << (index % 64));
        let place = self.parts.get_mut(at / PART)?;
        let Some(part) = place else { return Some(false) };
        let word = &mut part.words[at % PART];
        let was = *word & bit != 0;
        *word &= !bit;
        if *word == 0 {
            part.used &= !(1 << (at % PART));
        }
        if part.used == 0 {
            *place = None;
        }
        self.count -= u64::from(was);
        Some(was)
    }

    /// Sets these bits of a word, which the caller knows to be RAM. `None`: there is no such word.
    /// Otherwise how many were new.
    pub(super) fn put(&mut self, at: usize, bits: u64) -> Option<u64> {
        if at as u64 >= self.nr_words() {
            return None;
        }
        if bits == 0 {
            return Some(0);
        }
        let place = self.parts.get_mut(at / PART)?;
        let part = place.get_or_insert_with(|| Box::new(Part { used: 0, words: [0; PART] }));
        let word = &mut part.words[at % PART];
        let new = u64::from((bits & !*word).count_ones());
        *word |= bits;
        part.used |= 1 << (at % PART);
        self.count += new;
        Some(new)
    }

    /// The words from number `from` on that have bits, ascending: (number, bits).
    pub(super) fn words_from(&self, from: usize) -> impl Iterator<Item = (usize, u64)> + '_ {
        let parts = self.parts.iter().enumerate().skip(from / PART);
        let parts = parts.filter_map(|(at, part)| Some((at, part.as_ref()?)));
        let words = parts.flat_map(|(at, part)| {
            ones(part.used).map(move |bit| (at * PART + bit, part.words[bit]))
        });
        words.skip_while(move |(word, _)| *word < from)
    }

    /// The set as (guest address, bytes), ascending; a run never leaves its region.
    pub(super) fn ranges(&self) -> Vec<(u64, u64)> {
        let mut out = Vec::new();
        for (first, nr) in self.runs() {
            let last = first + nr;
            for r in self.ram.regions() {
                let end = r.first + ((r.end - r.start) >> PAGE_SHIFT);
                let (a, b) = (first.max(r.first), last.min(end));
                if a < b {
                    out.push((r.start + ((a - r.first) << PAGE_SHIFT), (b - a) << PAGE_SHIFT));
                }
            }
        }
        out
    }

    /// Runs of flat page numbers: (first, how many).
    fn runs(&self) -> Vec<(u64, u64)> {
        let mut out: Vec<(u64, u64)> = Vec::new();
        for (word, mut bits) in self.words_from(0) {
            while bits != 0 {
                let at = bits.trailing_zeros();
                let nr = (bits >> at).trailing_ones();
                bits &= !((u64::MAX >> (64 - nr)) << at);
                let (first, nr) = (word as u64 * 64 + u64::from(at), u64::from(nr));
                match out.last_mut() {
                    Some((before, length)) if *before + *length == first => *length += nr,
                    _ => out.push((first, nr)),
                }
            }
        }
        out
    }

    /// How many runs there are.
    fn nr_runs(&self) -> u64 {
        let (mut runs, mut before) = (0, (0, 0));
        for (word, bits) in self.words_from(0) {
            let carry = if before.0 + 1 == word { before.1 >> 63 } else { 0 };
            runs += u64::from((bits & !(bits << 1 | carry)).count_ones());
            before = (word, bits);
        }
        runs
    }

    /// Bytes of the forms: as runs, as bits, as words.
    ///
    /// Not the runs themselves, to count them: of a torn set they take many times its bits.
    fn sizes(&self) -> [u64; 3] {
        let parts = self.parts.iter().flatten();
        let nr_used: u64 = parts.map(|part| u64::from(part.used.count_ones())).sum();
        [self.nr_runs() * 16, self.nr_words() * 8, nr_used * 12]
    }

    /// About the bytes that [`save`](Self::save) takes.
    pub(super) fn saved_bytes(&self, version: u32) -> u64 {
        let [runs, bits, words] = self.sizes();
        let both = runs.min(bits);
        if version > 1 { both.min(words) } else { both }
    }

    /// In this version of the balloon's state.
    pub(super) fn save(&self, version: u32) -> SavedPages {
        let [runs, bits, words] = self.sizes();
        if version > 1 && words < runs.min(bits) {
            // Fewer than 2^25: guest RAM has less than 2^31 pages.
            SavedPages::Words(self.words_from(0).map(|(at, bits)| (at as u32, bits)).collect())
        } else if runs <= bits {
            SavedPages::Runs(self.runs())
        } else {
            let mut all = vec![0; self.nr_words() as usize];
            self.words_from(0).for_each(|(at, bits)| all[at] = bits);
            SavedPages::Bits(all)
        }
    }

    /// `None`: the set does not fit the RAM, its runs are not ascending and apart, or its words are
    /// not ascending and used.
    pub(super) fn restore(ram: Ram, saved: &SavedPages) -> Option<Self> {
        let mut set = Self::new(ram);
        match saved {
            SavedPages::Runs(runs) => set.fill_runs(runs)?,
            SavedPages::Bits(words) if words.len() as u64 == set.nr_words() => {
                for (at, &bits) in words.iter().enumerate() {
                    set.put(at, bits)?;
                }
            }
            SavedPages::Bits(_) => return None,
            SavedPages::Words(words) => {
                let ascending = words.windows(2).all(|two| two[0].0 < two[1].0);
                if !ascending || words.iter().any(|(_, bits)| *bits == 0) {
                    return None;
                }
                for &(at, bits) in words {
                    set.put(at as usize, bits)?;
                }
            }
        }
        let last = set.words_from(0).last();
        let end =
            last.map_or(0, |(at, bits)| at as u64 * 64 + 64 - u64::from(bits.leading_zeros()));
        (end <= set.ram.pages()).then_some(set)
    }

    fn fill_runs(&mut self, runs: &[(u64, u64)]) -> Option<()> {
        let (mut free_from, mut word, mut bits) = (0, 0, 0);
        for &(first, nr) in runs {
            let end = first.checked_add(nr)?;
            if nr == 0 || first < free_from || end > self.ram.pages() {
                return None;
            }
            let mut at = first;
            while at < end {
                // A torn set has many runs in a word: that is put in once.
                if at / 64 != word {
                    self.put(usize::try_from(word).ok()?, bits)?;
                    (word, bits) = (at / 64, 0);
                }
                let nr = (64 - at % 64).min(end - at);
                bits |= (u64::MAX >> (64 - nr)) << (at % 64);
                at += nr;
            }
            free_from = end + 1;
        }
        self.put(usize::try_from(word).ok()?, bits)?;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::ram::tests::{MIB, two_regions};
    use super::*;
    use crate::GuestMemory;
    use vm_memory::GuestAddress;

    #[test]
    fn set_is_exact_and_survives_saving_in_every_form() {
        let mut set = PageSet::new(two_regions());
        for gfn in [0, 1, 2, 63, 64, 255, (4 << 30) >> 12, ((4 << 30) >> 12) + 511] {
            assert_eq!(set.insert(gfn), Some(true));
            assert_eq!(set.insert(gfn), Some(false));
        }
        assert_eq!(set.insert(256), None);
        assert_eq!(set.remove(5), Some(false));
        assert_eq!(set.remove(u64::MAX), None);
        let expected = [(0, 12288), (63 << 12, 8192), (255 << 12, 4096), (4 << 30, 4096)];
        assert_eq!(set.ranges()[..4], expected);
        assert_eq!(set.count(), 8);
        let words = |set: &PageSet, from| set.words_from(from).collect::<Vec<_>>();
        assert_eq!(words(&set, 0), [(0, 7 | 1 << 63), (1, 1), (3, 1 << 63), (4, 1), (11, 1 << 63)]);
        assert_eq!(words(&set, 4), [(4, 1), (11, 1 << 63)]);
        assert_eq!((set.remove(64), set.insert(64)), (Some(true), Some(true)));
        assert_eq!(words(&set, 1)[0], (1, 1));
        set.remove(64);
        assert_eq!(words(&set, 1)[0], (3, 1 << 63));
        set.insert(64);
        let survives = |set: &PageSet, saved: &SavedPages| {
            let back = PageSet::restore(two_regions(), saved).unwrap();
            assert_eq!((back.ranges(), back.count()), (set.ranges(), set.count()));
            assert_eq!(back.parts, set.parts);
        };
        let (runs, words) = (set.save(1), set.save(2));
        assert!(matches!((&runs, &words), (SavedPages::Runs(_), SavedPages::Words(_))));
        survives(&set, &runs);
        survives(&set, &words);

        for gfn in (0..256).step_by(2) {
            set.insert(gfn);
        }
        let (bits, words) = (set.save(1), set.save(2));
        assert!(matches!((&bits, &words), (SavedPages::Bits(_), SavedPages::Words(_))));
        survives(&set, &bits);
        survives(&set, &words);

        (0..512).for_each(|page| {
            set.insert(((4 << 30) >> 12) + page);
        });
        for page in (0..512).step_by(2) {
            set.remove(((4 << 30) >> 12) + page);
        }
        let saved = set.save(2);
        assert!(matches!(saved, SavedPages::Bits(_)), "every word is torn");
        survives(&set, &saved);
    }

    #[test]
    fn what_saving_takes_is_known_before() {
        let mut set = PageSet::new(two_regions());
        assert_eq!([1, 2].map(|version| set.saved_bytes(version)), [0, 0]);
        for gfn in [62, 63, 64, 65, 200] {
            set.insert(gfn);
        }
        assert_eq!((set.saved_bytes(2), set.runs().len()), (32, 2));
        assert!(matches!(set.save(2), SavedPages::Runs(_)));
        for gfn in (0..256).step_by(2) {
            set.insert(gfn);
        }
        let SavedPages::Words(words) = set.save(2) else { panic!("other forms are longer") };
        assert_eq!((set.saved_bytes(2), words.len()), (4 * 12, 4));
        let SavedPages::Bits(bits) = set.save(1) else { panic!("0.2.0 knows no words") };
        assert_eq!(set.saved_bytes(1), bits.len() as u64 * 8);
    }

    #[test]
    fn a_torn_set_takes_what_is_torn_and_not_what_ram_there_is() {
        let saved = |ram| {
            let mem = [(GuestAddress(0), ram)];
            let mut set = PageSet::new(Ram::new(&GuestMemory::from_ranges(&mem).unwrap()));
            for gfn in (1..512).step_by(2) {
                set.insert(gfn);
            }
            let saved = set.save(2);
            let back = PageSet::restore(set.ram.clone(), &saved).unwrap();
            assert_eq!(back.parts.iter().flatten().count(), 1);
            wherry_codec::encode(&saved).unwrap().len()
        };
        assert_eq!([saved(4 * MIB), saved(256 * MIB)], [4 + 8 + 8 * 12; 2]);
    }

    #[test]
    fn hostile_sets_are_refused() {
        let runs: [&[(u64, u64)]; 6] = [
            &[(0, 0)],
            &[(768, 1)],
            &[(0, 769)],
            &[(u64::MAX, 2)],
            &[(5, 2), (3, 1)],
            &[(0, 2), (1, 4)],
        ];
        for bad in runs {
            assert!(
                PageSet::restore(two_regions(), &SavedPages::Runs(bad.to_vec())).is_none(),
                "{bad:?}"
            );
        }
        for words in [0, 11, 13] {
            assert!(PageSet::restore(two_regions(), &SavedPages::Bits(vec![0; words])).is_none());
        }
        let words: [&[(u32, u64)]; 5] =
            [&[(12, 1)], &[(u32::MAX, 1)], &[(3, 0)], &[(3, 1), (3, 2)], &[(4, 1), (3, 1)]];
        for bad in words {
            let bad = SavedPages::Words(bad.to_vec());
            assert!(PageSet::restore(two_regions(), &bad).is_none(), "{bad:?}");
        }
        let odd = Ram::new(&GuestMemory::from_ranges(&[(GuestAddress(0), 65 * 4096)]).unwrap());
        let restored = |saved| PageSet::restore(odd.clone(), &saved).is_some();
        let last = |word| [SavedPages::Bits(vec![0, word]), SavedPages::Words(vec![(1, word)])];
        assert_eq!(last(2).map(restored), [false; 2]);
        assert_eq!(last(1).map(restored), [true; 2]);
    }
}
