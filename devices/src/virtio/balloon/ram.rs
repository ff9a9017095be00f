//! Which guest addresses are RAM, and a set of RAM pages.

use serde::{Deserialize, Serialize};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use super::constants::{PAGE_SHIFT, PAGE_SIZE};
use crate::GuestMemory;

/// One region: whole pages, numbered from `first` on in the flat numbering of all RAM.
#[derive(Debug, Clone, Copy)]
struct Region {
    start: u64,
    end: u64,
    first: u64,
}

/// Layout of guest RAM. Pages are numbered one region after another, without gaps.
#[derive(Debug, Clone, Default)]
pub(super) struct Ram {
    regions: Vec<Region>,
    pages: u64,
}

impl Ram {
    pub(super) fn new(mem: &GuestMemory) -> Self {
        let mut ram = Self::default();
        for region in mem.iter() {
            let start = region.start_addr().raw_value();
            let (start, end) = whole_pages(start, start.saturating_add(region.len()));
            if start < end {
                ram.regions.push(Region { start, end, first: ram.pages });
                ram.pages += (end - start) >> PAGE_SHIFT;
            }
        }
        ram
    }

    /// Pages of RAM.
    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    /// The whole pages of RAM that lie entirely in `gpa..gpa + len`, as (address, bytes), at most
    /// one part a region.
    pub(super) fn clip(&self, gpa: u64, len: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let end = gpa.saturating_add(len);
        self.regions.iter().filter_map(move |r| {
            let (start, end) = whole_pages(gpa.max(r.start), end.min(r.end));
            (start < end).then(|| (start, end - start))
        })
    }

    /// As [`clip`](Self::clip), but only within the region that has `gpa`; `None` if nothing is
    /// left.
    pub(super) fn clip_to_region(&self, gpa: u64, len: u64) -> Option<(u64, u64)> {
        let region = self.regions.iter().find(|r| r.start <= gpa && gpa < r.end)?;
        self.clip(gpa, len.min(region.end - gpa)).next()
    }

    /// Flat number of the page with this guest frame number.
    fn index(&self, gfn: u64) -> Option<u64> {
        let gpa = gfn.checked_mul(PAGE_SIZE)?;
        let region = self.regions.iter().find(|r| r.start <= gpa && gpa < r.end)?;
        Some(region.first + ((gpa - region.start) >> PAGE_SHIFT))
    }
}

/// Most bytes that are dealt with between two looks at the time: as much as Linux hints or reports
/// in one range.
const PIECE: u64 = 4 << 20;

/// Cuts a range at multiples of [`PIECE`].
pub(super) fn pieces((gpa, len): (u64, u64)) -> impl Iterator<Item = (u64, u64)> {
    let end = gpa + len;
    let cut = move |at: &u64| at - at % PIECE + PIECE;
    let starts = std::iter::successors(Some(gpa), move |at| Some(cut(at)));
    starts.take_while(move |at| *at < end).map(move |at| (at, cut(&at).min(end) - at))
}

/// Shrinks to page boundaries. May return an empty or inverted range.
fn whole_pages(start: u64, end: u64) -> (u64, u64) {
    (start.checked_next_multiple_of(PAGE_SIZE).unwrap_or(u64::MAX), end & !(PAGE_SIZE - 1))
}

