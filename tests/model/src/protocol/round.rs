//! The product's `Plan` and `Round`, as values.
//!
//! A word of the model has two or three pages, one of the product 64. Page *p* of the model is bit
//! `p % per_word` of the product's word `p / per_word`; the product's other pages are never dirty,
//! and count as clean.

use wherry_migration::bitmap::Bitmap;
use wherry_migration::round::{self, LeftOut, Plan, Round};

use super::scenario::Scenario;
use super::terms::Mask;

/// See the module's text.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct RoundState {
    /// From 1; 0 before the first.
    pub number: u32,
    /// Still to be sent.
    pub to_send: Mask,
    sent_map: Mask,
    hinted_map: Mask,
    clean: u16,
    hole: u8,
    ballooned: u8,
    sent: u8,
    zero: u8,
    hinted: u8,
}

/// The product's words and masks of some pages.
pub(super) type Bits<'a> = &'a dyn Fn(Mask) -> Vec<(usize, u64)>;

fn nr_pages(s: &Scenario) -> u64 {
    u64::from(s.nr_words()) * 64
}

fn spread(s: &Scenario, pages: Mask) -> Bitmap {
    let mut map = Bitmap::new(nr_pages(s));
    for (word, mask) in bits(s, pages) {
        map.or_word(word, mask);
    }
    map
}

/// With all pages that the model does not have.
fn spread_and_rest(s: &Scenario, pages: Mask) -> Bitmap {
    let mut map = Bitmap::full(nr_pages(s));
    map.and_not(&spread(s, s.all() & !pages));
    map
}

fn word_map(s: &Scenario, words: u8) -> Bitmap {
    let mut map = Bitmap::new(s.nr_words().into());
    (0..s.nr_words()).filter(|w| words >> w & 1 == 1).for_each(|w| map.set(w.into()));
    map
}

/// The words that are not wholly populated, by the product.
pub(super) fn words_with_a_hole(s: &Scenario, populated: Mask) -> u8 {
    let found = round::words_with_a_hole(&spread_and_rest(s, populated));
    (0..s.nr_words()).filter(|w| found.test((*w).into())).fold(0, |all, w| all | 1 << w)
}

fn gather(s: &Scenario, map: &Bitmap) -> Mask {
    let words = map.words().iter().zip(0..);
    words.fold(0, |all, (word, n): (&u64, u32)| all | (*word as Mask) << (n * s.per_word))
}

fn bits(s: &Scenario, pages: Mask) -> Vec<(usize, u64)> {
    let words =
        (0..s.nr_words()).map(|w| (w as usize, u64::from((pages & s.word(w)) >> (w * s.per_word))));
    words.filter(|(_, mask)| *mask != 0).collect()
}

impl RoundState {
    /// Round one. `protected`: these words.
    pub(super) fn of_all(s: &Scenario, populated: Mask, ballooned: Mask, protected: u8) -> Self {
        let (populated, ballooned) = (spread_and_rest(s, populated), spread(s, ballooned));
        let mut plan = Plan::of_all(&populated, ballooned, &word_map(s, protected));
        plan.to_send.and(&spread(s, s.all()));
        Self::begin(s, 1, &plan)
    }

    /// A later round.
    pub(super) fn of_dirty(s: &Scenario, number: u32, dirty: Mask, ballooned: Mask) -> Self {
        let plan = Plan::of_dirty(spread(s, dirty), spread(s, ballooned));
        Self::begin(s, number, &plan)
    }

    fn begin(s: &Scenario, number: u32, plan: &Plan) -> Self {
        Self::of(s, &Round::new(number, nr_pages(s), plan))
    }

    fn of(s: &Scenario, round: &Round) -> Self {
        let LeftOut { hole, ballooned, clean } = round.left_out();
        Self {
            number: round.number,
            to_send: gather(s, &round.to_send()),
            sent_map: gather(s, &round.sent_pages()),
            hinted_map: gather(s, &round.hinted_pages()),
            clean: clean as u16,
            hole: hole as u8,
            ballooned: ballooned as u8,
            sent: round.sent() as u8,
            zero: round.zero() as u8,
            hinted: round.hinted() as u8,
        }
    }

    /// A round that got here: planned for as many pages, all of them taken, and each dealt with as
    /// these were. Which pages they were at first makes no difference any more.
    fn round(&self, s: &Scenario) -> Round {
        let mut at = 0;
        let mut some = |nr: u64| {
            let mut pages = Bitmap::new(nr_pages(s));
            pages.set_range(at, nr);
            at += nr;
            pages
        };
        let (hole, ballooned) = (self.hole.into(), self.ballooned.into());
        let others = u64::from(self.clean) + hole + ballooned;
        let plan = Plan {
            to_send: some(nr_pages(s).saturating_sub(others)),
            hole: some(hole),
            ballooned: some(ballooned),
        };
        let round = Round::new(self.number, nr_pages(s), &plan);
        for word in 0..round.nr_words() {
            round.claim(word);
        }
        for (word, mask) in bits(s, self.to_send) {
            round.put_back(word, mask);
        }
        for (word, mask) in bits(s, self.sent_map) {
            round.mark_sent(word, mask);
        }
        for (word, mask) in bits(s, self.hinted_map) {
            round.mark_hinted(word, mask);
        }
        round.mark_zero(self.zero.into());
        assert_eq!((round.sent(), round.hinted()), (self.sent.into(), self.hinted.into()));
        round
    }

    /// Does something with the product's round.
    pub(super) fn with<T>(&mut self, s: &Scenario, f: impl FnOnce(&Round, Bits<'_>) -> T) -> T {
        let round = self.round(s);
        let out = f(&round, &|pages| bits(s, pages));
        *self = Self::of(s, &round);
        out
    }

    /// Takes a word's pages.
    pub(super) fn claim(&mut self, s: &Scenario, word: u32) -> Mask {
        self.with(s, |round, _| (round.claim(word as usize) as Mask) << (word * s.per_word))
    }

    /// Whether a hint was honoured.
    pub(super) fn any_hinted(&self) -> bool {
        self.hinted_map != 0
    }

    /// Whether the product's accounting adds up.
    pub(super) fn accounts(&self, s: &Scenario) -> bool {
        self.round(s).account().is_ok()
    }
}
