//! What a byte of guest memory costs, without KVM: memory of two processes of this machine, moved
//! by plain copies and by Wherry's engine in turns, and the CPU time that each side took.
//!
//! The source is this process. Each run has a destination of its own: this program again, with
//! memory that nobody has touched yet. The guest does not run, so there is one round, and what is
//! measured is the way of a page from one memory into the other.
//!
//! - [`way`]: what is measured. [`rounds`]: the runs, in turns.
//! - [`destination`]: the other process. [`plain`], [`engine`], [`qemu`]: both ends of a copy.
//! - [`content`]: what is in the memory, and whether it has arrived. [`cost`]: CPU time.
//!   [`certificates`]: those of both sides, for TLS.
//! - [`results`]: medians, as a table and as JSON. [`html`]: the page.
//! - [`pause`]: what a pause costs, by the size of RAM. [`other`]: a process beside this one.

mod certificates;
mod content;
mod cost;
pub mod destination;
mod engine;
mod html;
mod other;
pub mod pause;
mod plain;
mod qemu;
mod results;
mod rounds;
mod way;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::case::size_bytes;
use crate::link::Link;
use way::MIB;

/// Options of `native`.
#[derive(Debug, Parser)]
pub struct Args {
    /// Guest memory, as in 1GiB: both processes take as much.
    #[arg(long, default_value = "1GiB")]
    memory: String,
    /// Runs of everything.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Only the ways that have this in their name, as in `wherry tcp 2 lz4`, and no pause.
    #[arg(long, default_value = "")]
    only: String,
    /// Puts the destination's memory into this folder, too, as of `wherry receive`.
    #[arg(long, value_name = "DIR")]
    memory_backing: Option<PathBuf>,
    /// RAM of the guests whose pause is measured.
    #[arg(long, value_name = "SIZE", value_delimiter = ',',
        default_values = ["4GiB", "128GiB", "1024GiB"])]
    ram: Vec<String>,
    /// What they use of it.
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    populated: String,
    /// Measures the pause alone.
    #[arg(long)]
    pause: bool,
    /// Writes the JSON list.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Writes the page.
    #[arg(long)]
    html: Option<PathBuf>,
}

/// Runs `native`.
pub fn main(args: &Args) -> Result<u8> {
    let bytes = size_bytes(&args.memory)?;
    ensure!(bytes >= MIB && bytes.is_multiple_of(MIB), "--memory is whole MiB");
    let sizes = args.ram.iter().map(|size| size_bytes(size)).collect::<Result<Vec<_>>>()?;
    let populated = size_bytes(&args.populated)?;
    // Before anything is a thread.
    let tcp = Link::new().unpaced();
    // First of all: what is wrong with a size is said at once.
    let pauses = match args.only.is_empty() {
        true => pause::rows::rows(&pause::all(&sizes, populated, args.runs)?),
        false => Vec::new(),
    };
    let copies = if args.pause {
        Vec::new()
    } else {
        let runs = rounds::all(bytes, args.runs, args.memory_backing.as_deref(), &args.only)?;
        results::rows(&runs, bytes, tcp.as_deref())
    };
    print!("{}{}", results::table(&copies), pause::rows::table(&pauses));
    if let Some(path) = &args.json {
        let mut rows = copies.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>()?;
        rows.extend(pauses.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>()?);
        std::fs::write(path, serde_json::to_string_pretty(&rows)? + "\n")
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &args.html {
        std::fs::write(path, html::page(&copies, &pauses)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(0)
}
