//! What a soak has seen, added up, and its table.

use serde_json::Value;
use wherry_tests::{Balloon, Fields, Result, note};

const MIB: u64 = 1 << 20;

/// Rows of the table, in this order.
const ROWS: [&str; 24] = [
    MOVED,
    CANCELLED,
    "rounds",
    "MiB on the wire",
    "pages sent",
    "pages skipped for hints",
    "  of these written since",
    "pages skipped in the balloon",
    "pages skipped as holes (reported, or never used)",
    "pages verified equal",
    "pages verified free and unwritten",
    WRONG,
    "MiB reported by the guest",
    "times the guest compacted its memory",
    BALLOON_MOVES,
    "times the memory hog came",
    "  MiB that it took and checked",
    "  times it did not get its memory",
    "  wrong",
    "processes killed for want of memory",
    "pages checked by the guest",
    "  wrong",
    RESTS,
    "seconds",
];

/// Migrations that moved the guest.
pub const MOVED: &str = "migrations";
/// Migrations that were cancelled.
pub const CANCELLED: &str = "cancelled migrations";
/// Pages that `--verify` found wrong.
pub const WRONG: &str = "pages verified wrong";
/// Ballooned pages that the guest's compaction moved.
pub const BALLOON_MOVES: &str = "ballooned pages moved by compaction";
/// How often the host's set and the guest's figures were compared at rest.
pub const RESTS: &str = "balloon's set compared at rest";

/// Figures of a leg, or of all.
#[derive(Debug, Default, Clone)]
pub struct Tally([u64; ROWS.len()]);

fn sum(report: &Value, class: &str) -> u64 {
    report["rounds"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|round| round[class].as_u64())
        .sum()
}

impl Tally {
    /// A figure by the name of its row.
    pub fn get(&self, row: &str) -> u64 {
        ROWS.iter()
            .zip(self.0)
            .find_map(|(name, figure)| (*name == row).then_some(figure))
            .unwrap_or(0)
    }

    /// Adds to the rows from `first` on.
    fn add_from(&mut self, first: &str, figures: &[u64]) {
        let rows = ROWS.iter().zip(&mut self.0).skip_while(|(name, _)| **name != first);
        rows.zip(figures).for_each(|((_, sum), figure)| *sum += figure);
    }

    /// Adds one to a row.
    pub fn count(&mut self, row: &str) {
        self.add_from(row, &[1]);
    }

    /// Counts a migration that moved the guest.
    pub fn migrated(&mut self, report: &Value) {
        let rounds = report["rounds"].as_array().map_or(0, |rounds| rounds.len() as u64);
        let verified = |class: &str| report["verify"][class].as_u64().unwrap_or(0);
        self.count(MOVED);
        self.add_from("rounds", &[rounds, report["total_bytes"].as_u64().unwrap_or(0) / MIB]);
        let classes =
            ["sent", "hinted", "overridden", "ballooned", "hole"].map(|class| sum(report, class));
        self.add_from("pages sent", &classes);
        self.add_from("pages verified equal", &["equal", "free", "wrong"].map(verified));
    }

    /// Counts what a VMM has seen of its guest before the guest leaves it.
    pub fn leaves(&mut self, balloon: &Balloon) -> Result<()> {
        self.add_from("MiB reported by the guest", &[balloon.counter("reported_bytes")? / MIB]);
        Ok(())
    }

    /// Counts what a guest says in the end, having said `before` at first.
    pub fn guest(&mut self, before: &Fields, now: &Fields, seconds: u64) -> Result<()> {
        let keys = [
            "compactions",
            "balloon_migrate",
            "surges",
            "surged_mib",
            "surge_failed",
            "surge_bad",
            "oom_kill",
            "checked",
            "bad",
        ];
        let mut figures = Vec::new();
        for key in keys {
            figures.push(now.num(key)? - before.num(key)?);
        }
        self.add_from("times the guest compacted its memory", &figures);
        self.add_from("seconds", &[seconds]);
        Ok(())
    }

    /// Adds another.
    pub fn add(&mut self, other: &Self) {
        self.add_from(ROWS[0], &other.0);
    }
}

/// Prints the figures of all legs side by side, and their sum.
pub fn print(legs: &[(&str, Tally)]) {
    let mut total = Tally::default();
    legs.iter().for_each(|(_, leg)| total.add(leg));
    let all: Vec<&Tally> = legs.iter().map(|(_, leg)| leg).chain([&total]).collect();
    for (nth, (name, _)) in legs.iter().enumerate() {
        note(&format!("leg {}: {name}", nth + 1));
    }
    let heads = (1..=legs.len()).map(|nth| format!("leg {nth}")).chain(["all".into()]);
    note(&format!("{:52}{}", "", heads.map(|head| format!("{head:>11}")).collect::<String>()));
    for (row, name) in ROWS.iter().enumerate() {
        let figures = all.iter().map(|tally| format!("{:>11}", tally.0[row])).collect::<String>();
        note(&format!("{name:52}{figures}"));
    }
}
