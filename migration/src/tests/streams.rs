//! Memory over several connections: rounds in order, one owner whatever breaks, strangers and liars
//! turned away.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::dest::Dest;
use super::faults::{Fault, FaultPlan, faulty_pair};
use super::handoff::{PAGES, Runs, impatient, judge, script, try_each_fault};
use super::hostile::{frame, hello, machine, pages, round, stream};
use super::model::{Model, Trigger};
use super::ops::Op;
use super::oracle::{config, migrate_model, migrate_over, pair};
use crate::bitmap::Bitmap;
use crate::traits::{GuestRam, SourceVm};
use crate::transport::{Connections, Halves};
use crate::wire::{Abort, FEATURE_STREAMS, Join, Kind, StateEnd, Streams, SyncPoint, codec};
use crate::*;

type Ends = (Box<dyn Transport>, Box<dyn Transport>);

/// A connection that has further ones beside it.
struct Linked {
    first: Box<dyn Transport>,
    more: Queue,
}

#[derive(Clone)]
struct Queue(Arc<Mutex<VecDeque<Box<dyn Transport>>>>);

impl Transport for Linked {
    fn split(self: Box<Self>) -> io::Result<Halves> {
        self.first.split()
    }

    fn data_connections(&self) -> Option<Box<dyn Connections>> {
        Some(Box::new(self.more.clone()))
    }
}

impl Connections for Queue {
    fn next(
        &self,
        _: &CancelToken,
        timeout: Duration,
    ) -> Result<Box<dyn Transport>, TransportError> {
        self.0.lock().unwrap().pop_front().ok_or(TransportError::TimedOut(timeout))
    }
}

/// A connection with `nr` further ones.
pub(super) fn linked(nr: u32, make: impl FnMut(u32) -> Ends) -> Ends {
    linked_to(pair(), nr, make)
}

/// The same around this one.
pub(super) fn linked_to((near, far): Ends, nr: u32, make: impl FnMut(u32) -> Ends) -> Ends {
    let (nears, fars): (VecDeque<_>, VecDeque<_>) = (0..nr).map(make).unzip();
    let link = |first, more| Box::new(Linked { first, more: Queue(Arc::new(Mutex::new(more))) });
    (link(near, nears), link(far, fars))
}

#[test]
fn faults_at_every_frame_of_a_further_connection() {
    try_each_fault("a fault in the n-th frame of a data connection", 12, 4, |fault, index| {
        let name = format!("{fault:?} at frame {index} of a data connection");
        let model = Model::new(PAGES, index % 2 == 0, script());
        let verify = index % 3 != 0;
        let cfg = SourceConfig { verify, streams: 2, ..config(HintMode::Auto) };
        let (cfg, dest_cfg) = impatient(cfg);
        let plan = FaultPlan::at_index(index, fault);
        let ends = linked(2, |lane| faulty_pair((lane == 1).then_some(plan), None));
        judge(&name, &model, (&cfg, &dest_cfg), ends)
    });
}

#[test]
fn a_connection_that_cannot_have_others_says_so() {
    let model = Model::new(PAGES, false, vec![]);
    let cfg = SourceConfig { streams: 2, ..config(HintMode::Auto) };
    let (report, received, dest) =
        migrate_over(&model, &cfg, &DestinationConfig::default(), pair());
    let failure = report.unwrap_err();
    assert!(matches!(failure.cause, Error::Stream(TransportError::Single)), "{failure:?}");
    assert_eq!((failure.ownership, failure.phase), (Ownership::SourceRuns, Phase::Handshake));
    assert!(
        matches!(received.unwrap_err().cause, Error::PeerAbort(why) if why.contains("further"))
    );
    assert!(dest.runs == 0 && !model.paused() && model.done.load(SeqCst) > 0);
}

