//! What may happen between the pause and the hand-off, and for how long.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use super::faults::{Fault, FaultPlan, drip, faulty_pair};
use super::handoff::{PAGES, script};
use super::model::{Model, Trigger};
use super::ops::Op;
use super::oracle::{config, migrate_model, migrate_over, pair};
use super::streams::linked;
use crate::transport::{Halves, TICK, WriteHalf};
use crate::wire::Kind;
use crate::*;

/// Takes bytes one by one once the guest is paused.
struct SlowOnceItIsPaused {
    stream: UnixStream,
    model: Arc<Model>,
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
        if self.model.paused() { drip(&mut self.stream, buf) } else { self.stream.write(buf) }
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

fn slow_once_paused(model: &Arc<Model>) -> (Box<dyn Transport>, Box<dyn Transport>) {
    let (stream, far) = UnixStream::pair().unwrap();
    (Box::new(SlowOnceItIsPaused { stream, model: model.clone() }), Box::new(far))
}

/// The source gives up at its limit, and the guest goes on there.
fn gives_up(
    name: &str,
    streams: u32,
    verify: bool,
    ends: impl FnOnce(&Arc<Model>) -> (Box<dyn Transport>, Box<dyn Transport>),
) {
    let model = Model::new(PAGES, false, script());
    let limit = Duration::from_millis(300);
    // Nothing else ends it: each byte comes well before the connection counts as stalled.
    let cfg = SourceConfig {
        pause_limit: Some(limit),
        max_rounds: 1,
        verify,
        streams,
        ..config(HintMode::Auto)
    };
    let (report, received, dest) =
        migrate_over(&model, &cfg, &DestinationConfig::default(), ends(&model));
    let failure = report.expect_err(name);
    assert!(
        matches!(failure.cause, Error::PauseLimit(time) if time == limit),
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
    gives_up("last round", 1, false, slow_once_paused);
    gives_up("last round, two lanes", 2, false, |model| linked(2, |_| slow_once_paused(model)));
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
    let model = Model::new(PAGES, false, script());
    let cfg =
        SourceConfig { pause_limit: Some(Duration::from_secs(600)), ..config(HintMode::Auto) };
    let plan = FaultPlan::at_kind(Kind::Running, Fault::Trickle);
    let ends = faulty_pair(None, Some(plan));
    let (report, received, dest) = migrate_over(&model, &cfg, &DestinationConfig::default(), ends);
    assert!(report.is_ok() && received.is_ok(), "{report:?}");
    assert!(model.paused() && dest.runs == 1);
}

#[test]
fn nobody_asks_for_holes_while_the_guest_is_paused() {
    const MANY: u64 = 8192;
    for verify in [false, true] {
        let model = Model::new(MANY, false, vec![]);
        let dirty = (0..MANY * 3 / 4).map(Op::Write).collect();
        model.on(Trigger::Harvest, dirty);
        // All of that is left to the last round.
        let cfg = SourceConfig { max_rounds: 1, verify, ..config(HintMode::Auto) };
        let (report, received, dest) =
            migrate_over(&model, &cfg, &DestinationConfig::default(), pair());
        let (report, _) = (report.unwrap(), received.unwrap());
        assert!(report.rounds[1].sent + report.rounds[1].zero >= 4096, "{:?}", report.rounds[1]);
        model.compare(&dest.memory()).unwrap();
        let [running, paused] = [0, 1].map(|n| model.walks[n].load(SeqCst));
        assert!(running > 0 && paused == 0, "{running} while it ran, {paused} while it was paused");
    }
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
