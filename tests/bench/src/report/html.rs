//! The page: one file, no scripts, nothing loaded from elsewhere.

use std::fmt::Write;

use anyhow::Result;
use wherry_report::CLASSES;
use wherry_report::bars::{Bar, Chart, Part};
use wherry_report::html::{self, escape};
use wherry_report::units::{mb, memory, ms};

use super::published;
use super::traces::Traces;
use super::words::{
    EMULATED, change, emulated, facts, groups, heading, number, percent, range, who,
};
use crate::case::Hints;
use crate::entry::{Entry, Round};

/// Colours of rounds; later ones share the last.
const ROUNDS: [(u8, &str); 4] =
    [(9, "round one"), (10, "round two"), (11, "round three"), (12, "later rounds")];
const TIMES: [(u8, &str); 2] = [(18, "guest runs"), (13, "guest is paused")];

/// The whole page.
pub fn page(entries: &[Entry], traces: &Traces) -> Result<String> {
    let groups = groups(entries);
    let mut body = String::new();
    write!(body, "<h1>Migrations, measured</h1>{}", about(entries))?;
    write!(body, "<h2>At a glance</h2>{}", headline(&groups))?;
    body.push_str(
        "<p class=note>Really used: pages that the guest's kernel did not have in its free lists \
         and that were not zero, counted one by one just before the \
         migration. Each cell: all bytes on the wire, and the whole time. Per cents: hints on \
         against off, same VMM.</p>",
    );
    let published = published::rows(&groups);
    if !published.is_empty() {
        body.push_str(
            "<h2>Beside published figures</h2><p class=note>Those are of real machines: \
                       only the reductions compare.</p>",
        );
        body.push_str(&html::table(&published::HEAD, &published, true));
    }
    for (index, (_, members)) in groups.iter().enumerate() {
        section(&mut body, index, members, traces)?;
    }
    failures(&mut body, entries);
    Ok(html::page("Wherry: migrations, measured", &body))
}

fn about(entries: &[Entry]) -> String {
    let facts: Vec<String> = facts(entries).iter().map(|fact| escape(fact)).collect();
    let mut out = format!("<p class=note>{}</p>", facts.join(" · "));
    if emulated(entries) {
        write!(out, "<p class=note>{EMULATED}</p>").unwrap_or_default();
    }
    out
}

/// Bytes and time of every group, a column for each VMM and setting.
fn headline(groups: &[(String, Vec<&Entry>)]) -> String {
    let mut columns: Vec<(bool, &str, Hints)> = Vec::new();
    for entry in groups.iter().flat_map(|(_, members)| members) {
        let column = (entry.vmm != crate::vmm::NAMES[0], entry.vmm.as_str(), entry.hints);
        if !columns.contains(&column) {
            columns.push(column);
        }
    }
    columns.sort_by_key(|c| (c.0, c.1, c.2 as u8));
    let mut out = String::from(
        "<div class=wide><table class=glance><thead><tr><th>guest<th class=n>really used",
    );
    for column in &columns {
        let sample = groups
            .iter()
            .flat_map(|(_, m)| m)
            .find(|e| (e.vmm.as_str(), e.hints) == (column.1, column.2));
        let _ = write!(out, "<th class=n>{}", sample.map_or_else(String::new, |e| escape(&who(e))));
    }
    out.push_str("</thead><tbody>");
    for (index, (_, members)) in groups.iter().enumerate() {
        let Some(first) = members.first() else { continue };
        let floor = members.iter().find_map(|e| e.figures.floor_bytes);
        let _ = write!(
            out,
            "<tr><td><a href=\"#g{index}\">{}</a><td class=n>{}",
            escape(&heading(first)),
            mb(floor)
        );
        for column in &columns {
            let entry = members.iter().find(|e| (e.vmm.as_str(), e.hints) == (column.1, column.2));
            out.push_str(&cell(members, entry.copied()));
        }
    }
    out.push_str("</tbody></table></div>");
    out
}

