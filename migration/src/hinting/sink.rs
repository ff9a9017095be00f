//! The sink of one epoch: what a hint does. See [`crate::hinting`] for the rule and its hazards.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use crate::bitmap::{AtomicBitmap, Bitmap};
use crate::observe::{EpochId, Event, Observer};
use crate::round::Round;
use crate::sync::{AtomicBool, AtomicU64, Mutex};
use crate::traits::{DirtyLog, GuestRam, HintSink};
use crate::units::{PAGE_SIZE, is_zero};

use super::gate::Gate;

/// Words of 64 pages that a hint may have read at a time: 256 KiB each.
const BUFFER_PAGES: usize = 64;
/// Words of a hint that are taken and protected at a time: 4 MiB of memory, Linux's hint block.
const WORDS_AT_ONCE: usize = 16;

/// Whether each word has been protected since the log was turned on: see the module's hazards.
pub fn word_map(nr_pages: u64) -> AtomicBitmap {
    AtomicBitmap::new(nr_pages.div_ceil(64))
}

/// Protects words, clipping the last one to memory, and then marks them in `guarded`.
pub fn protect_words(
    log: &dyn DirtyLog,
    guarded: &AtomicBitmap,
    nr_pages: u64,
    words: Range<usize>,
) -> std::io::Result<()> {
    let first = words.start as u64 * 64;
    let end = (words.end as u64 * 64).min(nr_pages);
    log.protect(first, end.saturating_sub(first))?;
    words.for_each(|word| {
        guarded.set(word as u64);
    });
    Ok(())
}

fn none_named(round: &Round) -> Arc<AtomicBitmap> {
    Arc::new(AtomicBitmap::new(round.nr_pages()))
}

enum Method {
    Protected,
    CheckedZero { early: Bitmap, guarded: Arc<AtomicBitmap> },
}

impl Method {
    fn checked_zero(guarded: &Arc<AtomicBitmap>) -> Self {
        Self::CheckedZero { early: guarded.snapshot(), guarded: guarded.clone() }
    }
}

/// What is found out about the guest, from the first id to the switch and from there on.
#[derive(Default)]
struct Found {
    zero_blocks: AtomicU64,
    content_blocks: AtomicU64,
    not_zeroing: AtomicBool,
    /// A page that could not be honoured was named again, and honoured.
    renamed: AtomicBool,
}

/// The sink of one epoch: one published id.
pub struct Sink {
    round: Arc<Round>,
    gate: Gate,
    method: Method,
    ram: Arc<dyn GuestRam>,
    log: Arc<dyn DirtyLog>,
    /// Only hint threads share it, never the sender.
    buffer: Mutex<Vec<u8>>,
    probe: bool,
    found: Arc<Found>,
    /// Pages that were named and could not be honoured, because the guest does not zero.
    named: Arc<AtomicBitmap>,
}

impl Sink {
    /// Hints clear bits. Everything in the round's to-send bitmap is protected already.
    pub fn protected(round: &Arc<Round>, ram: &Arc<dyn GuestRam>, log: &Arc<dyn DirtyLog>) -> Self {
        Self::new(round, ram, log, Method::Protected, false, none_named(round))
    }

    /// The sink for the id after the switch: everything is protected now.
    pub fn switched(&self) -> Self {
        self.next(Method::Protected, false)
    }

    /// The sink for the next id of the same round, this one being closed. What was protected
    /// meanwhile was so before that id is published. The probe goes on where it was.
    pub fn renew(&self) -> Self {
        let method = match &self.method {
            Method::Protected => Method::Protected,
            Method::CheckedZero { guarded, .. } => Method::checked_zero(guarded),
        };
        Self { found: self.found.clone(), ..self.next(method, self.probe) }
    }

    fn next(&self, method: Method, probe: bool) -> Self {
        Self::new(&self.round, &self.ram, &self.log, method, probe, self.named.clone())
    }

