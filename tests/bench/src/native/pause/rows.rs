//! Medians of the pause's runs.

use std::fmt::Write;

use serde::Serialize;

use super::source::Run;
use super::usage::{Memory, Usage};
use crate::native::results::middle;
use crate::native::way::Way;

/// A guest.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// RAM in bytes.
    pub ram: u64,
    /// What is used of it.
    pub usage: Usage,
}

/// A row: medians of all runs of a guest. Times in milliseconds, memory in MiB.
#[derive(Debug, Serialize)]
pub struct Row {
    /// What was measured.
    #[serde(flatten)]
    pub way: Way,
    /// Guest RAM.
    pub ram_gib: f64,
    /// How its memory is used.
    pub memory: Memory,
    /// How much has content.
    pub populated_mib: u64,
    /// How often.
    pub runs: usize,
    /// `kvm`, or why it is `none`.
    pub log: String,
    /// From the start of pausing until the destination said that the guest runs.
    pub pause_ms: f64,
    /// KVM's copy of its bits; none without KVM.
    pub kvm_ms: Option<f64>,
    /// Reading and sending the pages that were dirty.
    pub pages_ms: f64,
    /// What remains of the pause without these two.
    pub overhead_ms: f64,
    /// The part of that in which the machine's state is saved, sent and loaded.
    pub state_ms: f64,
    /// What the engine said before that the pause would be.
    pub predicted_ms: f64,
    /// The median of predicted over measured.
    pub predicted_of_pause: f64,
    /// Pages that were dirty.
    pub dirty_pages: u64,
    /// Bytes of the machine's state.
    pub state_bytes: u64,
    /// Memory of the source beside guest RAM before the migration.
    pub before_extra_mib: f64,
    /// The same at its peak.
    pub peak_extra_mib: f64,
    /// That peak for each TiB of RAM.
    pub peak_extra_mib_per_tib: f64,
    /// All runs, in their order.
    pub each: Vec<Run>,
}

/// All rows.
pub fn rows(runs: &[(Size, Vec<Run>)]) -> Vec<Row> {
    let row = |(size, each): &(Size, Vec<Run>)| {
        let of = |figure: &dyn Fn(&Run) -> f64| middle(each.iter().map(figure));
        let ram_gib = size.ram as f64 / f64::from(1 << 30);
        let no_kvm = each.iter().find_map(|run| run.no_kvm.as_ref());
        let kvm: Vec<f64> = each.iter().filter_map(|run| run.kvm_ms).collect();
        let peak_extra_mib = of(&|run| run.peak_extra_mib);
        Row {
            way: Way::pause(),
            ram_gib,
            memory: size.usage.memory,
            populated_mib: size.usage.bytes() >> 20,
            runs: each.len(),
            log: no_kvm.map_or_else(|| "kvm".into(), |why| format!("none: {why}")),
            pause_ms: of(&|run| run.pause_ms),
            kvm_ms: (!kvm.is_empty()).then(|| middle(kvm.iter().copied())),
            pages_ms: of(&|run| run.pages_ms),
            overhead_ms: of(&|run| run.overhead_ms),
            state_ms: of(&|run| run.parts.state_us as f64 / 1e3),
            predicted_ms: of(&|run| run.predicted_ms),
            predicted_of_pause: of(&|run| run.predicted_ms / run.pause_ms),
            dirty_pages: of(&|run| run.dirty_pages as f64) as u64,
            state_bytes: of(&|run| run.state_bytes as f64) as u64,
            before_extra_mib: of(&|run| run.before_extra_mib),
            peak_extra_mib,
            peak_extra_mib_per_tib: peak_extra_mib * 1024.0 / ram_gib,
            each: each.clone(),
        }
    };
    runs.iter().map(row).collect()
}

/// For the terminal.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    let Some(first) = rows.first() else { return text };
    let _ = writeln!(
        text,
        "\nThe pause of guests that use {} MiB, medians of {} runs, in ms; memory of the source \
         beside guest RAM\nin MiB. Dirty log: {}\n",
        first.populated_mib, first.runs, first.log
    );
    let _ = writeln!(
        text,
        "{:>8} {:<12}{:>7}{:>7}{:>7}{:>10}{:>8}{:>11}{:>7}{:>9}{:>7}{:>9}",
        "RAM GiB",
        "memory",
        "pause",
        "KVM",
        "pages",
        "overhead",
        "(state)",
        "predicted",
        "ratio",
        "before",
        "peak",
        "per TiB"
    );
    for row in rows {
        let kvm = row.kvm_ms.map_or_else(|| "–".into(), |ms| format!("{ms:.1}"));
        let _ = writeln!(
            text,
            "{:>8} {:<12}{:>7.1}{kvm:>7}{:>7.1}{:>10.1}{:>8.1}{:>11.1}{:>7.2}{:>9.0}{:>7.0}{:>9.0}",
            row.ram_gib,
            row.memory,
            row.pause_ms,
            row.pages_ms,
            row.overhead_ms,
            row.state_ms,
            row.predicted_ms,
            row.predicted_of_pause,
            row.before_extra_mib,
            row.peak_extra_mib,
            row.peak_extra_mib_per_tib
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_ratios_and_memory_for_each_tib() {
        let usage = Usage::new(Memory::Sparse, 128 << 30, 1 << 30, 1).unwrap();
        // The third run was slow, and so was KVM; the ratio is that of a run, not of medians.
        let run = |pause_ms, predicted_ms, kvm_ms| Run {
            pause_ms,
            predicted_ms,
            kvm_ms,
            overhead_ms: pause_ms - 1.0,
            peak_extra_mib: 16.0,
            ..Run::default()
        };
        let three =
            vec![run(2.0, 2.0, Some(0.5)), run(4.0, 3.0, Some(0.25)), run(16.0, 8.0, Some(8.0))];
        let row = |runs: Vec<Run>| rows(&[(Size { ram: 128 << 30, usage }, runs)]).remove(0);
        let all = row(three.clone());
        assert_eq!((all.pause_ms, all.overhead_ms, all.kvm_ms), (4.0, 3.0, Some(0.5)));
        assert_eq!((all.predicted_ms, all.predicted_of_pause), (3.0, 0.75));
        assert_eq!((all.ram_gib, all.peak_extra_mib_per_tib), (128.0, 128.0));
        assert_eq!((all.log.as_str(), all.populated_mib, all.each.len()), ("kvm", 1024, 3));
        let without = Run { kvm_ms: None, no_kvm: Some("no /dev/kvm".into()), ..three[0].clone() };
        let without = row(vec![without]);
        assert_eq!((without.log.as_str(), without.kvm_ms), ("none: no /dev/kvm", None));
        assert!(table(&[without]).contains("none: no /dev/kvm"));
    }
}
