//! The fault matrix: each fault at each frame that there is, with and without verification, over
//! one connection and over several. Printed as a table
//! (`cargo test -p wherry-migration --lib matrix -- --nocapture`).
//!
//! A cell is what the source says and what the destination says; what each *does* must be just
//! that. One runs the guest, or neither does and both say that they do not know. What each cell
//! must be is [`expected`].

mod kill;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::dest::Dest;
use super::faults::{FAULTS, Fault, FaultPlan, Seen, noted_pair};
use super::handoff::{PAGES, Runs, check_outcome, impatient};
use super::model::{Model, Trigger};
use super::ops::Op;
use super::oracle::config;
use super::streams::linked_to;
use crate::wire::Kind;
use crate::*;

/// The data connection, of two, that has the fault.
const LANE: u32 = 1;
/// A machine that has other things to do may be late for a short limit before the frame is reached.
const TRIES: usize = 20;

/// How the migration would end without a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Moves,
    /// The source is cancelled when it comes to this phase.
    Cancelled(Phase),
    /// The destination does not take the guest.
    Refused,
    /// The destination cannot load its state.
    Spoiled,
}

/// A migration into which a fault comes.
#[derive(Clone, Copy, Debug)]
struct Scene {
    verify: bool,
    streams: u32,
    end: End,
    /// Faults in frames of this kind only: the others are as in another scene.
    only: Option<Kind>,
}

/// The way that a frame goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Direction {
    ToDestination,
    Further,
    ToSource,
}

/// One frame of a scene.
#[derive(Clone, Copy, Debug)]
struct Frame {
    scene: Scene,
    way: Direction,
    kind: Kind,
    /// Of its kind.
    nth: usize,
    /// Nothing follows on this connection.
    last: bool,
}

/// What each side says.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Said {
    source: char,
    destination: char,
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.source, self.destination)
    }
}

const LEGEND: &str = "\
the source says: D the destination runs it, S it is mine and runs here,
    ? nobody knows and I do not run it
the destination says: D I run it, d I run it and could not say so, S it is the source's,
    ? as above";

fn source_says(report: &Result<Report, Failure>) -> char {
    match report {
        Ok(_) => 'D',
        Err(failure) => word(failure),
    }
}

fn destination_says(received: &Result<Received, Failure>) -> char {
    match received {
        Ok(received) if received.acknowledged => 'D',
        Ok(_) => 'd',
        Err(failure) => word(failure),
    }
}

fn word(failure: &Failure) -> char {
    match failure.ownership {
        Ownership::SourceRuns => 'S',
        Ownership::SourcePaused => 'P',
        Ownership::Unknown => '?',
    }
}

/// Who may run the guest after a fault. `Nowhere`: nobody does, and both say that they do not know.
fn expected(frame: &Frame, fault: Fault) -> &'static [Runs] {
    use Fault::*;
    use Kind::{HandOff, Loaded, Running, StateEnd, Sync};
    use Runs::*;
    match (frame.kind, fault) {
        // Not a byte of it was taken.
        (HandOff, CutBefore | Block) => &[Here],
        (HandOff, CutAfter) => &[There, ThereUntold],
        (HandOff, Duplicate) => &[There],
        (HandOff, _) => &[Nowhere],
        (Running, CutAfter | Duplicate) => &[There],
        (Running, _) => &[ThereUntold],
        // It arrives, and what breaks then races with the hand-off.
        (Loaded, CutAfter | Duplicate) => &[Here, ThereUntold, Nowhere],
        (StateEnd, Duplicate) => &[Here, Nowhere],
        // This is how a data connection ends.
        (Sync, CutAfter) if frame.way == Direction::Further && frame.last => &[There],
        _ => &[Here],
    }
}

impl Scene {
    /// One for each kind of frame, or several.
    fn all() -> Vec<Scene> {
        let ends = [
            (End::Moves, None),
            (End::Moves, Some(Kind::PagesLz4)),
            (End::Moves, Some(Kind::Idle)),
            (End::Cancelled(Phase::Rounds), Some(Kind::Abort)),
            (End::Cancelled(Phase::Commit), Some(Kind::Abort)),
            (End::Refused, Some(Kind::Abort)),
            (End::Spoiled, Some(Kind::Abort)),
        ];
        let ways = [(false, 1), (true, 1), (false, 2), (true, 2)];
        let all = ways.into_iter().flat_map(|(verify, streams)| {
            ends.into_iter().map(move |(end, only)| Scene { verify, streams, end, only })
        });
        all.collect()
    }

