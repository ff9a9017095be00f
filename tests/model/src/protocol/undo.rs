//! What the engine undoes when a migration fails, found out by letting one fail: the engine's own
//! source and destination, around a machine that does nothing but note.

use std::io;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Duration;

use wherry_migration::bitmap::Bitmap;
use wherry_migration::traits::{
    DestinationVm, DirtyLog, GuestRam, HintSink, HintSource, Machine, SourceVm,
};
use wherry_migration::{
    CancelToken, DestinationConfig, HintPolicy, SourceConfig, migrate, receive,
};

use crate::mutant::{Mutant, on};

/// DONE was published.
pub(super) const DONE: u8 = 1;
/// The machine runs again.
pub(super) const RESUME: u8 = 2;
/// The log is off.
pub(super) const LOG_OFF: u8 = 4;

/// How far a migration gets before it fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Until {
    /// The destination is gone before the log is on.
    Handshake,
    /// Memory cannot be read.
    Rounds,
    /// The state of the paused machine cannot be saved.
    State,
}

static UNDONE: LazyLock<[u8; 3]> =
    LazyLock::new(|| [Until::Handshake, Until::Rounds, Until::State].map(fail));

/// What is undone when a migration fails in such a state.
pub(super) fn order(log_on: bool, paused: bool) -> u8 {
    let undone = UNDONE[usize::from(log_on) + usize::from(paused)];
    [
        (Mutant::NoDoneAfterFailure, DONE),
        (Mutant::StaysPaused, RESUME),
        (Mutant::LogStaysOn, LOG_OFF),
    ]
    .into_iter()
    .filter(|(mistake, _)| on(*mistake))
    .fold(undone, |undone, (_, forgotten)| undone & !forgotten)
}

/// Migrates, which fails, and says what was undone.
fn fail(until: Until) -> u8 {
    let seen = Arc::new(Recorder { until, undone: AtomicU8::new(0) });
    let vm = SourceVm {
        ram: seen.clone(),
        log: seen.clone(),
        hints: Some(seen.clone()),
        machine: seen.clone(),
    };
    let (near, far) = UnixStream::pair().expect("a socket pair");
    let ram = seen.clone();
    let receiver = thread::spawn(move || {
        if until != Until::Handshake {
            let _ = receive(
                Box::new(far),
                &mut Empty(ram),
                &DestinationConfig::default(),
                &(),
                &CancelToken::new(),
            );
        }
    });
    let cfg = SourceConfig { hints: HintPolicy::Off, ..SourceConfig::default() };
    let failed = migrate(&vm, Box::new(near), &cfg, &(), &CancelToken::new());
    assert!(failed.is_err(), "{until:?}: nothing failed");
    receiver.join().expect("the destination");
    seen.undone.load(Relaxed)
}

/// A destination that takes everything.
struct Empty(Arc<Recorder>);

impl DestinationVm for Empty {
    fn prepare(&mut self, _: &[u8], _: u64) -> io::Result<Arc<dyn GuestRam>> {
        Ok(self.0.clone())
    }
    fn load(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn run(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Recorder {
    until: Until,
    undone: AtomicU8,
}

impl Recorder {
    fn note(&self, what: u8) {
        self.undone.fetch_or(what, Relaxed);
    }

    fn fails(&self, at: Until) -> io::Result<()> {
        if self.until == at { Err(io::Error::other("told to fail")) } else { Ok(()) }
    }
}

impl HintSource for Recorder {
    fn available(&self) -> bool {
        true
    }
    fn start(&self, _: Arc<dyn HintSink>) -> io::Result<()> {
        Ok(())
    }
    fn rest(&self) -> bool {
        true
    }
    fn rested(&self) -> bool {
        true
    }
    fn returned(&self) -> bool {
        true
    }
    fn stop(&self) {}
    fn done(&self) {
        self.note(DONE);
    }
    fn finished(&self) -> bool {
        true
    }
    fn wait_seen(&self, _: Duration) -> bool {
        true
    }
    fn ballooned(&self, _: &mut Bitmap) {}
    fn guest_free_bytes(&self) -> Option<u64> {
        None
    }
}

impl DirtyLog for Recorder {
    fn start(&self) -> io::Result<()> {
        Ok(())
    }
    fn protect(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn harvest(&self, _: &mut Bitmap) -> io::Result<()> {
        Ok(())
    }
    fn stop(&self) -> io::Result<()> {
        self.note(LOG_OFF);
        Ok(())
    }
}

impl GuestRam for Recorder {
    fn nr_pages(&self) -> u64 {
        64
    }
    fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
        self.fails(Until::Rounds)
    }
    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
    fn zero(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn populated(&self, pages: Range<u64>, out: &mut Bitmap) -> io::Result<()> {
        out.set_range(pages.start, pages.end - pages.start);
        Ok(())
    }
}

impl Machine for Recorder {
    fn pause(&self) -> io::Result<()> {
        Ok(())
    }
    fn resume(&self) -> io::Result<()> {
        self.note(RESUME);
        Ok(())
    }
    fn hand_over(&self, _begun: bool) -> io::Result<()> {
        Ok(())
    }
    fn describe(&self, _: u16) -> io::Result<Vec<u8>> {
        Ok(Vec::new())
    }

    fn save(&self, _: u16) -> io::Result<Vec<u8>> {
        self.fails(Until::State)?;
        Ok(Vec::new())
    }
}
