//! The product's bitmap, gate, round and sink against a sender, a guest and each other, under loom.
//!
//! loom runs a test once for every order of its threads' accesses to shared memory that could make
//! a difference, and lets relaxed loads return every value that C11 allows. So these tests are
//! about what the protocol's model takes for one step: that a swap is one, that a closed gate stays
//! closed, that nobody sleeps for ever.
//!
//! The code is the engine's own, compiled on loom's primitives (`wherry_interleaved`). Mistakes are
//! made in these primitives (`wherry_mutants::sync`), or here: in the memory and log that a sink is
//! given, in the map that tells it what is protected, in the order of the calls.

use std::cell::Cell;
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use loom::sync::Mutex;
use loom::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use loom::thread;

use wherry_interleaved::bitmap::{AtomicBitmap, Bitmap, word_runs};
use wherry_interleaved::hinting::gate::Gate;
use wherry_interleaved::hinting::sink::{Sink, protect_words, word_map};
use wherry_interleaved::round::{Plan, Round};
use wherry_interleaved::traits::{DirtyLog, GuestRam, HintSink};
use wherry_interleaved::units::PAGE_SIZE;

use crate::mutant::{self, Mutant, on};

/// Pages of the guest: one word, all of which a hint covers.
const PAGES: u64 = 2;

/// Memory and log. The lock is the hardware's: a write and its dirty bit are one.
#[derive(Default)]
struct Hardware {
    content: [u8; PAGES as usize],
    written: [bool; PAGES as usize],
    dirty: u64,
}

struct Guest {
    hardware: Mutex<Hardware>,
}

impl Guest {
    fn new(content: [u8; PAGES as usize]) -> Arc<Self> {
        let dirty = (1 << PAGES) - 1;
        Arc::new(Self { hardware: Mutex::new(Hardware { content, dirty, ..Hardware::default() }) })
    }

    fn with<T>(&self, f: impl FnOnce(&mut Hardware) -> T) -> T {
        f(&mut self.hardware.lock().unwrap())
    }

    /// The guest takes a page and writes something new.
    fn write(&self, page: usize) {
        self.with(|hw| {
            hw.content[page] += 10;
            hw.written[page] = true;
            hw.dirty |= 1 << page;
        });
    }
}

impl GuestRam for Guest {
    fn nr_pages(&self) -> u64 {
        PAGES
    }

    fn read(&self, first: u64, buf: &mut [u8]) -> io::Result<()> {
        self.with(|hw| {
            for (page, bytes) in buf.chunks_exact_mut(PAGE_SIZE).enumerate() {
                bytes.fill(0);
                bytes[PAGE_SIZE - 1] = hw.content[first as usize + page];
            }
        });
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::Error::other("the source's memory is not written"))
    }

    fn zero(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::Error::other("the source's memory is not written"))
    }

    fn populated(&self, pages: Range<u64>, out: &mut Bitmap) -> io::Result<()> {
        out.set_range(pages.start, pages.end - pages.start);
        Ok(())
    }
}

impl DirtyLog for Guest {
    fn start(&self) -> io::Result<()> {
        Ok(())
    }

    fn protect(&self, first: u64, nr: u64) -> io::Result<()> {
        self.with(|hw| hw.dirty &= !(((1 << nr) - 1) << first));
        Ok(())
    }

    fn harvest(&self, out: &mut Bitmap) -> io::Result<()> {
        out.or_word(0, self.with(|hw| std::mem::take(&mut hw.dirty)));
        Ok(())
    }