    fn configs(&self, fault: Option<Fault>) -> (SourceConfig, DestinationConfig) {
        let compression = match self.only {
            Some(Kind::PagesLz4) => Compression::Lz4,
            _ => Compression::None,
        };
        let (verify, streams) = (self.verify, self.streams);
        let hints = HintPolicy::Off;
        let cfg = SourceConfig { verify, streams, compression, hints, ..config(HintMode::Auto) };
        let (cfg, mut dest_cfg) = match fault {
            // Silence is noticed by a limit; of the others none may be mistaken for it.
            Some(Fault::Swallow | Fault::Block | Fault::Trickle) => impatient(cfg),
            _ => {
                let stall_timeout = Duration::from_secs(20);
                let pause_limit = Some(Duration::from_secs(60));
                let dest_cfg = DestinationConfig { stall_timeout, ..DestinationConfig::default() };
                (SourceConfig { stall_timeout, pause_limit, ..cfg }, dest_cfg)
            }
        };
        if self.only == Some(Kind::Idle) {
            dest_cfg.stall_timeout = dest_cfg.stall_timeout.max(Duration::from_secs(3));
        }
        (cfg, dest_cfg)
    }

    /// Migrates, with a fault or without. Returns who runs the guest, what each says, and what was
    /// sent each way.
    fn run(
        &self,
        name: &str,
        fault: Option<(Direction, FaultPlan, Fault)>,
    ) -> (Runs, Said, [Seen; 3]) {
        let model = Model::new(PAGES, false, vec![]);
        model.boots.store(true, SeqCst);
        model.on(Trigger::Harvest, [1, 130, 131, 400].map(Op::Write).to_vec());
        if self.only == Some(Kind::Idle) {
            // As long as nothing else is sent.
            model.slow_log.store(1300, SeqCst);
        }
        let seen = [(); 3].map(|()| Seen::default());
        let [forth, further, back] = &seen;
        let plan = |on: Direction| fault.filter(|(way, ..)| *way == on).map(|(_, plan, _)| plan);
        let (to_destination, to_source) =
            (plan(Direction::ToDestination), plan(Direction::ToSource));
        let mut ends = noted_pair(to_destination, to_source, [forth.clone(), back.clone()]);
        if self.streams > 1 {
            ends = linked_to(ends, self.streams, |lane| match lane {
                LANE => {
                    noted_pair(plan(Direction::Further), None, [further.clone(), Seen::default()])
                }
                _ => noted_pair(None, None, Default::default()),
            });
        }
        let (near, far) = ends;
        let (cfg, dest_cfg) = self.configs(fault.map(|(.., fault)| fault));
        let (refuse, spoiled) = (self.end == End::Refused, self.end == End::Spoiled);
        let mut dest = Dest { refuse, spoiled, ..Dest::default() };
        let start = Instant::now();
        let receiver = thread::spawn(move || {
            let received = receive(far, &mut dest, &dest_cfg, &(), &CancelToken::new());
            (received, dest)
        });
        let (cancel, end) = (CancelToken::new(), self.end);
        let canceller = cancel.clone();
        let progress = move |s: &Snapshot| {
            if end == End::Cancelled(s.phase) {
                canceller.cancel();
            }
        };
        let report = migrate(&model.vm(), near, &cfg, &progress, &cancel);
        let (received, dest) = receiver.join().unwrap();
        assert!(start.elapsed() < Duration::from_secs(50), "{name}: stuck");
        model.slow_log.store(0, SeqCst);
        let said = Said { source: source_says(&report), destination: destination_says(&received) };
        let runs = check_outcome(name, &model, (report, received, dest));
        (runs, said, seen)
    }

    /// The frames of this scene in which there is to be a fault.
    fn frames(&self) -> Vec<Frame> {
        let (runs, said, seen) = self.run(&format!("{self:?}"), None);
        let ends = if self.end == End::Moves { (Runs::There, "DD") } else { (Runs::Here, "SS") };
        assert_eq!((runs, &*said.to_string()), ends, "{self:?}");
        let mut frames = vec![];
        for (way, seen) in [Direction::ToDestination, Direction::Further, Direction::ToSource]
            .into_iter()
            .zip(seen)
        {
            let seen = seen.lock().unwrap();
            for (at, &kind) in seen.iter().enumerate() {
                let nth = seen[..at].iter().filter(|before| **before == kind).count();
                let wanted = match self.only {
                    Some(only) => kind == only && nth == 0,
                    // A machine with other things to do may send one anywhere.
                    None => kind != Kind::Idle,
                };
                // Which of the others takes which data connection is decided by who is ready.
                let sure = way != Direction::Further || kind != Kind::Pages || nth == 0;
                if wanted && sure {
                    let last = at + 1 == seen.len();
                    frames.push(Frame { scene: *self, way, kind, nth, last });
                }
            }
        }
        frames
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Scene { verify, streams, end, .. } = self.scene;
        let verify = if verify { "verify" } else { "" };
        let way = match self.way {
            Direction::ToDestination => "->",
            Direction::Further => "=>",
            Direction::ToSource => "<-",
        };
        let what = match end {
            End::Moves => format!("{:?} {}", self.kind, self.nth + 1),
            End::Cancelled(phase) => format!("{:?}, {phase}", self.kind),
            End::Refused => format!("{:?}, refused", self.kind),
            End::Spoiled => format!("{:?}, bad state", self.kind),
        };
        f.pad(&format!("{streams} {verify:6} {way} {what}"))
    }
}

