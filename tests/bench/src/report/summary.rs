//! The summary on the terminal.

use wherry_report::units::{mb, ms};

use super::published;
use super::words::{
    EMULATED, change, emulated, facts, groups, heading, number, percent, range, who,
};
use crate::case::Hints;
use crate::entry::Entry;

/// All of it.
pub fn text(entries: &[Entry]) -> String {
    let mut out = facts(entries).join("\n") + "\n";
    if emulated(entries) {
        out.push_str(&format!("{EMULATED}\n"));
    }
    for (_, members) in groups(entries) {
        let Some(first) = members.first() else { continue };
        let floor = members.iter().find_map(|e| e.figures.floor_bytes);
        out.push_str(&format!("\n{}; really used: {}\n", heading(first), mb(floor)));
        out.push_str(&format!(
            "  {:<20} {:>12} {:>8} {:>10} {:>12} {:>7} {:>10} {:>7} {:>9} {:>9} {:>7}\n",
            "",
            "round one",
            "/ floor",
            "scattered",
            "all",
            "",
            "time",
            "",
            "downtime",
            "gap",
            "guest"
        ));
        for entry in &members {
            out.push_str(&line(&members, entry));
            out.push_str(&ranges(entry));
        }
    }
    let rows = published::rows(&groups(entries));
    if !rows.is_empty() {
        out.push_str("\nBeside published figures, of real machines: only the reductions compare\n");
    }
    for row in rows {
        let [guest, vmm, off, on, less, published] = row.as_slice() else { continue };
        out.push_str(&format!(
            "  {guest}\n    {vmm}: {off} to {on}: {less}\n    published: {published}\n"
        ));
    }
    let count = |outcome: &str| entries.iter().filter(|e| e.outcome == outcome).count();
    out.push_str(&format!(
        "\n{} runs, {} ok, {} skipped",
        entries.len(),
        count("ok"),
        count("skipped")
    ));
    let bad: Vec<&Entry> = entries.iter().filter(|e| !e.ok() && e.outcome != "skipped").collect();
    out.push_str(&format!(", {} not\n", bad.len()));
    for entry in entries.iter().filter(|e| !e.ok()) {
        let why =
            entry.error.as_deref().unwrap_or("no reason given").lines().next().unwrap_or_default();
        out.push_str(&format!("  {} {}: {}: {why}\n", entry.vmm, entry.id, entry.outcome));
        if let Some(log) = &entry.log {
            out.push_str(&format!("    log: {log}\n"));
        }
    }
    // With `auto` it is the VMM's choice.
    let unseen =
        |e: &&Entry| e.ok() && e.hints == Hints::On && e.figures.hinting_seen == Some(false);
    for entry in entries.iter().filter(unseen) {
        out.push_str(&format!("  {} {}: hints were on, but none was seen\n", entry.vmm, entry.id));
    }
    out
}

fn line(members: &[&Entry], entry: &Entry) -> String {
    let f = &entry.figures;
    if !entry.ok() {
        return format!("  {:<20} {}\n", who(entry), entry.outcome);
    }
    let total_ms = f.total_ms.map(|ms| ms as f64);
    format!(
        "  {:<20} {:>12} {:>8} {:>10} {:>12} {:>7} {:>10} {:>7} {:>9} {:>9} {:>7}\n",
        who(entry),
        mb(f.round_one_bytes),
        number(f.round_one_per_floor, 2, ""),
        mb(f.scattered_bytes),
        mb(f.total_bytes),
        percent(change(members, entry, |e| e.figures.total_bytes)),
        ms(total_ms),
        percent(change(members, entry, |e| e.figures.total_ms)),
        ms(f.downtime_ms),
        ms(f.longest_gap_ms),
        if entry.guest_ok { "intact" } else { "WRONG" }
    )
}

/// Minimum and maximum below each figure, if there were several runs.
fn ranges(entry: &Entry) -> String {
    if entry.spread.is_none() || !entry.ok() {
        return String::new();
    }
    let cell =
        |figure: &str, unit: f64, digits| range(entry, figure, unit, digits).unwrap_or_default();
    let parts = [
        ("round one", cell("round_one_bytes", 1e6, 1), " MB"),
        ("all", cell("total_bytes", 1e6, 1), " MB"),
        ("time", cell("total_ms", 1.0, 0), " ms"),
        ("downtime", cell("downtime_ms", 1.0, 0), " ms"),
        ("gap", cell("longest_gap_ms", 1.0, 0), " ms"),
    ];
    let text: Vec<String> = parts
        .iter()
        .filter(|(_, range, _)| !range.is_empty())
        .map(|(name, range, unit)| format!("{name} {range}{unit}"))
        .collect();
    format!("      min to max: {}\n", text.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spread::tests::entry;

    #[test]
    fn reductions_and_failures() {
        let mut all =
            vec![entry("a/hints=off", "wherry", 1, 1000), entry("a/hints=on", "wherry", 1, 210)];
        all.push(entry("a/hints=on", "qemu", 1, 5));
        all[2].outcome = "timeout".into();
        all[2].error = Some("too slow".into());
        let text = text(&all);
        assert!(text.contains("−79 %"), "{text}");
        assert!(
            text.contains("qemu a/hints=on: timeout: too slow") && text.contains("1 not"),
            "{text}"
        );
    }

    #[test]
    fn several_runs_have_their_spread_below() {
        let mut all: Vec<Entry> =
            [30, 10, 20].map(|ms| entry("a/hints=on", "wherry", ms, ms.into())).into();
        all.push(entry("a/hints=on", "qemu", 1, 5));
        crate::spread::add(&mut all);
        let text = text(&all);
        assert!(
            text.contains(" 20 ms")
                && text.contains("min to max: all 10.0 to 30.0 MB, time 10 to 30 ms"),
            "{text}"
        );
        assert_eq!(text.matches("min to max").count(), 1, "one run has none: {text}");
        let page = crate::report::html::page(&all, &Default::default()).unwrap();
        assert!(page.contains("20 ms<br><span class=range>10 to 30</span>"));
    }
}
