//! Traces: what the events say is what the report says, with every kind of guest, and a trace
//! changes nothing.

// The engine's own model guest.
#[allow(dead_code)]
#[path = "../../migration/src/tests/dest.rs"]
mod dest;
#[allow(dead_code)]
#[path = "../../migration/src/tests/model/mod.rs"]
mod model;
#[path = "../../migration/src/tests/ops.rs"]
mod ops;

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use wherry_migration::bitmap::Bitmap;
use wherry_migration::round::{Plan, Round};
use wherry_migration::*;

use self::dest::Dest;
use self::model::{Model, Trigger};
use self::ops::{Op, config, hinting, ops};
use crate::record::Recording;
use crate::{Event, FATES, RoundPlan, Slice, Start, What};

const PAGES: u64 = 64 * 12;

struct Traced(Arc<Recording>);

impl Progress for Traced {
    fn update(&self, _: &Snapshot) {}

    fn observer(&self) -> Option<Arc<dyn Observer>> {
        Some(self.0.clone())
    }
}

fn traced(model: &Arc<Model>, cfg: &SourceConfig) -> (Result<Report, Failure>, Vec<Event>) {
    let (near, far) = UnixStream::pair().unwrap();
    let receiver = thread::spawn(move || {
        let mut dest = Dest::default();
        let received = receive(
            Box::new(far),
            &mut dest,
            &DestinationConfig::default(),
            &(),
            &CancelToken::new(),
        );
        received.map(|_| dest)
    });
    let tape: Arc<Mutex<Vec<Event>>> = Arc::default();
    let (events, log) = (tape.clone(), model.clone());
    let tell = Box::new(move |event| events.lock().unwrap().push(event));
    let look = Box::new(move |out: &mut Bitmap| log.peek(out));
    let recording = Arc::new(Recording::new(model.vm().ram.nr_pages(), cfg, tell, Some(look)));
    let report = migrate(&model.vm(), Box::new(near), cfg, &Traced(recording), &CancelToken::new());
    if let (Ok(dest), true) = (receiver.join().unwrap(), report.is_ok()) {
        model.compare(&dest.memory()).unwrap();
    }
    // As lines and back: what a reader gets is what was told.
    let events = tape.lock().unwrap().clone();
    let lines: Vec<String> = events.iter().map(|e| serde_json::to_string(e).unwrap()).collect();
    let read: Vec<Event> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    // The report has fractions, whose last digit may change on the way.
    let plain = |e: &&Event| !matches!(e.what, What::End { .. });
    assert!(
        read.iter().filter(plain).eq(events.iter().filter(plain)) && read.len() == events.len()
    );
    assert!(lines.iter().all(|line| !line.contains('\n')));
    (report, events)
}

fn last_slice(events: &[Event], number: u32) -> Slice {
    let mut slices = events.iter().filter_map(|e| match e.what {
        What::Slice(slice) if slice.round == number => Some(slice),
        _ => None,
    });
    slices.next_back().unwrap()
}

#[test]
fn events_agree_with_the_report() {
    for (mode, zeroing) in [
        (HintMode::Protected, false),
        (HintMode::Protected, true),
        (HintMode::CheckedZero, true),
        (HintMode::Auto, false),
        (HintMode::Auto, true),
    ] {
        for verify in [false, true] {
            let model = Model::new(PAGES, zeroing, vec![]);
            model.on(Trigger::Published, hinting(9));
            model.on(Trigger::Published, hinting(9));
            model.on(
                Trigger::Harvest,
                vec![Op::Write(64), Op::WriteZero(1), Op::Inflate(64 * 7, 3)],
            );
            let cfg = SourceConfig { verify, ..config(mode) };
            let (report, events) = traced(&model, &cfg);
            let report = report.unwrap();
            assert!(events.is_sorted_by_key(|e| e.t_us), "{events:#?}");
            assert!(matches!(
                &events[0].what,
                What::Start(Start { version: 1, nr_pages: PAGES, .. })
            ));
            let Some(What::End { report: told }) = events.last().map(|e| &e.what) else { panic!() };
            assert_eq!(told["total_bytes"], report.total_bytes);
            // These guests hint while an id is being published: their hints stand after the line
            // that says so.
            let publish =
                events.iter().position(|e| matches!(e.what, What::Publish { .. })).unwrap();
            let hints = events.iter().position(|e| matches!(e.what, What::Hints { .. })).unwrap();
            assert!(publish < hints, "{events:#?}");
            for round in &report.rounds {
                let last = last_slice(&events, round.round);
                assert_eq!(
                    (last.sent, last.zero, last.hinted, last.remaining),
                    (round.sent, round.zero, round.hinting.hinted, 0)
                );
                let planned = events.iter().find_map(|e| match e.what {
                    What::Round(plan) if plan.round == round.round => Some(plan),
                    _ => None,
                });
                let to_send = round.sent + round.zero + round.hinting.hinted;
                let &RoundReport { round, hole, ballooned, clean, .. } = round;
                assert_eq!(planned, Some(RoundPlan { round, to_send, hole, ballooned, clean }));
            }
            let Some(cells) = events.iter().find_map(|e| match &e.what {
                What::Map(map) if map.round == 1 => Some(&map.cells),
                _ => None,
            }) else {
                panic!("no map")
            };
            let sum = |fate: &str| -> u64 {
                let at = FATES.iter().position(|f| *f == fate).unwrap();
                cells.iter().map(|cell| cell[at]).sum()
            };
            let one = &report.rounds[0];
            assert_eq!(cells.iter().flatten().sum::<u64>(), PAGES);
            assert_eq!(sum("sent") + sum("sent_then_hinted"), one.sent);
            assert_eq!(sum("hinted") + sum("overridden"), one.hinting.hinted);
            assert_eq!(sum("overridden"), one.hinting.overridden);
            assert_eq!(
                (sum("zero"), sum("hole"), sum("ballooned")),
                (one.zero, one.hole, one.ballooned)
            );
            let hinted: u64 = events
                .iter()
                .map(|e| match &e.what {
                    What::Hints { ranges, dropped } => {
                        assert_eq!(*dropped, 0);
                        ranges.iter().map(|r| r.1).sum()
                    }
                    _ => 0,
                })
                .sum();
            assert_eq!(
                hinted * 4096,
                report.rounds.iter().map(|r| r.hinting.hint_bytes).sum::<u64>()
            );
        }
    }
}

