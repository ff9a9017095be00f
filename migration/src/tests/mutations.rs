//! The checks bite: each deliberate mistake is noticed by the oracle, in a scenario that the right
//! engine passes.

use std::sync::{Arc, Mutex};

use super::faults::{Fault, FaultPlan, faulty_pair};
use super::model::{Model, Mutation, Trigger};
use super::ops::Op;
use super::oracle::{config, migrate_model, migrate_over};
use crate::observe::{Event, Observer};
use crate::round::Round;
use crate::*;

/// Sits between device and sink, and clears the bits of hints that the sink must not honour.
pub(super) struct Gullible(Option<Arc<Believer>>);

struct Believer {
    mutation: Mutation,
    round: Mutex<Option<Arc<Round>>>,
}

impl Gullible {
    /// With the mistakes that it is for.
    pub(super) fn new(mutation: Option<Mutation>) -> Self {
        let hints = [Mutation::PublishBeforeProtect, Mutation::HintAfterClose];
        let believer = |mutation| Arc::new(Believer { mutation, round: Mutex::default() });
        Self(mutation.filter(|m| hints.contains(m)).map(believer))
    }
}

impl Progress for Gullible {
    fn update(&self, _: &Snapshot) {}

    fn observer(&self) -> Option<Arc<dyn Observer>> {
        self.0.clone().map(|believer| -> Arc<dyn Observer> { believer })
    }
}

impl Observer for Believer {
    fn observe(&self, event: &Event<'_>) {
        match event {
            Event::Round(round, _) => *self.round.lock().unwrap() = Some(Arc::clone(round)),
            Event::Hinted { epoch, first, nr } => {
                let round = self.round.lock().unwrap().clone().unwrap();
                let late = epoch.round < round.number;
                if late == (self.mutation == Mutation::HintAfterClose) {
                    for (word, mask) in round.words_of(*first, *nr) {
                        round.clear_hinted(word, mask);
                    }
                }
            }
            _ => {}
        }
    }
}

pub(super) const PAGES: u64 = 64 * 12;
/// A free page with content, in a word that is sent late.
pub(super) const PAGE: u64 = 64 * 7;

/// What the oracle says of an engine with an optional mistake.
fn verdict(mode: HintMode, model: &Arc<Model>, mutation: Option<Mutation>) -> Result<(), String> {
    model.mutate(mutation);
    let cfg = SourceConfig { max_rounds: 2, ..config(mode) };
    migrate_model(model, &cfg).1
}

/// The guest takes a hinted page back before its hint is processed.
pub(super) fn taken_back() -> Arc<Model> {
    let model = Model::new(PAGES, false, vec![]);
    model.on(Trigger::Published, vec![Op::Hint(PAGE, 1), Op::Write(PAGE)]);
    model.on(Trigger::FirstRead, vec![Op::Deliver]);
    model
}

/// A page is written after it was sent in round one, so dirty in round two; then a hint of round
/// one's epoch arrives.
pub(super) fn late_hint() -> Arc<Model> {
    let model = Model::new(PAGES, false, vec![]);
    model.on(Trigger::Harvest, vec![Op::Write(PAGE)]);
    model.on(Trigger::ReadInRoundTwo, vec![Op::Stale(PAGE, 1)]);
    // Round two has a whole chunk to read before that page.
    model.on(Trigger::FirstRead, (0..256).map(Op::Write).collect());
    model
}

/// The VMM writes into page 1 after it was sent.
pub(super) fn vmm_write() -> Arc<Model> {
    let model = Model::new(PAGES, false, vec![]);
    model.on(Trigger::Harvest, vec![Op::VmmWrite(1)]);
    model
}

#[test]
fn oracle_notices_an_id_that_is_published_before_memory_is_protected() {
    // The way in which memory is not protected before.
    let run = |mutation| verdict(HintMode::CheckedZero, &taken_back(), mutation);
    assert_eq!(run(None), Ok(()));
    let noticed = run(Some(Mutation::PublishBeforeProtect));
    assert!(noticed.unwrap_err().contains("lost"));
}

#[test]
fn oracle_notices_a_hint_that_is_honoured_after_its_epoch_closed() {
    let run = |mutation| verdict(HintMode::Protected, &late_hint(), mutation);
    assert_eq!(run(None), Ok(()));
    let noticed = run(Some(Mutation::HintAfterClose));
    assert!(noticed.unwrap_err().contains("lost"));
}

#[test]
fn oracle_notices_writes_of_the_vmm_that_are_left_out_of_the_dirty_set() {
    let run = |mutation| verdict(HintMode::Protected, &vmm_write(), mutation);
    assert_eq!(run(None), Ok(()));
    assert!(run(Some(Mutation::VmmWrites)).unwrap_err().contains("lost"));
}

#[test]
fn hand_off_test_notices_a_destination_that_runs_too_early() {
    let run = |mutation| {
        let model = Model::new(PAGES, false, vec![]);
        model.mutate(mutation);
        let dest_cfg = DestinationConfig::default();
        // The connection breaks just before HandOff.
        let plan = FaultPlan::at_kind(crate::wire::Kind::HandOff, Fault::CutBefore);
        let ends = faulty_pair(Some(plan), None);
        let (report, _, dest) = migrate_over(&model, &config(HintMode::Auto), &dest_cfg, ends);
        let failure = report.unwrap_err();
        assert_eq!(failure.ownership, Ownership::SourceRuns);
        (!model.paused(), dest.runs > 0)
    };
    assert_eq!(run(None), (true, false));
    assert_eq!(
        run(Some(Mutation::RunBeforeHandOff)),
        (true, true),
        "both run, and this test would see it"
    );
}