    /// Hints are checked. What is in `guarded` now was protected before the id is published. With
    /// `probe`, a guest that does not zero raises [`not_zeroing`](Self::not_zeroing).
    pub fn checked_zero(
        round: &Arc<Round>,
        ram: &Arc<dyn GuestRam>,
        log: &Arc<dyn DirtyLog>,
        guarded: &Arc<AtomicBitmap>,
        probe: bool,
    ) -> Self {
        Self::new(round, ram, log, Method::checked_zero(guarded), probe, none_named(round))
    }

    fn new(
        round: &Arc<Round>,
        ram: &Arc<dyn GuestRam>,
        log: &Arc<dyn DirtyLog>,
        method: Method,
        probe: bool,
        named: Arc<AtomicBitmap>,
    ) -> Self {
        Self {
            round: round.clone(),
            gate: Gate::default(),
            method,
            ram: ram.clone(),
            log: log.clone(),
            buffer: Mutex::default(),
            probe,
            found: Arc::default(),
            named,
        }
    }

    /// After this returned no hint of this epoch has any effect.
    pub fn close(&self) {
        self.gate.close();
    }

    /// Whether the probe found a guest that does not zero what it hints.
    pub fn not_zeroing(&self) -> bool {
        self.found.not_zeroing.load(Ordering::Acquire)
    }

    /// Pages still to be sent that were named and could not be honoured.
    pub(crate) fn held(&self) -> u64 {
        self.round.left_of(&self.named)
    }

    /// Pages that were named, could not be honoured, were not named again in time, and so were sent
    /// with their content.
    pub(crate) fn not_honoured(&self) -> u64 {
        let mut named = self.named.snapshot();
        named.and(&self.round.sent_pages());
        named.count()
    }

    /// Whether the driver has named some of these again since it was to take its memory back.
    pub(crate) fn renamed(&self) -> bool {
        self.found.renamed.load(Ordering::Relaxed)
    }

    /// Notes a hint that is not honoured.
    fn note_named(&self, first: u64, nr: u64) {
        for (word, mask) in self.round.words_of(first, nr) {
            self.named.set_mask(word, mask);
        }
    }

    fn clear(&self, word: usize, mask: u64) {
        self.round.note_sent_before(word, mask);
        self.round.clear_hinted(word, mask);
        if self.named.load(word) & mask != 0 {
            self.found.renamed.store(true, Ordering::Relaxed);
        }
    }

    fn check(&self, first: u64, nr: u64, early: &Bitmap, guarded: &AtomicBitmap) {
        let mut batch: Vec<(usize, u64)> = Vec::with_capacity(WORDS_AT_ONCE);
        let mut scan = BlockScan::default();
        for (word, mask) in self.round.words_of(first, nr) {
            let follows = batch.last().is_none_or(|(last, _)| last + 1 == word);
            if !follows || batch.len() == WORDS_AT_ONCE {
                self.look(&mut batch, guarded, &mut scan);
                // The rest of a block with content is the sender's, and nobody waits for a long
                // hint to end.
                if scan.content || self.gate.is_closed() {
                    break;
                }
            }
            if early.test(word as u64) {
                self.clear(word, mask);
                continue;
            }
            if mask != self.round.valid(word) || guarded.test(word as u64) {
                self.round.note_sent_before(word, mask);
                continue;
            }
            let taken = self.round.claim(word);
            if guarded.test(word as u64) {
                // Another hint thread guarded the word and put pages back between the two lines
                // above.
                self.round.put_back(word, taken);
            } else if taken == 0 {
                self.round.note_sent_before(word, mask);
            } else {
                batch.push((word, taken));
            }
        }
        self.look(&mut batch, guarded, &mut scan);
        if self.probe && scan.content {
            self.note_named(first, nr);
        }
        self.judge(&scan);
    }

