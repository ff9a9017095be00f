//! When `--hints auto` changes its mind: exact counts, on the model guest.

use std::sync::Mutex;

use super::dest::Dest;
use super::model::{Model, Trigger};
use super::ops::Op;
use super::oracle::{config, migrate_model, pair};
use crate::*;

/// 128 MiB: every other word of the first three quarters is free, and the last quarter, 128 words,
/// was never touched.
const PAGES: u64 = 64 * 512;
/// The first word that was never touched.
const HOLES: u64 = 64 * 384;
/// Hints that are judged together.
const JUDGED: u64 = 128;
const STOPPED: &str = "stopped early: most of what was hinted needed no sending";

fn auto() -> SourceConfig {
    // Slow enough that 96 MiB are worth asking for.
    SourceConfig { hints: HintPolicy::Auto, bandwidth: Some(256 << 20), ..config(HintMode::Auto) }
}

/// A guest that hints so many free words, and otherwise half words that were never touched.
fn hinting(useful: u64) -> Vec<Op> {
    let words = (0..useful).map(|i| Op::Hint(64 * (2 * i + 1), 64));
    let holes = (0..JUDGED - useful).map(|i| Op::Hint(HOLES + 32 * i, 32));
    words.chain(holes).flat_map(|hint| [hint, Op::Deliver]).collect()
}

fn run(useful: u64) -> (Report, u64) {
    let model = Model::new(PAGES, true, vec![]);
    model.on(Trigger::Published, hinting(useful));
    let (report, verdict) = migrate_model(&model, &auto());
    verdict.unwrap();
    assert_eq!(report.rounds[0].hinting.hinted, 64 * useful);
    assert_eq!(report.rounds[0].hinting.hint_bytes, (64 * useful + 32 * (JUDGED - useful)) * 4096);
    assert_eq!(report.hinting.saved_bytes, 64 * useful * 4096);
    (report, model.done.load(std::sync::atomic::Ordering::SeqCst))
}

#[test]
fn one_page_in_sixteen_is_worth_going_on() {
    // 256 of 4224 pages, and 320 of 4256.
    let (stopped, done_early) = run(4);
    let (went_on, done) = run(5);
    assert_eq!(stopped.hints.to_string(), STOPPED);
    assert_eq!(went_on.hints, Reason::On.into());
    // Taking memory back dirties the guest's page structures: it does so in the end only, either
    // way.
    assert_eq!(done_early, done);
}

#[test]
fn fewer_hints_are_not_judged() {
    let model = Model::new(PAGES, true, vec![]);
    let mut script = hinting(4);
    script.truncate(2 * (JUDGED as usize - 1));
    model.on(Trigger::Published, script);
    let (report, verdict) = migrate_model(&model, &auto());
    verdict.unwrap();
    assert_eq!(report.hints, Reason::On.into());
}

#[test]
fn on_does_not_judge() {
    let model = Model::new(PAGES, true, vec![]);
    model.on(Trigger::Published, hinting(4));
    let (report, verdict) =
        migrate_model(&model, &SourceConfig { hints: HintPolicy::On, ..auto() });
    verdict.unwrap();
    assert_eq!(report.hints, Reason::On.into());
}

#[test]
fn progress_ends_with_the_figures_of_the_report() {
    let model = Model::new(PAGES, true, vec![]);
    model.on(Trigger::Published, hinting(5));
    // One skipped page is taken back.
    model.on(Trigger::Harvest, vec![Op::Write(64)]);
    let seen = Mutex::new(Vec::new());
    let progress = |s: &Snapshot| seen.lock().unwrap().push(s.clone());
    let (near, far) = pair();
    let receiver = std::thread::spawn(move || {
        let mut dest = Dest::default();
        receive(far, &mut dest, &DestinationConfig::default(), &(), &CancelToken::new()).unwrap();
    });
    let report = migrate(&model.vm(), near, &auto(), &progress, &CancelToken::new()).unwrap();
    receiver.join().unwrap();
    let seen = seen.into_inner().unwrap();
    assert_eq!(seen.last().unwrap().hinting, report.hinting);
    assert_eq!((report.hinting.hinted, report.hinting.overridden), (320, 1));
    assert_eq!(report.hinting.saved_bytes, 319 * 4096);
    let hinted: Vec<u64> = seen.iter().map(|s| s.hinting.hinted).collect();
    assert!(hinted.is_sorted(), "{hinted:?}");
}
