//! Digests of memory, chunk by chunk.

use crate::error::Error;
use crate::traits::GuestRam;
use crate::units::{PAGE_SIZE, is_zero};
use crate::wire::digests::{CHUNK_PAGES, Digests};

/// Pages read at a time: 256 KiB. So much of a hole is read at most behind a page with content.
const READ_PAGES: u64 = 64;

/// Digests memory chunk by chunk without populating any of it. The guest is paused, or not yet
/// running; so holes are looked for as it goes, never in all of memory at once.
#[derive(Default)]
pub(crate) struct Digester {
    /// There is nothing but zeros from where it was last looked for data up to here.
    data: u64,
    buffer: Vec<u8>,
}

impl Digester {
    /// Digests `nr` pages from `first` on into `out`. Chunks come in ascending order.
    pub(crate) fn digest(
        &mut self,
        ram: &dyn GuestRam,
        first: u64,
        nr: u32,
        out: &mut Digests,
    ) -> Result<(), Error> {
        out.begin(first, nr);
        self.buffer.resize(READ_PAGES as usize * PAGE_SIZE, 0);
        let (mut at, end) = (first, first + u64::from(nr));
        loop {
            if self.data <= at {
                self.data = ram.data_from(at).map_err(Error::machine("look for data"))?.max(at);
            }
            at = self.data;
            if at >= end {
                return Ok(());
            }
            let pages = READ_PAGES.min(end - at);
            let buffer = self.buffer.get_mut(..pages as usize * PAGE_SIZE).unwrap_or_default();
            ram.read(at, buffer).map_err(Error::machine("read guest memory"))?;
            for (page, bytes) in (at..).zip(buffer.chunks_exact(PAGE_SIZE)) {
                if !is_zero(bytes) {
                    out.push(page, bytes);
                }
            }
            at += pages;
        }
    }
}

/// Number of pages of the chunk that begins at `first`: what both sides agree on without saying it.
pub(crate) fn chunk_at(first: u64, nr_pages: u64) -> u32 {
    // At most CHUNK_PAGES, so it fits.
    nr_pages.saturating_sub(first).min(u64::from(CHUNK_PAGES)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_ram_exactly() {
        let chunk = u64::from(CHUNK_PAGES);
        assert_eq!(chunk_at(0, 5), 5);
        assert_eq!(chunk_at(chunk, 3 * chunk - 1), CHUNK_PAGES);
        assert_eq!(chunk_at(2 * chunk, 3 * chunk - 1), CHUNK_PAGES - 1);
        assert_eq!(chunk_at(9, 5), 0);
    }
}
