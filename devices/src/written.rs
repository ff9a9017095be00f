//! Which pages of guest memory the VMM has written.
//!
//! One bit a page, as in vm-memory's own bitmap, and above it one bit for each word of 64 pages.
//! So taking all bits costs by what was written, and hardly by memory: where nothing was, one look
//! covers 16 MiB.
//!
//! # Invariant
//! Where a page's bit is set the bit above it is set, or whoever set the first is about to set the
//! second.
//!
//! *Why no mark is lost:* a page is written, then its bit is set, then the bit above. Who takes
//! marks takes the bit above first and the page's after it. A mark whose bit above comes too late
//! is there the next time. All is sequentially consistent: a bit above that a writer finds set is
//! taken after its page's.

use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

use vm_memory::bitmap::{Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

/// Bytes of a page.
const PAGE: usize = 4096;

/// See the module's text. Offsets are in bytes from the start of the region that it belongs to.
#[derive(Debug, Default)]
pub struct Written {
    nr_pages: usize,
    pages: Vec<AtomicU64>,
    words: Vec<AtomicU64>,
}

impl Written {
    /// Takes all marks, word by word, ascending: `f(word, pages)`, page *n* at bit `n % 64` of word
    /// `n / 64`.
    pub fn take(&self, mut f: impl FnMut(usize, u64)) {
        self.scan(|bits| bits.swap(0, SeqCst), &mut f);
    }

    /// The same, and they stay.
    pub fn look(&self, mut f: impl FnMut(usize, u64)) {
        self.scan(|bits| bits.load(SeqCst), &mut f);
    }

    /// Forgets all marks.
    pub fn reset(&self) {
        self.take(|_, _| {});
    }

    fn scan(&self, get: impl Fn(&AtomicU64) -> u64, f: &mut dyn FnMut(usize, u64)) {
        for (at, above) in self.words.iter().enumerate() {
            if above.load(SeqCst) == 0 {
                continue;
            }
            let mut words = get(above);
            while words != 0 {
                let word = at * 64 + words.trailing_zeros() as usize;
                words &= words - 1;
                let pages = self.pages.get(word).map_or(0, &get);
                if pages != 0 {
                    f(word, pages);
                }
            }
        }
    }

    /// The pages that these bytes touch; past the end there are none.
    fn touched(&self, offset: usize, len: usize) -> Range<usize> {
        let end = offset.saturating_add(len).div_ceil(PAGE).min(self.nr_pages);
        if len == 0 { 0..0 } else { (offset / PAGE).min(end)..end }
    }
}

/// Sets these bits.
fn set(map: &[AtomicU64], bits: Range<usize>, mut each: impl FnMut(&AtomicU64, u64)) {
    let mut at = bits.start;
    while at < bits.end {
        let end = bits.end.min((at / 64 + 1) * 64);
        let mask = (u64::MAX >> (64 - (end - at))) << (at % 64);
        if let Some(word) = map.get(at / 64) {
            each(word, mask);
        }
        at = end;
    }
}

impl Bitmap for Written {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let pages = self.touched(offset, len);
        // Always a full barrier: what was written is there before the mark.
        set(&self.pages, pages.clone(), |word, mask| {
            word.fetch_or(mask, SeqCst);
        });
        set(&self.words, pages.start / 64..pages.end.div_ceil(64), |word, mask| {
            if word.load(SeqCst) & mask != mask {
                word.fetch_or(mask, SeqCst);
            }
        });
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let word = self.pages.get(offset / PAGE / 64);
        word.is_some_and(|word| word.load(SeqCst) >> (offset / PAGE % 64) & 1 == 1)
    }

    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

impl<'a> WithBitmapSlice<'a> for Written {
    type S = RefSlice<'a, Self>;
}

impl NewBitmap for Written {
    fn with_len(len: usize) -> Self {
        let nr_pages = len.div_ceil(PAGE);
        // In place: of zeroes that nobody writes the host need not have any.
        let map =
            |bits: usize| vec![0; bits.div_ceil(64)].into_iter().map(AtomicU64::new).collect();
        Self { nr_pages, pages: map(nr_pages), words: map(nr_pages.div_ceil(64)) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn pages(each: impl FnOnce(&mut dyn FnMut(usize, u64))) -> Vec<usize> {
        let mut found = vec![];
        each(&mut |word, bits| {
            found.extend((0..64).filter(|bit| bits >> bit & 1 == 1).map(|bit| word * 64 + bit));
        });
        found
    }

    #[test]
    fn marks_are_of_whole_pages_and_are_taken_once() {
        const PAGES: usize = 64 * 64 * 3 + 70;
        let map = Written::with_len(PAGES * PAGE - 100);
        let ranges = [
            (0, 0),
            (PAGE - 1, 1),
            (5 * PAGE, PAGE),
            (63 * PAGE + 7, 2 * PAGE),
            (64 * 64 * PAGE - 1, 2),
            (64 * 130 * PAGE, 64 * 200 * PAGE),
            (PAGES * PAGE, PAGE),
            (usize::MAX, usize::MAX),
        ];
        let mut expected = BTreeSet::new();
        for (offset, len) in ranges {
            map.slice_at(offset).mark_dirty(0, len);
            let touched = |page: &usize| len > 0 && page * PAGE < offset.saturating_add(len);
            expected.extend((offset / PAGE..PAGES).take_while(touched));
        }
        let expected: Vec<_> = expected.into_iter().collect();
        assert_eq!(pages(|f| map.look(f)), expected);
        assert!((0..PAGES + 70).all(|page| {
            map.dirty_at(page * PAGE + 9) == expected.binary_search(&page).is_ok()
        }));
        assert_eq!(pages(|f| map.take(f)), expected);
        assert!(pages(|f| map.take(f)).is_empty());
        map.mark_dirty(9 * PAGE, 1);
        assert_eq!(pages(|f| map.look(f)), [9], "a mark after a harvest");
        map.reset();
        assert!(pages(|f| map.look(f)).is_empty());
    }

    #[test]
    fn what_is_marked_while_marks_are_taken_is_there_the_next_time() {
        let map = Written::with_len(64 * 64 * PAGE);
        map.mark_dirty(0, 1);
        map.mark_dirty(64 * PAGE, 1);
        let mut taken = vec![];
        map.take(|word, pages| {
            taken.push((word, pages));
            // Of a word that was just taken.
            map.mark_dirty(2 * PAGE, 1);
        });
        assert_eq!(taken, [(0, 1), (1, 1)]);
        assert_eq!(pages(|f| map.take(f)), [2]);
    }
}
