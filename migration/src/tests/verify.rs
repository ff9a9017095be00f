//! Verification: silent on the right engine, loud about every deliberate mistake, and not to be
//! fooled by a hostile peer.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::dest::Dest;
use super::hostile::{feed, hello, machine, pages, round, stream, welcome};
use super::model::{Model, Mutation, Trigger};
use super::mutations::{PAGE, PAGES, late_hint, taken_back, vmm_write};
use super::ops::Op;
use super::oracle::{config, hinting, migrate_model, migrate_over, pair};
use crate::wire::digests::{CHUNK_PAGES, Digests};
use crate::wire::{FEATURE_VERIFY, FEATURES, Kind, VerifyChunk, WireError, codec};
use crate::*;

fn verified(mode: HintMode) -> SourceConfig {
    SourceConfig { verify: true, ..config(mode) }
}

/// Migrates with a mistake, which verification must notice; then without, which must succeed.
fn wrong_pages(model: &Arc<Model>, cfg: &SourceConfig, mutation: Mutation) -> WrongPages {
    model.mutate(Some(mutation));
    let (report, received, dest) = migrate_over(model, cfg, &DestinationConfig::default(), pair());
    let failure = report.expect_err("verification noticed nothing");
    assert_eq!((failure.ownership, failure.phase), (Ownership::SourceRuns, Phase::Verify));
    assert!(!model.paused() && !model.log_on() && dest.runs == 0);
    let theirs = received.unwrap_err();
    assert!(
        matches!(&theirs.cause, Error::PeerAbort(why) if why.contains("wrong page")),
        "{theirs:?}"
    );
    assert_eq!(theirs.ownership, Ownership::SourceRuns);
    model.mutate(None);
    migrate_model(model, cfg).1.unwrap();
    match failure.cause {
        Error::Wrong(wrong) => wrong,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_right_migration_is_verified_in_every_mode() {
    for mode in [HintMode::Auto, HintMode::Protected, HintMode::CheckedZero] {
        for zeroing in [false, true] {
            let model = Model::new(PAGES, zeroing, vec![]);
            // Under the first id and, if the engine finds that the guest does not zero, under the
            // one that follows DONE.
            model.on(Trigger::Published, hinting(9));
            model.on(Trigger::Published, hinting(9));
            model.on(
                Trigger::Harvest,
                vec![Op::Write(64), Op::WriteZero(1), Op::Inflate(64 * 7, 3)],
            );
            let (report, verdict) = migrate_model(&model, &verified(mode));
            verdict.unwrap();
            let found = report.verify.unwrap();
            assert_eq!(found.equal + found.free, PAGES, "{mode:?} {found:?}");
            assert!(found.wrong == 0 && found.bytes > 2000, "{mode:?} {found:?}");
            let protected = report.rounds[0].hint_mode == Some(HintMode::Protected);
            let excused = match (protected, zeroing) {
                (true, false) => 64..PAGES,
                (true, true) => 0..PAGES,
                // Found zero at the source, zero at the destination: only the balloon's pages need
                // an excuse.
                (false, _) => 0..4,
            };
            assert!(excused.contains(&found.free), "{mode:?}, zeroing {zeroing}: {found:?}");
        }
    }
}

#[test]
fn verification_is_off_unless_asked_for() {
    let model = Model::new(PAGES, false, vec![]);
    let (report, _) = migrate_model(&model, &config(HintMode::Auto));
    assert_eq!((report.verify, report.downtime.verify_us), (None, 0));
    assert!(!SourceConfig::default().verify);
}

#[test]
fn ballooned_pages_that_differ_are_free() {
    let model = Model::new(PAGES, false, vec![]);
    // Sent with content, then taken by the balloon: zero at the source, stale at the destination.
    model.on(Trigger::Harvest, vec![Op::Inflate(PAGE, 5)]);
    let cfg = SourceConfig { hints: HintPolicy::Off, ..verified(HintMode::Auto) };
    let (report, verdict) = migrate_model(&model, &cfg);
    verdict.unwrap();
    // One of the five was zero before.
    assert_eq!(report.verify.unwrap().free, 4);
}

#[test]
fn verification_notices_an_id_that_is_published_before_memory_is_protected() {
    let cfg = SourceConfig { max_rounds: 2, ..verified(HintMode::CheckedZero) };
    let wrong = wrong_pages(&taken_back(), &cfg, Mutation::PublishBeforeProtect);
    assert_eq!((wrong.count, wrong.named[0].page), (1, PAGE));
    assert_eq!(wrong.named[0].history.to_string(), "hinted in round 1, clean since");
}

#[test]
fn verification_notices_a_hint_that_is_honoured_after_its_epoch_closed() {
    let cfg = SourceConfig { max_rounds: 2, ..verified(HintMode::Protected) };
    let (report, verdict) = migrate_model(&late_hint(), &cfg);
    verdict.unwrap();
    assert_eq!(report.verify.unwrap().wrong, 0);
    let wrong = wrong_pages(&late_hint(), &cfg, Mutation::HintAfterClose);
    assert_eq!((wrong.count, wrong.named[0].page), (1, PAGE));
    assert_eq!(wrong.named[0].history.to_string(), "hinted in round 2, clean since");
}

#[test]
fn verification_notices_writes_of_the_vmm_that_are_left_out_of_the_dirty_set() {
    let wrong = wrong_pages(&vmm_write(), &verified(HintMode::Protected), Mutation::VmmWrites);
    assert_eq!((wrong.count, wrong.named[0].page), (1, 1));
    assert_eq!(wrong.named[0].history.to_string(), "sent in round 1, clean since");
    migrate_model(&vmm_write(), &verified(HintMode::Protected)).1.unwrap();
}

#[test]
fn a_flipped_bit_and_a_dropped_page_are_named() {
    for mutation in [Mutation::FlipPage(PAGE + 3), Mutation::DropPage(PAGE + 3)] {
        let model = Model::new(PAGES, false, vec![]);
        let wrong = wrong_pages(&model, &verified(HintMode::Auto), mutation);
        let expected = "1 wrong page: page 451 at 0x1c3000 (sent in round 1, clean since)";
        assert_eq!(wrong.to_string(), expected);
    }
}

#[test]
fn a_wrong_page_in_the_last_of_several_chunks_is_named_once() {
    let nr = u64::from(CHUNK_PAGES) * 2 + 77;
    // The model's last quarter is a hole: written here, so that the last chunk has content.
    let model = Model::new(nr, false, vec![Op::Write(nr - 1), Op::Write(nr - 70)]);
    let cfg = SourceConfig { hints: HintPolicy::Off, max_rounds: 1, ..verified(HintMode::Auto) };
    let wrong = wrong_pages(&model, &cfg, Mutation::FlipPage(nr - 1));
    assert_eq!((wrong.count, wrong.named[0].page), (1, nr - 1));
}

#[test]
fn stray_content_at_the_destination_is_wrong_and_only_sixteen_pages_are_named() {
    let model = Model::new(PAGES, false, vec![]);
    let (near, far) = pair();
    let receiver = thread::spawn(move || {
        let mut dest = Dest { stray: 18, ..Dest::default() };
        receive(far, &mut dest, &DestinationConfig::default(), &(), &CancelToken::new())
            .unwrap_err();
        dest.runs
    });
    let cfg = verified(HintMode::Auto);
    let failure = migrate(&model.vm(), near, &cfg, &(), &CancelToken::new()).unwrap_err();
    let text = failure.cause.to_string();
    assert!(
        text.starts_with("verification: 18 wrong pages: page 750 at 0x2ee000 (a hole in round 1"),
        "{text}"
    );
    assert!(text.ends_with(" and 2 more"), "{text}");
    assert!(receiver.join().unwrap() == 0 && !model.paused());
}

fn ask(first: u64, nr: u32) -> Vec<u8> {
    codec::encode(&VerifyChunk { first, nr }, Kind::Verify).unwrap()
}

/// A valid, verified migration of two chunks.
fn valid() -> Vec<(Kind, Vec<u8>)> {
    let end = wire::StateEnd { len: 5, crc: crc32fast::hash(b"state") };
    vec![
        hello(FEATURE_VERIFY),
        machine(u64::from(CHUNK_PAGES) + 9),
        (Kind::Round, round(1)),
        (Kind::Pages, pages(3, 2, false, 8192)),
        (Kind::Verify, ask(0, CHUNK_PAGES)),
        (Kind::Idle, vec![]),
        (Kind::Verify, ask(u64::from(CHUNK_PAGES), 9)),
        (Kind::State, b"state".to_vec()),
        (Kind::StateEnd, codec::encode(&end, Kind::StateEnd).unwrap()),
        (Kind::HandOff, vec![]),
    ]
}

#[test]
fn hostile_questions_are_refused() {
    let (result, dest) = feed(stream(&valid()));
    assert!(result.is_ok() && dest.runs == 1);
    let with = |at: usize, kind: Kind, payload: Vec<u8>| {
        let mut frames = valid();
        frames[at] = (kind, payload);
        frames
    };
    let without = |at: usize| {
        let mut frames = valid();
        frames.remove(at);
        frames
    };
    let chunk = u64::from(CHUNK_PAGES);
    let cases = [
        ("not agreed on", with(0, Kind::Hello, hello(0).1)),
        ("unknown feature", with(0, Kind::Hello, hello(FEATURES + 1).1)),
        (
            "before a round",
            without(2).into_iter().filter(|(kind, _)| *kind != Kind::Pages).collect(),
        ),
        ("first chunk left out", without(4)),
        ("last chunk left out", without(6)),
        ("the same chunk again", with(6, Kind::Verify, ask(0, CHUNK_PAGES))),
        ("an empty chunk", with(4, Kind::Verify, ask(0, 0))),
        ("a small chunk", with(4, Kind::Verify, ask(0, 64))),
        ("a giant chunk", with(4, Kind::Verify, ask(0, u32::MAX))),
        ("beyond RAM", with(6, Kind::Verify, ask(chunk, 10))),
        ("far beyond RAM", with(6, Kind::Verify, ask(u64::MAX, 1))),
        ("a chunk too many", with(7, Kind::Verify, ask(chunk + 9, 0))),
        ("pages in between", with(5, Kind::Pages, pages(3, 1, true, 0))),
        ("a round in between", with(5, Kind::Round, round(2))),
        ("cut short", with(4, Kind::Verify, vec![0; 11])),
        ("too long", with(4, Kind::Verify, vec![0; 65])),
        ("an answer as a question", with(4, Kind::Digests, vec![0; 12])),
    ];
    for (name, frames) in cases {
        let (result, dest) = feed(stream(&frames));
        let failure = result.expect_err(name);
        assert!(matches!(failure.cause, Error::Wire(_)), "{name}: {failure:?}");
        assert_eq!(dest.runs, 0, "{name}");
    }
}

/// What the source makes of these answers, which come before they are asked for.
fn answered(verify: bool, features: u64, answers: Vec<(Kind, Vec<u8>)>) -> Error {
    let model = Model::new(200, false, vec![]);
    let (near, far) = UnixStream::pair().unwrap();
    let bytes = stream(&[welcome(features), answers.clone()].concat());
    let mut reader = far.try_clone().unwrap();
    let drain = thread::spawn(move || reader.read_to_end(&mut Vec::new()));
    let mut writer = far.try_clone().unwrap();
    let feeder = thread::spawn(move || {
        let _ = writer.write_all(&bytes);
    });
    // Who has an answer must not give up before it is read, however busy the machine.
    let stall_timeout = Duration::from_millis(if answers.is_empty() { 400 } else { 60_000 });
    let cfg = SourceConfig { verify, stall_timeout, ..config(HintMode::Auto) };
    let failure = migrate(&model.vm(), Box::new(near), &cfg, &(), &CancelToken::new()).unwrap_err();
    assert_eq!(failure.ownership, Ownership::SourceRuns);
    assert!(!model.paused() && !model.log_on());
    drop(far);
    feeder.join().unwrap();
    let _ = drain.join().unwrap();
    failure.cause
}

#[test]
fn hostile_answers_are_errors() {
    let all_zero = |first: u64, nr: u32| {
        let (mut chunk, mut raw) = (Digests::default(), vec![]);
        chunk.begin(first, nr);
        chunk.encode(&mut raw);
        (Kind::Digests, raw)
    };
    let with = |extra: &[u8]| {
        let mut answer = all_zero(0, 200);
        answer.1.extend_from_slice(extra);
        answer
    };
    // 200 pages are four words of bits.
    let outside = [[0; 24], [0xff; 24]].concat();
    let cases: [(&str, Vec<_>); 9] = [
        ("another chunk", vec![all_zero(64, 136)]),
        ("a longer chunk", vec![all_zero(0, 201)]),
        ("no payload", vec![(Kind::Digests, vec![])]),
        ("half a map", vec![with(&[1; 20])]),
        ("digests missing", vec![with(&[1; 32])]),
        ("pages outside", vec![with(&outside)]),
        ("no answer, but loaded", vec![(Kind::Loaded, vec![])]),
        ("beyond the limit", vec![(Kind::Digests, vec![0; wire::digests::MAX_PAYLOAD + 1])]),
        ("a flood", vec![all_zero(0, 200); 2000]),
    ];
    for (name, answers) in cases {
        let cause = answered(true, FEATURE_VERIFY, answers);
        assert!(matches!(cause, Error::Wire(_)), "{name}: {cause:?}");
    }
    // All zero is a legal answer, and a wrong one.
    let cause = answered(true, FEATURE_VERIFY, vec![all_zero(0, 200)]);
    assert!(matches!(&cause, Error::Wrong(wrong) if wrong.count > 100), "{cause:?}");
    let cause = answered(true, FEATURE_VERIFY, vec![]);
    assert!(matches!(cause, Error::Stalled(_)), "{cause:?}");
    let cause = answered(false, 0, vec![all_zero(0, 200)]);
    assert!(matches!(cause, Error::Wire(WireError::Unexpected { .. })), "{cause:?}");
    let cause = answered(true, 0, vec![]);
    assert!(
        matches!(cause, Error::Wire(WireError::Features(1))),
        "a destination that does not verify: {cause:?}"
    );
}