#[test]
fn sockets_have_further_connections() {
    let dir = std::env::temp_dir().join(format!("wherry-streams-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    for at in ["tcp:127.0.0.1:0".to_owned(), format!("unix:{}", dir.join("sock").display())] {
        let listener = Listener::bind(&at.parse().unwrap()).unwrap();
        let to = listener.endpoint().unwrap();
        let receiver = thread::spawn(move || {
            let mut dest = Dest::default();
            let cancel = CancelToken::new();
            let far = listener.accept(&cancel).unwrap();
            let received = receive(far, &mut dest, &DestinationConfig::default(), &(), &cancel);
            (received.unwrap(), dest)
        });
        let model = Model::new(PAGES, false, script());
        let near = connect(&to, Duration::from_secs(5), &CancelToken::new()).unwrap();
        let cfg = SourceConfig { streams: 3, verify: true, ..config(HintMode::Auto) };
        let report = migrate(&model.vm(), near, &cfg, &(), &CancelToken::new()).unwrap();
        let (received, dest) = receiver.join().unwrap();
        assert_eq!((received.bytes, dest.runs), (report.total_bytes, 1));
        model.compare(&dest.memory()).unwrap();
    }
    std::fs::remove_dir_all(&dir).unwrap();
}

const TOKEN: u128 = 77;

pub(super) fn join(stream: u32, token: u128) -> Vec<u8> {
    codec::encode(&Join { stream, token }, Kind::Join).unwrap()
}

fn sync(round: u32) -> (Kind, Vec<u8>) {
    (Kind::Sync, codec::encode(&SyncPoint { round }, Kind::Sync).unwrap())
}

fn streams(nr: u32) -> (Kind, Vec<u8>) {
    (Kind::Streams, codec::encode(&Streams { nr, token: TOKEN }, Kind::Streams).unwrap())
}

type Frames = Vec<(Kind, Vec<u8>)>;

/// A short, valid migration over two data connections: the first one's frames, and theirs.
fn valid() -> (Frames, [Frames; 2]) {
    let end = StateEnd { len: 5, crc: crc32fast::hash(b"state") };
    let first = vec![
        hello(FEATURE_STREAMS),
        machine(100),
        streams(2),
        (Kind::Round, round(1)),
        sync(1),
        (Kind::Pages, pages(50, 1, true, 0)),
        (Kind::Round, round(2)),
        sync(2),
        (Kind::State, b"state".to_vec()),
        (Kind::StateEnd, codec::encode(&end, Kind::StateEnd).unwrap()),
        (Kind::HandOff, vec![]),
    ];
    let lane = |stream: u32| {
        let page = u64::from(stream) * 10;
        let join = (Kind::Join, join(stream, TOKEN));
        vec![
            join,
            (Kind::Pages, pages(page, 2, false, 8192)),
            sync(1),
            (Kind::Idle, vec![]),
            sync(2),
        ]
    };
    (first, [lane(0), lane(1)])
}

/// Feeds all connections, the further ones in this order, and ends them.
fn feed(first: &[(Kind, Vec<u8>)], lanes: Vec<Vec<u8>>) -> (Result<Received, Failure>, Dest) {
    feed_with(first, lanes, VecDeque::new(), Dest::default())
}

/// The same, with others that connect before them.
fn feed_with(
    first: &[(Kind, Vec<u8>)],
    lanes: Vec<Vec<u8>>,
    mut more: VecDeque<Box<dyn Transport>>,
    mut dest: Dest,
) -> (Result<Received, Failure>, Dest) {
    let mut feeders = vec![];
    let mut end = |bytes: Vec<u8>| -> Box<dyn Transport> {
        let (mut near, far) = UnixStream::pair().unwrap();
        feeders.push(thread::spawn(move || {
            let _ = near.write_all(&bytes);
            let _ = near.shutdown(Shutdown::Write);
            let _ = near.read_to_end(&mut Vec::new());
        }));
        Box::new(far)
    };
    more.extend(lanes.into_iter().map(&mut end));
    let more = Queue(Arc::new(Mutex::new(more)));
    let far = Box::new(Linked { first: end(stream(first)), more });
    let cfg = DestinationConfig {
        stall_timeout: Duration::from_secs(1),
        streams_timeout: Duration::from_secs(3),
        ..DestinationConfig::default()
    };
    let result = receive(far, &mut dest, &cfg, &(), &CancelToken::new());
    for feeder in feeders {
        feeder.join().unwrap();
    }
    (result, dest)
}

#[test]
fn strangers_among_the_connections_are_turned_away() {
    let (first, [a, b]) = valid();
    // A scanner, somebody else's stream, one that says nothing, and the source's in another order.
    let strangers =
        [b"GET / HTTP/1.1\r\n\r\n".to_vec(), frame(Kind::Join as u16, 0, &join(0, 1)), vec![]];
    let lanes = strangers.into_iter().chain([stream(&b), stream(&a)]).collect();
    let (result, dest) = feed(&first, lanes);
    assert!(result.is_ok() && dest.runs == 1, "{result:?}");
    let memory = dest.memory();
    for page in [0, 1, 10, 11] {
        assert!(memory[page * 4096..(page + 1) * 4096].iter().all(|&b| b == 9), "page {page}");
    }
}

#[test]
fn what_follows_a_sync_waits_for_what_precedes_it_on_other_connections() {
    // Page 0 comes with content over one connection, in round one, and writing it takes until it
    // was zeroed, or for long. That it is zero now comes over the other, in round two.
    let (first, [a, mut b]) = valid();
    b.insert(3, (Kind::Pages, pages(0, 1, true, 0)));
    let dest = Dest { dawdles: true, ..Dest::default() };
    let (result, dest) = feed_with(&first, vec![stream(&a), stream(&b)], VecDeque::new(), dest);
    assert!(result.is_ok() && dest.runs == 1, "{result:?}");
    assert!(dest.memory()[..4096].iter().all(|&b| b == 0), "what was sent before has overtaken it");
}

#[test]
fn hostile_connections_are_refused() {
    type Spoil = fn(&mut Frames, &mut [Frames; 2]);
    let cases: [(&str, Spoil); 16] = [
        ("none announced", |first, _| first[2] = streams(0)),
        ("too many announced", |first, _| first[2] = streams(17)),
        ("a giant number announced", |first, _| first[2] = streams(u32::MAX)),
        ("not announced at all", |first, _| drop(first.remove(2))),
        ("the same one twice", |_, lanes| lanes[1][0].1 = join(0, TOKEN)),
        ("one that was not announced", |_, lanes| lanes[1][0].1 = join(2, TOKEN)),
        ("one is missing", |_, lanes| lanes[1].clear()),
        ("pages on the first connection in a round", |first, _| {
            first.insert(4, (Kind::Pages, pages(1, 1, true, 0)));
        }),
        ("a round without its sync", |first, _| drop(first.remove(4))),
        ("state before the sync", |first, _| drop(first.remove(7))),
        ("a sync of another round", |_, lanes| lanes[0][2] = sync(2)),
        ("a sync twice", |_, lanes| lanes[0].insert(3, sync(1))),
        ("one ends before its sync", |_, lanes| lanes[0].truncate(3)),
        ("memory behind the last sync", |_, lanes| {
            lanes[1].push((Kind::Pages, pages(5, 1, true, 0)));
        }),
        ("pages outside RAM", |_, lanes| lanes[0][1].1 = pages(99, 2, false, 8192)),
        ("a hand-off on a data connection", |_, lanes| lanes[0].push((Kind::HandOff, vec![]))),
    ];
    for (name, spoil) in cases {
        let (mut first, mut lanes) = valid();
        spoil(&mut first, &mut lanes);
        let (result, dest) = feed(&first, lanes.iter().map(|lane| stream(lane)).collect());
        let failure = result.expect_err(name);
        assert_eq!(
            (dest.runs, failure.ownership),
            (0, Ownership::SourceRuns),
            "{name}: {failure:?}"
        );
    }
}

#[test]
fn state_waits_until_nobody_else_writes_memory() {
    // All frames are right, but a data connection stays open: its thread could still write.
    let (first, [a, b]) = valid();
    let open = |frames: &[(Kind, Vec<u8>)]| {
        let (near, far) = UnixStream::pair().unwrap();
        (&near).write_all(&stream(frames)).unwrap();
        (near, far)
    };
    let ((ended, a), (left_open, b), (main, end)) = (open(&a), open(&b), open(&first));
    drop(ended);
    let lanes: VecDeque<Box<dyn Transport>> = [Box::new(a) as _, Box::new(b) as _].into();
    let mut dest = Dest::default();
    let cfg = DestinationConfig {
        stall_timeout: Duration::from_millis(300),
        ..DestinationConfig::default()
    };
    let more = Queue(Arc::new(Mutex::new(lanes)));
    let linked = Box::new(Linked { first: Box::new(end), more });
    let failure = receive(linked, &mut dest, &cfg, &(), &CancelToken::new()).unwrap_err();
    assert!(matches!(failure.cause, Error::Stalled(_)), "{failure:?}");
    assert!(dest.state.is_none() && dest.runs == 0);
    drop((left_open, main));
}

#[test]
fn many_connections_lose_nothing() {
    for (streams, compression) in [(2, Compression::None), (16, Compression::Lz4)] {
        let model = Model::new(64 * 100 + 5, false, vec![]);
        let cfg = SourceConfig { streams, compression, verify: true, ..config(HintMode::Auto) };
        let (report, verdict) = migrate_model(&model, &cfg);
        verdict.unwrap();
        assert_eq!(report.streams, streams);
    }
}

#[test]
fn a_fault_at_a_sync_is_not_taken_for_a_complete_round() {
    for fault in [Fault::CutBefore, Fault::CutHalf, Fault::Swallow] {
        let model = Model::new(PAGES, false, vec![]);
        let stall = Duration::from_millis(250);
        let cfg = SourceConfig { stall_timeout: stall, streams: 2, ..config(HintMode::Auto) };
        let dest_cfg =
            DestinationConfig { stall_timeout: stall * 2, ..DestinationConfig::default() };
        let plan = FaultPlan::at_kind(Kind::Sync, fault);
        let ends = linked(2, |lane| faulty_pair((lane == 0).then_some(plan), None));
        let runs = judge(&format!("{fault:?} at a sync"), &model, (&cfg, &dest_cfg), ends);
        assert_ne!(runs, Runs::There, "{fault:?}");
    }
}

#[test]
fn waiting_for_connections_can_be_cancelled() {
    let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
    let Endpoint::Tcp(to) = listener.endpoint().unwrap() else { unreachable!() };
    let mut near = std::net::TcpStream::connect(to).unwrap();
    near.write_all(&stream(&valid().0)).unwrap();
    let cancel = CancelToken::new();
    let canceller = cancel.clone();
    let later = thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        canceller.cancel();
    });
    let far = listener.accept(&cancel).unwrap();
    let mut dest = Dest::default();
    let failure = receive(far, &mut dest, &DestinationConfig::default(), &(), &cancel).unwrap_err();
    later.join().unwrap();
    assert!(matches!(failure.cause, Error::Cancelled) && dest.runs == 0, "{failure:?}");
}

