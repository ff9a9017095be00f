//! The source's part of a verification: asks for the destination's digests, computes its own,
//! compares. See [`crate::verify`].
//!
//! One chunk is always asked for ahead, so that both sides digest at the same time and no more than
//! two answers can be under way.

use std::time::Instant;

use crate::error::{Error, Phase};
use crate::units::millis;
use crate::verify::digester::{Digester, chunk_at};
use crate::verify::shadow::Shadow;
use crate::verify::verdict::{NAMED, VerifyReport, WrongPage, WrongPages};
use crate::wire::digests::{CHUNK_PAGES, Digests};
use crate::wire::{HEADER_LEN, Kind, VerifyChunk};

use super::migration::Migration;

/// Compares all memory with the destination's, if that is wanted. `Err` if any of it is wrong. The
/// guest is paused, the last round sent, and the state saved, which must not have changed memory
/// either.
pub(super) fn verify(m: &mut Migration<'_>, shadow: Option<&Shadow>) -> Result<(), Error> {
    let Some(shadow) = shadow else { return Ok(()) };
    m.enter(Phase::Verify);
    let free = shadow.free();
    let (started, sent_before) = (Instant::now(), m.peer.writer.bytes());
    let ram = m.vm.ram.clone();
    let mut digester = Digester::default();
    let (mut ours, mut theirs) = (Digests::default(), Digests::default());
    let mut report = VerifyReport::default();
    let mut wrong = WrongPages::default();
    let mut first = 0;
    ask(m, first)?;
    while first < m.nr_pages {
        let nr = chunk_at(first, m.nr_pages);
        ask(m, first + u64::from(nr))?;
        m.tick(None)?;
        digester.digest(&*ram, first, nr, &mut ours)?;
        let answer = m.peer.expect(Kind::Digests)?;
        report.bytes += (HEADER_LEN + answer.len()) as u64;
        theirs.decode(&answer, first, nr)?;
        ours.compare(&theirs, |page| {
            if free.test(page) {
                report.free += 1;
                return;
            }
            wrong.count += 1;
            if wrong.named.len() < NAMED {
                let (address, history) = (ram.address(page), shadow.history(page));
                wrong.named.push(WrongPage { page, address, history });
            }
        });
        first += u64::from(nr);
    }
    if wrong.count > 0 {
        return Err(Error::Wrong(wrong));
    }
    report.equal = m.nr_pages.saturating_sub(report.free);
    report.bytes += m.peer.writer.bytes() - sent_before;
    report.ms = millis(started.elapsed());
    m.report.verify = Some(report);
    m.report.downtime.verify_us = m.paused.lap();
    Ok(())
}

/// Asks for the chunk that begins at `first`, if there is one.
fn ask(m: &mut Migration<'_>, first: u64) -> Result<(), Error> {
    debug_assert!(first.is_multiple_of(u64::from(CHUNK_PAGES)) || first == m.nr_pages);
    match chunk_at(first, m.nr_pages) {
        0 => Ok(()),
        nr => m.peer.writer.send_control(Kind::Verify, &VerifyChunk { first, nr }),
    }
}
