//! Whole migrations of the model guest, judged by the oracle.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::dest::Dest;
use super::model::{Model, Trigger};
use super::mutations::Gullible;
use super::ops::{Op, ops};
pub(super) use super::ops::{config, hinting};
use super::streams::linked;
use crate::*;

pub(super) type Outcome = (Result<Report, Failure>, Result<Received, Failure>, Dest);

/// Migrates over the given connection ends.
pub(super) fn migrate_over(
    model: &Arc<Model>,
    cfg: &SourceConfig,
    dest_cfg: &DestinationConfig,
    ends: (Box<dyn Transport>, Box<dyn Transport>),
) -> Outcome {
    let (near, far) = ends;
    let dest_cfg = dest_cfg.clone();
    let mut dest = Dest { mutation: model.mutation(), ..Dest::default() };
    let receiver = thread::spawn(move || {
        let received = receive(far, &mut dest, &dest_cfg, &(), &CancelToken::new());
        (received, dest)
    });
    let gullible = Gullible::new(model.mutation());
    let report = migrate(&model.vm(), near, cfg, &gullible, &CancelToken::new());
    let (received, dest) = receiver.join().unwrap();
    (report, received, dest)
}

pub(super) fn pair() -> (Box<dyn Transport>, Box<dyn Transport>) {
    let (near, far) = UnixStream::pair().unwrap();
    (Box::new(near), Box::new(far))
}

/// Migrates over a socket pair; the report, and what the oracle says. If it is to be verified, that
/// must agree.
pub(super) fn migrate_model(
    model: &Arc<Model>,
    cfg: &SourceConfig,
) -> (Report, Result<(), String>) {
    let ends = if cfg.streams > 1 { linked(cfg.streams, |_| pair()) } else { pair() };
    let (report, received, dest) = migrate_over(model, cfg, &DestinationConfig::default(), ends);
    let (report, received) = (report.unwrap(), received.unwrap());
    assert!(received.acknowledged && dest.runs == 1);
    assert_eq!(received.bytes, report.total_bytes);
    assert_eq!(dest.state.as_deref(), Some(&b"state of the model"[..]));
    for r in &report.rounds {
        let sum = r.sent + r.zero + r.hole + r.hinting.hinted + r.ballooned + r.clean;
        assert_eq!(sum, model.pages, "{r:?}");
    }
    assert_eq!(report.verify.is_some(), cfg.verify);
    if let Some(found) = report.verify {
        assert_eq!((found.equal + found.free, found.wrong), (model.pages, 0));
    }
    assert!(model.done.load(Ordering::SeqCst) > 0 && !model.log_on());
    let verdict = model.compare(&dest.memory());
    (report, verdict)
}

const PAGES: u64 = 64 * 12 + 13;

#[test]
fn a_zeroing_guest_stays_in_checked_zero_mode_and_nothing_comes_back_dirty() {
    let model = Model::new(PAGES, true, vec![]);
    model.on(Trigger::Published, hinting(9));
    let cfg = config(HintMode::Auto);
    let (report, verdict) = migrate_model(&model, &cfg);
    verdict.unwrap();
    let first = &report.rounds[0];
    assert_eq!(first.hint_mode, Some(HintMode::CheckedZero));
    assert!(first.hinting.hinted >= 3 * 64, "{first:?}");
    assert_eq!(first.hinting.overridden, 0, "{first:?}");
}

#[test]
fn a_guest_that_does_not_zero_is_found_out_and_switched_to_protected_mode() {
    let model = Model::new(PAGES, false, vec![]);
    // Under the first id, and under the one that follows DONE.
    model.on(Trigger::Published, hinting(9));
    model.on(Trigger::Published, hinting(9));
    let cfg = config(HintMode::Auto);
    let (report, verdict) = migrate_model(&model, &cfg);
    verdict.unwrap();
    let first = &report.rounds[0];
    assert_eq!(first.hint_mode, Some(HintMode::Protected));
    assert!(first.hinting.hinted >= 3 * 64, "{first:?}");
}

