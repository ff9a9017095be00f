//! The report of one migration.

use std::fmt::Write;

use wherry_trace::Fates;

use crate::bars::{Bar, Chart, Part};
use crate::html::{self, escape, table};
use crate::trace::{Round, Trace};
use crate::units::{mb, memory, ms, pages, share, time};
use crate::{CLASSES, Error, map, timeline};

/// Rounds that have a bar of their own; the table has the others.
const MAX_BARS: usize = 30;
/// Rows of tables.
const MAX_ROWS: usize = 500;
/// Classes that cost something or save something: holes, the balloon and clean pages are not dealt
/// with at all.
const DEALT_WITH: [usize; 5] = [0, 1, 2, 4, 5];

/// The page. `command` is what to type to do the same again.
///
/// # Errors
/// If the drawing library fails.
pub fn migration_page(trace: &Trace, command: &str) -> Result<String, Error> {
    let title = format!("Migration of a guest with {}", pages(trace.history.start.nr_pages));
    let mut body = String::new();
    let _ =
        write!(body, "<h1>{}</h1><p class=note>{}</p>", escape(&title), escape(&settings(trace)));
    body.push_str(&state(trace));
    body.push_str(&headline(trace));
    let _ = write!(body, "<h2>Rounds</h2>{}", rounds(trace)?);
    let _ = write!(body, "<h2>Over time</h2>{}{}", timeline::timeline(trace)?, remarks(trace));
    let map = map::memory_map(trace);
    body.push_str("<h2>Memory</h2>");
    body.push_str(if map.is_empty() {
        "<p class=note>The trace has no map of memory.</p>"
    } else {
        &map
    });
    let _ = write!(body, "<h2>Figures</h2>{}{}", totals(trace), rounds_table(trace));
    let _ = write!(body, "<h2>Run it again</h2><pre>{}</pre>", escape(command));
    Ok(html::page(&title, &body))
}

fn settings(trace: &Trace) -> String {
    let mut parts = vec![format!("hints {}", trace.history.start.hints)];
    parts.push(match trace.history.start.bandwidth {
        Some(rate) => format!("at most {} a second", mb(Some(rate))),
        None => "no cap on bandwidth".into(),
    });
    parts.extend(
        trace.history.start.compression.iter().map(|word| format!("compressed with {word}")),
    );
    if trace.history.start.streams > 1 {
        parts.push(format!("{} connections", trace.history.start.streams));
    }
    parts.push(format!("downtime limit {}", time(trace.history.start.downtime_limit_us)));
    parts.push(format!("at most {} rounds", trace.history.start.max_rounds));
    parts.join(" · ")
}

/// How it ended, if it did not succeed, and what is wrong with the trace.
fn state(trace: &Trace) -> String {
    let mut out = String::new();
    let mut say = |text: &str| {
        let _ = write!(out, "<p class=bad>{}</p>", escape(text));
    };
    if let Some(why) = trace.failed() {
        say(&why);
    } else if trace.history.report.is_none() {
        say("The trace has no end: the migration failed or was cancelled, or the trace was cut \
             off.");
    }
    trace.problems.iter().for_each(|problem| say(problem));
    out
}

fn headline(trace: &Trace) -> String {
    let first = trace.rounds.get(&1).cloned().unwrap_or_default();
    let ram = trace.history.start.nr_pages;
    let mut tiles = vec![
        (mb(Some(trace.total_bytes())), "on the wire".to_owned()),
        (mb(Some(first.bytes)), "of it in round one".to_owned()),
        (time(total_us(trace)), format!("in {} rounds", trace.rounds.len())),
    ];
    if let Some(down) = trace.downtime_us() {
        tiles.push((time(down), "guest paused".into()));
    }
    let dealt = |class: usize| first.fates()[class];
    tiles.push((
        pages(dealt(0) + dealt(1)),
        format!("sent in round one: {:.1} % of guest RAM", share(first.last.sent, ram)),
    ));
    if trace.history.start.hints != "off" {
        let what =
            format!("skipped for hints: {:.1} % of guest RAM", share(first.last.hinted, ram));
        tiles.push((pages(first.last.hinted), what));
    }
    let tile = |(value, name): &(String, String)| {
        format!("<div><b>{}</b><span>{}</span></div>", escape(value), escape(name))
    };
    format!("<div class=tiles>{}</div>", tiles.iter().map(tile).collect::<String>())
}

fn total_us(trace: &Trace) -> u64 {
    trace.history.reported("/total_ms").map_or(trace.history.end_us, |ms| ms.saturating_mul(1000))
}

fn parts(fates: &Fates, classes: &[usize], value: impl Fn(u64) -> f64) -> Vec<Part> {
    let part = |&class: &usize| Part { colour: CLASSES[class].0, value: value(fates[class]) };
    classes.iter().map(part).collect()
}

