//! The inflate and deflate queues (virtio 1.3, section 5.5.6): lists of le32 page numbers.
//!
//! The set of ballooned pages is exact, so that a migration may leave these pages out. Two things
//! could make it wrong for an honest guest, and both end with "not known" instead: a driver that
//! did not negotiate MUST_TELL_HOST may use a page before it says so, and a deflate request that
//! could not be read completely leaves pages in the set that are in use.
//!
//! A chain may name 65536 pages that lie apart, each a call to the host: then the device goes on
//! with the same chain after others had the lock. It is acknowledged only when all of it is with
//! the host, for the driver may use its pages again.

use virtio_queue::desc::split::Descriptor;
use vm_memory::Bytes;

use super::constants::*;
use super::device::Balloon;
use crate::virtio::{Chain, Completion, descriptors};

/// Into or out of the balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Inflate,
    Deflate,
}

impl Balloon {
    pub(super) fn inflate(&mut self, chain: Chain<'_>) -> Completion {
        let gfns = match self.inflating.take() {
            Some(rest) => rest,
            None => {
                let mut gfns = self.page_numbers(Direction::Inflate, chain);
                // Linux fills its arrays in no particular order; neighbours go to the host in one
                // call.
                gfns.sort_unstable();
                gfns.dedup();
                gfns
            }
        };
        let done = self.discard_pages(&gfns);
        match gfns.get(done..) {
            None | Some([]) => Completion::Used(0),
            Some(rest) => {
                self.inflating = Some(rest.to_vec());
                Completion::Again
            }
        }
    }

    pub(super) fn deflate(&mut self, chain: Chain<'_>) {
        self.page_numbers(Direction::Deflate, chain);
    }

    /// The pages that went into the balloon; none for the other direction.
    fn page_numbers(&mut self, direction: Direction, chain: Chain<'_>) -> Vec<u64> {
        let (descs, complete) = descriptors(chain, MAX_CHAIN);
        if !complete {
            self.malformed(direction);
        }
        let mut discard = Vec::new();
        for desc in descs {
            match self.read_pfns(desc) {
                Some(pfns) => {
                    pfns.into_iter().for_each(|pfn| self.one_page(direction, pfn, &mut discard))
                }
                None => self.malformed(direction),
            }
        }
        discard
    }

    fn malformed(&mut self, direction: Direction) {
        self.telemetry.malformed_requests += 1;
        if direction == Direction::Deflate {
            self.set_known = false;
        }
    }

    fn one_page(&mut self, direction: Direction, pfn: u32, discard: &mut Vec<u64>) {
        let gfn = u64::from(pfn);
        let outcome = match direction {
            Direction::Inflate => self.set.insert(gfn),
            Direction::Deflate => self.set.remove(gfn),
        };
        match (outcome, direction) {
            // Not RAM: neither in the set nor of any consequence to it.
            (None, _) => self.telemetry.malformed_requests += 1,
            (Some(changed), Direction::Inflate) => {
                self.telemetry.inflated_pages += u64::from(changed);
                discard.push(gfn);
            }
            (Some(changed), Direction::Deflate) => {
                self.telemetry.deflated_pages += u64::from(changed)
            }
        }
    }

    /// `None`: wrong direction, not whole numbers, too many of them, or not in RAM.
    fn read_pfns(&self, desc: Descriptor) -> Option<Vec<u32>> {
        let len = desc.len() as usize;
        if desc.is_write_only() || len == 0 || !len.is_multiple_of(4) || len > MAX_PFNS * 4 {
            return None;
        }
        let mut bytes = vec![0; len];
        self.mem.read_slice(&mut bytes, desc.addr()).ok()?;
        Some(
            bytes
                .chunks_exact(4)
                .filter_map(|c| Some(u32::from_le_bytes(c.try_into().ok()?)))
                .collect(),
        )
    }

    /// Gives ascending pages to the host until the time is up. Returns how many were dealt with.
    fn discard_pages(&mut self, gfns: &[u64]) -> usize {
        let until = self.chain_ends();
        let mut done = 0;
        while let Some((&first, rest)) = gfns.get(done..).and_then(<[u64]>::split_first) {
            let nr = 1 + rest.iter().zip(first + 1..).take_while(|(a, b)| **a == *b).count();
            let parts: Vec<_> =
                self.ram.clip(first << PAGE_SHIFT, (nr as u64) << PAGE_SHIFT).collect();
            let mut dealt = 0;
            for (gpa, len) in parts {
                let now = self.discard_range(gpa, len, until);
                dealt += now;
                if now < len {
                    return done + (dealt >> PAGE_SHIFT) as usize;
                }
            }
            done += nr;
        }
        done
    }
}
