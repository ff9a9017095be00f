//! What the engine tells, on its way to whoever asked for the migration.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use wherry_migration::trace::{Event, Recorder};
use wherry_migration::{Progress, Snapshot};

use crate::control::Update;

/// Takes progress and, if wanted, the trace on the engine's thread.
pub struct Teller {
    updates: Mutex<Sender<Update>>,
    trace: bool,
}

impl Teller {
    /// With the end at which its updates come out.
    pub fn new(trace: bool) -> (Self, Receiver<Update>) {
        let (updates, out) = channel();
        (Self { updates: Mutex::new(updates), trace }, out)
    }

    fn send(&self, update: Option<Update>) {
        if let Some(update) = update {
            // Fails only when nobody listens any more.
            let _ = self.updates.lock().unwrap_or_else(PoisonError::into_inner).send(update);
        }
    }
}

impl Progress for Teller {
    fn update(&self, snapshot: &Snapshot) {
        self.send(serde_json::to_value(snapshot).ok().map(Update::Progress));
    }

    fn recorder(&self) -> Option<&dyn Recorder> {
        self.trace.then_some(self)
    }
}

impl Recorder for Teller {
    fn record(&self, event: Event) {
        self.send(Update::trace(&event));
    }
}