#[test]
fn a_failure_is_the_last_line() {
    let model = Model::new(PAGES, false, vec![]);
    let cfg = SourceConfig {
        downtime_limit: Duration::ZERO,
        max_rounds: 1,
        on_timeout: OnTimeout::Fail,
        ..config(HintMode::Auto)
    };
    let (report, events) = traced(&model, &cfg);
    report.unwrap_err();
    let Some(What::Failed { phase, error }) = events.last().map(|e| &e.what) else {
        panic!("{events:?}")
    };
    assert!(phase == "rounds" && error.contains("did not converge"), "{phase}: {error}");
}

#[test]
fn whoever_hints_does_not_wait_for_a_look_at_the_dirty_log() {
    let recording: Arc<OnceLock<Arc<Recording>>> = Arc::default();
    let (of_look, waited) = (recording.clone(), Arc::new(AtomicBool::new(true)));
    let waits = waited.clone();
    let look = Box::new(move |_: &mut Bitmap| {
        let (recording, (done, heard)) = (of_look.get().cloned().unwrap(), channel());
        thread::spawn(move || {
            recording.observe(&observe::Event::Protected(0..1));
            let _ = done.send(());
        });
        waits.store(heard.recv_timeout(Duration::from_secs(60)).is_err(), Ordering::SeqCst);
        Ok(())
    });
    let tell = Box::new(|_| ());
    let recording = recording.get_or_init(|| {
        Arc::new(Recording::new(PAGES, &SourceConfig::default(), tell, Some(look)))
    });
    let slice = observe::Slice {
        round: &Round::new(1, PAGES, &Plan::of(Bitmap::full(PAGES))),
        over: false,
        bytes: 0,
        rate: 0,
        held: Duration::ZERO,
        reading: Duration::ZERO,
        sending: Duration::ZERO,
    };
    recording.observe(&observe::Event::Slice(slice));
    assert!(!waited.load(Ordering::SeqCst));
}

#[test]
fn unknown_events_and_absent_fields_are_borne() {
    let read = |line: &str| serde_json::from_str::<Event>(line).unwrap();
    assert_eq!(read(r#"{"t_us":5,"event":"moon_phase","full":true}"#).what, What::Unknown);
    let event = read(r#"{"event":"slice","round":2,"bytes":7,"colour":"red","t_us":9}"#);
    assert_eq!(event.what, What::Slice(Slice { round: 2, bytes: 7, ..Slice::default() }));
    assert_eq!(event.t_us, 9);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Looking at the dirty log and noting hints changes nothing: the oracle finds every page
    /// right.
    #[test]
    fn a_traced_migration_loses_nothing(script in prop::collection::vec(ops(PAGES), 0..300),
        zeroing in any::<bool>()) {
        let model = Model::new(PAGES, zeroing, script);
        let (report, events) = traced(&model, &config(HintMode::Auto));
        report.unwrap();
        let looked = events.iter().any(|e| matches!(e.what, What::Dirty { .. }));
        prop_assert!(looked);
    }
}
