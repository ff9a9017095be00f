//! Lines on their way to somebody who may stand still.
//!
//! Whoever has something to say may hold a lock, or have a paused guest: it never waits. What finds
//! no room is counted, and the next line that does says so.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::sync::lock;

/// Lines that wait at most.
pub const ROOM: usize = 256;

/// How many lines wait, the one that is being written among them.
#[derive(Default)]
struct Waiting {
    lines: Mutex<usize>,
    fewer: Condvar,
}

/// The queue, and the thread behind it.
pub struct Aside {
    queue: SyncSender<Vec<u8>>,
    waiting: Arc<Waiting>,
    lost: AtomicU64,
}

impl Aside {
    /// # Errors
    /// There can be no more threads.
    pub fn spawn(write: impl Fn(&[u8]) + Send + 'static) -> io::Result<Self> {
        let (queue, lines) = sync_channel::<Vec<u8>>(ROOM);
        let waiting = Arc::<Waiting>::default();
        let theirs = waiting.clone();
        wherry_threads::of_kind("log").spawn(move || {
            for line in lines {
                write(&line);
                *lock(&theirs.lines) -= 1;
                theirs.fewer.notify_all();
            }
        })?;
        Ok(Self { queue, waiting, lost: AtomicU64::new(0) })
    }

    /// One more line, if there is room.
    pub fn push(&self, line: Vec<u8>) {
        *lock(&self.waiting.lines) += 1;
        if self.queue.try_send(line).is_err() {
            *lock(&self.waiting.lines) -= 1;
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lines that found no room since the last time.
    pub fn lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }

    /// Waits until all is written, so long at most.
    pub fn settle(&self, most: Duration) {
        let lines = lock(&self.waiting.lines);
        // Poisoned is as good as over: this is the end.
        drop(self.waiting.fewer.wait_timeout_while(lines, most, |lines| *lines > 0));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn who_speaks_never_waits_and_what_found_no_room_is_counted() {
        let (go, goes) = channel::<()>();
        let (tell, told) = channel();
        let aside = Aside::spawn(move |line| {
            // Nobody takes it until the test says so.
            let _ = goes.recv();
            let _ = tell.send(line.to_vec());
        })
        .unwrap();
        let nr = 3 * ROOM;
        (0..nr).for_each(|nr| aside.push(nr.to_string().into_bytes()));
        let lost = usize::try_from(aside.lost()).unwrap();
        assert!(lost >= nr - ROOM - 1 && lost < nr, "{lost} of {nr}");
        assert_eq!(aside.lost(), 0);
        // Does not end either while nobody takes anything.
        aside.settle(Duration::from_millis(1));
        drop(go);
        aside.settle(Duration::from_secs(60));
        let written: Vec<_> = told.try_iter().collect();
        assert_eq!(written.len() + lost, nr);
        assert_eq!(written.first().map(Vec::as_slice), Some(&b"0"[..]));
    }
}
