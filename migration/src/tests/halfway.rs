//! Round one's harvest in the middle.

use std::sync::atomic::Ordering::SeqCst;

use super::model::{Model, Trigger};
use super::ops::Op;
use super::oracle::{config, migrate_model, migrate_over, pair};
use super::streams::linked;
use crate::*;

const PAGES: u64 = 4096;

/// The guest hints so many blocks that were never touched; after 16 of them it is asked no more,
/// with fewer it is through by itself. It writes a page that has just been read, and another one
/// before the first harvest or right after it. Returns how many pages are to be sent again.
fn again(blocks: u64, mode: HintMode, streams: u32, trigger: Trigger, page: u64) -> u64 {
    let model = Model::new(PAGES, false, vec![]);
    let hints = (0..blocks).flat_map(|n| [Op::Hint(PAGES * 3 / 4 + n * 8, 8), Op::Deliver]);
    model.on(Trigger::Published, hints.collect());
    model.on(Trigger::FirstReadDone, vec![Op::Write(0)]);
    model.on(trigger, vec![Op::Write(page)]);
    let cfg = SourceConfig { streams, hints: HintPolicy::On, ..config(mode) };
    let ends = if streams == 1 { pair() } else { linked(2, |_| pair()) };
    let (report, received, dest) = migrate_over(&model, &cfg, &DestinationConfig::default(), ends);
    received.unwrap();
    model.compare(&dest.memory()).unwrap();
    let rounds = report.unwrap().rounds;
    assert_eq!(rounds[0].dirty_at_end, rounds[1].sent);
    // When asking is over, and when all is.
    assert_eq!(model.done.load(SeqCst), 2);
    rounds[0].dirty_at_end
}

#[test]
fn a_guest_that_writes_what_it_frees_keeps_it_to_the_end() {
    let model = Model::new(PAGES, false, vec![]);
    model.poisons.store(true, SeqCst);
    model.on(Trigger::Published, vec![Op::Hint(PAGES * 3 / 4, 8), Op::Deliver]);
    let (report, verdict) = migrate_model(&model, &config(HintMode::Protected));
    verdict.unwrap();
    assert_eq!((report.rounds[0].hinting.hint_bytes, model.done.load(SeqCst)), (8 * 4096, 1));
}

#[test]
fn a_page_that_is_written_before_its_turn_is_sent_once() {
    // It is read last.
    const LATE: u64 = PAGES * 3 / 4 - 70;
    let (before, after) = (Trigger::FirstReadDone, Trigger::HarvestDone);
    for (streams, blocks) in [(1, 20), (2, 20), (1, 2), (2, 2)] {
        let again = |mode, trigger| again(blocks, mode, streams, trigger, LATE);
        // All memory is protected before hints. What is written after the harvest is sent again.
        assert_eq!(again(HintMode::Protected, before), 1);
        assert_eq!(again(HintMode::Protected, after), 2);
        // Words without holes are protected when their turn comes, also after the harvest.
        assert_eq!(again(HintMode::CheckedZero, before), 1);
        assert_eq!(again(HintMode::CheckedZero, after), 1);
    }
}
