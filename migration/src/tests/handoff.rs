//! The hand-off table: whatever breaks at whatever frame, never do both sides run the guest, and a
//! source that still owns it runs it and can try again.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use super::dest::Dest;
use super::faults::{FAULTS, Fault, FaultPlan, faulty_pair};
use super::model::Model;
use super::ops::Op;
use super::oracle::{Outcome, config, migrate_model, migrate_over, pair};
use super::streams::linked;
use crate::observe::Event;
use crate::transport::Halves;
use crate::*;

pub(super) const PAGES: u64 = 64 * 12 + 13;

pub(super) fn script() -> Vec<Op> {
    let mut script = vec![];
    for n in 0..40 {
        script.push(Op::Write(n * 17 % PAGES));
        script.push(Op::Hint(64 * (n % 12), 64));
        script.push(Op::Deliver);
    }
    script
}

/// Limits that a test can wait for. A frame whose bytes trickle is late and never stalls.
pub(super) fn impatient(source: SourceConfig) -> (SourceConfig, DestinationConfig) {
    let stall = Duration::from_millis(250);
    let frame_limit = FrameLimit { time: Duration::from_millis(600), rate: 10 << 20 };
    let pause_limit = Some(Duration::from_secs(2));
    let source = SourceConfig { stall_timeout: stall, frame_limit, pause_limit, ..source };
    let destination = DestinationConfig {
        stall_timeout: stall * 2,
        hello_timeout: 4 * stall,
        streams_timeout: 8 * stall,
        frame_limit,
        ..DestinationConfig::default()
    };
    (source, destination)
}

/// Who runs the guest in the end. Never both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Runs {
    /// The destination, and the source knows it.
    There,
    /// The source, and says why the migration failed.
    Here,
    /// The source does not know and does not run it; the destination may.
    ThereUntold,
    /// Neither, and both say so.
    Nowhere,
}

impl Runs {
    fn letter(self) -> char {
        match self {
            Runs::There => 'D',
            Runs::Here => 'S',
            Runs::ThereUntold => 'd',
            Runs::Nowhere => '-',
        }
    }
}

/// Runs one migration with one fault and checks the table. Returns who runs the guest in the end.
fn check(fault: Fault, index: u64, to_destination: bool) -> Runs {
    let name = format!("{fault:?} at frame {index}, to destination: {to_destination}");
    let model = Model::new(PAGES, index.is_multiple_of(2), script());
    let verify = !index.is_multiple_of(3);
    let (cfg, dest_cfg) = impatient(SourceConfig { verify, ..config(HintMode::Auto) });
    let plan = Some(FaultPlan::at_index(index, fault));
    let ends = if to_destination { faulty_pair(plan, None) } else { faulty_pair(None, plan) };
    judge(&name, &model, (&cfg, &dest_cfg), ends)
}

/// Runs a migration that may fail and checks the table. Returns who runs the guest in the end.
pub(super) fn judge(
    name: &str,
    model: &Arc<Model>,
    (cfg, dest_cfg): (&SourceConfig, &DestinationConfig),
    ends: (Box<dyn Transport>, Box<dyn Transport>),
) -> Runs {
    let start = Instant::now();
    let outcome = migrate_over(model, cfg, dest_cfg, ends);
    assert!(start.elapsed() < Duration::from_secs(20), "{name}: stuck");
    check_outcome(name, model, outcome)
}

