//! Round one's harvest in the middle.

use super::model::{Model, Trigger};
use super::ops::Op;
use super::oracle::{config, migrate_over, pair};
use super::streams::linked;
use crate::*;

const PAGES: u64 = 4096;

#[test]
fn a_page_that_is_written_before_its_turn_is_sent_once() {
    for streams in [1, 2] {
        let model = Model::new(PAGES, false, vec![]);
        // One is in what has just been read, the other in the last that is.
        model.on(Trigger::FirstReadDone, vec![Op::Write(0), Op::Write(PAGES * 3 / 4 - 70)]);
        let cfg = SourceConfig { streams, hints: HintPolicy::Off, ..config(HintMode::Auto) };
        let ends = if streams == 1 { pair() } else { linked(2, |_| pair()) };
        let (report, received, dest) =
            migrate_over(&model, &cfg, &DestinationConfig::default(), ends);
        let (report, _) = (report.unwrap(), received.unwrap());
        model.compare(&dest.memory()).unwrap();
        assert_eq!((report.rounds[0].dirty_at_end, report.rounds[1].sent), (1, 1));
    }
}