/// An end to which somebody writes one piece after another until it is closed, or for too long.
/// True: it was too long.
pub(super) fn keeps_writing(
    pause: Duration,
    mut piece: impl FnMut(u64) -> Vec<u8> + Send + 'static,
) -> (Box<dyn Transport>, thread::JoinHandle<bool>) {
    let (mut near, far) = UnixStream::pair().unwrap();
    let writer = thread::spawn(move || {
        let too_long = std::time::Instant::now() + Duration::from_secs(10);
        for n in 0.. {
            if near.write_all(&piece(n)).is_err() {
                return false;
            }
            if std::time::Instant::now() > too_long {
                break;
            }
            thread::sleep(pause);
        }
        true
    });
    (Box::new(far), writer)
}

#[test]
fn silent_strangers_do_not_hold_up_the_connections_behind_them() {
    let (first, [a, b]) = valid();
    // Each would be waited for in turn, and they are more than are asked at one time.
    let (kept, silent): (Vec<_>, VecDeque<_>) = (0..70)
        .map(|_| {
            let (near, far) = UnixStream::pair().unwrap();
            (near, Box::new(far) as Box<dyn Transport>)
        })
        .unzip();
    let (result, dest) = feed_with(&first, vec![stream(&a), stream(&b)], silent, Dest::default());
    assert!(result.is_ok() && dest.runs == 1, "{result:?}");
    drop(kept);
}

