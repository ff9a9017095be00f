//! What may happen between the pause and the hand-off, and for how long.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use super::faults::{DRIP, Fault, FaultPlan, Seen, drip, faulty_pair, noted_pair};
use super::handoff::{PAGES, script};
use super::model::{Model, Trigger};
use super::ops::Op;
use super::oracle::{config, migrate_model, migrate_over, pair};
use super::streams::linked;
use crate::transport::{Halves, TICK, WriteHalf};
use crate::wire::{Kind, max_state};
use crate::*;

/// Takes bytes one by one once the guest is paused.
struct SlowOnceItIsPaused {
    stream: UnixStream,
    model: Arc<Model>,
    taken: Arc<AtomicU64>,
}

impl Transport for SlowOnceItIsPaused {
    fn split(self: Box<Self>) -> io::Result<Halves> {
        self.stream.set_read_timeout(Some(TICK))?;
        let input: Box<dyn Read + Send> = Box::new(self.stream.try_clone()?);
        Ok((input, self))
    }
}

impl Write for SlowOnceItIsPaused {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if !self.model.paused() {
            return self.stream.write(buf);
        }
        self.taken.fetch_add(1, SeqCst);
        drip(&mut self.stream, buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl WriteHalf for SlowOnceItIsPaused {
    fn shutdown(&self) {
        WriteHalf::shutdown(&self.stream);
    }
}

fn slow_once_paused(
    model: &Arc<Model>,
    taken: &Arc<AtomicU64>,
) -> (Box<dyn Transport>, Box<dyn Transport>) {
    let (stream, far) = UnixStream::pair().unwrap();
    let (model, taken) = (model.clone(), taken.clone());
    (Box::new(SlowOnceItIsPaused { stream, model, taken }), Box::new(far))
}

const LIMIT: Duration = Duration::from_millis(300);

/// The source gives up at its limit, and the guest goes on there.
fn gives_up(
    name: &str,
    streams: u32,
    verify: bool,
    ends: impl FnOnce(&Arc<Model>) -> (Box<dyn Transport>, Box<dyn Transport>),
) {
    let model = Model::new(PAGES, false, script());
    // Nothing else ends it: each byte comes well before the connection counts as stalled.
    let cfg = SourceConfig {
        pause_limit: Some(LIMIT),
        max_rounds: 1,
        verify,
        streams,
        ..config(HintMode::Auto)
    };
    let (report, received, dest) =
        migrate_over(&model, &cfg, &DestinationConfig::default(), ends(&model));
    let failure = report.expect_err(name);
    assert!(
        matches!(failure.cause, Error::PauseLimit(time) if time == LIMIT),
        "{name}: {failure:?}"
    );
    assert_eq!(failure.ownership, Ownership::SourceRuns, "{name}");
    assert!(!model.paused() && !model.log_on() && model.done.load(SeqCst) > 0, "{name}");
    assert!(received.is_err() && dest.runs == 0, "{name}");
    // It is none the worse for it.
    migrate_model(&model, &config(HintMode::Auto)).1.unwrap();
}

#[test]
fn a_destination_that_takes_byte_by_byte_does_not_keep_the_guest_paused() {
    // Each byte takes so long that no more fit into the limit, be it over in the middle of a frame.
    let most = (LIMIT.as_millis() / DRIP.as_millis()) as u64 + 1;
    let taken = Arc::new(AtomicU64::new(0));
    gives_up("last round", 1, false, |model| slow_once_paused(model, &taken));
    assert!(taken.swap(0, SeqCst) <= most);
    gives_up("last round, two lanes", 2, false, |model| {
        linked(2, |_| slow_once_paused(model, &taken))
    });
    assert!(taken.load(SeqCst) <= 2 * most);
    let state = FaultPlan::at_kind(Kind::State, Fault::Trickle);
    gives_up("state", 1, false, |_| faulty_pair(Some(state), None));
}

#[test]
fn a_destination_that_answers_byte_by_byte_does_not_keep_the_guest_paused() {
    for kind in [Kind::Digests, Kind::Loaded] {
        let plan = FaultPlan::at_kind(kind, Fault::Trickle);
        gives_up(&format!("{kind:?}"), 1, kind == Kind::Digests, |_| faulty_pair(None, Some(plan)));
    }
}

#[test]
fn after_the_hand_off_the_limit_is_over() {
    // Running comes long after the limit, and still counts: the guest is not here any more.
    let mut limit = Duration::from_millis(100);
    loop {
        let model = Model::new(PAGES, false, script());
        let handed_over = Arc::new(AtomicBool::new(false));
        let noted = handed_over.clone();
        model.during(Trigger::HandOver, move || {
            noted.store(true, SeqCst);
            thread::sleep(2 * limit);
        });
        let cfg = SourceConfig { pause_limit: Some(limit), ..config(HintMode::Auto) };
        let ends = faulty_pair(None, Some(FaultPlan::at_kind(Kind::Running, Fault::Trickle)));
        let dest_cfg = DestinationConfig::default();
        let (report, received, dest) = migrate_over(&model, &cfg, &dest_cfg, ends);
        if handed_over.load(SeqCst) {
            assert!(report.is_ok() && received.is_ok(), "{report:?}");
            assert!(model.paused() && dest.runs == 1);
            return;
        }
        // A busy machine did not come so far in time.
        assert!(matches!(report.unwrap_err().cause, Error::PauseLimit(_)));
        limit *= 2;
    }
}

#[test]
fn a_state_that_no_destination_takes_is_not_sent() {
    let model = Model::new(PAGES, false, script());
    model.least_state.store(max_state(PAGES) as u64 + 1, SeqCst);
    let seen = Seen::default();
    let ends = noted_pair(None, None, [seen.clone(), Seen::default()]);
    let cfg = config(HintMode::Auto);
    let (report, ..) = migrate_over(&model, &cfg, &DestinationConfig::default(), ends);
    let failure = report.unwrap_err();
    assert!(matches!(failure.cause, Error::StateTooLarge(_)), "{failure:?}");
    assert!(!model.paused() && !seen.lock().unwrap().contains(&Kind::State));
}

#[test]
fn nobody_walks_over_memory_for_holes_after_round_one() {
    const MANY: u64 = 8192;
    for (max_rounds, verify) in [(1, false), (3, false), (3, true)] {
        let model = Model::new(MANY, false, vec![]);
        // Most of memory is dirty; word 1, which was sent, is free, and the host takes it back.
        let mut ops: Vec<Op> = (128..MANY * 3 / 4).map(Op::Write).collect();
        ops.push(Op::Report(64, 64));
        model.on(Trigger::Harvest, ops);
        let hints = HintPolicy::Off;
        let cfg = SourceConfig { max_rounds, verify, hints, ..config(HintMode::Auto) };
        let (report, received, dest) =
            migrate_over(&model, &cfg, &DestinationConfig::default(), pair());
        let (report, _) = (report.unwrap(), received.unwrap());
        let two = &report.rounds[1];
        assert!(two.sent >= 4096 && (two.zero, two.hole) == (64, 0), "{two:?}");
        let memory = dest.memory();
        model.compare(&memory).unwrap();
        assert!(memory[64 * 4096..128 * 4096].iter().all(|&byte| byte == 0), "it was not told");
        // Before round one: for what to protect, and for its plan.
        assert_eq!([0, 1].map(|n| model.walks[n].load(SeqCst)), [2, 0], "while it ran, and paused");
    }
}

#[test]
fn a_machine_that_does_not_let_go_sends_no_state_and_goes_on() {
    let model = Model::new(PAGES, false, script());
    model.keeps.store(true, SeqCst);
    let forth = Seen::default();
    let ends = noted_pair(None, None, [forth.clone(), Seen::default()]);
    let cfg = SourceConfig { verify: true, ..config(HintMode::Auto) };
    let (report, received, dest) = migrate_over(&model, &cfg, &DestinationConfig::default(), ends);
    let failure = report.unwrap_err();
    assert!(matches!(failure.cause, Error::Machine { .. }), "{failure:?}");
    assert_eq!(failure.ownership, Ownership::SourceRuns);
    assert!(received.is_err() && dest.runs == 0 && !model.paused());
    // It keeps what it has until all memory is compared.
    let seen = forth.lock().unwrap();
    assert!(seen.contains(&Kind::Verify) && !seen.contains(&Kind::State), "{seen:?}");
    assert_eq!(model.prepared.load(SeqCst), 1);
}

#[test]
fn a_pause_is_predicted_with_the_harvest_that_is_made_in_it() {
    let migrate = |trigger: Trigger, max_rounds| {
        let model = Model::new(PAGES, false, vec![]);
        model.during(trigger, || thread::sleep(Duration::from_secs(1)));
        let cfg = SourceConfig {
            downtime_limit: Duration::from_millis(900),
            on_timeout: OnTimeout::Fail,
            max_rounds,
            // Or there is a harvest in the middle of round one.
            hints: HintPolicy::Off,
            ..config(HintMode::Auto)
        };
        migrate_over(&model, &cfg, &DestinationConfig::default(), pair()).0
    };
    let failure = migrate(Trigger::Harvest, 1).unwrap_err();
    assert!(
        matches!(failure.cause, Error::NotConverging { predicted_ms: 1000.., .. }),
        "{failure:?}"
    );
    // Another round, whose harvest takes no time: what the last one took counts. Other work does
    // not.
    assert_eq!(migrate(Trigger::Harvest, 30).unwrap().rounds.len(), 3);
    assert_eq!(migrate(Trigger::Walk, 1).unwrap().rounds.len(), 2);
}

#[test]
fn a_pause_is_predicted_with_the_state_that_is_sent_in_it() {
    let migrate = |state_bytes, downtime_limit| {
        let model = Model::new(PAGES, false, vec![]);
        model.state_bytes.store(state_bytes, SeqCst);
        let cfg = SourceConfig {
            bandwidth: Some(100_000_000),
            downtime_limit,
            max_rounds: 2,
            on_timeout: OnTimeout::Fail,
            ..config(HintMode::Auto)
        };
        migrate_over(&model, &cfg, &DestinationConfig::default(), pair()).0
    };
    // Two seconds at least, however few pages are dirty.
    let failure = migrate(200_000_000, Duration::from_secs(2)).unwrap_err();
    assert!(
        matches!(failure.cause, Error::NotConverging { predicted_ms: 2000.., .. }),
        "{failure:?}"
    );
    migrate(200_000_000, Duration::from_secs(3600)).unwrap();
    migrate(0, Duration::from_secs(3600)).unwrap();
}