#[test]
fn a_driver_that_goes_away_costs_the_hints_and_not_the_migration() {
    // Ids begin at 2: gone before the first, before the one that follows the switch, between
    // bursts.
    for (zeroes, last_id) in [(true, 1), (false, 2), (true, 2), (true, 3), (false, 4)] {
        let model = Model::new(PAGES, zeroes, vec![]);
        model.on(Trigger::Published, hinting(9));
        model.last_id.store(last_id, Ordering::SeqCst);
        let (report, verdict) = migrate_model(&model, &config(HintMode::Auto));
        verdict.unwrap();
        if last_id == 1 || !zeroes && last_id == 2 {
            assert!(report.hints.reason == Reason::DriverGone, "{last_id}: {}", report.hints);
        }
    }
}

#[test]
fn a_page_put_back_is_not_skipped_for_a_second_stale_hint() {
    let word = 64 * 7;
    let model = Model::new(PAGES, true, vec![]);
    let hint = Op::Hint(word, 64);
    // Hinted twice, in use again before either hint is processed. The first check protects the
    // word, after the write.
    let taken_back = vec![hint, Op::Shrink(word, 64), hint, Op::Write(word)];
    model.on(Trigger::Published, taken_back);
    model.on(Trigger::FirstRead, vec![Op::Deliver, Op::Deliver]);
    let (report, verdict) = migrate_model(&model, &config(HintMode::CheckedZero));
    verdict.unwrap();
    assert_eq!(report.rounds[0].hinting.hinted, 0);
}

#[test]
fn a_second_hint_for_a_word_put_back_does_not_forget_what_was_written() {
    let word = 64 * 7;
    let model = Model::new(PAGES, true, vec![]);
    let hint = Op::Hint(word, 64);
    // Hinted twice; the guest has one page back with content, so the first check skips what is
    // before it and puts the rest back.
    model.on(Trigger::Published, vec![hint, Op::Shrink(word, 64), hint, Op::Write(word + 40)]);
    // A skipped page is written: a second protection of the word would forget that.
    model.on(Trigger::FirstRead, vec![Op::Deliver, Op::Write(word + 3), Op::Deliver]);
    let (report, verdict) = migrate_model(&model, &config(HintMode::CheckedZero));
    verdict.unwrap();
    assert_eq!((report.rounds[0].hinting.hinted, report.rounds[0].hinting.overridden), (40, 1));
}

#[test]
fn a_write_between_the_check_and_the_harvest_comes_in_round_two() {
    let word = 64 * 7;
    let model = Model::new(PAGES, true, vec![]);
    let hint = vec![Op::Hint(word, 64), Op::Deliver, Op::Write(word + 5)];
    model.on(Trigger::Published, hint);
    let (report, verdict) = migrate_model(&model, &config(HintMode::CheckedZero));
    verdict.unwrap();
    assert_eq!(report.rounds[0].hinting.hinted, 64);
    assert_eq!(report.rounds[0].hinting.overridden, 1);
    assert_eq!(report.rounds[1].sent, 1);
}

#[test]
fn a_page_that_leaves_the_balloon_before_its_word_is_protected_is_sent() {
    let page = 64 * 7 + 9;
    let model = Model::new(PAGES, true, vec![]);
    model.on(Trigger::Ballooned, vec![Op::Inflate(page, 1)]);
    let used_again = vec![Op::Deflate(page, 1), Op::Write(page)];
    model.on(Trigger::FirstRead, used_again);
    let (_, verdict) = migrate_model(&model, &config(HintMode::CheckedZero));
    verdict.unwrap();
}

