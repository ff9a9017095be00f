//! What a soak does, drawn from a seed: the guests that take part, and each migration.

/// Migrations of one guest; then comes the next guest.
pub const LEG: u64 = 25;

/// A kind of guest.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// For the table.
    pub name: &'static str,
    /// As [`wherry_tests::Scratch::env`] takes it.
    pub kernel: &'static str,
    /// For its kernel command line.
    pub append: &'static str,
    /// vCPUs.
    pub cpus: u32,
}

/// They take turns.
const KINDS: [Kind; 6] = [
    Kind { name: "cloud 6.1", kernel: "CLOUD_6_1", append: "", cpus: 1 },
    Kind { name: "cloud 6.12", kernel: "CLOUD_6_12", append: "", cpus: 1 },
    Kind {
        name: "cloud 6.1, init_on_alloc=0",
        kernel: "CLOUD_6_1",
        append: "init_on_alloc=0",
        cpus: 1,
    },
    Kind {
        name: "cloud 6.12, init_on_alloc=0",
        kernel: "CLOUD_6_12",
        append: "init_on_alloc=0",
        cpus: 2,
    },
    Kind { name: "generic 6.1", kernel: "GENERIC_6_1", append: "", cpus: 1 },
    Kind { name: "generic 6.12", kernel: "GENERIC_6_12", append: "", cpus: 1 },
];

/// The guest of a leg.
pub fn kind(seed: u64, leg: u64) -> Kind {
    KINDS[(seed.wrapping_add(leg) % KINDS.len() as u64) as usize]
}

/// Random numbers (splitmix64).
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// Those of a leg.
    pub fn new(seed: u64, leg: u64) -> Self {
        Self(seed.wrapping_mul(0x1_0001).wrapping_add(leg))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn within(&mut self, from: u64, to: u64) -> u64 {
        from + self.next() % (to - from)
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[(self.next() % of.len() as u64) as usize]
    }
}

/// One migration.
#[derive(Debug, Clone)]
pub struct Hop {
    /// The balloon's target before it, in MiB.
    pub target_mib: u64,
    /// Migrates while the balloon is on its way there, not when it is at rest.
    pub moving: bool,
    /// `--hints`
    pub hints: &'static str,
    /// `--bandwidth`
    pub bandwidth: Option<&'static str>,
    /// `--compression`
    pub compression: &'static str,
    /// `--streams`
    pub streams: &'static str,
    /// `--max-rounds`
    pub max_rounds: &'static str,
    /// Cancels it so many milliseconds after its start.
    pub cancel_ms: Option<u64>,
}

impl Hop {
    /// The `nth` of a leg.
    pub fn draw(dice: &mut Dice, nth: u64) -> Self {
        let cancel = dice.within(0, 6) == 0;
        Self {
            target_mib: dice.within(8, 96),
            moving: dice.within(0, 3) == 0,
            hints: ["on", "auto", "off"][(nth % 3) as usize],
            // The slow ones have several rounds; without a limit everything is over before the
            // guest gets far.
            bandwidth: if cancel {
                Some("400Mbit")
            } else {
                dice.pick(&[None, Some("2Gbit"), Some("1Gbit"), Some("600Mbit")])
            },
            compression: dice.pick(&["none", "none", "lz4"]),
            streams: dice.pick(&["1", "1", "2", "4"]),
            max_rounds: dice.pick(&["2", "3", "4", "6"]),
            cancel_ms: cancel.then(|| dice.within(20, 1500)),
        }
    }

    /// Its arguments.
    pub fn args(&self) -> Vec<&'static str> {
        let mut args = vec!["--verify", "--hints", self.hints, "--max-rounds", self.max_rounds];
        args.extend(["--compression", self.compression, "--streams", self.streams]);
        args.extend(self.bandwidth.iter().flat_map(|rate| ["--bandwidth", rate]));
        args
    }
}