    fn stop(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The guest's memory and log as a mistaken sink sees them.
enum Mistaken {
    /// Protects only when pages were read next: `due` is what is to be protected then.
    Late { guest: Arc<Guest>, due: std::sync::Mutex<Option<(u64, u64)>> },
    /// The sink's own map of what is protected is not the one that the others share. They are told.
    Apart { guest: Arc<Guest>, shared: Arc<AtomicBitmap> },
}

impl GuestRam for Mistaken {
    fn nr_pages(&self) -> u64 {
        PAGES
    }

    fn read(&self, first: u64, buf: &mut [u8]) -> io::Result<()> {
        let (Self::Late { guest, .. } | Self::Apart { guest, .. }) = self;
        guest.read(first, buf)?;
        if let Self::Late { due, .. } = self
            && let Some((first, nr)) = due.lock().unwrap().take()
        {
            guest.protect(first, nr)?;
        }
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::Error::other("the source's memory is not written"))
    }

    fn zero(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::Error::other("the source's memory is not written"))
    }

    fn populated(&self, _: Range<u64>, _: &mut Bitmap) -> io::Result<()> {
        Ok(())
    }
}

impl DirtyLog for Mistaken {
    fn start(&self) -> io::Result<()> {
        Ok(())
    }

    fn protect(&self, first: u64, nr: u64) -> io::Result<()> {
        match self {
            Self::Late { due, .. } => *due.lock().unwrap() = Some((first, nr)),
            Self::Apart { guest, shared } => {
                guest.protect(first, nr)?;
                shared.set(0);
            }
        }
        Ok(())
    }

    fn harvest(&self, _: &mut Bitmap) -> io::Result<()> {
        Ok(())
    }