fn cell(members: &[&Entry], entry: Option<&Entry>) -> String {
    let Some(entry) = entry else { return "<td class=n>".into() };
    if !entry.ok() {
        return format!("<td class=\"n bad\">{}", escape(&entry.outcome));
    }
    let f = &entry.figures;
    let less = |figure: fn(&Entry) -> Option<u64>| {
        let text = percent(change(members, entry, figure));
        let class = if text.starts_with('+') { "more" } else { "less" };
        if text.is_empty() { text } else { format!(" <span class={class}>{text}</span>") }
    };
    format!(
        "<td class=n>{}{}<br>{}{}",
        mb(f.total_bytes),
        less(|e| e.figures.total_bytes),
        ms(f.total_ms.map(|v| v as f64)),
        less(|e| e.figures.total_ms)
    )
}

fn section(body: &mut String, index: usize, members: &[&Entry], traces: &Traces) -> Result<()> {
    let Some(first) = members.first() else { return Ok(()) };
    write!(body, "<section id=g{index}><h2>{}</h2>", escape(&heading(first)))?;
    let what = format!(
        "{} RAM, {} vCPU, kernel {}, work: {}, downtime limit {} ms",
        memory(first.memory_bytes),
        first.cpus,
        first.kernel,
        first.work,
        first.downtime_limit_ms
    );
    write!(body, "<p class=note>{}</p>", escape(&what))?;
    let good: Vec<&Entry> = members.iter().copied().filter(|e| e.ok()).collect();
    if !good.is_empty() {
        let floor = good.iter().find_map(|e| e.figures.floor_bytes).map(|bytes| bytes as f64 / 1e6);
        let bytes = Chart {
            unit: "MB on the wire".into(),
            bars: good.iter().map(|e| bytes_bar(e)).collect(),
            mark: floor,
        };
        let caption = "Bytes, by round; the line is the memory that the guest really uses";
        body.push_str(&html::chart("Bytes by round", caption, &ROUNDS, &bytes)?);
        let time = Chart {
            unit: "seconds".into(),
            bars: good.iter().map(|e| time_bar(e)).collect(),
            mark: None,
        };
        body.push_str(&html::chart("Time", "Time", &TIMES, &time)?);
        let fate = Chart {
            unit: "per cent of guest RAM".into(),
            bars: good.iter().filter_map(|e| fate_bar(e)).collect(),
            mark: None,
        };
        body.push_str(&html::chart(
            "Round one by class",
            "Round one: what became of each page",
            &CLASSES,
            &fate,
        )?);
    }
    for entry in &good {
        over_time(body, entry, traces)?;
    }
    figures_table(body, members)?;
    rounds_table(body, &good)?;
    body.push_str("<h3>Run it again</h3><pre>");
    for entry in members {
        writeln!(body, "{}", escape(&entry.command))?;
    }
    body.push_str("</pre></section>");
    Ok(())
}

/// What happened in a run, and where in memory; closed, since there may be many.
fn over_time(body: &mut String, entry: &Entry, traces: &Traces) -> Result<()> {
    let Some(trace) = traces.of(entry) else { return Ok(()) };
    let map = wherry_report::memory_map(&trace);
    let what = if map.is_empty() { "over time" } else { "over time, and its memory" };
    write!(body, "<details><summary>{}: {what}</summary>", escape(&who(entry)))?;
    for problem in &trace.problems {
        write!(body, "<p class=bad>{}</p>", escape(problem))?;
    }
    body.push_str(&wherry_report::timeline(&trace)?);
    if map.is_empty() {
        body.push_str(
            "<p class=note>Bytes were read every 50 ms from outside. This VMM does not \
                       tell what became of each page.</p>",
        );
    }
    write!(body, "{map}</details>")?;
    Ok(())
}

fn bytes_bar(entry: &Entry) -> Bar {
    let mut parts: Vec<Part> = Vec::new();
    for (index, round) in entry.figures.per_round.iter().enumerate() {
        let colour = ROUNDS[index.min(ROUNDS.len() - 1)].0;
        parts.push(Part { colour, value: round.bytes.unwrap_or(0) as f64 / 1e6 });
    }
    Bar { label: who(entry), parts, text: mb(entry.figures.total_bytes) }
}

fn time_bar(entry: &Entry) -> Bar {
    let f = &entry.figures;
    let (total, down) = (f.total_ms.unwrap_or(0) as f64, f.downtime_ms.unwrap_or(0.0));
    let parts = [(TIMES[0].0, (total - down).max(0.0)), (TIMES[1].0, down)]
        .map(|(colour, ms)| Part { colour, value: ms / 1000.0 });
    Bar { label: who(entry), parts: parts.to_vec(), text: format!("{:.2} s", total / 1000.0) }
}

