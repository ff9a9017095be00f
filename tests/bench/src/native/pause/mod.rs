//! What a pause costs where memory is large: guests of several sizes that use the same little
//! memory, moved by the whole engine over a Unix socket.
//!
//! Source and destination are processes of their own, new ones for each run. No guest runs: its
//! pages are written by the VMM, as devices do, and no vCPU has anything to stop. RAM, dirty log
//! and balloon are the machine's own. KVM, where it opens, has the memory slots and copies its bits
//! in each harvest; what that copy takes by itself is measured apart, for no VMM is without it.
//!
//! - [`usage`]: which memory is used and written. [`guest`], [`balloon`]: the machine.
//! - [`source`]: the process that has it. [`memory`]: what it takes beside guest RAM.
//! - The medians are in [`rows`].

pub mod balloon;
mod guest;
mod memory;
pub mod rows;
pub mod source;
pub mod usage;

use anyhow::{Context, Result};

use super::content::SEED;
use super::destination::{self, Took};
use super::other::Other;
use super::way::{Job, Way};
use crate::note::note;
use rows::Size;
use source::Run;
use usage::{Memory, Usage, WRITES};

/// Runs guests of these sizes, in bytes, so many rounds, with so many bytes in use.
pub fn all(sizes: &[u64], populated: u64, rounds: u32) -> Result<Vec<(Size, Vec<Run>)>> {
    let mut all = Vec::new();
    for memory in [Memory::Sparse, Memory::Fragmented] {
        for &ram in sizes {
            let usage = Usage::new(memory, ram, populated, WRITES)?;
            all.push((Size { ram, usage }, Vec::new()));
        }
    }
    for round in 0..rounds as usize {
        note(&format!("pause, round {} of {rounds}", round + 1));
        for index in 0..all.len() {
            let at = (index + round) % all.len();
            let Some((size, runs)) = all.get_mut(at) else { continue };
            let what = || format!("pause, {} MiB, {}", size.ram >> 20, size.usage.memory);
            runs.push(one(size).with_context(what)?);
        }
    }
    Ok(all)
}

fn one(size: &Size) -> Result<Run> {
    let dir = tempfile::tempdir().context("no folder for a socket")?;
    let (mut there, to) = destination::start(&Job {
        way: Way::pause(),
        bytes: size.ram,
        seed: SEED,
        dir: dir.path().to_owned(),
        folder: None,
        usage: Some(size.usage),
    })?;
    let job = source::Job { bytes: size.ram, usage: size.usage, to: to.to_string() };
    let run = Other::start("native-source", &job)?.end()?;
    there.end::<Took>()?;
    Ok(run)
}