    fn stop(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Round one of a migration.
struct Migration {
    guest: Arc<Guest>,
    round: Arc<Round>,
    guarded: Arc<AtomicBitmap>,
    sink: Arc<Sink>,
    /// Where a mistake sends the second hint, and what is protected as far as that sink knows.
    other: Option<(Arc<Sink>, Arc<AtomicBitmap>)>,
    dest: [u8; PAGES as usize],
}

impl Migration {
    fn new(content: [u8; PAGES as usize], checked: bool) -> Self {
        let guest = Guest::new(content);
        let (ram, log): (Arc<dyn GuestRam>, Arc<dyn DirtyLog>) = (guest.clone(), guest.clone());
        let plan = Plan::of(Bitmap::full(PAGES));
        let round = Arc::new(Round::new(1, PAGES, &plan));
        let guarded = Arc::new(word_map(PAGES));
        let late = on(Mutant::ReadsBeforeProtecting)
            .then(|| Arc::new(Mistaken::Late { guest: guest.clone(), due: None.into() }));
        let sink = if let Some(late) = late {
            let (ram, log): (Arc<dyn GuestRam>, Arc<dyn DirtyLog>) = (late.clone(), late);
            Sink::checked_zero(&round, &ram, &log, &guarded, false)
        } else if checked {
            Sink::checked_zero(&round, &ram, &log, &guarded, false)
        } else {
            protect_words(&*log, &guarded, PAGES, 0..1).unwrap();
            Sink::protected(&round, &ram, &log)
        };
        let own = Arc::new(word_map(PAGES));
        let other = if on(Mutant::SinkTrustsGuarded) {
            Some(Sink::protected(&round, &ram, &log))
        } else if on(Mutant::GuardedNotLookedAt) || on(Mutant::GuardedNotLookedAtAgain) {
            let apart = Mistaken::Apart { guest: guest.clone(), shared: guarded.clone() };
            Some(Sink::checked_zero(&round, &ram, &(Arc::new(apart) as _), &own, false))
        } else {
            None
        };
        let other = other.map(|sink| (Arc::new(sink), own));
        Self { guest, round, guarded, sink: Arc::new(sink), other, dest: [0; PAGES as usize] }
    }

    /// Sends what is to be sent, in the sender's order (`migration/src/source/sender.rs`).
    fn send(&mut self) {
        let taken = self.round.claim(0);
        if taken == 0 {
            return;
        }
        if !self.guarded.test(0) {
            protect_words(&*self.guest, &self.guarded, PAGES, 0..1).unwrap();
        }
        for (first, nr) in word_runs(taken) {
            let mut bytes = vec![0; nr as usize * PAGE_SIZE];
            self.guest.read(u64::from(first), &mut bytes).unwrap();
            for (page, bytes) in bytes.chunks_exact(PAGE_SIZE).enumerate() {
                self.dest[first as usize + page] = bytes[PAGE_SIZE - 1];
            }
        }
        self.round.mark_sent(0, taken);
    }

    /// A thread on which the device hands a hint for all pages to the sink, after which the guest
    /// may do something.
    fn hint(&self, then: impl FnOnce(&Guest) + 'static) -> thread::JoinHandle<()> {
        let (sink, guest) = (self.sink.clone(), self.guest.clone());
        thread::spawn(move || {
            sink.hint(0, PAGES);
            then(&guest);
        })
    }

    /// The second hint for the same pages.
    fn second(&self) -> impl FnOnce() + 'static {
        let (sink, guarded, other) = (self.sink.clone(), self.guarded.clone(), self.other.clone());
        move || match other {
            Some((trusting, _)) if on(Mutant::SinkTrustsGuarded) => match guarded.test(0) {
                true => trusting.hint(0, PAGES),
                false => sink.hint(0, PAGES),
            },
            Some((apart, own)) => {
                if on(Mutant::GuardedNotLookedAtAgain) {
                    own.set_mask(0, guarded.load(0));
                }
                apart.hint(0, PAGES);
            }
            None => sink.hint(0, PAGES),
        }
    }

    fn close(&self) {
        self.sink.close();
        if let Some((other, _)) = &self.other {
            other.close();
        }
    }

    /// Ends the round, harvests, and checks each page.
    fn finish(&mut self, others: Vec<thread::JoinHandle<()>>) {
        if on(Mutant::SweepBeforeClose) {
            self.send();
            self.close();
        } else {
            self.close();
            self.send();
        }
        let hinted = self.round.hinted_pages();
        self.round.account().expect("accounting");
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(
            hinted,
            self.round.hinted_pages(),
            "a hint had an effect after its epoch was closed"
        );
        let mut dirty = Bitmap::new(PAGES);
        self.guest.harvest(&mut dirty).unwrap();
        self.guest.with(|hw| {
            for page in 0..PAGES as usize {
                let same = hw.content[page] == self.dest[page] || dirty.test(page as u64);
                let free = hinted.test(page as u64) && !hw.written[page];
                assert!(same || free, "page {page} is lost");
            }
        });
    }
}

/// A test under loom.
#[derive(Clone, Copy, Debug)]
pub struct Test {
    /// For tables and the command line.
    pub name: &'static str,
    /// In one line.
    pub text: &'static str,
    /// Preemptions per execution at most; `None`: all.
    pub preemptions: Option<usize>,
    run: fn(),
}

/// All of them.
pub const TESTS: &[Test] = &[
    Test { name: "gate", text: "a hint and a closing", preemptions: None, run: || gate(&[1]) },
    Test {
        name: "gate-two",
        text: "two hints and a closing",
        preemptions: Some(3),
        run: || gate(&[1, 10]),
    },
    Test {
        name: "bitmap",
        text: "sender and hint take the same word",
        preemptions: None,
        run: bitmap,
    },
    Test {
        name: "protected",
        text: "sender, hint, guest that writes, closing",
        preemptions: Some(3),
        run: protected,
    },
    Test {
        name: "checked",
        text: "sender, hint of a zero page and one with content, guest that writes, closing",
        preemptions: Some(3),
        run: checked,
    },
    Test {
        name: "two-hints",
        text: "two hints of the same word, guest that writes after one of them, closing",
        preemptions: Some(2),
        run: two_hints,
    },
    Test {
        name: "again",
        text: "a word hinted twice by the device, guest that writes both pages, closing",
        preemptions: Some(3),
        run: again,
    },
];

fn gate(hints: &[usize]) {
    let gate = Arc::new(Gate::default());
    let inside = Arc::new(AtomicUsize::new(0));
    let hint = |n: usize| {
        let (gate, inside) = (gate.clone(), inside.clone());
        thread::spawn(move || {
            if let Some(_pass) = gate.enter() {
                inside.fetch_add(n, Relaxed);
            }
        })
    };
    let others: Vec<_> = hints.iter().map(|n| hint(*n)).collect();
    gate.close();
    // Relaxed: what was done inside must be visible by the closing alone.
    let seen = inside.load(Relaxed);
    for other in others {
        other.join().unwrap();
    }
    assert_eq!(seen, inside.load(Relaxed), "someone was let in after closing");
    assert!(gate.enter().is_none());
}

fn bitmap() {
    let plan = Plan::of(Bitmap::full(PAGES));
    let round = Arc::new(Round::new(1, PAGES, &plan));
    let hinted = round.clone();
    let hint = thread::spawn(move || {
        hinted.clear_hinted(0, 1);
        hinted.clear_hinted(0, 3);
    });
    for _ in 0..2 {
        let taken = round.claim(0);
        round.put_back(0, taken & 2);
        round.mark_sent(0, taken & 1);
    }
    hint.join().unwrap();
    let taken = round.claim(0);
    round.mark_sent(0, taken);
    round.account().expect("accounting");
}

fn protected() {
    let mut m = Migration::new([1, 2], false);
    let hint = m.hint(|_| ());
    let guest = m.guest.clone();
    let writer = thread::spawn(move || guest.write(0));
    m.send();
    m.finish(vec![hint, writer]);
}

fn checked() {
    let mut m = Migration::new([0, 2], true);
    let hint = m.hint(|_| ());
    let guest = m.guest.clone();
    let writer = thread::spawn(move || guest.write(0));
    m.send();
    m.finish(vec![hint, writer]);
}

fn two_hints() {
    let mut m = Migration::new([0, 2], true);
    let one = m.hint(|guest| guest.write(0));
    let two = thread::spawn(m.second());
    m.finish(vec![one, two]);
}

fn again() {
    let mut m = Migration::new([0, 2], true);
    let second = m.second();
    let hint = m.hint(move |_| second());
    let guest = m.guest.clone();
    let writer = thread::spawn(move || {
        guest.write(1);
        guest.write(0);
    });
    m.finish(vec![hint, writer]);
}

/// What an exploration found.
#[derive(Debug)]
pub struct Explored {
    /// Executions: different interleavings.
    pub executions: u64,
    /// Time.
    pub time: Duration,
    /// The message of what failed.
    pub wrong: Option<String>,
}

thread_local! {
    static EXECUTIONS: Cell<u64> = const { Cell::new(0) };
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Does something whose panics are looked for, and reported by the finder.
pub(crate) fn hush<T>(f: impl FnOnce() -> T) -> T {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let loud = take_hook();
        set_hook(Box::new(move |info| {
            if !QUIET.get() {
                loud(info);
            }
        }));
    });
    QUIET.set(true);
    let out = f();
    QUIET.set(false);
    out
}

/// Runs a test in every interleaving, or up to the first that fails.
pub fn explore(test: &Test, mutant: Option<Mutant>, preemptions: Option<usize>) -> Explored {
    let started = Instant::now();
    mutant::set(mutant);
    EXECUTIONS.set(0);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.max_branches = 10_000;
    let run = test.run;
    let outcome = hush(|| {
        catch_unwind(AssertUnwindSafe(|| {
            builder.check(move || {
                EXECUTIONS.set(EXECUTIONS.get() + 1);
                run();
            });
        }))
    });
    mutant::set(None);
    let wrong = outcome.err().map(|cause| match cause.downcast::<String>() {
        Ok(text) => *text,
        Err(cause) => {
            cause.downcast::<&str>().map_or_else(|_| "a panic".into(), |text| text.to_string())
        }
    });
    Explored { executions: EXECUTIONS.get(), time: started.elapsed(), wrong }
}
