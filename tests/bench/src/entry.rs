//! What is written down of each run: one element of the list that `--json` gives.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use wherry_migration::Compression;

use crate::case::{Hints, Named, Published};

fn one() -> u32 {
    1
}

/// One run. What was not or cannot be measured is absent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Entry {
    /// Name of the case file.
    pub case: String,
    /// Name of the case, with what distinguishes it from others of the same file.
    pub id: String,
    /// For people.
    pub title: String,
    /// `wherry`, `qemu`.
    pub vmm: String,
    /// Its version.
    pub vmm_version: Option<String>,
    /// Hints.
    pub hints: Hints,
    /// Free page reporting.
    pub reporting: bool,
    /// The guest zeroes memory when it allocates it.
    pub init_on_alloc: bool,
    /// Guest RAM.
    pub memory_bytes: u64,
    /// vCPUs.
    pub cpus: u32,
    /// Guest kernel.
    pub kernel: String,
    /// What the guest did before and during the migration.
    pub work: String,
    /// Size of the balloon before the migration.
    pub balloon: Option<String>,
    /// Link rate, or `unlimited`.
    pub link: String,
    /// Rate that the VMM was told to keep itself.
    #[serde(default)]
    pub cap: Option<String>,
    /// Whether what was sent was compressed.
    #[serde(default)]
    pub compression: Compression,
    /// Connections that carried memory.
    #[serde(default = "one")]
    pub streams: u32,
    /// Who kept to that rate: `tc` (a token bucket in a network namespace) or `vmm` (its own cap).
    pub link_shaped_by: Option<String>,
    /// Downtime limit.
    pub downtime_limit_ms: u64,
    /// Number of this run, from 1.
    pub run: u32,
    /// `ok`, `failed`, `timeout`, `skipped`, or `lab died`.
    pub outcome: String,
    /// Why, if it is not `ok`.
    pub error: Option<String>,
    /// The log that was kept of a run that is not `ok`.
    pub log: Option<String>,
    /// Whether the guest found its memory intact after the migration.
    pub guest_ok: bool,
    /// The figures.
    #[serde(flatten)]
    pub figures: Figures,
    /// What others published of a guest like this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<Published>,
    /// The command for this run alone.
    pub command: String,
    /// The trace, beside the results: see `docs/trace.md`.
    #[serde(default)]
    pub trace: Option<String>,
    /// The commit that was measured.
    pub commit: Option<String>,
    /// `uname -r` of the guest.
    pub kernel_release: Option<String>,
    /// What it ran on.
    pub machine: Option<Machine>,
    /// Minimum, median, maximum over the runs of the same case, VMM and settings, if there are
    /// several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<Value>,
}

/// What was measured. Times are of the host's clock unless said otherwise.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Figures {
    /// Bytes on the wire in round one.
    pub round_one_bytes: Option<u64>,
    /// All bytes.
    pub total_bytes: Option<u64>,
    /// Memory that the guest used and that was not zero, just before the migration.
    pub floor_bytes: Option<u64>,
    /// Free memory with content, just before the migration, in blocks of 4 MiB that are not free as
    /// a whole: no hint names it.
    pub scattered_bytes: Option<u64>,
    /// `round_one_bytes / floor_bytes`.
    pub round_one_per_floor: Option<f64>,
    /// `total_bytes / floor_bytes`.
    pub total_per_floor: Option<f64>,
    /// Rounds, the last one included.
    pub rounds: Option<u64>,
    /// The migration, as the VMM tells it.
    pub total_ms: Option<u64>,
    /// From the request until it was seen done.
    pub wall_ms: Option<u64>,
    /// The guest's pause, as the VMM tells it.
    pub downtime_ms: Option<f64>,
    /// Parts of the downtime, as the VMM names them.
    pub downtime_parts: Option<Value>,
    /// Longest gap between two heartbeats, by the guest's clock; a VMM may stop that clock during
    /// the pause.
    pub longest_gap_ms: Option<f64>,
    /// Heartbeats a second before the migration.
    pub beats_per_s_before: Option<f64>,
    /// Heartbeats a second during the migration.
    pub beats_per_s_during: Option<f64>,
    /// CPU time of the source's VMM during the migration, without that of the guest.
    pub source_cpu_ms: Option<u64>,
    /// CPU time of the destination's VMM until the end of the migration, without that of the guest.
    pub destination_cpu_ms: Option<u64>,
    /// CPU time in which the guest ran at the source during the migration.
    pub guest_cpu_ms: Option<u64>,
    /// Time in which a CPU of the lab had nothing to do during the migration, summed over its CPUs.
    pub idle_ms: Option<u64>,
    /// Resident memory of the source before the migration.
    pub source_rss_before_bytes: Option<u64>,
    /// Peak resident memory of the source during the migration.
    pub source_rss_bytes: Option<u64>,
    /// Peak of the source's memory beside guest RAM, where these can be told apart.
    pub source_beside_ram_bytes: Option<u64>,
    /// Resident memory of the destination after the migration.
    pub destination_rss_bytes: Option<u64>,
    /// The guest's MemFree before the migration.
    pub guest_free_before_bytes: Option<u64>,
    /// The guest's lowest MemFree seen during the migration: hinting takes free memory for a while.
    pub guest_free_min_bytes: Option<u64>,
    /// Whether hints were seen: by the VMM's own count, or because the guest's MemFree fell during
    /// the migration.
    pub hinting_seen: Option<bool>,
    /// What the VMM says of its use of hints.
    pub hints_note: Option<String>,
    /// Each round.
    pub per_round: Vec<Round>,
}

