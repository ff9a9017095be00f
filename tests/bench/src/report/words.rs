//! Words that all reports share: what a group is, who did it, by how much hints changed it.

use wherry_migration::Compression;
use wherry_report::units::memory;

use crate::entry::Entry;
use crate::spread;

/// A number with `digits` after the point and a unit after it.
pub fn number(value: Option<f64>, digits: usize, unit: &str) -> String {
    value.map_or_else(|| "–".into(), |v| format!("{v:.digits$}{unit}"))
}

/// A change in per cent: `−87 %`.
pub fn percent(value: Option<f64>) -> String {
    value.map_or_else(String::new, |v| {
        format!("{}{:.0} %", if v < 0.0 { "−" } else { "+" }, v.abs())
    })
}

/// Entries of the same guest, link and settings, which differ in VMM and hints only; in order of
/// appearance.
pub fn groups(entries: &[Entry]) -> Vec<(String, Vec<&Entry>)> {
    let mut groups: Vec<(String, Vec<&Entry>)> = Vec::new();
    for entry in spread::typical(entries) {
        let name = entry.group();
        match groups.iter_mut().find(|(n, _)| *n == name) {
            Some((_, members)) => members.push(entry),
            None => groups.push((name, vec![entry])),
        }
    }
    for (_, members) in &mut groups {
        members.sort_by_key(|e| (e.vmm != crate::vmm::NAMES[0], e.vmm.clone(), e.hints as u8));
    }
    groups
}

/// What a group's guest is, in words.
pub fn heading(entry: &Entry) -> String {
    let mut text = entry.title.clone();
    if !entry.init_on_alloc {
        text.push_str(", init_on_alloc=0");
    }
    if entry.reporting {
        text.push_str(", reporting");
    }
    if let Some(size) = &entry.balloon {
        text.push_str(&format!(", {size} ballooned"));
    }
    if entry.link != "unlimited" {
        text.push_str(&format!(", link {}/s", entry.link));
    }
    if let Some(cap) = &entry.cap {
        text.push_str(&format!(", capped at {cap}/s"));
    }
    if entry.compression != Compression::None {
        text.push_str(&format!(", compressed ({})", entry.compression.word()));
    }
    if entry.streams > 1 {
        text.push_str(&format!(", {} connections", entry.streams));
    }
    text
}

/// `Wherry, hints on`.
pub fn who(entry: &Entry) -> String {
    format!("{}, hints {}", name(entry), entry.hints.word())
}

/// The VMM's name for people.
pub fn name(entry: &Entry) -> &str {
    match entry.vmm.as_str() {
        "wherry" => "Wherry",
        "qemu" => "QEMU",
        "qemu-installed" => "QEMU (installed)",
        other => other,
    }
}

/// Minimum and maximum over several runs, as `12 to 15`, for figures shown with `digits` in units
/// of `unit`.
pub fn range(entry: &Entry, figure: &str, unit: f64, digits: usize) -> Option<String> {
    let spread = &entry.spread.as_ref()?[figure];
    let number = |key: &str| Some(format!("{:.digits$}", spread[key].as_f64()? / unit));
    Some(format!("{} to {}", number("min")?, number("max")?))
}

/// The change from hints off to hints on for the same VMM in a group, in per cent.
pub fn change(
    members: &[&Entry],
    entry: &Entry,
    figure: impl Fn(&Entry) -> Option<u64>,
) -> Option<f64> {
    use crate::case::Hints;
    let off = members.iter().find(|e| e.vmm == entry.vmm && e.hints == Hints::Off && e.ok())?;
    if entry.hints == Hints::Off || !entry.ok() {
        return None;
    }
    let (from, to) = (figure(off)? as f64, figure(entry)? as f64);
    (from > 0.0).then(|| (to - from) / from * 100.0)
}

/// What was measured where, each in a few words.
pub fn facts(entries: &[Entry]) -> Vec<String> {
    let mut facts = Vec::new();
    let commits = distinct(entries, |e| e.commit.clone());
    facts.extend((!commits.is_empty()).then(|| format!("commit {}", commits.join(", "))));
    for vmm in crate::vmm::NAMES {
        facts.extend(entries.iter().filter(|e| e.vmm == vmm).find_map(|e| e.vmm_version.clone()));
    }
    facts.extend(entries.iter().find_map(|e| e.machine.as_ref()).map(|m| {
        format!(
            "KVM host: Linux {}, {}, {} CPUs, {}",
            m.host_kernel,
            m.cpu,
            m.cpus,
            memory(m.memory_bytes)
        )
    }));
    let guests = distinct(entries, |e| e.kernel_release.clone());
    facts.push(format!("guests: Linux {}", guests.join(", ")));
    let runs = entries.iter().map(|e| e.run).max().unwrap_or(1);
    if runs > 1 {
        facts.push(format!("{runs} runs each; shown is the one with the median time"));
    }
    facts
}

fn distinct(entries: &[Entry], what: impl Fn(&Entry) -> Option<String>) -> Vec<String> {
    let mut all: Vec<String> = entries.iter().filter_map(what).collect();
    all.sort();
    all.dedup();
    all
}

/// What a reader has to know of emulated hosts.
pub const EMULATED: &str = "The host is software emulation, and source and destination share it: \
                            compare \
                            figures with each other, not with those of real machines.";

/// Whether one of the hosts was emulated.
pub fn emulated(entries: &[Entry]) -> bool {
    entries.iter().filter_map(|e| e.machine.as_ref()).any(|m| m.cpu.contains("TCG"))
}