/// Checks what both sides do and say after a migration that may have failed. Returns who runs the
/// guest in the end.
pub(super) fn check_outcome(
    name: &str,
    model: &Arc<Model>,
    (report, received, dest): Outcome,
) -> Runs {
    let source_runs = !model.paused();
    let dest_runs = dest.runs > 0;

    assert!(!(source_runs && dest_runs), "{name}: BOTH run");
    assert!(dest.runs <= 1, "{name}");
    assert_eq!(dest_runs, received.is_ok(), "{name}");
    assert!(model.done.load(SeqCst) > 0, "{name}: DONE not published");
    assert!(!model.hinting_published.load(SeqCst), "{name}: DONE is not last");
    assert!(!model.log_on(), "{name}: log left on");
    if dest_runs {
        model.compare(&dest.memory()).unwrap();
    }
    match report {
        Ok(_) => {
            assert!(dest_runs && !source_runs, "{name}");
            Runs::There
        }
        Err(failure) => {
            match failure.ownership {
                Ownership::SourceRuns => {
                    assert!(source_runs, "{name}");
                    // The same guest, over a good connection.
                    migrate_model(model, &config(HintMode::Auto)).1.unwrap();
                    Runs::Here
                }
                Ownership::Unknown => {
                    assert!(!source_runs, "{name}");
                    assert_eq!(failure.phase, Phase::Commit, "{name}");
                    let told = failure.to_string();
                    assert!(told.contains("hand-off may or may not"), "{name}: {told}");
                    if let Err(theirs) = received {
                        assert_eq!(theirs.ownership, Ownership::Unknown, "{name}");
                    }
                    if dest_runs { Runs::ThereUntold } else { Runs::Nowhere }
                }
                Ownership::SourcePaused => panic!("{name}"),
            }
        }
    }
}

/// Tries each fault at so many frames, side by side; each must hit so often. Prints a line for
/// each: frame by frame who runs the guest in the end.
pub(super) fn try_each_fault(what: &str, frames: u64, least: usize, check: fn(Fault, u64) -> Runs) {
    println!(
        "{what}; D destination, S source, d destination and the source was not told, - neither:"
    );
    let workers = FAULTS.map(|fault| {
        let all = move || (fault, (0..frames).map(|index| check(fault, index)).collect::<Vec<_>>());
        thread::spawn(all)
    });
    for worker in workers {
        let (fault, outcomes) = worker.join().unwrap();
        let line: String = outcomes.iter().map(|runs| runs.letter()).collect();
        println!("{:10} {line}", format!("{fault:?}"));
        let hits = outcomes.iter().filter(|runs| **runs != Runs::There).count();
        assert!(hits >= least, "{fault:?} hit only {hits} times");
    }
}

#[test]
fn faults_at_every_frame_to_the_destination() {
    let what = "a fault in the n-th frame to the destination";
    try_each_fault(what, 40, 8, |fault, index| check(fault, index, true));
}

#[test]
fn faults_at_every_frame_to_the_source() {
    let what = "a fault in the n-th frame to the source";
    try_each_fault(what, 40, 2, |fault, index| check(fault, index, false));
}

#[test]
fn a_lost_hand_off_is_unknown_and_a_lost_answer_too() {
    use crate::wire::Kind;
    for (fault, arrives) in [(Fault::CutHalf, false), (Fault::CutAfter, true)] {
        let model = Model::new(PAGES, false, vec![]);
        let plan = FaultPlan::at_kind(Kind::HandOff, fault);
        let ends = faulty_pair(Some(plan), None);
        let cfg = config(HintMode::Auto);
        let (report, received, dest) =
            migrate_over(&model, &cfg, &DestinationConfig::default(), ends);
        match report {
            Err(failure) => assert_eq!(failure.ownership, Ownership::Unknown),
            // The answer may be faster than the cut.
            Ok(_) => assert!(arrives),
        }
        assert!(model.paused());
        assert_eq!(dest.runs > 0, arrives);
        match received {
            Ok(received) => assert!(!received.acknowledged || arrives),
            Err(failure) => assert_eq!(failure.ownership, Ownership::Unknown),
        }
    }
    let model = Model::new(PAGES, false, vec![]);
    let plan = FaultPlan::at_kind(Kind::Running, Fault::CutHalf);
    let ends = faulty_pair(None, Some(plan));
    let cfg = config(HintMode::Auto);
    let (report, _, dest) = migrate_over(&model, &cfg, &DestinationConfig::default(), ends);
    assert_eq!(report.unwrap_err().ownership, Ownership::Unknown);
    assert!(model.paused() && dest.runs == 1);
}

#[test]
fn a_refusal_reaches_the_source_in_words() {
    let model = Model::new(PAGES, false, vec![]);
    let (near, far) = pair();
    let receiver = thread::spawn(move || {
        let mut dest = Dest { refuse: true, ..Dest::default() };
        receive(far, &mut dest, &DestinationConfig::default(), &(), &CancelToken::new())
    });
    let failure =
        migrate(&model.vm(), near, &config(HintMode::Auto), &(), &CancelToken::new()).unwrap_err();
    assert!(
        matches!(&failure.cause, Error::Refused(why) if why.contains("no room")),
        "{failure:?}"
    );
    assert!(receiver.join().unwrap().is_err() && !model.paused());
}

