//! Whole sessions: a destination that is fed an input, and a source that gets its answers from one.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use wherry_migration::bitmap::Bitmap;
use wherry_migration::traits::{
    DestinationVm, DirtyLog, GuestRam, HintSink, HintSource, Machine, PAGE_SIZE, SourceVm,
};
use wherry_migration::transport::{Connections, Halves, Transport, TransportError, WriteHalf};
use wherry_migration::wire::{HEADER_LEN, Header, Kind};
use wherry_migration::{
    CancelToken, Compression, DestinationConfig, OnTimeout, Ownership, SourceConfig, migrate,
    receive,
};

use crate::bytes::Bytes;
use crate::frames::Record;

/// Guest RAM that knows its size.
struct FakeRam(Mutex<Vec<u8>>);

impl FakeRam {
    fn new(pages: u64) -> Arc<Self> {
        let data = (0..pages as usize * PAGE_SIZE).map(|n| (n / PAGE_SIZE % 3) as u8).collect();
        Arc::new(Self(Mutex::new(data)))
    }
}

impl GuestRam for FakeRam {
    fn nr_pages(&self) -> u64 {
        (self.0.lock().unwrap().len() / PAGE_SIZE) as u64
    }
    fn read(&self, first: u64, buf: &mut [u8]) -> io::Result<()> {
        let at = first as usize * PAGE_SIZE;
        buf.copy_from_slice(&self.0.lock().unwrap()[at..at + buf.len()]);
        Ok(())
    }
    fn write(&self, first: u64, data: &[u8]) -> io::Result<()> {
        assert!(!data.is_empty() && data.len().is_multiple_of(PAGE_SIZE));
        let at = first as usize * PAGE_SIZE;
        self.0.lock().unwrap()[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }
    fn zero(&self, first: u64, nr: u64) -> io::Result<()> {
        let at = first as usize * PAGE_SIZE;
        self.0.lock().unwrap()[at..at + nr as usize * PAGE_SIZE].fill(0);
        Ok(())
    }
    fn populated(&self, mut pages: Range<u64>, out: &mut Bitmap) -> io::Result<()> {
        pages.by_ref().filter(|page| page % 3 != 0).for_each(|page| {
            out.set(page);
        });
        Ok(())
    }
}

#[derive(Default)]
struct Dest {
    ram: Option<Arc<FakeRam>>,
    loaded: bool,
    runs: u32,
}

impl DestinationVm for Dest {
    fn prepare(&mut self, description: &[u8], nr_pages: u64) -> io::Result<Arc<dyn GuestRam>> {
        assert!(self.ram.is_none());
        if nr_pages > 256 || description.first() == Some(&b'!') {
            return Err(io::Error::other("no room for this guest"));
        }
        let ram = FakeRam::new(nr_pages);
        self.ram = Some(ram.clone());
        Ok(ram)
    }
    fn load(&mut self, state: &[u8]) -> io::Result<()> {
        assert!(self.ram.is_some() && !self.loaded);
        self.loaded = true;
        if state.first() == Some(&b'!') { Err(io::Error::other("not this state")) } else { Ok(()) }
    }
    fn run(&mut self) -> io::Result<()> {
        assert!(self.loaded && self.runs == 0, "run twice, or without state");
        self.runs += 1;
        Ok(())
    }
}

struct Sink;
impl Write for Sink {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Ok(buf.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
impl WriteHalf for Sink {
    fn shutdown(&self) {}
}

type Waiting = Arc<Mutex<VecDeque<Vec<u8>>>>;

/// A connection on which these bytes come and then the end. The further ones come from the same
/// input.
struct Fed {
    bytes: Vec<u8>,
    more: Waiting,
}

impl Transport for Fed {
    fn split(self: Box<Self>) -> io::Result<Halves> {
        Ok((Box::new(io::Cursor::new(self.bytes)), Box::new(Sink)))
    }
    fn data_connections(&self) -> Option<Box<dyn Connections>> {
        Some(Box::new(Further(self.more.clone(), AtomicU32::new(0))))
    }
}

/// When there are no more, those that came may still be on their way to be joined: so often it says
/// "not yet".
const NOT_YET: u32 = 50;

struct Further(Waiting, AtomicU32);
impl Connections for Further {
    fn next(&self, _: &CancelToken, _: Duration) -> Result<Box<dyn Transport>, TransportError> {
        let next = self.0.lock().unwrap().pop_front();
        match next {
            Some(bytes) => Ok(Box::new(Fed { bytes, more: Waiting::default() })),
            None if self.1.fetch_add(1, Ordering::Relaxed) < NOT_YET => {
                std::thread::sleep(Duration::from_millis(1));
                Err(TransportError::TimedOut(Duration::from_millis(1)))
            }
            None => Err(TransportError::Single),
        }
    }
}

/// Connections of a session in one input.
const CONNECTIONS: usize = 5;

/// A destination that is fed an input: never a panic, never a page outside RAM, and it runs its
/// guest once, after a hand-off, or not at all.
pub fn destination(data: &[u8]) {
    let mut input = Bytes(data);
    let raw = input.u8() & 1 != 0;
    let mut connections = vec![Vec::new(); CONNECTIONS];
    if raw {
        connections[0] = input.0.to_vec();
    } else {
        let mut numbers = [0; CONNECTIONS];
        while !input.is_empty() {
            let record = Record::take(&mut input);
            let place = usize::from(record.place) % CONNECTIONS;
            connections[place].extend(record.frame(&mut numbers[place]));
        }
    }
    let mut connections: VecDeque<_> = connections.into();
    let bytes = connections.pop_front().unwrap_or_default();
    let mut dest = Dest::default();
    let cfg = DestinationConfig {
        stall_timeout: Duration::from_secs(5),
        // Whatever this machine is good at.
        crc32: true,
        ..DestinationConfig::default()
    };
    let first = Box::new(Fed { bytes, more: Arc::new(Mutex::new(connections)) });
    let result = receive(first, &mut dest, &cfg, &(), &CancelToken::new());
    assert_eq!(result.is_ok(), dest.runs == 1, "{result:?}");
    ARRIVED.fetch_add(dest.runs, Ordering::Relaxed);
    if let Err(failure) = result {
        assert!(dest.loaded || failure.ownership == Ownership::SourceRuns, "{failure:?}");
    }
}

/// A guest that does nothing, and whether it is paused.
#[derive(Default)]
struct Guest {
    paused: AtomicBool,
    log: AtomicBool,
    sink: Mutex<Option<Arc<dyn HintSink>>>,
    done: AtomicBool,
}

impl DirtyLog for Guest {
    fn start(&self) -> io::Result<()> {
        self.log.store(true, Ordering::SeqCst);
        Ok(())
    }
    fn protect(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn harvest(&self, out: &mut Bitmap) -> io::Result<()> {
        out.set(1);
        Ok(())
    }
    fn stop(&self) -> io::Result<()> {
        self.log.store(false, Ordering::SeqCst);
        Ok(())
    }
}

impl Machine for Guest {
    fn pause(&self) -> io::Result<()> {
        self.paused.store(true, Ordering::SeqCst);
        Ok(())
    }
    fn resume(&self) -> io::Result<()> {
        self.paused.store(false, Ordering::SeqCst);
        Ok(())
    }
    fn hand_over(&self, _: bool) -> io::Result<()> {
        Ok(())
    }
    fn describe(&self, _: u16) -> io::Result<Vec<u8>> {
        Ok(b"guest".to_vec())
    }
    fn save(&self, _: u16) -> io::Result<Vec<u8>> {
        assert!(self.paused.load(Ordering::SeqCst));
        Ok(vec![7; 100])
    }
}

impl HintSource for Guest {
    fn available(&self) -> bool {
        true
    }
    fn start(&self, sink: Arc<dyn HintSink>) -> io::Result<()> {
        sink.hint(4, 3);
        self.done.store(false, Ordering::SeqCst);
        *self.sink.lock().unwrap() = Some(sink);
        Ok(())
    }
    fn rest(&self) -> bool {
        true
    }
    fn rested(&self) -> bool {
        true
    }
    fn stop(&self) {
        *self.sink.lock().unwrap() = None;
    }
    fn done(&self) {
        HintSource::stop(self);
        self.done.store(true, Ordering::SeqCst);
    }
    fn returned(&self) -> bool {
        true
    }
    fn finished(&self) -> bool {
        true
    }
    fn wait_seen(&self, _: Duration) -> bool {
        true
    }
    fn ballooned(&self, out: &mut Bitmap) {
        out.set(8);
    }
    fn guest_free_bytes(&self) -> Option<u64> {
        Some(5 * PAGE_SIZE as u64)
    }
}

/// What the source has sent: frames of each kind.
#[derive(Default)]
struct Seen {
    pending: Vec<u8>,
    kinds: Vec<u16>,
}

impl Seen {
    fn add(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
        while let Some(raw) = self.pending.first_chunk::<HEADER_LEN>() {
            let header = Header::decode(raw).expect("a source sends good headers");
            let end = HEADER_LEN + header.len as usize;
            if self.pending.len() < end {
                break;
            }
            self.kinds.push(header.kind);
            self.pending.drain(..end);
        }
    }

    fn has(&self, kind: Kind) -> bool {
        self.kinds.contains(&(kind as u16))
    }
}

/// What must have been sent before an answer comes.
pub(crate) const GATES: [Option<Kind>; 5] =
    [None, Some(Kind::Round), Some(Kind::Verify), Some(Kind::StateEnd), Some(Kind::HandOff)];
/// Longest wait for that: then the answers have ended.
const GATE_TIME: Duration = Duration::from_millis(200);

struct Scripted {
    answers: VecDeque<(u8, Vec<u8>)>,
    seen: Arc<Mutex<Seen>>,
    closed: Arc<AtomicBool>,
}

struct Answers {
    script: Scripted,
    now: Vec<u8>,
    at: usize,
    waiting: Option<Instant>,
}

impl Read for Answers {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at == self.now.len() {
            let Some((gate, _)) = self.script.answers.front() else { return Ok(0) };
            let gate = GATES[usize::from(*gate) % GATES.len()];
            if gate.is_some_and(|kind| !self.script.seen.lock().unwrap().has(kind)) {
                let since = *self.waiting.get_or_insert_with(Instant::now);
                if self.script.closed.load(Ordering::SeqCst) || since.elapsed() > GATE_TIME {
                    return Ok(0);
                }
                std::thread::sleep(Duration::from_micros(50));
                return Err(ErrorKind::WouldBlock.into());
            }
            self.waiting = None;
            (self.now, self.at) = (self.script.answers.pop_front().unwrap_or_default().1, 0);
        }
        let nr = buf.len().min(self.now.len() - self.at);
        buf[..nr].copy_from_slice(&self.now[self.at..self.at + nr]);
        self.at += nr;
        Ok(nr)
    }
}

struct Watched {
    seen: Arc<Mutex<Seen>>,
    closed: Arc<AtomicBool>,
}
impl Write for Watched {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.seen.lock().unwrap().add(buf);
        Ok(buf.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
impl WriteHalf for Watched {
    fn shutdown(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }
}

impl Transport for Scripted {
    fn split(self: Box<Self>) -> io::Result<Halves> {
        let out = Watched { seen: self.seen.clone(), closed: self.closed.clone() };
        Ok((
            Box::new(Answers { script: *self, now: Vec::new(), at: 0, waiting: None }),
            Box::new(out),
        ))
    }
}

/// Sources that succeeded, for the test that the seeds reach the end.
pub(crate) static LEFT: AtomicU32 = AtomicU32::new(0);
/// The same for destinations.
pub(crate) static ARRIVED: AtomicU32 = AtomicU32::new(0);

/// A source that gets its answers from an input: never a panic; whoever owns the guest, its vCPUs,
/// log and hints are as they must be; success only after all was said.
pub fn source(data: &[u8]) {
    let mut input = Bytes(data);
    let options = input.u8();
    let (mut answers, mut number) = (VecDeque::new(), 0);
    if options & 1 != 0 {
        answers.push_back((0, input.0.to_vec()));
    }
    while options & 1 == 0 && !input.is_empty() {
        let record = Record::take(&mut input);
        answers.push_back((record.place, record.frame(&mut number)));
    }
    let (seen, guest) = (Arc::<Mutex<Seen>>::default(), Arc::<Guest>::default());
    let vm = SourceVm {
        ram: FakeRam::new(16),
        log: guest.clone(),
        hints: (options & 2 != 0).then(|| guest.clone() as Arc<dyn HintSource>),
        machine: guest.clone(),
    };
    let cfg = SourceConfig {
        verify: options & 4 != 0,
        compression: if options & 8 != 0 { Compression::Lz4 } else { Compression::None },
        crc32: options & 16 != 0,
        max_rounds: 2,
        on_timeout: OnTimeout::Force,
        stall_timeout: Duration::from_millis(500),
        first_hint_wait: Duration::from_millis(1),
        ..SourceConfig::default()
    };
    let transport = Box::new(Scripted { answers, seen: seen.clone(), closed: Arc::default() });
    let result = migrate(&vm, transport, &cfg, &(), &CancelToken::new());
    let handed_off = seen.lock().unwrap().has(Kind::HandOff);
    let paused = guest.paused.load(Ordering::SeqCst);
    match result {
        Ok(_) => {
            LEFT.fetch_add(1, Ordering::Relaxed);
            assert!(handed_off && paused);
        }
        Err(failure) => {
            let ours = failure.ownership == Ownership::SourceRuns;
            assert_eq!(ours, !paused, "{failure:?}");
            assert!(ours || handed_off, "{failure:?}");
        }
    }
    assert!(!guest.log.load(Ordering::SeqCst) || paused, "the log stays on");
    assert!(guest.sink.lock().unwrap().is_none(), "hints go on");
}
