//! What the engine tells, on its way to whoever asked for the migration.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use wherry_migration::traits::GuestRam;
use wherry_migration::{Observer, Progress, Snapshot, SourceConfig};
use wherry_trace::Recording;

use super::course::Leaving;
use crate::control::Update;
use crate::machine::Machine;
use crate::memory::DirtySource;
use crate::sync::lock;

/// Takes progress and, if wanted, the trace on the engine's threads.
pub struct UpdateSender {
    updates: Arc<Updates>,
    course: Arc<Leaving>,
    trace: Option<Arc<Recording>>,
}

struct Updates(Mutex<Sender<Update>>);

impl UpdateSender {
    /// With the end at which its updates come out.
    pub fn new(course: Arc<Leaving>) -> (Self, Receiver<Update>) {
        let (updates, out) = channel();
        (Self { updates: Arc::new(Updates(Mutex::new(updates))), course, trace: None }, out)
    }

    /// Begins to record a trace.
    pub fn record(&mut self, machine: &Machine, config: &SourceConfig) {
        // The balloon may keep a sink, and with it the recording, until the next migration; the
        // channel has to close when this one is over.
        let updates = Arc::downgrade(&self.updates);
        let tell = Box::new(move |event| {
            if let Some(updates) = updates.upgrade() {
                updates.send(Update::trace(&event));
            }
        });
        let log = machine.log().clone();
        let look = Box::new(move |out: &mut _| log.peek(out));
        let recording = Recording::new(machine.ram().nr_pages(), config, tell, Some(look));
        self.trace = Some(Arc::new(recording));
    }
}

impl Updates {
    fn send(&self, update: Option<Update>) {
        if let Some(update) = update {
            // Fails only when nobody listens any more.
            let _ = lock(&self.0).send(update);
        }
    }
}

impl Progress for UpdateSender {
    fn update(&self, snapshot: &Snapshot) {
        self.course.update(snapshot);
        self.updates.send(serde_json::to_value(snapshot).ok().map(Update::Progress));
    }

    fn observer(&self) -> Option<Arc<dyn Observer>> {
        self.trace.clone().map(|trace| -> Arc<dyn Observer> { trace })
    }
}
