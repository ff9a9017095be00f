//! Round one's harvest in the middle.

use super::model::{Model, Trigger};
use super::ops::Op;
use super::oracle::{config, migrate_over, pair};
use super::streams::linked;
use crate::*;

const PAGES: u64 = 4096;

/// The guest has nothing to hint. It writes a page that has just been read, and one that is read
/// last; and another one of those right after the first harvest.
fn written_again(mode: HintMode, streams: u32) -> Report {
    let model = Model::new(PAGES, false, vec![]);
    model.on(Trigger::FirstReadDone, vec![Op::Write(0), Op::Write(PAGES * 3 / 4 - 70)]);
    model.on(Trigger::HarvestDone, vec![Op::Write(PAGES * 3 / 4 - 71)]);
    let cfg = SourceConfig { streams, hints: HintPolicy::On, ..config(mode) };
    let ends = if streams == 1 { pair() } else { linked(2, |_| pair()) };
    let (report, received, dest) = migrate_over(&model, &cfg, &DestinationConfig::default(), ends);
    received.unwrap();
    model.compare(&dest.memory()).unwrap();
    report.unwrap()
}

#[test]
fn a_page_that_is_written_before_its_turn_is_sent_once() {
    for streams in [1, 2] {
        // All memory is protected before hints: what is written after the harvest is sent again.
        let report = written_again(HintMode::Protected, streams);
        assert_eq!((report.rounds[0].dirty_at_end, report.rounds[1].sent), (2, 2));
        // Words without holes are protected when their turn comes.
        let report = written_again(HintMode::CheckedZero, streams);
        assert_eq!((report.rounds[0].dirty_at_end, report.rounds[1].sent), (1, 1));
    }
}