/// What a run ran on.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// `uname -r` of the KVM host.
    pub host_kernel: String,
    /// Its CPU.
    pub cpu: String,
    /// Its CPUs.
    pub cpus: usize,
    /// Its memory.
    pub memory_bytes: u64,
}

/// Pages of one round by class. `None`: the VMM does not tell.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Round {
    /// From 1.
    pub round: u64,
    /// Bytes on the wire.
    pub bytes: Option<u64>,
    /// Length.
    pub duration_ms: Option<u64>,
    /// Sent with content.
    pub sent: Option<u64>,
    /// Read and found zero.
    pub zero: Option<u64>,
    /// Never populated: zero without reading.
    pub hole: Option<u64>,
    /// Skipped for a hint.
    pub hinted: Option<u64>,
    /// Hinted too late to be skipped.
    pub late: Option<u64>,
    /// The part of `sent` whose hint came afterwards.
    pub sent_then_hinted: Option<u64>,
    /// Skipped for a hint, and written before the round ended.
    pub overridden: Option<u64>,
    /// Skipped since they are in the balloon.
    pub ballooned: Option<u64>,
    /// Not needed in this round.
    pub clean: Option<u64>,
    /// Bytes that the guest named, useful or not.
    pub hint_bytes: Option<u64>,
    /// From asking for hints to the first one.
    pub time_to_first_hint_ms: Option<u64>,
    /// Time for which the sender held back for hints.
    pub held_ms: Option<u64>,
    /// Neither sent nor found zero: skipped for hints, or clean; for VMMs that do not tell these
    /// apart.
    pub skipped: Option<u64>,
}

impl Entry {
    /// An entry without figures.
    pub fn new(named: &Named, vmm: &str, run: u32) -> Self {
        let spec = &named.spec;
        let peer = if vmm == "wherry" { String::new() } else { format!(" --only {vmm}") };
        Self {
            case: named.case.clone(),
            id: named.id.clone(),
            title: spec.title.clone(),
            vmm: vmm.into(),
            vmm_version: None,
            hints: spec.hints,
            reporting: spec.reporting,
            init_on_alloc: spec.init_on_alloc,
            memory_bytes: spec.memory_bytes().unwrap_or(0),
            cpus: spec.cpus,
            kernel: spec.kernel.clone(),
            work: if spec.work.is_empty() { "idle".into() } else { spec.work.clone() },
            balloon: spec.balloon.clone(),
            link: spec.link.clone(),
            cap: spec.cap.clone(),
            compression: spec.compression,
            streams: spec.streams,
            link_shaped_by: None,
            downtime_limit_ms: spec.downtime_limit_ms,
            run,
            outcome: "ok".into(),
            error: None,
            log: None,
            guest_ok: false,
            figures: Figures::default(),
            published: spec.published.clone(),
            command: format!("cargo xtask bench {}{peer}", named.id),
            trace: None,
            commit: std::env::var("WHERRY_COMMIT").ok(),
            kernel_release: None,
            machine: None,
            spread: None,
        }
    }

    /// What is measured against what: the case without its hints.
    pub fn group(&self) -> String {
        self.but_for("hints")
    }

    /// The id without this axis.
    pub fn but_for(&self, axis: &str) -> String {
        let Some((file, axes)) = self.id.split_once('/') else { return self.id.clone() };
        let named = |part: &&str| part.split_once('=').is_some_and(|(name, _)| name == axis);
        let axes: Vec<_> = axes.split(',').filter(|part| !named(part)).collect();
        if axes.is_empty() { file.into() } else { format!("{file}/{}", axes.join(",")) }
    }

    /// Whether it succeeded.
    pub fn ok(&self) -> bool {
        self.outcome == "ok"
    }
}
