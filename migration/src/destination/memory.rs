//! Writes the pages of a frame to memory, after checking its whole table of runs.

use crate::error::Error;
use crate::link::FrameReader;
use crate::traits::GuestRam;
use crate::units::PAGE_SIZE;
use crate::wire::pages::{Run, parse, parse_lz4};
use crate::wire::{Kind, WireError};

/// What a connection's frames of memory need, kept from frame to frame.
pub(super) struct Memory {
    /// Content may come compressed.
    pub(super) lz4: bool,
    /// The last round whose Sync came on this connection.
    pub(super) synced: u32,
    /// Memory came behind that.
    since: bool,
    runs: Vec<Run>,
    unpacked: Vec<u8>,
}

impl Memory {
    pub(super) fn new(lz4: bool) -> Self {
        Self { lz4, synced: 0, since: false, runs: Vec::new(), unpacked: Vec::new() }
    }

    /// What may come on a data connection.
    pub(super) fn legal(&self) -> &'static [Kind] {
        use Kind::{Idle, Pages, PagesLz4, Sync};
        if self.lz4 { &[Pages, PagesLz4, Idle, Sync] } else { &[Pages, Idle, Sync] }
    }

    /// Reads the next frame and, if it is one of memory, writes its pages to memory. Returns its
    /// kind, and the number of pages with content.
    pub(super) fn next(
        &mut self,
        reader: &mut FrameReader,
        (legal, during): (&[Kind], &'static str),
        ram: &dyn GuestRam,
    ) -> Result<(Kind, u64), Error> {
        let kind = reader.next(legal, during)?;
        Ok((kind, self.apply(kind, reader.payload(), ram)?))
    }

    /// Checks a frame and writes its pages. Returns the number of those with content.
    fn apply(&mut self, kind: Kind, payload: &[u8], ram: &dyn GuestRam) -> Result<u64, Error> {
        let (runs, nr_pages) = (&mut self.runs, ram.nr_pages());
        let mut content = match kind {
            Kind::Pages => parse(payload, nr_pages, runs)?,
            Kind::PagesLz4 => parse_lz4(payload, nr_pages, runs, &mut self.unpacked)?,
            _ => return Ok(0),
        };
        self.since = true;
        let mut pages = 0;
        for run in runs {
            if run.zero {
                let zeroed = ram.zero(run.first, u64::from(run.nr));
                zeroed.map_err(Error::machine("zero guest memory"))?;
                continue;
            }
            // `parse` has checked that the content is exactly this long.
            let (data, rest) = content
                .split_at_checked(run.nr as usize * PAGE_SIZE)
                .ok_or(WireError::Runs("length of content"))?;
            content = rest;
            ram.write(run.first, data).map_err(Error::machine("write guest memory"))?;
            pages += u64::from(run.nr);
        }
        Ok(pages)
    }

    /// A Sync came.
    pub(super) fn sync(&mut self, round: u32) -> Result<(), Error> {
        if round != self.synced.saturating_add(1) {
            return Err(WireError::Streams("a sync out of order").into());
        }
        (self.synced, self.since) = (round, false);
        Ok(())
    }

    /// Whether a data connection may end here.
    pub(super) fn complete(&self) -> bool {
        self.synced > 0 && !self.since
    }
}
