//! Updates of a migration on their way to its client: a queue that never waits and is bounded in
//! number and in bytes.
//!
//! Progress that does not fit is dropped: the report has everything. Events of a trace are counted,
//! and a `lost` event stands where they are missing, so that a reader knows of the gap.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use wherry_trace::{Event, What};

use super::Update;

/// Updates that may wait for a slow client.
const MAX_QUEUED: usize = 1024;
/// Bytes of them.
const MAX_BYTES: usize = 1 << 20;

#[derive(Default)]
struct Shared {
    /// Bytes in the queue.
    bytes: AtomicUsize,
    /// Events of the trace that are missing and not told of, and the time of the last of them.
    lost: AtomicU64,
    lost_us: AtomicU64,
}

/// The migration's end.
pub(super) struct Offers {
    queue: SyncSender<Update>,
    shared: Arc<Shared>,
}

/// The client's end.
pub(super) struct Queue {
    queue: Receiver<Update>,
    shared: Arc<Shared>,
}

/// A new, empty queue.
pub(super) fn queue() -> (Offers, Queue) {
    let (sender, receiver) = sync_channel(MAX_QUEUED);
    let shared = Arc::new(Shared::default());
    (Offers { queue: sender, shared: shared.clone() }, Queue { queue: receiver, shared })
}

fn size(update: &Update) -> usize {
    match update {
        Update::Progress(_) => 512,
        Update::Trace(line) => line.get().len(),
    }
}

fn time(line: &RawValue) -> u64 {
    #[derive(Deserialize)]
    struct Time {
        t_us: u64,
    }
    serde_json::from_str::<Time>(line.get()).map_or(0, |time| time.t_us)
}

impl Shared {
    fn lose(&self, line: &RawValue) {
        self.lost.fetch_add(1, Ordering::AcqRel);
        self.lost_us.store(time(line), Ordering::Release);
    }

    /// The `lost` event that is due, which counts as told.
    fn take_lost(&self) -> Option<Update> {
        match self.lost.swap(0, Ordering::AcqRel) {
            0 => None,
            events => {
                let t_us = self.lost_us.load(Ordering::Acquire);
                Update::trace(&Event { t_us, what: What::Lost { events } })
            }
        }
    }
}

impl Offers {
    /// Queues it if there is room.
    pub(super) fn offer(&self, update: Update) {
        let Update::Trace(line) = update else {
            self.push(update);
            return;
        };
        let lost = self.shared.lost.load(Ordering::Acquire);
        if lost > 0 {
            // Only together with what comes after it, lest the queue fill with small `lost` events.
            let room =
                self.shared.bytes.load(Ordering::Acquire) + line.get().len() + 256 <= MAX_BYTES;
            if !room {
                return self.shared.lose(&line);
            }
            let told = self.shared.take_lost().is_some_and(|told| self.push(told));
            if !told {
                self.shared.lost.fetch_add(lost, Ordering::AcqRel);
                return self.shared.lose(&line);
            }
        }
        if !self.push(Update::Trace(line.clone())) {
            self.shared.lose(&line);
        }
    }

    fn push(&self, update: Update) -> bool {
        let (size, bytes) = (size(&update), &self.shared.bytes);
        // Only this end adds, so the sum cannot outgrow the bound.
        if bytes.load(Ordering::Acquire) + size > MAX_BYTES {
            return false;
        }
        bytes.fetch_add(size, Ordering::AcqRel);
        let queued = self.queue.try_send(update).is_ok();
        if !queued {
            bytes.fetch_sub(size, Ordering::AcqRel);
        }
        queued
    }
}

impl Queue {
    /// The next update. After the last of them, what was lost at the end.
    pub(super) fn recv_timeout(&self, timeout: Duration) -> Result<Update, RecvTimeoutError> {
        match self.queue.recv_timeout(timeout) {
            Ok(update) => {
                self.shared.bytes.fetch_sub(size(&update), Ordering::AcqRel);
                Ok(update)
            }
            Err(RecvTimeoutError::Disconnected) => {
                self.shared.take_lost().ok_or(RecvTimeoutError::Disconnected)
            }
            Err(timeout) => Err(timeout),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(t_us: u64, ranges: usize) -> Update {
        let what = What::Hints { ranges: vec![(1_000_000, 1024); ranges], dropped: 0 };
        Update::trace(&Event { t_us, what }).unwrap()
    }

    #[test]
    fn what_waits_is_bounded_in_bytes_and_in_number() {
        for (ranges, most) in [(8000, 10), (1, MAX_QUEUED)] {
            let (offers, queue) = queue();
            for t_us in 0..3000 {
                offers.offer(event(t_us, ranges));
            }
            assert!(offers.shared.bytes.load(Ordering::Acquire) <= MAX_BYTES);
            drop(offers);
            let (mut told, mut lost) = (0, Vec::new());
            while let Ok(Update::Trace(line)) = queue.recv_timeout(Duration::ZERO) {
                match serde_json::from_str::<Event>(line.get()).unwrap() {
                    Event { what: What::Lost { events }, t_us } => lost.push((t_us, events)),
                    _ => told += 1,
                }
            }
            assert!(told > 0 && told <= most, "{told}");
            assert_eq!(lost, [(2999, 3000 - told as u64)]);
            assert_eq!(queue.shared.bytes.load(Ordering::Acquire), 0);
        }
    }
}
