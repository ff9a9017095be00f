//! The balloon from outside: `wherry balloon`, and the memory that the VMM's process has.

use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::{Guest, Result, eventually};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;

/// Prints a line that the test runner does not hold back: figures of a test that passes are worth
/// seeing.
pub fn note(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "    {text}");
}

/// What `wherry balloon NAME --json` says.
#[derive(Debug, Clone)]
pub struct Balloon(pub Value);

impl Balloon {
    /// Pages that the guest says are in the balloon.
    pub fn actual(&self) -> u64 {
        self.0["actual_bytes"].as_u64().unwrap_or(u64::MAX) / PAGE
    }

    /// Pages in the host's set, if it is certain.
    ///
    /// # Errors
    /// The set is not certain, or its two figures differ.
    pub fn pages(&self) -> Result<u64> {
        let (named, counted) =
            (self.counter("ballooned_pages")?, &self.0["counters"]["ballooned_bytes"]);
        if counted.as_u64() != Some(named * PAGE) {
            bail!(
                "{named} pages are in the balloon, but a migration would leave out {counted} bytes"
            );
        }
        Ok(named)
    }

    /// A counter of the device.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn counter(&self, name: &str) -> Result<u64> {
        self.0["counters"]["device"][name]
            .as_u64()
            .with_context(|| format!("no counter {name}: {}", self.0))
    }

    /// A figure of the guest's statistics.
    pub fn statistic(&self, name: &str) -> Option<u64> {
        self.0["counters"]["guest"][name].as_u64()
    }

    /// MiB of guest RAM that the host has memory for, mapped by the VMM or not.
    pub fn resident_mib(&self) -> u64 {
        self.0["counters"]["resident_bytes"].as_u64().unwrap_or(u64::MAX) / MIB
    }
}

impl Guest {
    /// Asks the guest for statistics, and the VMM for its counters.
    ///
    /// # Errors
    /// The VMM does not answer.
    pub fn balloon(&self) -> Result<Balloon> {
        self.env().query(&["balloon", &self.name]).map(Balloon)
    }

    /// MiB of guest RAM in the VMM process's resident set: it is shared memory, and the only such
    /// memory.
    ///
    /// # Errors
    /// The process is gone.
    pub fn rss_mib(&self) -> Result<u64> {
        Ok(self.proc_kib("RssShmem")? / 1024)
    }

    /// Sets the target and waits until the balloon is so large, by the guest's word and by the
    /// host's set. How long it took.
    ///
    /// # Errors
    /// It does not become so.
    pub fn inflate_to(&self, mib: u64, timeout: Duration) -> Result<Duration> {
        self.set_target(mib)?;
        let ((), took) = eventually(timeout, || {
            let balloon = self.balloon()?;
            let (actual, pages) = (balloon.actual(), balloon.pages()?);
            let right = actual == mib * MIB / PAGE && pages == actual;
            Ok(if right {
                Ok(())
            } else {
                Err(format!("{mib} MiB wanted: {actual} and {pages} pages"))
            })
        })?;
        Ok(took)
    }

    /// Sets the balloon's target.
    ///
    /// # Errors
    /// The VMM refuses.
    pub fn set_target(&self, mib: u64) -> Result<()> {
        self.env().query(&["balloon", &self.name, "target", &format!("{mib}MiB")]).map(|_| ())
    }
}
