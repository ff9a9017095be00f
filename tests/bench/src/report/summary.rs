//! The summary on the terminal.

use wherry_report::units::{mb, ms, number, percent};

use super::{EMULATED, change, emulated, facts, groups, heading, who};
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
            "  {:<20} {:>12} {:>8} {:>12} {:>7} {:>10} {:>7} {:>9} {:>9} {:>7}\n",
            "", "round one", "/ floor", "all", "", "time", "", "downtime", "gap", "guest"
        ));
        for entry in &members {
            out.push_str(&line(&members, entry));
        }
    }
    let count = |outcome: &str| entries.iter().filter(|e| e.outcome == outcome).count();
    out.push_str(&format!("\n{} runs, {} ok, {} skipped", entries.len(), count("ok"), count("skipped")));
    let bad: Vec<&Entry> = entries.iter().filter(|e| !e.ok() && e.outcome != "skipped").collect();
    out.push_str(&format!(", {} not\n", bad.len()));
    for entry in entries.iter().filter(|e| !e.ok()) {
        let why = entry.error.as_deref().unwrap_or("no reason given").lines().next().unwrap_or_default();
        out.push_str(&format!("  {} {}: {}: {why}\n", entry.vmm, entry.id, entry.outcome));
        if let Some(log) = &entry.log {
            out.push_str(&format!("    log: {log}\n"));
        }
    }
    for entry in entries.iter().filter(|e| e.ok() && e.figures.hinting_seen == Some(false)) {
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
        "  {:<20} {:>12} {:>8} {:>12} {:>7} {:>10} {:>7} {:>9} {:>9} {:>7}\n",
        who(entry),
        mb(f.round_one_bytes),
        number(f.round_one_per_floor, 2, ""),
        mb(f.total_bytes),
        percent(change(members, entry, |e| e.figures.total_bytes)),
        ms(total_ms),
        percent(change(members, entry, |e| e.figures.total_ms)),
        ms(f.downtime_ms),
        ms(f.longest_gap_ms),
        if entry.guest_ok { "intact" } else { "WRONG" }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spread::tests::entry;

    #[test]
    fn reductions_and_failures() {
        let mut all = vec![entry("a/hints=off", "wherry", 1, 1000), entry("a/hints=on", "wherry", 1, 210)];
        all.push(entry("a/hints=on", "qemu", 1, 5));
        all[2].outcome = "timeout".into();
        all[2].error = Some("too slow".into());
        let text = text(&all);
        assert!(text.contains("−79 %"), "{text}");
        assert!(text.contains("qemu a/hints=on: timeout: too slow") && text.contains("1 not"), "{text}");
    }
}
