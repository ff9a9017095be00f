//! What hints did, as a Markdown table: bytes against the idle guest's, and what was sent before
//! its hint came.

use std::fmt::Write as _;

use wherry_report::units::{mb, memory, ms};

use super::words::number;
use crate::case::Hints;
use crate::entry::Entry;
use crate::spread;

const HEADER: &str = "\
| guest | init_on_alloc | reporting | hints | total | / idle | time | / best | sent, later hinted \
| memory of the source | hints, by the VMM |
|---|---|---|---|---|---|---|---|---|---|---|
";

/// The table; empty if no entry of ours has hints or reports.
pub fn table(entries: &[Entry]) -> String {
    let all: Vec<&Entry> = spread::typical(entries)
        .into_iter()
        .filter(|e| e.vmm == crate::vmm::NAMES[0] && e.ok())
        .collect();
    if all.iter().all(|e| e.hints == Hints::Off && !e.reporting) {
        return String::new();
    }
    let mut out = HEADER.to_owned();
    for entry in &all {
        let f = &entry.figures;
        let total = f.total_bytes.map(|b| b as f64);
        let time = f.total_ms.map(|ms| ms as f64);
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "| {}, {} | {} | {} | {} | {} | {} | {} | {} | {} | {} → {} | {} |",
            memory(entry.memory_bytes),
            entry.work,
            u8::from(entry.init_on_alloc),
            if entry.reporting { "on" } else { "off" },
            entry.hints.word(),
            mb(f.total_bytes),
            number(ratio(total, idle(&all, entry)), 2, ""),
            ms(time),
            number(ratio(time, best(&all, entry)), 2, ""),
            number(sent_then_hinted(entry), 2, " %"),
            mb(f.source_rss_before_bytes),
            mb(f.source_rss_bytes),
            f.hints_note.as_deref().unwrap_or("–"),
        );
    }
    out
}

fn ratio(this: Option<f64>, that: Option<f64>) -> Option<f64> {
    Some(this? / that.filter(|&that| that > 0.0)?)
}

/// Bytes of the same guest when it was idle, with hints off and without reporting.
fn idle(all: &[&Entry], entry: &Entry) -> Option<f64> {
    let same = |e: &Entry| {
        (e.memory_bytes, e.init_on_alloc, &e.kernel)
            == (entry.memory_bytes, entry.init_on_alloc, &entry.kernel)
    };
    let is_idle = |e: &Entry| e.work == "idle" && e.hints == Hints::Off && !e.reporting;
    all.iter().find(|e| same(e) && is_idle(e))?.figures.total_bytes.map(|b| b as f64)
}

/// The better time of the same guest with hints off and on, for `auto`.
fn best(all: &[&Entry], entry: &Entry) -> Option<f64> {
    let group = entry.group();
    let rivals = all.iter().filter(|e| e.group() == group && e.hints != Hints::Auto);
    let times = rivals.filter_map(|e| e.figures.total_ms).min();
    times.filter(|_| entry.hints == Hints::Auto).map(|ms| ms as f64)
}

/// The worst round's pages that were sent before their hint came, in per cent of guest RAM.
fn sent_then_hinted(entry: &Entry) -> Option<f64> {
    let worst = entry.figures.per_round.iter().filter_map(|r| r.sent_then_hinted).max()?;
    Some(worst as f64 * 4096.0 / entry.memory_bytes as f64 * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spread::tests::entry;

    #[test]
    fn against_idle_and_the_best() {
        let mut all = vec![
            entry("a/hints=off,work=", "wherry", 1, 100),
            entry("a/hints=off,work=w", "wherry", 1, 800),
            entry("a/hints=on,work=w", "wherry", 1, 200),
            entry("a/hints=auto,work=w", "wherry", 1, 210),
        ];
        all[0].work = "idle".into();
        all[3].hints = Hints::Auto;
        all[3].figures.per_round =
            vec![crate::entry::Round { sent_then_hinted: Some(2621), ..Default::default() }];
        for entry in &mut all[1..] {
            entry.work = "w".into();
        }
        let text = table(&all);
        let last = text.lines().last().unwrap();
        assert!(last.contains("| auto | 210.0 MB | 2.10 | 210 ms | 1.05 | 1.00 % |"), "{text}");
        assert_eq!(table(&all[..2]), "");
    }
}