fn fate_bar(entry: &Entry) -> Option<Bar> {
    let round = entry.figures.per_round.first()?;
    let counts = fate(round);
    let all: u64 = counts.iter().sum();
    let value = |count: u64| count as f64 / all.max(1) as f64 * 100.0;
    let parts = CLASSES
        .iter()
        .zip(counts)
        .map(|((colour, _), n)| Part { colour: *colour, value: value(n) });
    let skipped: u64 = counts[4..].iter().sum();
    Some(Bar {
        label: who(entry),
        parts: parts.collect(),
        text: format!("{:.0} % skipped", value(skipped)),
    })
}

/// Pages in the order of [`CLASSES`].
fn fate(round: &Round) -> [u64; 9] {
    let n = |count: Option<u64>| count.unwrap_or(0);
    let late = n(round.sent_then_hinted).min(n(round.sent));
    let overridden = n(round.overridden).min(n(round.hinted));
    [
        n(round.sent) - late,
        late,
        n(round.zero),
        n(round.hole),
        n(round.hinted) - overridden,
        overridden,
        n(round.ballooned),
        n(round.clean),
        n(round.skipped),
    ]
}

fn figures_table(body: &mut String, members: &[&Entry]) -> Result<()> {
    if members.iter().any(|e| e.spread.is_some()) {
        body.push_str(
            "<p class=note>Of several runs the one with the median time is shown, with \
                       minimum to maximum below.</p>",
        );
    }
    body.push_str("<h3>Figures</h3><div class=wide><table><thead><tr><th>");
    for entry in members {
        write!(body, "<th class=n>{}", escape(&who(entry)))?;
    }
    body.push_str("</thead><tbody>");
    type Get = fn(&Entry) -> String;
    // What minimum and maximum are called in the list of results, unit, and digits.
    type Spread = Option<(&'static str, f64, usize)>;
    let rows: [(&str, Get, Spread); 23] = [
        ("outcome", |e| e.outcome.clone(), None),
        (
            "guest's memory",
            |e| if e.guest_ok { "intact" } else { "not shown to be intact" }.into(),
            None,
        ),
        ("round one", |e| mb(e.figures.round_one_bytes), Some(("round_one_bytes", 1e6, 1))),
        (
            "round one / really used",
            |e| number(e.figures.round_one_per_floor, 3, ""),
            Some(("round_one_per_floor", 1.0, 3)),
        ),
        (
            "free, but too scattered to hint",
            |e| mb(e.figures.scattered_bytes),
            Some(("scattered_bytes", 1e6, 1)),
        ),
        ("all bytes", |e| mb(e.figures.total_bytes), Some(("total_bytes", 1e6, 1))),
        (
            "all bytes / really used",
            |e| number(e.figures.total_per_floor, 3, ""),
            Some(("total_per_floor", 1.0, 3)),
        ),
        ("rounds", |e| number(e.figures.rounds.map(|n| n as f64), 0, ""), Some(("rounds", 1.0, 0))),
        ("total time", |e| ms(e.figures.total_ms.map(|n| n as f64)), Some(("total_ms", 1.0, 0))),
        ("downtime", |e| ms(e.figures.downtime_ms), Some(("downtime_ms", 1.0, 0))),
        ("parts of it, ms", |e| downtime_parts(e), None),
        ("guest's longest gap", |e| ms(e.figures.longest_gap_ms), Some(("longest_gap_ms", 1.0, 0))),
        (
            "heartbeats before → during",
            |e| {
                let f = &e.figures;
                format!(
                    "{} → {} /s",
                    number(f.beats_per_s_before, 0, ""),
                    number(f.beats_per_s_during, 0, "")
                )
            },
            None,
        ),
        (
            "CPU time, source",
            |e| ms(e.figures.source_cpu_ms.map(|n| n as f64)),
            Some(("source_cpu_ms", 1.0, 0)),
        ),
        (
            "CPU time, destination",
            |e| ms(e.figures.destination_cpu_ms.map(|n| n as f64)),
            Some(("destination_cpu_ms", 1.0, 0)),
        ),
        (
            "CPU time, guest",
            |e| ms(e.figures.guest_cpu_ms.map(|n| n as f64)),
            Some(("guest_cpu_ms", 1.0, 0)),
        ),
        ("CPUs idle", |e| ms(e.figures.idle_ms.map(|n| n as f64)), Some(("idle_ms", 1.0, 0))),
        (
            "peak memory, source",
            |e| mb(e.figures.source_rss_bytes),
            Some(("source_rss_bytes", 1e6, 1)),
        ),
        (
            "of it not guest RAM",
            |e| mb(e.figures.source_beside_ram_bytes),
            Some(("source_beside_ram_bytes", 1e6, 1)),
        ),
        (
            "memory after, destination",
            |e| mb(e.figures.destination_rss_bytes),
            Some(("destination_rss_bytes", 1e6, 1)),
        ),
        (
            "guest's MemFree before → lowest seen",
            |e| {
                format!(
                    "{} → {}",
                    mb(e.figures.guest_free_before_bytes),
                    mb(e.figures.guest_free_min_bytes)
                )
            },
            None,
        ),
        (
            "hints seen",
            |e| match e.figures.hinting_seen {
                None => "–".into(),
                Some(seen) => if seen { "yes" } else { "no" }.into(),
            },
            None,
        ),
        ("the VMM on hints", |e| e.figures.hints_note.clone().unwrap_or_default(), None),
    ];
    for (name, get, spread) in rows {
        write!(body, "<tr><th scope=row>{name}")?;
        for entry in members {
            write!(body, "<td class=n>{}", escape(&get(entry)))?;
            let range = spread.and_then(|(key, unit, digits)| range(entry, key, unit, digits));
            if let Some(range) = range {
                write!(body, "<br><span class=range>{}</span>", escape(&range))?;
            }
        }
    }
    body.push_str("</tbody></table></div>");
    Ok(())
}

fn downtime_parts(entry: &Entry) -> String {
    let parts = entry.figures.downtime_parts.as_ref().and_then(|p| p.as_object());
    let Some(parts) = parts else { return "–".into() };
    let one = |(name, ms): (&String, &serde_json::Value)| {
        format!("{} {:.0}", name.replace('_', " "), ms.as_f64().unwrap_or(0.0))
    };
    parts.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn rounds_table(body: &mut String, good: &[&Entry]) -> Result<()> {
    body.push_str(
        "<details><summary>Rounds, in pages of 4 KiB</summary><div \
                   class=wide><table><thead><tr><th><th class=n>round",
    );
    for name in [
        "bytes",
        "time",
        "sent",
        "sent, then hinted",
        "zero",
        "hole",
        "hinted",
        "late",
        "overridden",
        "ballooned",
        "clean",
        "skipped",
    ] {
        write!(body, "<th class=n>{name}")?;
    }
    body.push_str("</thead><tbody>");
    for entry in good {
        for round in &entry.figures.per_round {
            write!(
                body,
                "<tr><td>{}<td class=n>{}<td class=n>{}",
                escape(&who(entry)),
                round.round,
                mb(round.bytes)
            )?;
            write!(body, "<td class=n>{}", ms(round.duration_ms.map(|n| n as f64)))?;
            let r = round;
            for count in [
                r.sent,
                r.sent_then_hinted,
                r.zero,
                r.hole,
                r.hinted,
                r.late,
                r.overridden,
                r.ballooned,
                r.clean,
                r.skipped,
            ] {
                write!(
                    body,
                    "<td class=n>{}",
                    count.map_or_else(|| "–".into(), |n| n.to_string())
                )?;
            }
        }
    }
    body.push_str("</tbody></table></div></details>");
    Ok(())
}

fn failures(body: &mut String, entries: &[Entry]) {
    let failed: Vec<&Entry> = entries.iter().filter(|e| !e.ok()).collect();
    if failed.is_empty() {
        return;
    }
    body.push_str(
        "<section><h2>Not measured</h2><div \
                   class=wide><table><thead><tr><th>run<th>outcome<th>why<th>log</thead><tbody>",
    );
    for entry in failed {
        let text = |text: &Option<String>| escape(text.as_deref().unwrap_or(""));
        let _ = write!(
            body,
            "<tr><td>{} {}<td class=bad>{}<td>{}<td>{}",
            escape(&entry.vmm),
            escape(&entry.id),
            escape(&entry.outcome),
            text(&entry.error),
            text(&entry.log)
        );
    }
    body.push_str("</tbody></table></div></section>");
}

#[cfg(test)]
#[path = "html_tests.rs"]
mod tests;