    /// Protects the taken, consecutive words and reads their pages; what is not zero goes back.
    fn look(&self, batch: &mut Vec<(usize, u64)>, guarded: &AtomicBitmap, scan: &mut BlockScan) {
        let (Some(&(start, _)), Some(&(last, _))) = (batch.first(), batch.last()) else {
            return;
        };
        let words = start..last + 1;
        if protect_words(&*self.log, guarded, self.round.nr_pages(), words).is_err() {
            // Not guarded: the sender will protect them itself, and report the error.
            for (word, taken) in batch.drain(..) {
                self.round.put_back(word, taken);
            }
            return;
        }
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        buffer.resize(BUFFER_PAGES * PAGE_SIZE, 0);
        for (word, taken) in batch.drain(..) {
            let zero = if scan.content { 0 } else { self.zero_pages(word, taken, &mut buffer) };
            self.round.mark_hinted(word, zero);
            if taken & !zero != 0 {
                scan.content = true;
                self.round.put_back(word, taken & !zero);
            }
            scan.looked = true;
        }
    }

    /// The pages of `taken` that are zero, up to the first that is not.
    fn zero_pages(&self, word: usize, taken: u64, buffer: &mut [u8]) -> u64 {
        let mut zero = 0;
        for (at, nr) in crate::bitmap::word_runs(taken) {
            let first = word as u64 * 64 + u64::from(at);
            let Some(buf) = buffer.get_mut(..nr as usize * PAGE_SIZE) else {
                return zero;
            };
            let mut content = false;
            // None is kept: each is looked at in the first cache, and the next is copied over it.
            let looked = self.ram.take(first, buf, &mut |page, bytes| {
                content = content || !is_zero(bytes);
                if !content {
                    zero |= 1 << (page % 64);
                }
                false
            });
            // An error is the sender's to report: it will read the same page.
            if looked.is_err() || content {
                return zero;
            }
        }
        zero
    }

    fn judge(&self, scan: &BlockScan) {
        if !scan.looked {
            return;
        }
        let Found { zero_blocks, content_blocks, not_zeroing, .. } = &*self.found;
        let counter = if scan.content { content_blocks } else { zero_blocks };
        counter.fetch_add(1, Ordering::Relaxed);
        let content = content_blocks.load(Ordering::Relaxed);
        if self.probe && does_not_zero(content, zero_blocks.load(Ordering::Relaxed)) {
            not_zeroing.store(true, Ordering::Release);
        }
    }
}

/// Whether a guest of which so many hinted blocks had content, and so many were zero, does not zero
/// what it hints. One block with content may be memory that a zeroing guest took back in need; a
/// quarter is not.
pub fn does_not_zero(content_blocks: u64, zero_blocks: u64) -> bool {
    content_blocks * 4 > zero_blocks
}

/// A sink, with somebody who hears each hint before it.
pub(crate) struct ObservedSink {
    pub(crate) sink: Arc<dyn HintSink>,
    pub(crate) epoch: EpochId,
    pub(crate) observer: Arc<dyn Observer>,
}

impl HintSink for ObservedSink {
    fn hint(&self, first: u64, nr: u64) {
        self.observer.observe(&Event::Hinted { epoch: self.epoch, first, nr });
        self.sink.hint(first, nr);
    }

    fn enough(&self) -> bool {
        self.sink.enough()
    }
}

#[derive(Default)]
struct BlockScan {
    looked: bool,
    content: bool,
}

impl HintSink for Sink {
    fn hint(&self, first: u64, nr: u64) {
        let end = first.saturating_add(nr).min(self.round.nr_pages());
        let Some(nr) = end.checked_sub(first).filter(|&nr| nr > 0) else {
            return;
        };
        self.round.note_hint(nr);
        let pass = self.gate.enter();
        if pass.is_none() {
            return self.round.note_late(nr);
        }
        match &self.method {
            Method::Protected => {
                for (word, mask) in self.round.words_of(first, nr) {
                    self.clear(word, mask);
                }
            }
            Method::CheckedZero { .. } if self.not_zeroing() => self.note_named(first, nr),
            Method::CheckedZero { early, guarded } => self.check(first, nr, early, guarded),
        }
    }

    fn enough(&self) -> bool {
        self.not_zeroing()
    }
}