#[test]
fn cancelling_works_while_blocked_in_writing() {
    let model = Model::new(64 * 64, false, vec![]);
    let (near, far) = UnixStream::pair().unwrap();
    let cancel = CancelToken::new();
    let canceller = cancel.clone();
    // A destination that is ready and never reads again.
    let deaf = thread::spawn(move || {
        use std::io::{Read, Write};
        let mut far = far;
        far.read_exact(&mut [0; 28]).unwrap();
        far.write_all(&super::hostile::stream(&super::hostile::welcome(0))).unwrap();
        thread::sleep(Duration::from_millis(300));
        assert!(canceller.cancel());
        far
    });
    let start = Instant::now();
    let failure =
        migrate(&model.vm(), Box::new(near), &config(HintMode::Auto), &(), &cancel).unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(2));
    assert!(matches!(failure.cause, Error::Cancelled), "{failure:?}");
    assert_eq!(failure.ownership, Ownership::SourceRuns);
    assert!(!model.paused() && !model.log_on() && model.done.load(SeqCst) > 0);
    drop(deaf.join().unwrap());
    migrate_model(&model, &config(HintMode::Auto)).1.unwrap();
}

#[test]
fn cancelling_in_any_phase_leaves_one_owner() {
    use Phase::*;
    let phases = [Handshake, Prepare, Rounds, LastRound, Verify, State, Commit];
    for (phase, streams) in phases.into_iter().flat_map(|phase| [(phase, 1), (phase, 3)]) {
        let model = Model::new(PAGES, false, script());
        let cancel = CancelToken::new();
        let canceller = cancel.clone();
        let progress = move |s: &Snapshot| {
            if s.phase == phase {
                canceller.cancel();
            }
        };
        let (near, far) = if streams > 1 { linked(streams, |_| pair()) } else { pair() };
        let receiver = thread::spawn(move || {
            let mut dest = Dest::default();
            let cfg = DestinationConfig::default();
            (receive(far, &mut dest, &cfg, &(), &CancelToken::new()), dest)
        });
        let cfg = SourceConfig { verify: phase == Verify, streams, ..config(HintMode::Auto) };
        let failure = migrate(&model.vm(), near, &cfg, &progress, &cancel).unwrap_err();
        assert!(matches!(failure.cause, Error::Cancelled), "{failure:?}");
        assert_eq!(failure.ownership, Ownership::SourceRuns);
        let (received, dest) = receiver.join().unwrap();
        let theirs = received.unwrap_err().cause;
        assert!(
            matches!(&theirs, Error::PeerAbort(why) if why == "cancelled"),
            "{phase}, {streams}: {theirs:?}"
        );
        assert_eq!(dest.runs, 0);
        assert!(!model.paused() && !model.log_on());
        migrate_model(&model, &config(HintMode::Auto)).1.unwrap();
    }
}

#[test]
fn a_guest_that_died_where_it_arrived_is_not_said_to_run() {
    let model = Model::new(PAGES, false, script());
    let (near, far) = pair();
    let receiver = thread::spawn(move || {
        let mut dest = Dest { dead: true, ..Dest::default() };
        (receive(far, &mut dest, &DestinationConfig::default(), &(), &CancelToken::new()), dest)
    });
    let failure =
        migrate(&model.vm(), near, &config(HintMode::Auto), &(), &CancelToken::new()).unwrap_err();
    assert_eq!(failure.ownership, Ownership::Unknown);
    assert!(failure.cause.to_string().contains("died on arrival"), "{:?}", failure.cause);
    let (received, dest) = receiver.join().unwrap();
    assert!(received.is_err() && dest.runs == 0 && model.paused());
}

#[test]
fn a_panic_in_the_engine_gives_the_guest_its_memory_back() {
    panics_at_read(1, pair());
    panics_at_read(2, super::streams::linked(2, |_| pair()));
}

