//! Watching a migration: what the engine tells, and to whom.
//!
//! Nothing is decided by an observer. The recorder of traces is one (crate `wherry-trace`), the
//! second opinion of a verified migration another (module `verify::shadow`). What concerns the
//! machine is told where the machine is called: `watched` stands before the dirty log, an
//! `ObservedSink` before a sink; so it does not depend on what rounds, sinks and gates believe to
//! have done.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::bitmap::Bitmap;
use crate::config::HintMode;
use crate::error::{Error, Phase};
use crate::report::{HintUse, Report, Snapshot};
use crate::round::{Plan, Round};
use crate::traits::{DirtyLog, SourceVm};

/// Which published id: ids of a round are numbered from 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EpochId {
    /// The round, from 1.
    pub round: u32,
    /// The id within it.
    pub nth: u32,
}

/// What happens.
#[derive(Debug)]
pub enum Event<'a> {
    /// A phase begins.
    Phase(Phase),
    /// These words of 64 pages have been write-protected, and their dirty bits forgotten. Any
    /// thread.
    Protected(Range<u64>),
    /// These pages have been written since they were last protected, and are protected again; so is
    /// all the rest.
    Harvested(&'a Bitmap),
    /// These pages are in the balloon.
    Ballooned(&'a Bitmap),
    /// A round is planned.
    Round(&'a Arc<Round>, &'a Plan),
    /// An id is about to be published. `again`: only to let the driver go on after a rest.
    Publishing {
        /// Which.
        epoch: EpochId,
        /// Whether the driver had been asked before and had paused.
        again: bool,
    },
    /// It was published, for the first time or in another way than before.
    Published {
        /// Its round.
        round: u32,
        /// How its hints are honoured.
        mode: HintMode,
    },
    /// A hint: these pages were free at some time after the id was published. The device's thread.
    Hinted {
        /// The id under which it came.
        epoch: EpochId,
        /// First page.
        first: u64,
        /// Number of pages.
        nr: u64,
    },
    /// STOP or DONE was published: there is no open id.
    Closed,
    /// Where a round stands; told often.
    Slice(Slice<'a>),
    /// Whether hints are used, and why not; told often.
    Hints(HintUse),
    /// What the downtime would be now.
    Predicted(Duration),
    /// It succeeded.
    Succeeded(&'a Report),
    /// It failed.
    Failed(Phase, &'a Error),
}

/// Where a round stands.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a> {
    /// The round.
    pub round: &'a Round,
    /// Nothing of it is left to deal with.
    pub over: bool,
    /// All bytes on the wire since the migration began.
    pub bytes: u64,
    /// Measured link rate in bytes per second; 0 until measured.
    pub rate: u64,
    /// Time held back for hints in this round.
    pub held: Duration,
    /// Time since the migration began that went into claiming, protecting and reading pages.
    pub reading: Duration,
    /// The same for packing and writing them, of all connections together.
    pub sending: Duration,
}

/// Watches a migration. Called on the engine's threads and on the device's: returns soon, does not
/// fail.
pub trait Observer: Send + Sync {
    /// Something happens.
    fn observe(&self, event: &Event<'_>);
}

/// All of these watch, in this order.
impl Observer for Vec<Arc<dyn Observer>> {
    fn observe(&self, event: &Event<'_>) {
        self.iter().for_each(|observer| observer.observe(event));
    }
}

/// Receives snapshots about every 200 ms and at each phase's start, on the migration's thread:
/// return soon.
pub trait Progress: Sync {
    /// One snapshot.
    fn update(&self, snapshot: &Snapshot);

    /// Who watches the migration more closely, if anybody. Asked once.
    fn observer(&self) -> Option<Arc<dyn Observer>> {
        None
    }
}

/// No progress wanted.
impl Progress for () {
    fn update(&self, _: &Snapshot) {}
}

/// A closure is a progress receiver.
impl<F: Fn(&Snapshot) + Sync> Progress for F {
    fn update(&self, snapshot: &Snapshot) {
        self(snapshot);
    }
}

/// The machine, with somebody who watches what is done to its dirty log.
pub(crate) fn watched(vm: &SourceVm, observer: &Arc<dyn Observer>) -> SourceVm {
    let log = WatchedLog { inner: vm.log.clone(), observer: observer.clone() };
    SourceVm { log: Arc::new(log), ..vm.clone() }
}

struct WatchedLog {
    inner: Arc<dyn DirtyLog>,
    observer: Arc<dyn Observer>,
}

impl DirtyLog for WatchedLog {
    fn start(&self) -> io::Result<()> {
        self.inner.start()
    }

    fn protect(&self, first: u64, nr: u64) -> io::Result<()> {
        self.inner.protect(first, nr)?;
        let words = first / 64..first.saturating_add(nr).div_ceil(64);
        self.observer.observe(&Event::Protected(words));
        Ok(())
    }

    fn harvest(&self, out: &mut Bitmap) -> io::Result<()> {
        self.inner.harvest(out)?;
        self.observer.observe(&Event::Harvested(out));
        Ok(())
    }

    fn stop(&self) -> io::Result<()> {
        self.inner.stop()
    }
}
