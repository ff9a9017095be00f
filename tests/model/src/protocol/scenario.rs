//! What is explored: sizes, the guest's memory at the start, and how much may happen.

use super::terms::{Budget, Mask};

/// See the module's text.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// For tables and the command line.
    pub name: &'static str,
    /// In one line.
    pub text: &'static str,
    /// Pages.
    pub nr_pages: u32,
    /// Pages that share a word, the unit of protection.
    pub per_word: u32,
    /// Free at the start.
    pub free: Mask,
    /// Zero at the start.
    pub zero: Mask,
    /// Never populated at the start, so zero.
    pub holes: Mask,
    /// In the balloon at the start.
    pub ballooned: Mask,
    /// What the driver hints at a time; the first two also in one chain.
    pub blocks: &'static [Mask],
    /// Blocks may share a chain.
    pub two_segments: bool,
    /// Pages that the guest writes.
    pub writable: Mask,
    /// Pages that the guest puts into the balloon, takes out, and reports.
    pub balloonable: Mask,
    /// The page with the used ring: in use, and written by the VMM for each chain.
    pub ring_page: Mask,
    /// The kernel zeroes on allocation.
    pub zeroing: bool,
    /// The guest has a balloon driver.
    pub driver: bool,
    /// The engine asks for hints.
    pub hints: bool,
    /// It begins with checked zero.
    pub checked: bool,
    /// It may switch to the protected way.
    pub probe: bool,
    /// It asks again in later rounds, if it honours hints in the protected way.
    pub later: bool,
    /// It may stop early.
    pub stop_early: bool,
    /// The migration may fail or be cancelled at any step.
    pub fail: bool,
    /// Rounds with the guest running.
    pub rounds: u32,
    /// Chains that the hint queue holds.
    pub ring: usize,
    /// What the guest may do.
    pub budget: Budget,
}

impl Scenario {
    /// All pages.
    pub fn all(&self) -> Mask {
        ((1u32 << self.nr_pages) - 1) as Mask
    }

    /// Each page.
    pub fn pages(&self) -> impl Iterator<Item = Mask> + use<> {
        (0..self.nr_pages).map(|p| 1 << p)
    }

    /// Words of pages.
    pub fn nr_words(&self) -> u32 {
        self.nr_pages.div_ceil(self.per_word)
    }

    /// The pages of a word.
    pub fn word(&self, word: u32) -> Mask {
        let ones = ((1u32 << self.per_word) - 1) << (word * self.per_word);
        ones as Mask & self.all()
    }

    /// All words.
    pub fn all_words(&self) -> u8 {
        ((1u16 << self.nr_words()) - 1) as u8
    }

    /// The pages of a set of words.
    pub fn words(&self, words: u8) -> Mask {
        (0..self.nr_words()).filter(|w| words >> w & 1 == 1).fold(0, |all, w| all | self.word(w))
    }
}

const NONE: Budget = Budget {
    writes: 0,
    frees: 0,
    hints: 0,
    balloon: 0,
    shrinks: 0,
    replays: 0,
    tiny: 0,
    bursts: 0,
};

const BASE: Scenario = Scenario {
    name: "",
    text: "",
    nr_pages: 2,
    per_word: 1,
    free: 0b01,
    zero: 0,
    holes: 0,
    ballooned: 0,
    blocks: &[0b01, 0b10],
    two_segments: false,
    writable: 0b11,
    balloonable: 0,
    ring_page: 0,
    zeroing: false,
    driver: true,
    hints: true,
    checked: false,
    probe: false,
    later: false,
    stop_early: false,
    fail: false,
    rounds: 2,
    ring: 4,
    budget: Budget { writes: 2, frees: 1, hints: 2, ..NONE },
};

