//! The process that has the guest: moves it, and says what that cost.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use serde::{Deserialize, Serialize};
use wherry_migration::error::Phase;
use wherry_migration::observe::{Event, Observer};
use wherry_migration::report::{Downtime, Snapshot};
use wherry_migration::traits::SourceVm;
use wherry_migration::{
    CancelToken, HintPolicy, OnTimeout, Progress, SourceConfig, connect, migrate,
};
use wherry_vmm::memory::{Backing, Ram};
use wherry_vmm::migrate::Hints;

use super::guest::Guest;
use super::memory::peak;
use super::usage::{ROUNDS, Usage};
use crate::native::other::{end_with_parent, say};

/// Options of `native-source`.
#[derive(Debug, Parser)]
pub struct Args {
    /// What to move, as JSON.
    job: String,
}

/// What a source is told.
#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    /// Guest RAM.
    pub bytes: u64,
    /// What is used of it.
    pub usage: Usage,
    /// Where its destination listens.
    pub to: String,
}

/// What one run took. Times in milliseconds, memory in MiB.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Run {
    /// From the start of pausing until the destination said that the guest runs.
    pub pause_ms: f64,
    /// KVM's copy of its bits, measured apart; none without KVM.
    pub kvm_ms: Option<f64>,
    /// Reading and sending the pages that were dirty.
    pub pages_ms: f64,
    /// What remains of the pause without these two.
    pub overhead_ms: f64,
    /// What the engine said before that the pause would be.
    pub predicted_ms: f64,
    /// Parts of the pause.
    pub parts: Downtime,
    /// Pages that were dirty.
    pub dirty_pages: u64,
    /// Bytes of the machine's state.
    pub state_bytes: u64,
    /// Memory of the process beside guest RAM before the migration.
    pub before_extra_mib: f64,
    /// The same at its peak.
    pub peak_extra_mib: f64,
    /// Why there is no KVM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_kvm: Option<String>,
}

/// Runs `native-source`.
pub fn main(args: &Args) -> Result<u8> {
    end_with_parent();
    let job: Job = serde_json::from_str(&args.job).context("not a job")?;
    say(&serde_json::to_string(&run(&job)?)?)?;
    Ok(0)
}

fn run(job: &Job) -> Result<Run> {
    let ram = Arc::new(Ram::new(job.bytes, &Backing::Memfd)?);
    let (guest, no_kvm) = Guest::new(ram.clone(), job.usage)?;
    let guest = Arc::new(guest);
    let hints = Arc::new(Hints { ram: ram.clone(), balloon: guest.balloon().clone() });
    let vm = SourceVm { ram, log: guest.clone(), hints: Some(hints), machine: guest.clone() };
    let cancel = CancelToken::new();
    let transport = connect(&job.to.parse()?, Duration::from_secs(5), &cancel)?;
    // Always as many rounds: all that a pause needs has been done once before.
    let config = SourceConfig {
        hints: HintPolicy::Off,
        downtime_limit: Duration::ZERO,
        max_rounds: ROUNDS,
        on_timeout: OnTimeout::Force,
        // Of vCPUs and devices, which are not there.
        switchover_estimate: Duration::ZERO,
        ..SourceConfig::default()
    };
    let before = peak().beside();
    let watch = Watch { seen: Arc::default(), guest: guest.clone() };
    let report = migrate(&vm, transport, &config, &watch, &cancel)?;
    let (left, dirty) = (guest.left()?, job.usage.written().count() as u64);
    // All but the first, the pause's too, send what was written.
    for round in report.rounds.iter().skip(1) {
        ensure!(round.sent == dirty, "a round sent {} pages, not {dirty}", round.sent);
    }
    let (seen, ms) = (watch.seen(), |time: Duration| time.as_secs_f64() * 1e3);
    let pause_ms = report.downtime.total_us as f64 / 1e3;
    let (kvm_ms, pages_ms) = (left.kvm.map(ms), ms(seen.pages()));
    Ok(Run {
        pause_ms,
        kvm_ms,
        pages_ms,
        overhead_ms: pause_ms - kvm_ms.unwrap_or(0.0) - pages_ms,
        predicted_ms: ms(seen.predicted),
        parts: report.downtime,
        dirty_pages: dirty,
        state_bytes: report.state_bytes,
        before_extra_mib: before,
        peak_extra_mib: left.peak.beside(),
        no_kvm,
    })
}

/// What the engine told.
#[derive(Clone, Default)]
struct Seen {
    paused: bool,
    /// The last prediction before the pause.
    predicted: Duration,
    /// Time that reading and sending took, at the last round's beginning and end.
    work: Option<(Duration, Duration)>,
}

impl Seen {
    fn pages(&self) -> Duration {
        self.work.map_or(Duration::ZERO, |(start, end)| end.saturating_sub(start))
    }
}

/// Watches the engine, and makes the guest write when a round is over: not within the harvest that
/// follows, whose time is part of the prediction.
#[derive(Clone)]
struct Watch {
    seen: Arc<Mutex<Seen>>,
    guest: Arc<Guest>,
}

impl Watch {
    fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Observer for Watch {
    fn observe(&self, event: &Event<'_>) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Phase(Phase::LastRound) => seen.paused = true,
            Event::Predicted(time) => seen.predicted = *time,
            Event::Slice(slice) if seen.paused => {
                let work = slice.reading + slice.sending;
                seen.work = Some((seen.work.map_or(work, |(start, _)| start), work));
            }
            Event::Slice(slice) if slice.over => {
                // What is not written is not sent in the next round, which is looked at.
                let _ = self.guest.write();
            }
            _ => {}
        }
    }
}

impl Progress for Watch {
    fn update(&self, _: &Snapshot) {}

    fn observer(&self) -> Option<Arc<dyn Observer>> {
        Some(Arc::new(self.clone()))
    }
}
