//! The other half of the matrix: the process of one side is killed at each phase. Nothing tells the
//! other side but its socket.
//!
//! The victim is this test binary, told by its environment to be one side of a migration and to
//! stop at a point. There it says so and waits; then it is killed. So it does not matter who is
//! faster.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::super::dest::Dest;
use super::super::handoff::PAGES;
use super::super::model::Model;
use super::super::oracle::{config, migrate_model, pair};
use super::{LEGEND, destination_says, side_by_side, source_says};
use crate::traits::{DestinationVm, GuestRam, Machine};
use crate::transport::{Connections, Halves, WriteHalf};
use crate::wire::{HEADER_LEN, Kind};
use crate::*;

/// What the victim is to do: side, connections, verification, point and socket.
const ORDER: &str = "WHERRY_TEST_VICTIM";
const LISTENING: &str = "the victim listens";
const STOPPED: &str = "the victim has stopped";

/// Where one is killed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Point {
    /// It has come to this phase.
    In(Phase),
    /// It has sent this frame, and nothing after it.
    Sent(Kind),
    /// It is about to load the state.
    Load,
    /// It has heard the hand-off and is about to run the guest.
    Run,
}

/// Where the source is killed, and what the destination that survives it says.
const OF_SOURCE: [(Point, &[char]); 9] = [
    (Point::In(Phase::Handshake), &['S']),
    (Point::In(Phase::Prepare), &['S']),
    (Point::In(Phase::Rounds), &['S']),
    (Point::In(Phase::LastRound), &['S']),
    (Point::In(Phase::State), &['S']),
    (Point::In(Phase::Verify), &['S']),
    (Point::In(Phase::Commit), &['?']),
    // Its answer may find nobody.
    (Point::Sent(Kind::HandOff), &['D', 'd']),
    (Point::In(Phase::Done), &['D']),
];

/// The same for the source that survives the destination.
const OF_DESTINATION: [(Point, &[char]); 10] = [
    (Point::In(Phase::Handshake), &['S']),
    (Point::In(Phase::Rounds), &['S']),
    (Point::In(Phase::Verify), &['S']),
    (Point::In(Phase::State), &['S']),
    (Point::Load, &['S']),
    (Point::In(Phase::Commit), &['S']),
    // The hand-off may be on its way when it dies.
    (Point::Sent(Kind::Loaded), &['S', '?']),
    (Point::Run, &['?']),
    (Point::Sent(Kind::Running), &['D']),
    (Point::In(Phase::Done), &['D']),
];

#[derive(Clone, Copy, Debug)]
struct Case {
    source_dies: bool,
    point: Point,
    says: &'static [char],
    streams: u32,
    verify: bool,
}

/// Of this test's sockets.
fn directory() -> PathBuf {
    std::env::temp_dir().join(format!("wherry-kill-{}", std::process::id()))
}

impl Case {
    fn config(&self) -> SourceConfig {
        let (streams, verify) = (self.streams, self.verify);
        let stall_timeout = Duration::from_secs(60);
        let hints = HintPolicy::Off;
        SourceConfig { streams, verify, stall_timeout, hints, ..config(HintMode::Auto) }
    }

    fn socket(&self) -> PathBuf {
        let Case { source_dies, point, streams, verify, .. } = self;
        let name = format!("{source_dies}-{point:?}-{streams}-{verify}").replace(['(', ')'], "-");
        directory().join(name)
    }

    fn spawn(&self) -> Victim {
        let Case { source_dies, point, streams, verify, .. } = self;
        let socket = self.socket();
        let order = format!("{source_dies} {streams} {verify} {point:?} {}", socket.display());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::matrix::kill::victim", "--nocapture", "--test-threads=1"])
            .env(ORDER, order)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        Victim { child, said }
    }

    /// Returns what the survivor says.
    fn check(&self) -> char {
        let says = if self.source_dies { self.kill_source() } else { self.kill_destination() };
        assert!(self.says.contains(&says), "{self:?}: {says}");
        says
    }

