//! The product's `Round`, as a value.
//!
//! A word of the model has two or three pages, one of the product 64. Page *p* of the model is bit
//! `p % per_word` of the product's word `p / per_word`; the product's other pages are never dirty,
//! and count as clean.

use super::{Mask, Scenario};
use crate::product::engine::bitmap::Bitmap;
use crate::product::engine::round::{Plan, Round, RoundProbe};

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
        map.words_mut()[word] = mask;
    }
    map
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
    /// The product's round over a plan.
    pub(super) fn plan(
        s: &Scenario,
        number: u32,
        to_send: Mask,
        hole: Mask,
        ballooned: Mask,
    ) -> Self {
        let plan = Plan {
            to_send: spread(s, to_send),
            ballooned: spread(s, ballooned),
            hole: spread(s, hole),
        };
        Self::of(s, &Round::new(number, nr_pages(s), &plan))
    }

    fn of(s: &Scenario, round: &Round) -> Self {
        let p = round.probe();
        Self {
            number: p.number,
            to_send: gather(s, &p.to_send),
            sent_map: gather(s, &p.sent_map),
            hinted_map: gather(s, &p.hinted_map),
            clean: p.clean as u16,
            hole: p.hole as u8,
            ballooned: p.ballooned as u8,
            sent: p.sent as u8,
            zero: p.zero as u8,
            hinted: p.hinted as u8,
        }
    }

    fn round(&self, s: &Scenario) -> Round {
        let probe = RoundProbe {
            number: self.number,
            ballooned: self.ballooned.into(),
            hole: self.hole.into(),
            to_send: spread(s, self.to_send),
            sent_map: spread(s, self.sent_map),
            hinted_map: spread(s, self.hinted_map),
            clean: self.clean.into(),
            sent: self.sent.into(),
            zero: self.zero.into(),
            hinted: self.hinted.into(),
        };
        Round::from_probe(nr_pages(s), probe)
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
