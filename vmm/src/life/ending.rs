//! How a guest ended itself: a slot of the machine's own.
//!
//! The first word counts ([`End::or`]), so a guest that writes to the power register in a loop
//! costs nothing, and no word reaches the machine that is built after it. Said on a vCPU's thread,
//! which may hold a device's lock: no lock is taken here under which anybody waits for a vCPU.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::End;
use super::wake::Wake;
use crate::sync::lock;

/// See the module's text.
pub struct Ending {
    /// Looked at between two exits of a vCPU.
    over: AtomicBool,
    said: Mutex<Option<(End, String)>>,
    wake: Arc<Wake>,
}

impl Ending {
    /// Nothing has ended yet.
    pub fn new(wake: Arc<Wake>) -> Self {
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
        self.wake.poke();
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
    use super::*;

    #[test]
    fn the_first_end_counts_and_a_flood_of_them_wakes_nobody() {
        let wake = Arc::new(Wake::default());
        let ending = Ending::new(wake.clone());
        assert!(!ending.is_over());
        ending.note(End::PowerOff, "");
        assert!(wake.was_poked());
        for _ in 0..1000 {
            ending.note(End::PowerOff, "");
            ending.note(End::Reset, "");
        }
        assert_eq!((ending.end(), wake.was_poked()), (Some(End::PowerOff), false));
    }

    #[test]
    fn a_crash_outweighs_a_reset() {
        let ending = Ending::new(Arc::default());
        ending.note(End::Reset, "");
        ending.note(End::Fatal, "lost its way");
        ending.note(End::Fatal, "again");
        assert_eq!((ending.end(), ending.why()), (Some(End::Fatal), "lost its way".into()));
    }
}