/// One cell: tries until the fault has come to its frame.
fn cell(frame: &Frame, fault: Fault) -> Said {
    let name = format!("{fault:?} at: {frame}");
    for _ in 0..TRIES {
        let plan = FaultPlan::at_nth(frame.kind, frame.nth, fault);
        let (runs, said, seen) = frame.scene.run(&name, Some((frame.way, plan, fault)));
        let sound = ["DD", "?D", "?d", "SS", "S?", "??"];
        assert!(sound.contains(&&*said.to_string()), "{name}: {said}");
        let [forth, further, back] = seen;
        let seen = match frame.way {
            Direction::ToDestination => forth,
            Direction::Further => further,
            Direction::ToSource => back,
        };
        let seen = seen.lock().unwrap();
        if seen.iter().filter(|kind| **kind == frame.kind).count() > frame.nth {
            let expected = expected(frame, fault);
            assert!(expected.contains(&runs), "{name}: {runs:?} ({said}), not one of {expected:?}");
            return said;
        }
    }
    panic!("{name}: not reached in {TRIES} tries");
}

/// Does it for all of these, several at a time, and returns what came out, in order.
fn side_by_side<T: Sync, R: Send>(of: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, SeqCst);
                    let Some(one) = of.get(at) else { return };
                    let result = work(one);
                    results.lock().unwrap_or_else(PoisonError::into_inner).insert(at, result);
                }
            });
        }
    });
    results.into_inner().unwrap().into_values().collect()
}

#[test]
fn every_fault_at_every_frame_leaves_one_owner_or_none_that_says_otherwise() {
    let frames: Vec<Frame> = side_by_side(&Scene::all(), Scene::frames).concat();
    let tried: BTreeSet<u16> = frames.iter().map(|frame| frame.kind as u16).collect();
    let is_kind = |kind: &u16| Kind::from_u16(*kind).is_some();
    let there_are: BTreeSet<u16> = (0..=u16::MAX).filter(is_kind).collect();
    assert_eq!(tried, there_are, "a kind of frame has no row");
    // With and without verification, over one connection and several, whatever the end.
    for (verify, streams) in [(false, 1), (true, 1), (false, 2), (true, 2)] {
        let of = |frame: &&Frame| (frame.scene.verify, frame.scene.streams) == (verify, streams);
        let rows = frames.iter().filter(of);
        let kinds: BTreeSet<u16> = rows.map(|frame| frame.kind as u16).collect();
        let missing = there_are.difference(&kinds).filter_map(|kind| Kind::from_u16(*kind));
        for kind in missing {
            let verifies = matches!(kind, Kind::Verify | Kind::Digests);
            let joins = matches!(kind, Kind::Streams | Kind::Join | Kind::Sync);
            let none = verifies && !verify || joins && streams == 1;
            assert!(none, "no {kind:?}: {verify}, {streams}");
        }
    }

    let cells: Vec<(Frame, Fault)> =
        frames.iter().flat_map(|frame| FAULTS.map(|fault| (*frame, fault))).collect();
    let said = side_by_side(&cells, |(frame, fault)| cell(frame, *fault));

    let head: String = FAULTS.map(|fault| format!("{:>11}", format!("{fault:?}"))).concat();
    println!("{LEGEND}\n{:40}{head}", "streams, frame and which of its kind");
    let mut merged: BTreeMap<_, [BTreeSet<Said>; FAULTS.len()]> = BTreeMap::new();
    for (frame, row) in frames.iter().zip(said.chunks(FAULTS.len())) {
        let row_text: String = row.iter().map(|said| format!("{:>11}", said.to_string())).collect();
        println!("{frame:40}{row_text}");
        let over_all = merged.entry((frame.way, frame.kind as u16)).or_default();
        for (sets, said) in over_all.iter_mut().zip(row) {
            sets.insert(*said);
        }
    }
    println!("{} cells. By kind:\n{:40}{head}", cells.len(), "");
    for ((way, kind), row) in merged {
        let kind = Kind::from_u16(kind).unwrap();
        let text = |set: &BTreeSet<Said>| {
            let all: Vec<_> = set.iter().map(Said::to_string).collect();
            format!("{:>11}", all.join("/"))
        };
        let row: String = row.iter().map(text).collect();
        println!("{:40}{row}", format!("{way:?} {kind:?}"));
    }
}
