//! What people look at: the JSON list, a summary on the terminal, an HTML page.

mod hinting;
mod html;
mod published;
mod replays;
mod summary;
mod traces;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use wherry_migration::Compression;
use wherry_report::units::memory;

use crate::entry::Entry;
use crate::plan::Plan;
use crate::{note, run, spread};
use traces::Traces;

/// Options of `report`.
#[derive(Debug, Parser)]
pub struct Args {
    /// Folder of results.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Where traces of earlier reports may be, beside their own folders.
    #[arg(long)]
    traces: Option<PathBuf>,
    /// JSON lists of earlier reports.
    from: Vec<PathBuf>,
    /// Writes the JSON list.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Writes the page.
    #[arg(long)]
    html: Option<PathBuf>,
}

/// Runs `report`. The exit code is 1 if a run that was asked for is not there or is not `ok` or
/// `skipped`.
pub fn main(args: &Args) -> Result<u8> {
    let mut entries: Vec<Entry> = Vec::new();
    for path in &args.from {
        let text =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let list: Vec<Entry> = serde_json::from_slice(&text)
            .with_context(|| format!("{}: not a list of results", path.display()))?;
        entries.extend(list);
    }
    let mut problems = Vec::new();
    let mut traces: Vec<PathBuf> =
        args.from.iter().filter_map(|path| Some(path.parent()?.to_owned())).collect();
    traces.extend(args.out.iter().chain(&args.traces).cloned());
    if let Some(out) = &args.out {
        problems = Plan::read(out)?.problems;
        entries.extend(run::results(out)?);
    }
    ensure!(!entries.is_empty(), "there are no results");
    entries.iter_mut().for_each(|entry| entry.spread = None);
    spread::add(&mut entries);
    print!("{}", summary::text(&entries));
    let hinting = hinting::table(&entries);
    if !hinting.is_empty() {
        print!("\nWhat hints and reports did:\n\n{hinting}");
    }
    let traces = Traces(traces);
    let replays = replays::table(&entries, &traces);
    if !replays.is_empty() {
        print!("\n{replays}");
    }
    problems.iter().for_each(|problem| note(problem));
    if let Some(path) = &args.json {
        std::fs::write(path, serde_json::to_string_pretty(&entries)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.html {
        std::fs::write(path, html::page(&entries, &traces)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let bad = entries.iter().any(|e| !e.ok() && e.outcome != "skipped");
    Ok(u8::from(bad || !problems.is_empty()))
}

/// Entries of the same guest, link and settings, which differ in VMM and hints only; in order of
/// appearance.
fn groups(entries: &[Entry]) -> Vec<(String, Vec<&Entry>)> {
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
fn heading(entry: &Entry) -> String {
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
fn who(entry: &Entry) -> String {
    format!("{}, hints {}", name(entry), entry.hints.word())
}

/// The VMM's name for people.
fn name(entry: &Entry) -> &str {
    match entry.vmm.as_str() {
        "wherry" => "Wherry",
        "qemu" => "QEMU",
        other => other,
    }
}

/// Minimum and maximum over several runs, as `12 to 15`, for figures shown with `digits` in units
/// of `unit`.
fn range(entry: &Entry, figure: &str, unit: f64, digits: usize) -> Option<String> {
    let spread = &entry.spread.as_ref()?[figure];
    let number = |key: &str| Some(format!("{:.digits$}", spread[key].as_f64()? / unit));
    Some(format!("{} to {}", number("min")?, number("max")?))
}

/// The change from hints off to hints on for the same VMM in a group, in per cent.
fn change(
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
fn facts(entries: &[Entry]) -> Vec<String> {
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

const EMULATED: &str = "The host is software emulation, and source and destination share it: compare figures with each other, not with those of real machines.";

fn emulated(entries: &[Entry]) -> bool {
    entries.iter().filter_map(|e| e.machine.as_ref()).any(|m| m.cpu.contains("TCG"))
}
