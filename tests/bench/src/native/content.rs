//! What is in guest memory: numbers that nothing compresses, and that whoever knows the seed can
//! make again. So a destination compares every byte without the source's help.

use std::io;

use anyhow::{Context, Result, ensure};
use vm_memory::{Bytes, GuestAddress};
use wherry_migration::traits::{GuestRam, PAGE_SIZE};
use wherry_vmm::memory::Ram;

/// Of what is in the memory.
pub const SEED: u64 = 13;
/// Pages that are looked at in one piece.
const CHUNK: u64 = 64;

/// What belongs into page `number`: splitmix64, begun anew in each page.
pub fn page(seed: u64, number: u64, out: &mut [u8]) {
    let mut state = seed ^ number.wrapping_mul(0xd134_2543_de82_ef95);
    for word in out.chunks_exact_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
}

/// Fills guest memory as a guest does: by writing to where it is mapped.
pub fn fill(ram: &Ram, seed: u64) -> Result<()> {
    let mut content = vec![0; PAGE_SIZE];
    for number in 0..ram.nr_pages() {
        page(seed, number, &mut content);
        let at = GuestAddress(ram.address(number));
        ram.memory().write_slice(&content, at).context("cannot fill guest memory")?;
    }
    Ok(())
}

/// Compares all of guest memory with what belongs there.
pub fn check(ram: &dyn GuestRam, seed: u64) -> Result<()> {
    let mut read = vec![0; CHUNK as usize * PAGE_SIZE];
    for first in (0..ram.nr_pages()).step_by(CHUNK as usize) {
        let nr = CHUNK.min(ram.nr_pages() - first);
        let read = &mut read[..nr as usize * PAGE_SIZE];
        ram.read(first, read).context("cannot read guest memory")?;
        compare(read, first, seed)?;
    }
    Ok(())
}

/// Compares pages from page `first` on.
pub fn compare(pages: &[u8], first: u64, seed: u64) -> Result<()> {
    let mut wanted = vec![0; PAGE_SIZE];
    for (is, number) in pages.chunks(PAGE_SIZE).zip(first..) {
        page(seed, number, &mut wanted);
        ensure!(is == wanted, "page {number} is not what was sent");
    }
    Ok(())
}

/// The first pages, as one piece.
pub fn first(seed: u64, bytes: u64) -> io::Result<Vec<u8>> {
    let mut pages = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
    pages.chunks_mut(PAGE_SIZE).zip(0..).for_each(|(out, number)| page(seed, number, out));
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use wherry_vmm::memory::Backing;

    use super::*;

    #[test]
    fn a_wrong_page_is_named() {
        let ram = Ram::new(1 << 20, &Backing::Memfd).unwrap();
        fill(&ram, 7).unwrap();
        check(&ram, 7).unwrap();
        assert!(check(&ram, 8).is_err());
        let at = GuestAddress(200 * 4096 + 5);
        let before: u8 = ram.memory().read_obj(at).unwrap();
        ram.memory().write_obj(!before, at).unwrap();
        let error = check(&ram, 7).unwrap_err().to_string();
        assert_eq!(error, "page 200 is not what was sent");
    }
}
