//! Sending chunks of pages: claim → protect → read → (compress) → send, the last three on a lane
//! (module `lanes`) if there are any.
//!
//! The order is what makes it safe, and module `claim` keeps it. A page's to-send bit is taken
//! first, so that nobody else deals with the page. In round one its word is protected next, if it
//! is not yet; only then is the page read. A write after the protection is in the next harvest, a
//! write before it is in what was read. (In later rounds the harvest has protected everything.)
//!
//! Up to 256 pages are claimed and protected at a time, which a lane takes together; half of them
//! is a chunk: what is read together and goes out as one frame. A page is looked at while it is in
//! the CPU's first cache, just copied, and a chunk is written while it is in the second. Slices and
//! cancels are never late by more than a few milliseconds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bitmap::AtomicBitmap;
use crate::config::SourceConfig;
use crate::error::Error;
use crate::link::FrameWriter;
use crate::round::Round;
use crate::traits::{DirtyLog, SourceVm};
use crate::transport::TICK;
use crate::wire::{Kind, SyncPoint};

use super::claim::{Claimed, Protected};
use super::lanes::{Lanes, MEASURE};
use super::meter::Meter;
use super::reader::Reader;

/// How long to wait for a lane before looking after other things.
const LANE_PATIENCE: Duration = Duration::from_millis(5);

/// Takes the guest's memory out of rounds and sends it.
pub(super) struct Sender {
    log: Arc<dyn DirtyLog>,
    nr_pages: u64,
    /// What was claimed and protected and is not yet read.
    protected: Protected,
    /// The first connection's.
    pub(super) reader: Reader,
    /// Data connections, for memory; none if the first connection carries it.
    pub(super) lanes: Lanes,
    pub(super) meter: Meter,
    /// Time that claiming and protecting pages took, and reading them for the first connection.
    reading_here: Duration,
    /// Time that packing them and writing them to the first connection took.
    sending_here: Duration,
}

impl Sender {
    pub(super) fn new(vm: &SourceVm, cfg: &SourceConfig) -> Self {
        Self {
            log: vm.log.clone(),
            nr_pages: vm.ram.nr_pages(),
            protected: Protected::default(),
            reader: Reader::new(&vm.ram, cfg.compression),
            lanes: Lanes::none(),
            meter: Meter::new(cfg),
            reading_here: Duration::ZERO,
            sending_here: Duration::ZERO,
        }
    }

    /// Time that claiming, protecting and reading pages took, for all connections together.
    pub(super) fn reading(&self) -> Duration {
        self.reading_here + self.lanes.reading()
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
        round: &Arc<Round>,
        cursor: &mut usize,
        guarded: Option<&AtomicBitmap>,
    ) -> Result<bool, Error> {
        let lane = self.lanes.take(LANE_PATIENCE, &mut self.meter)?;
        if lane.is_none() && !self.lanes.are_none() {
            return Ok(true);
        }
        let started = Instant::now();
        if self.protected.is_empty() {
            let claimed = Claimed::take(round, cursor);
            let protected = claimed.protect(&*self.log, guarded, self.nr_pages);
            self.protected = protected.map_err(Error::machine("write-protect guest memory"))?;
        }
        self.reading_here += started.elapsed();
        if self.protected.is_empty() {
            self.lanes.keep(lane);
            return Ok(*cursor < round.nr_words());
        }
        if let Some(lane) = lane {
            // Where a lane may have nothing to do, as in a last round, they share.
            let pages = match self.lanes.are_waiting() {
                true => self.protected.part(),
                false => std::mem::take(&mut self.protected),
            };
            self.lanes.send(lane, pages, round)?;
            return Ok(true);
        }
        let Some(frame) = self.protected.next_frame() else { return Ok(true) };
        let reading = Instant::now();
        let len = self.reader.read(round, &frame, out)?;
        let read = reading.elapsed();
        self.reading_here += read;
        let before = out.bytes();
        self.reader.send(out)?;
        self.sending_here += reading.elapsed().saturating_sub(read);
        if len >= MEASURE {
            self.meter.add(len as u64, out.bytes() - before, started.elapsed());
        }
        Ok(true)
    }
}