#[test]
fn after_the_switch_to_protected_mode_a_hinted_page_that_is_written_is_not_lost() {
    let word = 64 * 7;
    let model = Model::new(PAGES, false, vec![]);
    // Content in the first hint: the guest does not zero.
    model.on(Trigger::Published, vec![Op::Hint(64, 64), Op::Deliver]);
    // Part of a word under the second id, written before the sender comes to the rest of the word.
    let second = vec![Op::Hint(word + 3, 5), Op::Deliver, Op::Write(word + 4)];
    model.on(Trigger::Published, second);
    let (report, verdict) = migrate_model(&model, &config(HintMode::Auto));
    verdict.unwrap();
    assert_eq!(report.rounds[0].hint_mode, Some(HintMode::Protected));
    assert_eq!(report.rounds[0].hinting.overridden, 1);
}

#[test]
fn a_write_right_after_the_check_is_not_lost() {
    let word = 64 * 7;
    let model = Model::new(PAGES, true, vec![]);
    let hint = vec![Op::Hint(word, 64), Op::Deliver];
    model.on(Trigger::Published, hint);
    // The first read is the check's: its protection must have come before.
    model.on(Trigger::FirstReadDone, vec![Op::Write(word + 5)]);
    let (report, verdict) = migrate_model(&model, &config(HintMode::CheckedZero));
    verdict.unwrap();
    assert_eq!(report.rounds[0].hinting.overridden, 1);
}

#[test]
fn holes_and_zero_pages_cost_nothing_on_the_wire_in_round_one() {
    let model = Model::new(PAGES, false, vec![]);
    let mut cfg = config(HintMode::Auto);
    cfg.hints = HintPolicy::Off;
    let (report, verdict) = migrate_model(&model, &cfg);
    verdict.unwrap();
    let first = &report.rounds[0];
    assert_eq!(first.hole, PAGES - PAGES * 3 / 4);
    assert!(first.zero > 60 && first.sent > 400);
    let content = first.sent * 4096;
    assert!(first.bytes > content && first.bytes < content + content / 50);
    assert_eq!(first.hint_mode, None);
}

/// 2560 pages of which half are written again during round one; the cap is such that these fit the
/// limit only compressed.
fn compressed(compression: Compression, again: fn(u64) -> Op) -> Report {
    const PAGES: u64 = 64 * 40;
    let model = Model::new(PAGES, false, vec![]);
    model.on(Trigger::Harvest, (0..PAGES / 2).map(again).collect());
    let cfg = SourceConfig {
        compression,
        hints: HintPolicy::Off,
        bandwidth: Some(32 << 20),
        downtime_limit: Duration::from_millis(100),
        ..config(HintMode::Auto)
    };
    let (report, verdict) = migrate_model(&model, &cfg);
    verdict.unwrap();
    assert_eq!(report.compression, compression);
    report
}

#[test]
fn compression_saves_bytes() {
    let (plain, packed) =
        (compressed(Compression::None, Op::Write), compressed(Compression::Lz4, Op::Write));
    assert_eq!(plain.rounds[0].sent, packed.rounds[0].sent);
    assert!(packed.round_one_bytes * 20 < plain.round_one_bytes, "{packed:?}");
    // What does not compress goes out as it is.
    let noise = compressed(Compression::Lz4, Op::WriteNoise);
    let two = &noise.rounds[1];
    assert!((two.sent * 4096..two.sent * 4200).contains(&two.bytes), "{two:?}");
}

#[test]
fn what_was_kept_does_not_tell_how_well_that_compresses_what_is_written() {
    // The first prediction is for 160 ms over this link, however well round one went.
    let report = compressed(Compression::Lz4, Op::WriteNoise);
    assert_eq!(report.rounds.len(), 3, "{report:?}");
}

#[test]
fn a_page_that_became_zero_is_zeroed_at_the_destination() {
    // Sent with content in round one, zero in round two.
    let model = Model::new(PAGES, false, vec![]);
    let mut cfg = config(HintMode::Auto);
    cfg.hints = HintPolicy::Off;
    let writer = model.clone();
    let progress = move |s: &Snapshot| {
        if s.phase == Phase::LastRound {
            writer.act(Op::WriteZero(1));
        }
    };
    let (near, far) = pair();
    let receiver = thread::spawn(move || {
        let mut dest = Dest::default();
        receive(far, &mut dest, &DestinationConfig::default(), &(), &CancelToken::new()).unwrap();
        dest
    });
    migrate(&model.vm(), near, &cfg, &progress, &CancelToken::new()).unwrap();
    let dest = receiver.join().unwrap();
    model.compare(&dest.memory()).unwrap();
}