#[test]
fn a_stranger_that_says_who_it_is_byte_by_byte_is_not_waited_for() {
    let (first, [a, b]) = valid();
    let drip = frame(Kind::Abort as u16, 0, &[0; 4000]);
    let (slow, drips) =
        keeps_writing(Duration::from_millis(20), move |n| vec![drip[n as usize % drip.len()]]);
    let (result, dest) =
        feed_with(&first, vec![stream(&a), stream(&b)], [slow].into(), Dest::default());
    assert!(result.is_ok() && dest.runs == 1, "{result:?}");
    assert!(!drips.join().unwrap(), "the stranger was listened to for 10 s");
}

#[test]
fn a_connection_that_never_pauses_does_not_hold_up_the_end() {
    let (first, [a, _]) = valid();
    // Right frames, one after another, while the other connection lies.
    let (busy, writes) = keeps_writing(Duration::ZERO, |n| match n {
        0 => frame(Kind::Join as u16, 0, &join(1, TOKEN)),
        n => frame(Kind::Pages as u16, n, &pages(n % 90, 1, true, 0)),
    });
    let mut liar = stream(&a[..1]);
    liar.extend([0; 64]);
    let (result, dest) = feed_with(&first, vec![liar], [busy].into(), Dest::default());
    assert!(matches!(result.unwrap_err().cause, Error::NotWherry) && dest.runs == 0);
    assert!(!writes.join().unwrap());
}