fn rounds(trace: &Trace) -> Result<String, Error> {
    let all: Vec<usize> = (0..trace.rounds.get(&1).map_or(0, |r| r.fates().len())).collect();
    let mut out = String::new();
    if let Some(first) = trace.rounds.get(&1) {
        let fates = first.fates();
        let sum = fates.iter().fold(0, |sum: u64, &count| sum.saturating_add(count));
        let bar = Bar {
            label: "Round one".into(),
            parts: parts(&fates, &all, |count| share(count, sum)),
            text: mb(Some(first.bytes)),
        };
        let chart = Chart { unit: "per cent of guest RAM".into(), bars: vec![bar], mark: None };
        out.push_str(&html::chart(
            "Round one by class",
            "Round one: what became of each page",
            &CLASSES,
            &chart,
        )?);
    }
    let bar = |(number, round): (&u32, &Round)| Bar {
        label: format!("Round {number}"),
        parts: parts(&round.fates(), &DEALT_WITH, |count| count as f64 / 256.0),
        text: mb(Some(round.bytes)),
    };
    let bars: Vec<Bar> = trace.rounds.iter().take(MAX_BARS).map(bar).collect();
    let left_out = trace.rounds.len() - bars.len();
    let mut caption =
        "Every round: pages that had to be dealt with, and the bytes on the wire".to_owned();
    if left_out > 0 {
        let _ = write!(caption, "; {left_out} later rounds are only in the table");
    }
    let chart = Chart { unit: "MiB of guest RAM".into(), bars, mark: None };
    Ok(out + &html::chart("Rounds by class", &caption, &CLASSES, &chart)?)
}

fn remarks(trace: &Trace) -> String {
    if trace.remarks.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> =
        trace.remarks.iter().take(MAX_ROWS).map(|(t, text)| vec![time(*t), text.clone()]).collect();
    let shown = rows.len();
    format!(
        "<details><summary>What was decided ({})</summary>{}</details>",
        if shown < trace.remarks.len() { format!("the first {shown}") } else { shown.to_string() },
        table(&["at", "what"], &rows, true)
    )
}

fn totals(trace: &Trace) -> String {
    let row = |name: &str, value: String| vec![name.to_owned(), value];
    let mut rows = vec![
        row("guest RAM", pages(trace.history.start.nr_pages)),
        row("all bytes", mb(Some(trace.total_bytes()))),
        row(
            "bytes of guest RAM",
            format!(
                "{:.1} %",
                share(trace.total_bytes(), trace.history.start.nr_pages.saturating_mul(4096))
            ),
        ),
        row("total time", time(total_us(trace))),
    ];
    if let Some(down) = trace.downtime_us() {
        rows.push(row("downtime", time(down)));
    }
    for part in ["pause", "last_round", "verify", "state", "commit", "resume"] {
        if let Some(us) = trace
            .history
            .reported(&format!("/downtime/{part}_us"))
            .filter(|&us| us > 0 || part != "verify")
        {
            rows.push(row(&format!("of it {}", part.replace('_', " ")), time(us)));
        }
    }
    rows.extend(timeline::extremes(trace));
    if let Some(text) = trace.history.report.as_ref().and_then(|r| r["hints"].as_str()) {
        rows.push(row("hints", text.chars().take(300).collect()));
    }
    let map = &trace.history.map;
    if !map.cells.is_empty() {
        rows.push(row("cell of the map", memory(map.cell_pages.saturating_mul(4096))));
    }
    table(&["", "value"], &rows, false)
}

fn rounds_table(trace: &Trace) -> String {
    let head = [
        "round",
        "bytes",
        "time",
        "sent",
        "sent, then hinted",
        "zero",
        "hole",
        "hinted",
        "overridden",
        "ballooned",
        "clean",
        "dirty at its end",
        "held back",
    ];
    let row = |(number, r): (&u32, &Round)| {
        let mut row = vec![number.to_string(), mb(Some(r.bytes)), time(r.duration_us)];
        let counts = [
            r.last.sent,
            r.sent_then_hinted,
            r.last.zero,
            r.plan.hole,
            r.last.hinted,
            r.harvest.overridden,
            r.plan.ballooned,
            r.plan.clean,
            r.harvest.dirty,
        ];
        row.extend(counts.map(|count| count.to_string()));
        row.push(ms(Some(r.last.held_us as f64 / 1000.0)));
        row
    };
    let rows: Vec<Vec<String>> = trace.rounds.iter().take(MAX_ROWS).map(row).collect();
    format!("<h3>Rounds, in pages of 4 KiB</h3>{}", table(&head, &rows, false))
}
