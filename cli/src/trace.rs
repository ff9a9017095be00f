//! The trace file of `wherry migrate --trace`. This command writes it, not the VM's process: with
//! its user's rights, in its user's working directory, onto its user's disk.
//!
//! The guest matters more than the file: when it cannot be written any more the migration goes on,
//! and the command says so and ends with a code of its own.

use std::io;

use serde::Deserialize;
use serde_json::value::RawValue;
use wherry_vmm::control::{ControlError, ErrorCode};

use super::file::OutputFile;

/// A trace that is being written.
pub struct TraceFile {
    file: OutputFile,
    broken: Option<String>,
    lost: u64,
    complete: bool,
}

#[derive(Deserialize)]
struct Kind<'a> {
    #[serde(borrow)]
    event: std::borrow::Cow<'a, str>,
    #[serde(default)]
    events: u64,
}

impl TraceFile {
    /// None of it is written yet.
    pub fn new(file: OutputFile) -> Self {
        Self { file, broken: None, lost: 0, complete: false }
    }

    /// The file.
    pub fn file(&self) -> &OutputFile {
        &self.file
    }

    /// Writes a line. `Err` once: from then on lines are dropped.
    pub fn write(&mut self, line: &RawValue) -> Result<(), String> {
        if let Ok(kind) = serde_json::from_str::<Kind>(line.get()) {
            self.complete = kind.event == "end";
            self.lost += if kind.event == "lost" { kind.events } else { 0 };
        }
        if self.broken.is_some() {
            return Ok(());
        }
        let mut bytes = line.get().as_bytes().to_vec();
        bytes.push(b'\n');
        self.file.write(&bytes).map_err(|e| self.fail(&e))
    }

    fn fail(&mut self, error: &io::Error) -> String {
        let why = format!("cannot write the trace file {}: {error}", self.file.path().display());
        self.broken = Some(why.clone());
        why
    }

    /// What is wrong with the trace of a migration that succeeded, if anything is.
    pub fn finish(self) -> Result<(), ControlError> {
        let path = self.file.path().display();
        let why = match self.broken {
            Some(why) => why,
            None if self.lost > 0 => {
                let text = format!("{} events did not reach it in time", self.lost);
                format!("the trace in {path} has gaps: {text}")
            }
            None if !self.complete => {
                let why = "the VM's process told no end of it; it may be of another version";
                format!("the trace in {path} is incomplete: {why}")
            }
            None => return Ok(()),
        };
        let text = format!("the guest was migrated, but {why}");
        Err(ControlError::new(ErrorCode::TraceIncomplete, text)
            .hint("the guest runs at its destination; only the file is not what was asked for"))
    }
}