fn panics_at_read(streams: u32, (near, far): (Box<dyn Transport>, Box<dyn Transport>)) {
    let model = Model::new(PAGES, false, vec![]);
    model.panic_at_read.store(true, SeqCst);
    let receiver = thread::spawn(move || {
        let mut dest = Dest::default();
        receive(far, &mut dest, &DestinationConfig::default(), &(), &CancelToken::new())
    });
    let cfg = SourceConfig { streams, ..config(HintMode::Auto) };
    let failure = migrate(&model.vm(), near, &cfg, &(), &CancelToken::new()).unwrap_err();
    assert!(matches!(failure.cause, Error::Panicked), "{failure:?}");
    assert_eq!(failure.ownership, Ownership::SourceRuns, "as the guard knows, and nobody guesses");
    assert!(receiver.join().unwrap().is_err());
    assert!(model.done.load(SeqCst) > 0 && !model.log_on() && !model.paused());
    model.panic_at_read.store(false, SeqCst);
    migrate_model(&model, &cfg).1.unwrap();
}

#[test]
fn a_guest_that_does_not_converge_goes_on_at_the_source() {
    let model: Arc<Model> = Model::new(PAGES, false, vec![]);
    let cfg = SourceConfig { on_timeout: OnTimeout::Fail, ..config(HintMode::Auto) };
    let dest_cfg = DestinationConfig::default();
    let (report, received, _) = migrate_over(&model, &cfg, &dest_cfg, pair());
    let failure = report.unwrap_err();
    assert!(matches!(failure.cause, Error::NotConverging { rounds: 3, .. }), "{failure:?}");
    assert!(!model.paused());
    let theirs = received.unwrap_err();
    assert!(matches!(theirs.cause, Error::PeerAbort(why) if why.contains("converge")));
}

#[test]
fn cancelling_the_destination_ends_its_waiting() {
    let (_near, far) = pair();
    let cancel = CancelToken::new();
    cancel.cancel();
    let mut dest = Dest::default();
    let cfg = DestinationConfig::default();
    let failure = receive(far, &mut dest, &cfg, &(), &cancel).unwrap_err();
    assert!(matches!(failure.cause, Error::Cancelled) && dest.runs == 0);
    assert_eq!(failure.ownership, Ownership::SourceRuns);
}

/// A connection that is gone before it begins.
struct Gone;

impl Transport for Gone {
    fn split(self: Box<Self>) -> io::Result<Halves> {
        Err(io::ErrorKind::NotConnected.into())
    }
}

/// Counts what it is told of failures.
#[derive(Default)]
struct Failures(AtomicU32);

impl Observer for Failures {
    fn observe(&self, event: &Event<'_>) {
        if let Event::Failed(Phase::Handshake, _) = event {
            self.0.fetch_add(1, SeqCst);
        }
    }
}

struct Watching(Arc<Failures>);

impl Progress for Watching {
    fn update(&self, _: &Snapshot) {}

    fn observer(&self) -> Option<Arc<dyn Observer>> {
        Some(self.0.clone())
    }
}

#[test]
fn whoever_watches_is_told_once_of_a_migration_that_never_began() {
    let (model, watching) = (Model::new(PAGES, false, vec![]), Watching(Arc::default()));
    let cfg = config(HintMode::Auto);
    let failure = migrate(&model.vm(), Box::new(Gone), &cfg, &watching, &CancelToken::new());
    assert_eq!(failure.unwrap_err().ownership, Ownership::SourceRuns);
    assert_eq!(watching.0.0.load(SeqCst), 1);
}

#[test]
fn a_guest_larger_than_the_receiver_takes_is_refused_before_any_memory_is_made() {
    let model = Model::new(PAGES, false, vec![]);
    let dest_cfg = DestinationConfig { max_pages: PAGES - 1, ..DestinationConfig::default() };
    let (report, received, dest) = migrate_over(&model, &config(HintMode::Auto), &dest_cfg, pair());
    let (here, there) = (report.unwrap_err(), received.unwrap_err());
    assert_eq!(here.ownership, Ownership::SourceRuns);
    assert!(matches!(there.cause, Error::TooLarge { .. }), "{there:?}");
    assert!(!model.paused() && dest.ram.is_none() && dest.runs == 0);
}