/// The smallest first.
static SCENARIOS: [Scenario; 11] = [
    Scenario {
        name: "alone",
        text: "no driver, no event loop",
        driver: false,
        fail: true,
        budget: NONE,
        ..BASE
    },
    Scenario {
        name: "ring",
        text: "the used ring is in guest memory, the machine pauses with chains in the queue",
        ring_page: 0b10,
        rounds: 1,
        blocks: &[0b01],
        writable: 0b01,
        budget: Budget { writes: 1, hints: 1, bursts: 1, ..NONE },
        ..BASE
    },
    Scenario {
        name: "bursts",
        text: "checked zero, rests and new ids, a word put back and hinted again",
        per_word: 2,
        free: 0b11,
        zero: 0b01,
        blocks: &[0b11],
        checked: true,
        rounds: 1,
        writable: 0b01,
        budget: Budget { writes: 1, hints: 2, shrinks: 1, bursts: 1, ..NONE },
        ..BASE
    },
    Scenario {
        name: "probe",
        text: "checked zero, found not to zero, switch to the protected way",
        nr_pages: 3,
        free: 0b011,
        blocks: &[0b001, 0b010],
        writable: 0b011,
        checked: true,
        probe: true,
        rounds: 1,
        budget: Budget { writes: 1, hints: 2, ..NONE },
        ..BASE
    },
    Scenario {
        name: "driver",
        text: "two blocks a chain, four-byte blocks, replayed ids, bursts",
        nr_pages: 3,
        free: 0b011,
        zero: 0b001,
        two_segments: true,
        blocks: &[0b001, 0b010],
        rounds: 1,
        writable: 0,
        budget: Budget { hints: 2, replays: 1, tiny: 1, bursts: 1, ..NONE },
        ..BASE
    },
    Scenario {
        name: "holes",
        text: "holes and balloon skipped, reports, no hints",
        nr_pages: 3,
        free: 0b001,
        holes: 0b001,
        ballooned: 0b010,
        writable: 0b011,
        balloonable: 0b011,
        hints: false,
        budget: Budget { writes: 2, frees: 1, balloon: 2, ..NONE },
        ..BASE
    },
    Scenario {
        name: "checked",
        text: "checked zero, two words of two pages, guest that zeroes",
        nr_pages: 4,
        per_word: 2,
        free: 0b0011,
        blocks: &[0b0011, 0b0001],
        writable: 0b0111,
        zeroing: true,
        checked: true,
        budget: Budget { writes: 2, hints: 1, ..NONE },
        ..BASE
    },
    Scenario { name: "protected", text: "protected way, guest that does not zero", ..BASE },
    Scenario {
        name: "balloon",
        text: "balloon and holes while hints arrive",
        nr_pages: 2,
        ballooned: 0b10,
        holes: 0b10,
        balloonable: 0b11,
        blocks: &[0b01],
        budget: Budget { writes: 1, hints: 1, balloon: 2, ..NONE },
        ..BASE
    },
    Scenario {
        name: "later",
        text: "protected way, hints in each of three rounds",
        later: true,
        rounds: 3,
        writable: 0b01,
        blocks: &[0b01],
        budget: Budget { writes: 2, hints: 2, frees: 1, ..NONE },
        ..BASE
    },
    Scenario {
        name: "fail",
        text: "failure or cancelling at every step",
        fail: true,
        later: true,
        stop_early: true,
        checked: true,
        probe: true,
        zero: 0b01,
        blocks: &[0b01],
        writable: 0b01,
        budget: Budget { writes: 1, hints: 1, bursts: 1, ..NONE },
        ..BASE
    },
];

/// Small enough to be explored completely.
pub fn scenarios() -> &'static [Scenario] {
    &SCENARIOS
}

/// Word 0 in use, words 1 and 2 free, word 3 with a hole, a ballooned page and the ring.
const LARGE: Scenario = Scenario {
    nr_pages: 12,
    per_word: 3,
    free: 0b0001_1111_1000,
    zero: 0b0000_1100_1001,
    holes: 0b0010_0000_0000,
    ballooned: 0b0100_0000_0000,
    blocks: &[0b11_1000, 0b1_1100_0000, 0b1_1111_1000, 0b111, 0b1000, 0b1_0000],
    two_segments: true,
    writable: 0b0111_1111_1111,
    balloonable: 0b0111_1100_0000,
    ring_page: 0b1000_0000_0000,
    later: true,
    stop_early: true,
    fail: true,
    rounds: 4,
    ring: 8,
    budget: Budget {
        writes: 40,
        frees: 30,
        hints: 30,
        balloon: 10,
        shrinks: 10,
        replays: 5,
        tiny: 5,
        bursts: 10,
    },
    ..BASE
};

static WALKS: [Scenario; 4] = [
    Scenario {
        name: "large-protected",
        text: "12 pages, everything may happen, protected way",
        ..LARGE
    },
    Scenario {
        name: "large-checked",
        text: "the same, checked zero, guest that does not zero, no probe",
        checked: true,
        ..LARGE
    },
    Scenario {
        name: "large-probe",
        text: "the same, probe and switch",
        checked: true,
        probe: true,
        ..LARGE
    },
    Scenario {
        name: "large-zeroing",
        text: "the same, guest that zeroes",
        zeroing: true,
        checked: true,
        probe: true,
        ..LARGE
    },
];

/// A scenario in which the guest may do one thing more of each kind that it may do.
pub fn deeper(s: &Scenario) -> &'static Scenario {
    let more = |n: u8| if n > 0 { n + 1 } else { 0 };
    let b = s.budget;
    let budget = Budget {
        writes: more(b.writes),
        frees: more(b.frees),
        hints: more(b.hints),
        balloon: more(b.balloon),
        shrinks: more(b.shrinks),
        bursts: more(b.bursts),
        ..b
    };
    Box::leak(Box::new(Scenario { budget, ..*s }))
}

/// By its name, of both kinds.
pub fn named(name: &str) -> Option<&'static Scenario> {
    SCENARIOS.iter().chain(&WALKS).find(|s| s.name == name)
}

/// Too large for that.
pub fn walks() -> &'static [Scenario] {
    &WALKS
}
