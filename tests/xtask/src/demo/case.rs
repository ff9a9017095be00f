//! The demo's migrations, and what is measured of each.

use serde::{Deserialize, Serialize};

/// One migration.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub key: &'static str,
    pub title: &'static str,
    pub append: &'static str,
    pub busy: bool,
    pub hints: &'static str,
}

pub const IDLE: Case =
    Case { key: "idle", title: "idle guest", append: "", busy: false, hints: "auto" };
pub const OFF: Case = Case {
    key: "hints_off",
    title: "700 MiB written and freed, hints off",
    append: "",
    busy: true,
    hints: "off",
};
pub const ON: Case = Case { key: "hints_on", title: "the same, hints on", hints: "on", ..OFF };
pub const OFF_PLAIN: Case = Case {
    key: "hints_off_init_on_alloc_0",
    title: "init_on_alloc=0, hints off",
    append: "init_on_alloc=0",
    ..OFF
};
pub const ON_PLAIN: Case = Case {
    key: "hints_on_init_on_alloc_0",
    title: "init_on_alloc=0, hints on",
    hints: "on",
    ..OFF_PLAIN
};
pub const CASES: [Case; 5] = [IDLE, OFF, ON, OFF_PLAIN, ON_PLAIN];
/// What `--json` holds; the fifth case is only there to compare times.
pub const IN_JSON: [&str; 4] = [IDLE.key, OFF.key, ON.key, ON_PLAIN.key];

/// Figures of one migration. Times are of the lab, bytes are exact.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figures {
    pub guest_ram_bytes: u64,
    pub round_one_bytes: u64,
    pub total_bytes: u64,
    pub rounds: u64,
    pub total_ms: u64,
    pub downtime_ms: f64,
    pub longest_gap_ms: f64,
    pub guest_ok: bool,
    /// When the migration was asked for, and when the guest had settled, in milliseconds since
    /// 1970.
    pub began_unix_ms: u64,
    pub ended_unix_ms: u64,
    /// The part of one CPU that the demo had or could have had meanwhile.
    #[serde(default)]
    pub cpu_share: Option<f64>,
}

pub type Results = std::collections::BTreeMap<String, Figures>;
