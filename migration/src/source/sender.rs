//! Sending chunks of pages: claim → protect → read → (compress) → send, the last two on a lane
//! (module `lanes`) if there are any.
//!
//! The order is what makes it safe. A page's to-send bit is taken first, so that nobody else deals
//! with the page. In round one its word is protected next, if it is not yet; only then is the page
//! read. A write after the protection is in the next harvest, a write before it is in what was
//! read. (In later rounds the harvest has protected everything.)
//!
//! A chunk is up to 256 pages: big enough that the protection's ioctl and the socket's write cost
//! little per page, small enough that a slice or a cancel is never late by more than a few
//! milliseconds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bitmap::{AtomicBitmap, Bitmap, word_runs};
use crate::config::{Compression, SourceConfig};
use crate::error::Error;
use crate::hinting::sink::protect_words;
use crate::link::FrameWriter;
use crate::round::Round;
use crate::traits::{DirtyLog, GuestRam, SourceVm};
use crate::transport::TICK;
use crate::units::{PAGE_SIZE, is_zero};
use crate::wire::pages::{MAX_CONTENT, MAX_RUNS, Run, encode_runs};
use crate::wire::{Kind, SyncPoint};

use super::lanes::{Chunk, Lanes, MEASURE, room_to_pack};
use super::meter::Meter;

const CHUNK_PAGES: u32 = (MAX_CONTENT / PAGE_SIZE) as u32;
/// Empty words skipped in one call, so that an almost empty bitmap of a big guest does not hold up
/// the caller.
const WORDS_PER_CALL: usize = 1 << 16;
/// How long to wait for a lane before looking after other things.
const LANE_PATIENCE: Duration = Duration::from_millis(5);

/// Reused from chunk to chunk.
struct Buffers {
    words: Vec<(usize, u64)>,
    spans: Vec<(u64, u32)>,
    runs: Vec<Run>,
    chunk: Chunk,
    /// Room for compressed content; empty if it is not compressed.
    packed: Vec<u8>,
}

impl Buffers {
    fn new(compression: Compression) -> Self {
        Self {
            packed: room_to_pack(compression),
            words: Vec::new(),
            spans: Vec::new(),
            runs: Vec::new(),
            chunk: Chunk::new(),
        }
    }
}

/// Appends pages to a run table, extending the last run where possible.
fn push(runs: &mut Vec<Run>, first: u64, nr: u32, zero: bool) {
    match runs.last_mut() {
        Some(last) if last.zero == zero && last.first + u64::from(last.nr) == first => {
            last.nr += nr;
        }
        _ => runs.push(Run { first, nr, zero }),
    }
}

/// Takes the guest's memory out of rounds and sends it.
pub(super) struct Sender {
    ram: Arc<dyn GuestRam>,
    log: Arc<dyn DirtyLog>,
    nr_pages: u64,
    /// Pages of which the destination may hold content: those that were sent and not zeroed since.
    content: Bitmap,
    buffers: Buffers,
    /// Data connections, for memory; none if the first connection carries it.
    pub(super) lanes: Lanes,
    pub(super) meter: Meter,
    /// Time that claiming, protecting and reading pages took.
    pub(super) reading: Duration,
    /// Time that packing them and writing them to the first connection took.
    sending_here: Duration,
}

impl Sender {
    pub(super) fn new(vm: &SourceVm, cfg: &SourceConfig) -> Self {
        let nr_pages = vm.ram.nr_pages();
        Self {
            ram: vm.ram.clone(),
            log: vm.log.clone(),
            nr_pages,
            content: Bitmap::new(nr_pages),
            buffers: Buffers::new(cfg.compression),
            lanes: Lanes::none(),
            meter: Meter::new(cfg),
            reading: Duration::ZERO,
            sending_here: Duration::ZERO,
        }
    }

    /// Time that packing and writing pages took, of all connections together.
    pub(super) fn sending(&self) -> Duration {
        self.sending_here + self.lanes.busy()
    }

    /// The memory of this round is all sent: what follows on any connection is applied after it.
    pub(super) fn sync(&mut self, out: &mut FrameWriter, round: u32) -> Result<(), Error> {
        if self.lanes.are_none() {
            return Ok(());
        }
        self.lanes.sync(round)?;
        out.send_control(Kind::Sync, &SyncPoint { round })
    }

    /// Whether everything is written; waits a tick for it. Its bytes and its time are known then.
    pub(super) fn settled(&mut self) -> Result<bool, Error> {
        self.lanes.settled(TICK, &mut self.meter)
    }

