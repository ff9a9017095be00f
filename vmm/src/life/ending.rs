//! How a guest ended itself: a slot of the machine's own.
//!
//! The first word counts ([`End::or`]), so a guest that writes to the power register in a loop
//! costs nothing, and no word reaches the machine that is built after it. Said on a vCPU's thread,
//! which may hold a device's lock: no lock is taken here under which anybody waits for a vCPU.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::End;
use crate::sync::lock;

/// See the module's text.
pub struct Ending {
    /// Looked at between two exits of a vCPU.
    over: AtomicBool,
    said: Mutex<Option<(End, String)>>,
    /// Wakes the run loop.
    wake: Arc<dyn Fn() + Send + Sync>,
}

impl Ending {
    /// Nothing has ended yet.
    pub fn new(wake: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self { over: AtomicBool::new(false), said: Mutex::new(None), wake }
    }

    /// Notes an end; `why` is for people, of a crash.
    pub fn note(&self, end: End, why: &str) {
        {
            let mut said = lock(&self.said);
            let earlier = said.as_ref().map(|(end, _)| *end);
            if earlier == Some(End::or(earlier, end)) {
                return;
            }
            *said = Some((end, why.to_owned()));
            self.over.store(true, Ordering::Release);
        }
        (self.wake)();
    }

    /// Whether the guest has ended: then no vCPU goes on.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// The end, if there was one.
    pub fn end(&self) -> Option<End> {
        lock(&self.said).as_ref().map(|(end, _)| *end)
    }

    /// Why it crashed.
    pub fn why(&self) -> String {
        lock(&self.said).as_ref().map(|(_, why)| why.clone()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn the_first_end_counts_and_a_flood_of_them_wakes_nobody() {
        let woken = Arc::new(AtomicUsize::new(0));
        let wake = woken.clone();
        let ending = Ending::new(Arc::new(move || {
            wake.fetch_add(1, Ordering::Relaxed);
        }));
        assert!(!ending.is_over());
        for _ in 0..1000 {
            ending.note(End::PowerOff, "");
            ending.note(End::Reset, "");
        }
        assert_eq!((ending.end(), woken.load(Ordering::Relaxed)), (Some(End::PowerOff), 1));
    }

    #[test]
    fn a_crash_outweighs_a_reset() {
        let ending = Ending::new(Arc::new(|| ()));
        ending.note(End::Reset, "");
        ending.note(End::Fatal, "lost its way");
        ending.note(End::Fatal, "again");
        assert_eq!((ending.end(), ending.why()), (Some(End::Fatal), "lost its way".into()));
    }
}
