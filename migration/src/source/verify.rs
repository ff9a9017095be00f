//! The source's part of a verification: asks for the destination's digests, computes its own,
//! compares. See [`crate::verify`].
//!
//! One chunk is always asked for ahead, so that both sides digest at the same time and no more than
//! two answers can be under way.

use std::time::Instant;

use crate::error::{Error, Phase};
use crate::units::millis;
use crate::verify::digester::{Digester, chunk_at};
use crate::verify::verdict::{NAMED, VerifyReport, WrongPage, WrongPages};
use crate::wire::digests::{CHUNK_PAGES, Digests};
use crate::wire::{HEADER_LEN, Kind, VerifyChunk};

use super::session::Session;

/// Compares all memory with the destination's. `Err` if any of it is wrong. The guest is paused and
/// the last round sent.
pub(super) fn verify(session: &mut Session<'_>) -> Result<Option<VerifyReport>, Error> {
    let Some(shadow) = session.shadow.clone() else { return Ok(None) };
    let free = shadow.free();
    session.enter(Phase::Verify);
    let (started, sent_before) = (Instant::now(), session.writer.bytes());
    let ram = session.vm.ram.clone();
    let mut digester = Digester::new(&*ram)?;
    let (mut ours, mut theirs) = (Digests::default(), Digests::default());
    let mut report = VerifyReport::default();
    let mut wrong = WrongPages::default();
    let mut first = 0;
    ask(session, first)?;
    while first < session.nr_pages {
        let nr = chunk_at(first, session.nr_pages);
        ask(session, first + u64::from(nr))?;
        session.tick(None)?;
        digester.digest(&*ram, first, nr, &mut ours)?;
        let answer = session.expect(Kind::Digests)?;
        report.bytes += (HEADER_LEN + answer.len()) as u64;
        theirs.decode(&answer, first, nr)?;
        ours.compare(&theirs, |page| {
            if free.test(page) {
                report.free += 1;
                return;
            }
            wrong.count += 1;
            if wrong.named.len() < NAMED {
                let history = shadow.history(page);
                wrong.named.push(WrongPage { page, address: ram.address(page), history });
            }
        });
        first += u64::from(nr);
    }
    if wrong.count > 0 {
        return Err(Error::Wrong(wrong));
    }
    report.equal = session.nr_pages.saturating_sub(report.free);
    report.bytes += session.writer.bytes() - sent_before;
    report.ms = millis(started.elapsed());
    Ok(Some(report))
}

/// Asks for the chunk that begins at `first`, if there is one.
fn ask(session: &mut Session<'_>, first: u64) -> Result<(), Error> {
    debug_assert!(first.is_multiple_of(u64::from(CHUNK_PAGES)) || first == session.nr_pages);
    match chunk_at(first, session.nr_pages) {
        0 => Ok(()),
        nr => session.writer.send_control(Kind::Verify, "verify", &VerifyChunk { first, nr }),
    }
}
