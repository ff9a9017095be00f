//! Frames of memory: read, sorted into content and zeros, counted, and sent.
//!
//! There is one reader for each connection that carries memory. They share what the destination may
//! hold; each page of it is one reader's at a time, the one's that has its frame.

use std::sync::Arc;

use crate::bitmap::AtomicBitmap;
use crate::config::Compression;
use crate::error::Error;
use crate::link::FrameWriter;
use crate::round::Round;
use crate::traits::GuestRam;
use crate::units::is_zero;
use crate::wire::pages::{Run, encode_runs, packed_room};
use crate::wire::sum::ContentSum;
use crate::wire::{Kind, Sum};

use super::claim::{FRAME_ROOM, Frame};

/// Appends pages to a run table, extending the last run where possible.
fn push(runs: &mut Vec<Run>, first: u64, nr: u32, zero: bool) {
    match runs.last_mut() {
        Some(last) if last.zero == zero && last.first + u64::from(last.nr) == first => {
            last.nr += nr;
        }
        _ => runs.push(Run { first, nr, zero }),
    }
}

/// One connection's. Its room is used again for each frame.
pub(super) struct Reader {
    ram: Arc<dyn GuestRam>,
    /// Pages of which the destination may hold content: those that were sent and not zeroed since.
    held: Arc<AtomicBitmap>,
    compression: Compression,
    runs: Vec<Run>,
    table: Vec<u8>,
    /// The frame's content is in the first `len` bytes.
    content: Vec<u8>,
    len: usize,
    /// Its CRC32, if that is needed.
    sum: Option<ContentSum>,
    /// Room for it compressed; empty if it is not.
    packed: Vec<u8>,
}

impl Reader {
    /// The first, of a destination that holds nothing.
    pub(super) fn new(ram: &Arc<dyn GuestRam>, compression: Compression) -> Self {
        let held = Arc::new(AtomicBitmap::new(ram.nr_pages()));
        Self::of(ram.clone(), held, compression)
    }

    /// Another one, for the same memory and destination.
    pub(super) fn another(&self) -> Self {
        Self::of(self.ram.clone(), self.held.clone(), self.compression)
    }

    fn of(ram: Arc<dyn GuestRam>, held: Arc<AtomicBitmap>, compression: Compression) -> Self {
        Self {
            ram,
            held,
            compression,
            runs: Vec::new(),
            table: Vec::new(),
            content: vec![0; FRAME_ROOM],
            len: 0,
            sum: None,
            packed: match compression {
                Compression::None => Vec::new(),
                Compression::Lz4 => vec![0; packed_room()],
            },
        }
    }

    /// Reads a frame that is to go out on `out`. Returns the length of its content.
    pub(super) fn read(
        &mut self,
        round: &Round,
        frame: &Frame,
        out: &FrameWriter,
    ) -> Result<usize, Error> {
        let Self { ram, held, runs, content, packed, .. } = self;
        runs.clear();
        let summed = packed.is_empty() && Sum::of(Kind::Pages, out.features) == Sum::Crc32;
        let mut sum = summed.then(ContentSum::default);
        let mut zeros = 0;
        let mut keep = |page: u64, bytes: &[u8]| {
            if !is_zero(bytes) {
                if let Some(sum) = &mut sum {
                    sum.update(bytes);
                }
                push(runs, page, 1, false);
                held.set(page);
                return true;
            }
            zeros += 1;
            // The destination is zero where it never got content.
            if held.test(page) {
                held.clear_mask((page / 64) as usize, 1 << (page % 64));
                push(runs, page, 1, true);
            }
            false
        };
        let len = frame.read(&**ram, content, &mut keep);
        self.len = len.map_err(Error::machine("read guest memory"))?;
        self.sum = sum;
        round.mark_zero(zeros);
        for &(word, taken) in frame.words() {
            let sent = taken & held.load(word);
            if sent != 0 {
                round.mark_sent(word, sent);
            }
        }
        Ok(self.len)
    }

    /// Sends what was read, if the destination needs any of it.
    pub(super) fn send(&mut self, out: &mut FrameWriter) -> Result<(), Error> {
        if self.runs.is_empty() {
            return Ok(());
        }
        self.table.clear();
        encode_runs(&self.runs, &mut self.table);
        let content = self.content.get(..self.len).unwrap_or_default();
        out.send_pages(&self.table, (content, self.sum.as_ref()), &mut self.packed)
    }
}
