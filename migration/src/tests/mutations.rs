//! The checks bite: each deliberate mistake is noticed by the oracle, in a scenario that the right
//! engine passes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Mutation;
use super::faults::{Fault, FaultPlan, faulty_pair};
use super::model::{Model, Trigger};
use super::ops::Op;
use super::oracle::{config, migrate_model, migrate_over};
use crate::*;

pub(super) const PAGES: u64 = 64 * 12;
/// A free page with content, in a word that is sent late.
pub(super) const PAGE: u64 = 64 * 7;

/// What the oracle says of an engine with an optional mistake.
fn verdict(model: &Arc<Model>, mutation: Option<Mutation>) -> Result<(), String> {
    let cfg = SourceConfig { mutation, max_rounds: 2, ..config(HintMode::Protected) };
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
pub(super) fn vmm_write(forgotten: bool) -> Arc<Model> {
    let model = Model::new(PAGES, false, vec![]);
    model.forget_vmm_writes.store(forgotten, Ordering::SeqCst);
    model.on(Trigger::Harvest, vec![Op::VmmWrite(1)]);
    model
}

#[test]
fn oracle_notices_an_id_that_is_published_before_memory_is_protected() {
    let run = |mutation| verdict(&taken_back(), mutation);
    assert_eq!(run(None), Ok(()));
    let noticed = run(Some(Mutation::PublishBeforeProtect));
    assert!(noticed.unwrap_err().contains("lost"));
}

#[test]
fn oracle_notices_a_hint_that_is_honoured_after_its_epoch_closed() {
    let run = |mutation| verdict(&late_hint(), mutation);
    assert_eq!(run(None), Ok(()));
    assert_eq!(run(Some(Mutation::SharedBitmap)), Ok(()));
    let noticed = run(Some(Mutation::HintAfterClose));
    assert!(noticed.unwrap_err().contains("lost"));
}

#[test]
fn oracle_notices_writes_of_the_vmm_that_are_left_out_of_the_dirty_set() {
    let run = |forgotten| verdict(&vmm_write(forgotten), None);
    assert_eq!(run(false), Ok(()));
    assert!(run(true).unwrap_err().contains("lost"));
}

#[test]
fn hand_off_test_notices_a_destination_that_runs_too_early() {
    let run = |mutation| {
        let model = Model::new(PAGES, false, vec![]);
        let dest_cfg = DestinationConfig { mutation, ..DestinationConfig::default() };
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
