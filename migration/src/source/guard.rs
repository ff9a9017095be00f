//! Undoing, by construction.
//!
//! Whatever way a migration ends, the guest must get its hinted memory back (DONE), and unless the
//! hand-off has begun it must run, without the cost of a dirty log. The guard does this when
//! dropped, so that an early return or a panic cannot forget it.

use std::io;
use std::sync::Arc;

use crate::error::Ownership;
use crate::traits::{DirtyLog, HintSource, Machine, SourceVm};

/// What has been done to the machine and must be undone.
pub(super) struct Guard {
    hints: Option<Arc<dyn HintSource>>,
    log: Arc<dyn DirtyLog>,
    machine: Arc<dyn Machine>,
    /// The log is on, or about to be turned on.
    pub(super) log_on: bool,
    /// The machine is paused, or about to be.
    pub(super) paused: bool,
    handed_off: bool,
    over: bool,
}

impl Guard {
    pub(super) fn new(vm: &SourceVm) -> Self {
        Self {
            hints: vm.hints.clone(),
            log: vm.log.clone(),
            machine: vm.machine.clone(),
            log_on: false,
            paused: false,
            handed_off: false,
            over: false,
        }
    }

    /// HandOff is about to be sent (`begun`), or not a byte of it was. An error: the machine is not
    /// as it was paused, and HandOff must not be sent.
    pub(super) fn hand_over(&mut self, begun: bool) -> io::Result<()> {
        self.machine.hand_over(begun)?;
        self.handed_off = begun;
        Ok(())
    }

    /// The destination runs the guest: it stays paused here.
    pub(super) fn succeed(&mut self) {
        self.handed_off = true;
        // It is; but two that run is the one mistake that nobody can mend afterwards.
        let _ = self.machine.pause();
        self.undo();
    }

    /// Undoes everything that may be undone, once. Says who owns the guest.
    pub(super) fn undo(&mut self) -> Ownership {
        if !self.over {
            self.over = true;
            if let Some(hints) = &self.hints {
                hints.done();
            }
            if self.paused && !self.handed_off && self.machine.resume().is_ok() {
                self.paused = false;
            }
            if self.log_on {
                // Fails only if the log cannot be turned off, which costs speed and nothing else.
                let _ = self.log.stop();
            }
        }
        match (self.handed_off, self.paused) {
            (true, _) => Ownership::Unknown,
            (false, true) => Ownership::SourcePaused,
            (false, false) => Ownership::SourceRuns,
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.undo();
    }
}
