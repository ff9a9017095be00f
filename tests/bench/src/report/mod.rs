//! What people look at: the JSON list, a summary on the terminal, an HTML page.

mod hinting;
mod html;
mod published;
mod replays;
mod summary;
mod traces;
mod words;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::entry::Entry;
use crate::note::note;
use crate::plan::Plan;
use crate::{run, spread};
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