#[test]
fn auto_leaves_hints_alone_where_little_is_populated() {
    let model = Model::new(PAGES, false, hinting(9));
    let mut cfg = config(HintMode::Auto);
    cfg.hints = HintPolicy::Auto;
    let (report, verdict) = migrate_model(&model, &cfg);
    verdict.unwrap();
    assert!(report.hints.to_string().starts_with("off"), "{}", report.hints);
    assert_eq!(report.hinted, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn no_interleaving_of_a_scripted_guest_loses_a_page(
        script in prop::collection::vec(ops(PAGES), 0..300),
        zeroing: bool,
        verify: bool,
        lz4: bool,
        streams in 1u32..5,
        mode in prop_oneof![Just(HintMode::Auto), Just(HintMode::Protected),
            Just(HintMode::CheckedZero)],
        hints in prop_oneof![2 => Just(HintPolicy::On), 1 => Just(HintPolicy::Off)],
    ) {
        let model = Model::new(PAGES, zeroing, script);
        let compression = if lz4 { Compression::Lz4 } else { Compression::None };
        let (_, verdict) = migrate_model(&model, &SourceConfig { verify, compression, streams,
            hints, ..config(mode) });
        prop_assert_eq!(verdict, Ok(()));
    }
}

/// A small generator, so that threads need no shared one.
fn next(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    *seed >> 33
}

#[test]
fn no_page_is_lost_with_threads_writing_and_hinting() {
    const PAGES: u64 = 64 * 60 + 13;
    let mut hinted = 0;
    for (case, (zeroing, mode)) in [
        (false, HintMode::Auto),
        (true, HintMode::Auto),
        (false, HintMode::Protected),
        (true, HintMode::Protected),
        (false, HintMode::CheckedZero),
        (true, HintMode::CheckedZero),
    ]
    .into_iter()
    .enumerate()
    {
        let model = Model::new(PAGES, zeroing, vec![]);
        model.endless.store(true, Ordering::Relaxed);
        let stop = Arc::new(AtomicBool::new(false));
        let spawn = |role: u64| {
            let (model, stop) = (model.clone(), stop.clone());
            thread::spawn(move || {
                let mut seed = role * 7919 + case as u64;
                while !stop.load(Ordering::Relaxed) {
                    let page = next(&mut seed) % PAGES;
                    let op = match (role, next(&mut seed) % 8) {
                        (0, 0..5) => Op::Write(page),
                        (0, 5) => Op::WriteZero(page),
                        (0, 6) => Op::VmmWrite(page),
                        (0, _) => Op::Free(page, 40),
                        (_, 0..4) => Op::Hint(page / 64 * 64, 64),
                        (_, 4) => Op::Inflate(page, 3),
                        (_, 5) => Op::Deflate(page, 9),
                        _ => Op::Deliver,
                    };
                    model.act(op);
                    if next(&mut seed).is_multiple_of(16) {
                        thread::sleep(Duration::from_micros(50));
                    }
                }
            })
        };
        let threads = [spawn(0), spawn(1)];
        let mut cfg = config(mode);
        cfg.slice = Duration::from_millis(2);
        cfg.verify = true;
        cfg.streams = 1 + 2 * (case as u32 % 2);
        cfg.first_hint_wait = Duration::from_millis(20);
        let (report, verdict) = migrate_model(&model, &cfg);
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(verdict, Ok(()), "zeroing {zeroing}, {mode:?}");
        assert!(report.rounds.len() >= 2);
        hinted += report.hinted;
    }
    assert!(hinted > 0);
}
