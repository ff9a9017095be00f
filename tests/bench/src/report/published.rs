//! Our figures in the form of the tables that were published with the kernel's and QEMU's support
//! for hinting.

use wherry_report::units::{mb, ms};

use super::words::{change, heading, name, percent};
use crate::case::Hints;
use crate::entry::Entry;

/// Heads of the columns.
pub const HEAD: [&str; 6] = ["guest", "VMM", "hints off", "hints on", "less", "published"];

/// One row for each guest that there are published figures of, each VMM, and `on` and `auto`.
pub fn rows(groups: &[(String, Vec<&Entry>)]) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for (_, members) in groups {
        for entry in members.iter().filter(|e| e.hints != Hints::Off && e.ok()) {
            let off =
                members.iter().find(|e| e.vmm == entry.vmm && e.hints == Hints::Off && e.ok());
            let (Some(published), Some(off)) = (&entry.published, off) else { continue };
            let figures = |e: &Entry| {
                format!(
                    "{}, {}",
                    ms(e.figures.total_ms.map(|n| n as f64)),
                    mb(e.figures.total_bytes)
                )
            };
            let less = |time: Option<f64>, bytes: Option<f64>| {
                let bytes = percent(bytes);
                format!(
                    "time {}{}{bytes}",
                    percent(time),
                    if bytes.is_empty() { "" } else { ", bytes " }
                )
            };
            let auto = if entry.hints == Hints::Auto { " (auto)" } else { "" };
            let [from, to] = published.ms;
            let theirs = less(of(published.ms), published.kb.and_then(of));
            let bytes = published.kb.map_or_else(String::new, |[a, b]| format!(", {a} to {b} KB"));
            rows.push(vec![
                heading(entry),
                format!("{}{auto}", name(entry)),
                figures(off),
                figures(entry),
                less(
                    change(members, entry, |e| e.figures.total_ms),
                    change(members, entry, |e| e.figures.total_bytes),
                ),
                format!("{theirs} ({from} to {to} ms{bytes}; {})", published.guest),
            ]);
        }
    }
    rows
}

fn of([from, to]: [u64; 2]) -> Option<f64> {
    (from > 0).then(|| (to as f64 - from as f64) / from as f64 * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Published;
    use crate::report::words::groups;
    use crate::spread::tests::entry;

    #[test]
    fn reductions_beside_published_ones() {
        let mut all =
            vec![entry("a/hints=off", "qemu", 1, 1000), entry("a/hints=on", "qemu", 1, 200)];
        assert!(rows(&groups(&all)).is_empty(), "nothing was published of it");
        let published = Published { guest: "8 GiB".into(), ms: [2970, 620], kb: Some([100, 4]) };
        all.iter_mut().for_each(|e| e.published = Some(published.clone()));
        let rows = rows(&groups(&all));
        assert_eq!(rows.len(), 1);
        let expected = [
            "A guest",
            "QEMU",
            "1000 ms, 1000.0 MB",
            "200 ms, 200.0 MB",
            "time −80 %, bytes −80 %",
            "time −79 %, bytes −96 % (2970 to 620 ms, 100 to 4 KB; 8 GiB)",
        ];
        assert_eq!(rows[0], expected);
    }
}