    fn kill_source(&self) -> char {
        let listener = Listener::bind(&Endpoint::Unix(self.socket())).unwrap();
        let survivor = thread::spawn(move || {
            let cancel = CancelToken::new();
            let far = listener.accept(&cancel).unwrap();
            let mut dest = Dest::default();
            let received = receive(far, &mut dest, &DestinationConfig::default(), &(), &cancel);
            (received, dest)
        });
        self.spawn().kill();
        let (received, dest) = survivor.join().unwrap();
        assert_eq!(dest.runs, u32::from(received.is_ok()), "{self:?}");
        if received.is_ok() {
            // The victim's guest was as this one is.
            let twin = Model::new(PAGES, false, vec![]);
            Machine::pause(&*twin).unwrap();
            twin.compare(&dest.memory()).unwrap();
        }
        destination_says(&received)
    }

    fn kill_destination(&self) -> char {
        let mut victim = self.spawn();
        victim.hear(LISTENING);
        let (cfg, to) = (self.config(), Endpoint::Unix(self.socket()));
        let model = Model::new(PAGES, false, vec![]);
        let vm = model.vm();
        let survivor = thread::spawn(move || {
            let near = connect(&to, Duration::from_secs(20), &CancelToken::new()).unwrap();
            migrate(&vm, near, &cfg, &(), &CancelToken::new())
        });
        victim.kill();
        let report = survivor.join().unwrap();
        assert!(model.done.load(SeqCst) > 0 && !model.log_on(), "{self:?}");
        let says = source_says(&report);
        assert_eq!(model.paused(), says != 'S', "{self:?}");
        match report {
            Err(failure) if says == '?' => {
                assert_eq!(failure.phase, Phase::Commit);
                assert!(failure.to_string().contains("may or may not"), "{failure}");
            }
            // To another destination.
            Err(_) => migrate_model(&model, &config(HintMode::Auto)).1.unwrap(),
            Ok(_) => {}
        }
        says
    }
}

struct Victim {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Victim {
    fn hear(&mut self, words: &str) {
        let mut line = String::new();
        while !line.contains(words) {
            line.clear();
            assert_ne!(self.said.read_line(&mut line).unwrap(), 0, "the victim ended by itself");
        }
    }

