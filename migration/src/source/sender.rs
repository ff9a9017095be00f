//! Sending chunks of pages: claim → protect → read → (compress) → send, the last two on a lane
//! (module `lanes`) if there are any.
//!
//! The order is what makes it safe, and module `claim` keeps it. A page's to-send bit is taken
//! first, so that nobody else deals with the page. In round one its word is protected next, if it
//! is not yet; only then is the page read. A write after the protection is in the next harvest, a
//! write before it is in what was read. (In later rounds the harvest has protected everything.)
//!
//! Up to 256 pages are claimed and protected at a time, half of them is a chunk: what is read
//! together and goes out as one frame. A page is looked at while it is in the CPU's first cache,
//! just copied, and a chunk is written while it is in the second. Slices and cancels are never late
//! by more than a few milliseconds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bitmap::{AtomicBitmap, Bitmap};
use crate::config::{Compression, SourceConfig};
use crate::error::Error;
use crate::link::FrameWriter;
use crate::round::Round;
use crate::traits::{DirtyLog, GuestRam, SourceVm};
use crate::transport::TICK;
use crate::units::is_zero;
use crate::wire::pages::{MAX_RUNS, Run, encode_runs};
use crate::wire::sum::ContentSum;
use crate::wire::{Kind, Sum, SyncPoint};

use super::claim::{Claimed, Frame, Protected};
use super::lanes::{Chunk, Lanes, MEASURE, room_to_pack};
use super::meter::Meter;

/// How long to wait for a lane before looking after other things.
const LANE_PATIENCE: Duration = Duration::from_millis(5);

/// Reused from chunk to chunk.
struct Buffers {
    runs: Vec<Run>,
    chunk: Chunk,
    /// Room for compressed content; empty if it is not compressed.
    packed: Vec<u8>,
}

impl Buffers {
    fn new(compression: Compression) -> Self {
        Self { packed: room_to_pack(compression), runs: Vec::new(), chunk: Chunk::new() }
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
    /// What was claimed and protected and is not yet read.
    protected: Protected,
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
            protected: Protected::default(),
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
        let Some(frame) = self.next_frame(round, cursor, guarded)? else {
            self.lanes.keep(lane);
            return Ok(*cursor < round.nr_words());
        };
        let summed = Sum::of(Kind::Pages, out.features) == Sum::Crc32;
        let len = self.read(round, &frame, summed)?;
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

    /// The next pages to read: of what is protected, or else from word `cursor` on.
    fn next_frame(
        &mut self,
        round: &Round,
        cursor: &mut usize,
        guarded: Option<&AtomicBitmap>,
    ) -> Result<Option<Frame>, Error> {
        if let Some(frame) = self.protected.next_frame() {
            return Ok(Some(frame));
        }
        let claimed = Claimed::take(round, cursor);
        let protected = claimed.protect(&*self.log, guarded, self.nr_pages);
        self.protected = protected.map_err(Error::machine("write-protect guest memory"))?;
        Ok(self.protected.next_frame())
    }

    /// Reads pages, sorts them into content and zero, fills `buffers.runs` and `buffers.chunk`.
    /// Returns the length of the content. With `summed` its CRC32 is made on the way.
    fn read(&mut self, round: &Round, frame: &Frame, summed: bool) -> Result<usize, Error> {
        let Self { ram, content, buffers, .. } = self;
        let Buffers { runs, chunk, packed, .. } = buffers;
        runs.clear();
        let mut zeros = 0;
        let mut sum = (summed && packed.is_empty()).then(ContentSum::default);
        let mut keep = |page: u64, bytes: &[u8]| {
            if !is_zero(bytes) {
                if let Some(sum) = &mut sum {
                    sum.update(bytes);
                }
                push(runs, page, 1, false);
                content.set(page);
                return true;
            }
            zeros += 1;
            // The destination is zero where it never got content.
            if content.test(page) {
                content.clear(page);
                push(runs, page, 1, true);
            }
            false
        };
        let len = frame.read(&**ram, &mut chunk.content, &mut keep);
        let len = len.map_err(Error::machine("read guest memory"))?;
        chunk.sum = sum;
        round.mark_zero(zeros);
        for &(word, taken) in frame.words() {
            let sent = taken & content.words()[word];
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
