//! What the product's drop guard undoes, found out by dropping it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::Duration;

use crate::product::engine::bitmap::Bitmap;
use crate::product::engine::source::probe_undo;
use crate::product::engine::traits::{DirtyLog, GuestRam, HintSink, HintSource, Machine, SourceVm};

/// DONE was published.
pub(super) const DONE: u8 = 1;
/// The machine runs again.
pub(super) const RESUME: u8 = 2;
/// The log is off.
pub(super) const LOG_OFF: u8 = 4;

/// What is undone when a migration fails in such a state.
pub(super) fn order(log_on: bool, paused: bool) -> u8 {
    let seen = Arc::<Recorder>::default();
    let vm = SourceVm {
        ram: seen.clone(),
        log: seen.clone(),
        hints: Some(seen.clone()),
        machine: seen.clone(),
        description: Vec::new(),
    };
    probe_undo(&vm, log_on, paused);
    seen.0.load(Relaxed)
}

#[derive(Default)]
struct Recorder(AtomicU8);

impl Recorder {
    fn note(&self, what: u8) {
        self.0.fetch_or(what, Relaxed);
    }
}

impl HintSource for Recorder {
    fn available(&self) -> bool {
        true
    }
    fn start(&self, _: Arc<dyn HintSink>) -> io::Result<()> {
        Ok(())
    }
    fn rest(&self) -> bool {
        true
    }
    fn rested(&self) -> bool {
        true
    }
    fn returned(&self) -> bool {
        true
    }
    fn stop(&self) {}
    fn done(&self) {
        self.note(DONE);
    }
    fn finished(&self) -> bool {
        true
    }
    fn wait_seen(&self, _: Duration) -> bool {
        true
    }
    fn ballooned(&self, _: &mut Bitmap) {}
    fn guest_free_bytes(&self) -> Option<u64> {
        None
    }
}

impl DirtyLog for Recorder {
    fn start(&self) -> io::Result<()> {
        Ok(())
    }
    fn protect(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn harvest(&self, _: &mut Bitmap) -> io::Result<()> {
        Ok(())
    }
    fn stop(&self) -> io::Result<()> {
        self.note(LOG_OFF);
        Ok(())
    }
}

impl GuestRam for Recorder {
    fn nr_pages(&self) -> u64 {
        0
    }
    fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
        Ok(())
    }
    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn zero(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn populated(&self, _: &mut Bitmap) -> io::Result<()> {
        Ok(())
    }
}

impl Machine for Recorder {
    fn pause(&self) -> io::Result<()> {
        Ok(())
    }
    fn resume(&self) -> io::Result<()> {
        self.note(RESUME);
        Ok(())
    }
    fn hand_over(&self, _begun: bool) -> io::Result<()> {
        Ok(())
    }

    fn save(&self) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }
}
