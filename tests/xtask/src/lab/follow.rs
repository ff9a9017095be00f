//! Waiting for the command's end, in a lab that may die.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::job::TIMED_OUT;
use super::relay::{Event, Relay};
use crate::note::note;

/// Lines of what somebody in the lab said shown when it dies.
const TAIL_LINES: usize = 25;

/// A lab that does not answer for so long has frozen.
const FROZEN: Duration = Duration::from_secs(120);

/// Waits for the command's end; its exit code. `said` is for when the lab dies, as in [`died`];
/// `meanwhile` is done again and again. The lab was started at `start`, and has `limit`.
pub fn follow(
    mut relay: Relay,
    limit: Option<Duration>,
    start: Instant,
    said: &[(&str, PathBuf)],
    mut meanwhile: impl FnMut(),
) -> Result<u8> {
    loop {
        meanwhile();
        match relay.event() {
            Event::Running => {
                note(&format!("lab: up after {:.1} s", start.elapsed().as_secs_f64()))
            }
            Event::Exit(code, written) => {
                relay.drain(written);
                return Ok(code);
            }
            Event::Failed(text) => {
                return Err(died(said, &format!("the lab could not run the command: {text}")));
            }
            Event::Closed => return Err(died(said, "the lab died")),
            Event::Quiet if relay.silence() > FROZEN => return Err(died(said, "the lab froze")),
            Event::Quiet => {}
        }
        if limit.is_some_and(|limit| start.elapsed() > limit) {
            note(&format!("lab: ended after {} s", start.elapsed().as_secs()));
            return Ok(TIMED_OUT);
        }
    }
}

/// An error with the last words of those in the lab: who, and the file with what they said.
pub fn died(said: &[(&str, PathBuf)], what: &str) -> anyhow::Error {
    let mut text = what.to_owned();
    for (name, path) in said {
        let content = fs::read(path).unwrap_or_default();
        let content = String::from_utf8_lossy(&content);
        let lines: Vec<&str> =
            content.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect();
        if let Some(panic) = lines.iter().find(|line| line.contains("Kernel panic")) {
            text.push_str(&format!(": {panic}"));
        }
        if !lines.is_empty() {
            let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n  ");
            text.push_str(&format!("\n{name} said last:\n  {tail}"));
        }
    }
    anyhow!(text)
}

/// Passes the lab's kernel messages on as they appear.
#[derive(Debug)]
pub struct KernelLog {
    path: PathBuf,
    position: u64,
}

impl KernelLog {
    /// Of the console that goes to this file.
    pub fn new(console: &Path) -> Self {
        Self { path: console.to_owned(), position: 0 }
    }

    /// Passes on what is new.
    pub fn show(&mut self) {
        let mut new = Vec::new();
        let read = fs::File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.position))?;
            file.read_to_end(&mut new)
        });
        if let Ok(len @ 1..) = read {
            self.position += len as u64;
            let _ = std::io::stderr().write_all(&new);
        }
    }
}