#[test]
fn a_source_that_gave_up_is_believed_about_why() {
    let (mut first, [a, b]) = valid();
    // The first connection waits for the others when these end; the reason lies behind.
    first.truncate(4);
    first.push((Kind::Abort, codec::encode(&Abort::new("cancelled"), Kind::Abort).unwrap()));
    let (result, _) = feed(&first, vec![stream(&a[..2]), stream(&b)]);
    let cause = result.unwrap_err().cause;
    assert!(matches!(&cause, Error::PeerAbort(why) if why == "cancelled"), "{cause:?}");
}

/// Memory that notes which threads read it.
struct Noted {
    inner: Arc<Model>,
    readers: Mutex<BTreeSet<String>>,
    /// It cannot be read while the guest is paused: that waits.
    waits: bool,
}

impl Noted {
    fn of(inner: &Arc<Model>, waits: bool) -> Arc<Self> {
        Arc::new(Self { inner: inner.clone(), readers: Mutex::default(), waits })
    }
}

impl GuestRam for Noted {
    fn nr_pages(&self) -> u64 {
        self.inner.nr_pages()
    }
    fn read(&self, first: u64, buf: &mut [u8]) -> io::Result<()> {
        let name = thread::current().name().unwrap_or_default().to_owned();
        self.readers.lock().unwrap().insert(name);
        while self.waits && self.inner.paused() {
            thread::sleep(Duration::from_millis(1));
        }
        self.inner.read(first, buf)
    }
    fn write(&self, first: u64, data: &[u8]) -> io::Result<()> {
        self.inner.write(first, data)
    }
    fn zero(&self, first: u64, nr: u64) -> io::Result<()> {
        self.inner.zero(first, nr)
    }
    fn populated(&self, pages: Range<u64>, out: &mut Bitmap) -> io::Result<()> {
        self.inner.populated(pages, out)
    }
}

#[test]
fn memory_is_read_by_the_threads_that_send_it() {
    let model = Model::new(64 * 40, false, vec![]);
    let ram = Noted::of(&model, false);
    let vm = SourceVm { ram: ram.clone(), ..model.vm() };
    let (near, far) = linked(2, |_| pair());
    let receiver = thread::spawn(move || {
        let mut dest = Dest::default();
        let received =
            receive(far, &mut dest, &DestinationConfig::default(), &(), &CancelToken::new());
        received.map(|_| dest.memory())
    });
    let cfg = SourceConfig { hints: HintPolicy::Off, streams: 2, ..config(HintMode::Auto) };
    migrate(&vm, near, &cfg, &(), &CancelToken::new()).unwrap();
    model.compare(&receiver.join().unwrap().unwrap()).unwrap();
    let readers: Vec<_> = ram.readers.lock().unwrap().iter().cloned().collect();
    assert_eq!(readers, ["migration-send-0", "migration-send-1"]);
}

#[test]
fn memory_that_cannot_be_read_does_not_keep_the_guest_paused() {
    let model = Model::new(PAGES, false, vec![]);
    model.on(Trigger::Harvest, (0..64).map(Op::Write).collect());
    let vm = SourceVm { ram: Noted::of(&model, true), ..model.vm() };
    let (near, far) = linked(2, |_| pair());
    let receiver = thread::spawn(move || {
        let mut dest = Dest::default();
        let received =
            receive(far, &mut dest, &DestinationConfig::default(), &(), &CancelToken::new());
        (received.is_ok(), dest.runs)
    });
    let pause_limit = Some(Duration::from_millis(100));
    let cfg = SourceConfig { streams: 2, max_rounds: 1, pause_limit, ..config(HintMode::Auto) };
    // The lane's read ends only when the guest runs.
    let failure = migrate(&vm, near, &cfg, &(), &CancelToken::new()).unwrap_err();
    assert!(matches!(failure.cause, Error::PauseLimit(_)), "{failure:?}");
    assert_eq!(failure.ownership, Ownership::SourceRuns);
    assert!(!model.paused() && !model.log_on());
    assert_eq!(receiver.join().unwrap(), (false, 0));
}