/// An exact set of RAM pages: one bit a page, whatever the guest does.
///
/// Where a word has bits its bit in `used` is set, and nowhere else. So what is done to the set
/// costs by the words that have bits, and by one word of `used` for each 16 MiB of RAM.
#[derive(Debug, Clone)]
pub(super) struct PageSet {
    ram: Ram,
    words: Vec<u64>,
    used: Vec<u64>,
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
        let nr = usize::try_from(ram.pages.div_ceil(64)).unwrap_or(usize::MAX);
        Self { ram, words: vec![0; nr], used: vec![0; nr.div_ceil(64)], count: 0 }
    }

    /// An empty one for the same memory.
    pub(super) fn another(&self) -> Self {
        Self::new(self.ram.clone())
    }

    /// Pages in the set.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn clear(&mut self) {
        for (at, used) in self.used.iter_mut().enumerate() {
            for bit in ones(std::mem::take(used)) {
                self.words[at * 64 + bit] = 0;
            }
        }
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
        let word = self.words.get_mut(at)?;
        let was = *word & bit != 0;
        *word &= !bit;
        if *word == 0 {
            *self.used.get_mut(at / 64)? &= !(1 << (at % 64));
        }
        self.count -= u64::from(was);
        Some(was)
    }

    /// Sets these bits of a word. `None`: it has none of them. Otherwise how many were new.
    pub(super) fn put(&mut self, at: usize, bits: u64) -> Option<u64> {
        if bits == 0 {
            return Some(0);
        }
        let word = self.words.get_mut(at)?;
        let new = u64::from((bits & !*word).count_ones());
        *word |= bits;
        *self.used.get_mut(at / 64)? |= 1 << (at % 64);
        self.count += new;
        Some(new)
    }

    /// The words from number `from` on that have bits, ascending: (number, bits).
    pub(super) fn words_from(&self, from: usize) -> impl Iterator<Item = (usize, u64)> + '_ {
        let used = self.used.iter().enumerate().skip(from / 64);
        let words = used.flat_map(|(at, used)| ones(*used).map(move |bit| at * 64 + bit));
        words.skip_while(move |word| *word < from).map(|word| (word, self.words[word]))
    }

    /// The set as (guest address, bytes), ascending; a run never leaves its region.
    pub(super) fn ranges(&self) -> Vec<(u64, u64)> {
        let mut out = Vec::new();
        for (first, nr) in self.runs() {
            let last = first + nr;
            for r in &self.ram.regions {
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
        let nr_used: u64 = self.used.iter().map(|used| u64::from(used.count_ones())).sum();
        [self.nr_runs() * 16, self.words.len() as u64 * 8, nr_used * 12]
    }

    /// About the bytes that [`save`](Self::save) takes in the newest version.
    pub(super) fn saved_bytes(&self) -> u64 {
        self.sizes().into_iter().min().unwrap_or(0)
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
            SavedPages::Bits(self.words.clone())
        }
    }

    /// `None`: the set does not fit the RAM, or its runs are not ascending and apart.
    pub(super) fn restore(ram: Ram, saved: &SavedPages) -> Option<Self> {
        let mut set = Self::new(ram);
        match saved {
            SavedPages::Runs(runs) => set.fill_runs(runs)?,
            SavedPages::Bits(words) if words.len() == set.words.len() => {
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
        let spare = set.words.len() as u64 * 64 - set.ram.pages;
        let beyond = set.words.last().is_some_and(|w| u64::from(w.leading_zeros()) < spare);
        (!beyond).then_some(set)
    }

    fn fill_runs(&mut self, runs: &[(u64, u64)]) -> Option<()> {
        let (mut free_from, mut word, mut bits) = (0, 0, 0);
        for &(first, nr) in runs {
            let end = first.checked_add(nr)?;
            if nr == 0 || first < free_from || end > self.ram.pages {
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
    use super::*;
    use vm_memory::GuestAddress;

    const MIB: usize = 1 << 20;

    fn two_regions() -> Ram {
        let mem =
            GuestMemory::from_ranges(&[(GuestAddress(0), MIB), (GuestAddress(4 << 30), 2 * MIB)])
                .unwrap();
        Ram::new(&mem)
    }

    #[test]
    fn clip_shrinks_inward_and_spans_the_hole() {
        let ram = two_regions();
        let clip = |gpa, len| ram.clip(gpa, len).collect::<Vec<_>>();
        assert_eq!(clip(1, 4096 * 3), vec![(4096, 8192)]);
        assert_eq!(clip(1, 4096), vec![]);
        assert_eq!(clip(0, u64::MAX), vec![(0, MIB as u64), (4 << 30, 2 * MIB as u64)]);
        assert_eq!(
            clip(MIB as u64 - 4096, 1 << 33),
            vec![(MIB as u64 - 4096, 4096), (4 << 30, 2 * MIB as u64)]
        );
        assert_eq!(clip(u64::MAX, u64::MAX), vec![]);
        assert_eq!(clip(2 << 30, 4096), vec![]);
    }

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
            assert_eq!(back.used, set.used);
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
        assert_eq!(set.saved_bytes(), 0);
        for gfn in [62, 63, 64, 65, 200] {
            set.insert(gfn);
        }
        assert_eq!((set.saved_bytes(), set.runs().len()), (32, 2));
        assert!(matches!(set.save(2), SavedPages::Runs(_)));
        for gfn in (0..256).step_by(2) {
            set.insert(gfn);
        }
        let SavedPages::Words(words) = set.save(2) else { panic!("other forms are longer") };
        assert_eq!((set.saved_bytes(), words.len()), (4 * 12, 4));
        assert!(matches!(set.save(1), SavedPages::Bits(_)), "the former release knows no words");
    }

    #[test]
    fn a_torn_set_takes_what_is_torn_and_not_what_ram_there_is() {
        let saved = |ram| {
            let mem = [(GuestAddress(0), ram)];
            let mut set = PageSet::new(Ram::new(&GuestMemory::from_ranges(&mem).unwrap()));
            for gfn in (1..512).step_by(2) {
                set.insert(gfn);
            }
            wherry_codec::encode(&set.save(2)).unwrap().len()
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
