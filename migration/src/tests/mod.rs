//! Tests of the engine as a whole, against a model guest and an oracle.
//!
//! The mutations are deliberate mistakes in the engine (or, for the VMM's own writes, in the
//! model's dirty log), compiled in for tests only. For each there is a test that the oracle notices
//! it, so that the oracle is known to bite.

mod asking;
mod auto;
mod dest;
mod faults;
mod handoff;
mod hostile;
mod matrix;
mod model;
mod mutations;
mod ops;
mod oracle;
mod orders;
mod paused;
mod speed;
mod strangers;
mod streams;
mod switch;
mod trace;
mod verify;

use std::cell::RefCell;
use std::sync::Arc;

use crate::hinting::sink::Sink;
use crate::round::Round;

/// A deliberate mistake in the engine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mutation {
    /// The id is published before memory is protected.
    PublishBeforeProtect,
    /// The rounds share one to-send bitmap, as they well might. Right, because the epoch is closed
    /// between them.
    SharedBitmap,
    /// The same, and hints are honoured although the epoch is closed.
    HintAfterClose,
    /// The destination's further connections do not wait for each other after round one.
    PassSync,
    /// The destination runs as soon as it is loaded.
    RunBeforeHandOff,
    /// A bit of this page is wrong in what the sender has read.
    FlipPage(u64),
    /// This page is counted as sent and is not.
    DropPage(u64),
}

/// The sender has read pages from `first` on.
pub(crate) fn pages_read(mutation: Option<Mutation>, first: u64, bytes: &mut [u8]) {
    use crate::traits::PAGE_SIZE;
    if let Some(Mutation::FlipPage(page)) = mutation
        && let Some(at) = page.checked_sub(first)
        && let Some(byte) = bytes.get_mut(at as usize * PAGE_SIZE + 4000)
    {
        *byte ^= 0x40;
    }
}

thread_local! {
    static SINKS: RefCell<Vec<Arc<Sink>>> = const { RefCell::new(Vec::new()) };
}

/// The engine published an id for this sink: under a mutation that shares the bitmap, remember it.
pub(crate) fn sink_published(mutation: Option<Mutation>, sink: &Arc<Sink>) {
    use std::sync::atomic::Ordering::Relaxed;
    if matches!(mutation, Some(Mutation::SharedBitmap | Mutation::HintAfterClose)) {
        let honour = mutation == Some(Mutation::HintAfterClose);
        sink.ignore_gate.store(honour, Relaxed);
        SINKS.with_borrow_mut(|sinks| sinks.push(sink.clone()));
    }
}

/// A round begins: old sinks act on its bitmap.
pub(crate) fn round_begins(round: &Arc<Round>) {
    SINKS.with_borrow(|sinks| {
        for sink in sinks {
            *sink.redirect.lock().unwrap() = Some(round.clone());
        }
    });
}