    fn kill(mut self) {
        self.hear(STOPPED);
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// In the victim: goes no further.
fn stop_here() {
    println!("\n{STOPPED}");
    // Ends when the test is gone, too.
    let _ = io::stdin().read_to_end(&mut Vec::new());
    std::process::exit(1);
}

/// In the victim: what stops where it is told to.
#[derive(Clone)]
struct Stop(Arc<str>);

impl Stop {
    fn at(&self, point: Point) {
        if *self.0 == *format!("{point:?}") {
            stop_here();
        }
    }
}

/// The victim itself. Without an order there is nothing to do.
#[test]
fn victim() {
    let Ok(order) = std::env::var(ORDER) else { return };
    let [source_dies, streams, verify, point, socket] =
        order.splitn(5, ' ').collect::<Vec<_>>().try_into().unwrap();
    let stop = Stop(point.into());
    let at = stop.clone();
    let progress = move |s: &Snapshot| at.at(Point::In(s.phase));
    let (endpoint, cancel) = (Endpoint::Unix(socket.into()), CancelToken::new());
    if source_dies == "true" {
        let (streams, verify) = (streams.parse().unwrap(), verify == "true");
        let case = Case { source_dies: true, point: Point::Run, says: &[], streams, verify };
        let inner = connect(&endpoint, Duration::from_secs(20), &cancel).unwrap();
        let near = Box::new(Watched { inner, stop });
        let model = Model::new(PAGES, false, vec![]);
        let _ = migrate(&model.vm(), near, &case.config(), &progress, &cancel);
    } else {
        let listener = Listener::bind(&endpoint).unwrap();
        println!("\n{LISTENING}");
        let inner = listener.accept(&cancel).unwrap();
        let far = Box::new(Watched { inner, stop: stop.clone() });
        let mut doomed = Doomed { inner: Dest::default(), stop };
        let _ = receive(far, &mut doomed, &DestinationConfig::default(), &progress, &cancel);
    }
    panic!("{order}: did not come to that");
}

struct Doomed {
    inner: Dest,
    stop: Stop,
}

impl DestinationVm for Doomed {
    fn prepare(&mut self, description: &[u8], nr_pages: u64) -> io::Result<Arc<dyn GuestRam>> {
        self.inner.prepare(description, nr_pages)
    }

    fn load(&mut self, state: &[u8]) -> io::Result<()> {
        self.stop.at(Point::Load);
        self.inner.load(state)
    }

    fn run(&mut self) -> io::Result<()> {
        self.stop.at(Point::Run);
        self.inner.run()
    }
}

/// A connection that stops its side behind a frame that has no payload.
struct Watched {
    inner: Box<dyn Transport>,
    stop: Stop,
}

struct WatchedWriter {
    inner: Box<dyn WriteHalf>,
    stop: Stop,
}

impl Transport for Watched {
    fn split(self: Box<Self>) -> io::Result<Halves> {
        let (input, inner) = self.inner.split()?;
        Ok((input, Box::new(WatchedWriter { inner, stop: self.stop })))
    }

    fn data_connections(&self) -> Option<Box<dyn Connections>> {
        self.inner.data_connections()
    }
}

impl Write for WatchedWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let taken = self.inner.write(buf)?;
        let kind = (buf.len() == HEADER_LEN && taken == HEADER_LEN)
            .then(|| Kind::from_u16(u16::from_le_bytes([buf[6], buf[7]])));
        if let Some(kind @ (Kind::HandOff | Kind::Loaded | Kind::Running)) = kind.flatten() {
            self.stop.at(Point::Sent(kind));
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl WriteHalf for WatchedWriter {
    fn shutdown(&self) {
        self.inner.shutdown();
    }
}

/// The phases that each side goes through, in a migration that is verified.
fn phases() -> [BTreeSet<String>; 2] {
    let phases = [(); 2].map(|()| Arc::new(Mutex::new(BTreeSet::new())));
    let noting = |of: &Arc<Mutex<BTreeSet<String>>>| {
        let of = of.clone();
        move |s: &Snapshot| {
            of.lock().unwrap().insert(format!("{:?}", Point::In(s.phase)));
        }
    };
    let [here, there] = [noting(&phases[0]), noting(&phases[1])];
    let (near, far) = pair();
    let cancel = CancelToken::new();
    let receiver = thread::spawn(move || {
        let cancel = CancelToken::new();
        receive(far, &mut Dest::default(), &DestinationConfig::default(), &there, &cancel).unwrap();
    });
    let model = Model::new(PAGES, false, vec![]);
    let cfg = SourceConfig { verify: true, ..config(HintMode::Auto) };
    migrate(&model.vm(), near, &cfg, &here, &cancel).unwrap();
    receiver.join().unwrap();
    phases.map(|of| of.lock().unwrap().clone())
}

#[test]
fn killed_at_every_phase_of_either_side_the_other_knows_or_says_that_it_does_not() {
    let points = [&OF_SOURCE[..], &OF_DESTINATION[..]];
    let killed_in = points.map(|points| {
        let phases = points.iter().filter(|(point, _)| matches!(point, Point::In(_)));
        phases.map(|(point, _)| format!("{point:?}")).collect::<BTreeSet<_>>()
    });
    assert_eq!(killed_in, phases(), "a phase has no row");

    let ways = [(1, false), (1, true), (2, false), (2, true)];
    let mut cases = vec![];
    for (source_dies, points) in [true, false].into_iter().zip(points) {
        for &(point, says) in points {
            let fits = |verify: bool| verify || point != Point::In(Phase::Verify);
            for (streams, verify) in ways.into_iter().filter(|(_, verify)| fits(*verify)) {
                cases.push(Case { source_dies, point, says, streams, verify });
            }
        }
    }
    std::fs::create_dir_all(directory()).unwrap();
    let said = side_by_side(&cases, Case::check);
    std::fs::remove_dir_all(directory()).unwrap();

    println!("{LEGEND}\nx was killed; 1 or 2 streams, v with verification");
    println!("{:24}{:>6}{:>6}{:>6}{:>6}", "killed", "1", "1v", "2", "2v");
    for (source_dies, who) in [(true, "source"), (false, "destination")] {
        println!("{who}");
        for (point, _) in points[usize::from(!source_dies)] {
            let cell = |(streams, verify)| {
                let found = cases.iter().position(|case| {
                    (case.source_dies, case.point) == (source_dies, *point)
                        && (case.streams, case.verify) == (streams, verify)
                });
                match found.map(|at| said[at]) {
                    Some(says) if source_dies => format!("    x{says}"),
                    Some(says) => format!("    {says}x"),
                    None => format!("{:6}", ""),
                }
            };
            println!("  {:22}{}", format!("{point:?}"), ways.map(cell).concat());
        }
    }
    println!("{} cells", cases.len());
}