    /// Sends the next chunk from word `cursor` on. `false` when there was nothing left up to the
    /// end. With `guarded`, protects words that are not yet (round one).
    pub(super) fn send_chunk(
        &mut self,
        out: &mut FrameWriter,
        round: &Round,
        cursor: &mut usize,
        guarded: Option<&AtomicBitmap>,
    ) -> Result<bool, Error> {
        let lane = self.lanes.take(LANE_PATIENCE, &mut self.meter)?;
        if lane.is_none() && !self.lanes.are_none() {
            return Ok(true);
        }
        let started = Instant::now();
        if !self.claim(round, cursor) {
            self.lanes.keep(lane);
            return Ok(*cursor < round.nr_words());
        }
        if let Some(guarded) = guarded {
            self.protect_claimed(guarded)?;
        }
        let len = self.read_claimed(round)?;
        let read = started.elapsed();
        self.reading += read;
        if self.buffers.runs.is_empty() {
            self.lanes.keep(lane);
            return Ok(true);
        }
        let Buffers { chunk, runs, packed, .. } = &mut self.buffers;
        chunk.table.clear();
        encode_runs(runs, &mut chunk.table);
        chunk.len = len;
        if let Some(mut idle) = lane {
            std::mem::swap(chunk, &mut idle.chunk);
            self.lanes.send(idle)?;
            return Ok(true);
        }
        let before = out.bytes();
        out.send_pages(&chunk.table, chunk.content(), packed)?;
        let all = started.elapsed();
        self.sending_here += all.saturating_sub(read);
        if len >= MEASURE {
            self.meter.add(len as u64, out.bytes() - before, all);
        }
        Ok(true)
    }

    /// Takes up to a chunk's worth of words into `buffers.words`.
    fn claim(&mut self, round: &Round, cursor: &mut usize) -> bool {
        let words = &mut self.buffers.words;
        words.clear();
        let mut pages = 0;
        let end = round.nr_words().min(cursor.saturating_add(WORDS_PER_CALL));
        while *cursor < end && pages + 64 <= CHUNK_PAGES {
            let taken = round.claim(*cursor);
            if taken != 0 {
                pages += taken.count_ones();
                words.push((*cursor, taken));
            }
            *cursor += 1;
        }
        !words.is_empty()
    }

    fn protect_claimed(&mut self, guarded: &AtomicBitmap) -> Result<(), Error> {
        let words = self.buffers.words.iter().map(|&(word, _)| word);
        let mut todo = words.filter(|&word| !guarded.test(word as u64)).peekable();
        while let Some(start) = todo.next() {
            let mut end = start + 1;
            while todo.next_if_eq(&end).is_some() {
                end += 1;
            }
            protect_words(&*self.log, guarded, self.nr_pages, start..end)
                .map_err(Error::machine("write-protect guest memory"))?;
        }
        Ok(())
    }

    /// Reads the claimed pages, sorts them into content and zero, fills `buffers.runs` and
    /// `buffers.chunk`. Returns the length of the content.
    fn read_claimed(&mut self, round: &Round) -> Result<usize, Error> {
        let Buffers { words, spans, runs, chunk: Chunk { content, .. }, .. } = &mut self.buffers;
        spans.clear();
        runs.clear();
        for &(word, taken) in words.iter() {
            for (at, nr) in word_runs(taken) {
                let first = word as u64 * 64 + u64::from(at);
                match spans.last_mut() {
                    Some((start, len)) if *start + u64::from(*len) == first => *len += nr,
                    _ => spans.push((first, nr)),
                }
            }
        }
        let mut len = 0;
        let mut zeros = 0;
        for &(first, nr) in spans.iter() {
            let bytes = nr as usize * PAGE_SIZE;
            let span = &mut content[len..len + bytes];
            (self.ram.read(first, span)).map_err(Error::machine("read guest memory"))?;
            let from = len;
            for page in 0..nr {
                let number = first + u64::from(page);
                let at = from + page as usize * PAGE_SIZE;
                if !is_zero(&content[at..at + PAGE_SIZE]) {
                    if at != len {
                        content.copy_within(at..at + PAGE_SIZE, len);
                    }
                    len += PAGE_SIZE;
                    push(runs, number, 1, false);
                    self.content.set(number);
                    continue;
                }
                zeros += 1;
                // The destination is zero where it never got content.
                if self.content.test(number) {
                    self.content.clear(number);
                    push(runs, number, 1, true);
                }
            }
        }
        round.mark_zero(zeros);
        for &(word, taken) in words.iter() {
            let sent = taken & self.content.words()[word];
            if sent != 0 {
                round.mark_sent(word, sent);
            }
        }
        Ok(len)
    }

    /// Tells the destination that these pages are zero now, where it may hold content.
    pub(super) fn send_zeroed(
        &mut self,
        out: &mut FrameWriter,
        pages: &Bitmap,
    ) -> Result<(), Error> {
        let mut stale = pages.clone();
        stale.and(&self.content);
        self.content.and_not(&stale);
        let mut runs: Vec<Run> = Vec::new();
        let mut all = stale.runs().peekable();
        while let Some((first, nr)) = all.next() {
            // Runs are at most u32 long: guests of 16 TiB and more would need a split here.
            push(&mut runs, first, u32::try_from(nr).unwrap_or(u32::MAX), true);
            if runs.len() == MAX_RUNS || all.peek().is_none() {
                let mut table = Vec::new();
                encode_runs(&runs, &mut table);
                out.send(Kind::Pages, &[&table])?;
                runs.clear();
            }
        }
        Ok(())
    }
}
