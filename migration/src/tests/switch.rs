//! The switch to the protected way, with a driver that is as slow as it likes to come to DONE.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::dest::Dest;
use super::model::Model;
use super::oracle::{config, pair};
use crate::bitmap::Bitmap;
use crate::hinting::sink::{Sink, word_map};
use crate::round::{Plan, Round};
use crate::traits::{HintSink, HintSource, PAGE_SIZE, SourceVm};
use crate::*;

const PAGES: u64 = 64 * 512;
/// The first words are in use. Those behind are free, with content, and the last quarter was never
/// touched.
const USED: u64 = 8;
const NEVER_USED: u64 = 384;

/// What Linux's driver does, a step at each call of the engine: a work item reads the field some
/// steps after a config interrupt; with a new id it hints block after block until it finds another
/// value there, says STOP, and comes back to its work item again only after so many steps.
#[derive(Default)]
struct Inner {
    field: u64,
    last_id: u64,
    interrupted: bool,
    /// The field as last read, and the id that it hints, or hinted last, under.
    received: u64,
    active: u64,
    hinting: bool,
    /// Steps until the work item runs.
    work: Option<u64>,
    /// Words in its free list, and those that it holds.
    free: VecDeque<u64>,
    held: Vec<u64>,
    sink: Option<Arc<dyn HintSink>>,
    /// The field was read since it was last published; the driver read DONE, and was told to look
    /// again.
    seen: bool,
    done_read: bool,
    nr_done: u64,
}

struct Linux {
    inner: Mutex<Inner>,
    delay: u64,
    /// Blocks that it names before it looks at the field again.
    batch: usize,
    /// Under so many DONEs it takes nothing back.
    deaf: u64,
    /// Time that each look whether it has taken its memory back takes.
    dawdles: Duration,
}

const DONE: u64 = 1;

impl Inner {
    fn publish(&mut self, value: u64, delay: u64) {
        (self.field, self.seen, self.done_read) = (value, false, false);
        self.interrupt(delay);
    }

    fn interrupt(&mut self, delay: u64) {
        self.interrupted = true;
        self.work.get_or_insert(delay);
    }

    fn read(&mut self) {
        if std::mem::take(&mut self.interrupted) {
            (self.received, self.seen) = (self.field, true);
        }
    }
}

impl Linux {
    fn new(delay: u64, free: impl IntoIterator<Item = u64>) -> Self {
        let free = free.into_iter().collect();
        let inner = Mutex::new(Inner { free, ..Inner::default() });
        Self { inner, delay, batch: 1, deaf: 0, dawdles: Duration::ZERO }
    }

    fn step(&self) {
        let mut guard = self.inner.lock().unwrap();
        let inner = &mut *guard;
        if inner.hinting {
            inner.read();
            let nr =
                if inner.received == inner.active { self.batch.min(inner.free.len()) } else { 0 };
            inner.hinting = nr > 0;
            let words: Vec<u64> = inner.free.drain(..nr).collect();
            inner.held.extend(&words);
            let sink = inner.sink.clone().filter(|_| inner.field == inner.active);
            drop(guard);
            for word in words {
                sink.iter().for_each(|sink| sink.hint(word * 64, 64));
            }
            return;
        }
        match inner.work {
            Some(0) => inner.work = None,
            Some(steps) => return inner.work = Some(steps - 1),
            None => return,
        }
        inner.read();
        if inner.received == DONE && inner.nr_done > self.deaf {
            let back = std::mem::take(&mut inner.held);
            inner.free.extend(back);
        } else if inner.received > DONE && inner.received != inner.active {
            (inner.active, inner.hinting) = (inner.received, true);
        }
    }

    fn publish(&self, value: u64) {
        let mut inner = self.inner.lock().unwrap();
        if value <= DONE {
            inner.sink = None;
        }
        let delay = if value == DONE { self.delay } else { 0 };
        inner.publish(value, delay);
        inner.nr_done += u64::from(value == DONE);
    }
}

impl HintSource for Linux {
    fn available(&self) -> bool {
        true
    }
    fn start(&self, sink: Arc<dyn HintSink>) -> io::Result<()> {
        let mut inner = self.inner.lock().unwrap();
        inner.last_id = inner.last_id.max(DONE) + 1;
        inner.sink = Some(sink);
        let id = inner.last_id;
        inner.publish(id, 0);
        Ok(())
    }
    fn rest(&self) -> bool {
        self.step();
        false
    }
    fn rested(&self) -> bool {
        self.step();
        !self.inner.lock().unwrap().hinting
    }
    fn returned(&self) -> bool {
        std::thread::sleep(self.dawdles);
        self.step();
        let mut inner = self.inner.lock().unwrap();
        if inner.field == DONE && inner.seen && !inner.done_read {
            (inner.done_read, inner.seen) = (true, false);
            inner.interrupt(self.delay);
            return false;
        }
        inner.field != DONE || inner.seen
    }
    fn stop(&self) {
        self.publish(0);
    }
    fn done(&self) {
        self.publish(DONE);
    }
    fn finished(&self) -> bool {
        self.step();
        let inner = self.inner.lock().unwrap();
        !inner.hinting && inner.active == inner.field
    }
    fn wait_seen(&self, _: Duration) -> bool {
        self.step();
        self.inner.lock().unwrap().seen
    }
    fn ballooned(&self, _: &mut Bitmap) {}
    fn guest_free_bytes(&self) -> Option<u64> {
        Some((PAGES - USED * 64) * PAGE_SIZE as u64)
    }
}

/// Moves a guest that does not zero.
fn moved(driver: Linux, mib_per_s: u64) -> (Report, u64) {
    let driver = Arc::new(driver);
    let vm = SourceVm { hints: Some(driver.clone()), ..Model::new(PAGES, false, vec![]).vm() };
    let cfg = SourceConfig {
        max_rounds: 1,
        bandwidth: Some(mib_per_s << 20),
        hint_time: Duration::from_secs(60),
        ..config(HintMode::Auto)
    };
    let (near, far) = pair();
    let receiver = std::thread::spawn(move || {
        receive(far, &mut Dest::default(), &DestinationConfig::default(), &(), &CancelToken::new())
    });
    let report = migrate(&vm, near, &cfg, &(), &CancelToken::new()).unwrap();
    receiver.join().unwrap().unwrap();
    let nr_done = driver.inner.lock().unwrap().nr_done;
    (report, nr_done)
}

/// Bytes of what is in use.
const BEST: u64 = USED * 64 * PAGE_SIZE as u64;

#[test]
fn no_new_id_comes_before_the_driver_has_taken_its_memory_back() {
    for (delay, batch) in [(0, 1), (1, 1), (2, 300), (3, 1), (7, 300), (50, 1), (200, 300)] {
        for freed_first in [true, false] {
            let free: Vec<u64> = match freed_first {
                true => (USED..PAGES / 64).collect(),
                false => (USED..PAGES / 64).rev().collect(),
            };
            // A link on which sending it all takes much longer than any delay.
            let (report, _) = moved(Linux { batch, ..Linux::new(delay, free) }, 4);
            let (bytes, unsaved) = (report.rounds[0].bytes, report.expected_unsaved_bytes);
            let case =
                format!("{delay} {batch} {freed_first}: {bytes} of {BEST}: {}", report.hints);
            assert!(bytes * 10 < BEST * 12 && unsaved <= BEST / 8, "{case}");
            assert!(report.hints.unnamed_bytes.is_none(), "{case}");
        }
    }
}

#[test]
fn no_time_is_long_enough_for_a_driver_not_to_be_waited_for() {
    // Half a second before it reads DONE, and as much again before it takes its memory back.
    let driver = Linux {
        batch: 300,
        dawdles: Duration::from_millis(10),
        ..Linux::new(50, USED..PAGES / 64)
    };
    let (report, _) = moved(driver, 4);
    assert!(report.rounds[0].bytes * 10 < BEST * 12, "{}", report.hints);
}

#[test]
fn what_it_holds_of_an_earlier_migration_is_taken_back_before_it_is_asked() {
    // DONE is published; it has not come to that.
    let driver = Linux::new(50, []);
    {
        let mut inner = driver.inner.lock().unwrap();
        inner.held = (USED..PAGES / 64).collect();
        (inner.last_id, inner.received, inner.active, inner.nr_done) = (2, 2, 2, 1);
        inner.publish(DONE, 50);
    }
    let (report, _) = moved(driver, 4);
    assert!(report.rounds[0].bytes * 10 < BEST * 12, "{}", report.hints);
}

#[test]
fn a_driver_that_never_takes_its_memory_back_is_given_up_and_that_is_said() {
    for batch in [1, 300] {
        let driver = Linux { batch, ..Linux::new(u64::MAX, USED..NEVER_USED) };
        let (report, nr_done) = moved(driver, 256);
        let said = "MB that the guest called free were not named in time";
        assert!(report.hints.to_string().contains(said), "{}", report.hints);
        // Of the model's pages one in nine is zero, which needs no hint.
        let expected = (NEVER_USED - USED) * 64 * PAGE_SIZE as u64;
        assert!(
            report.expected_unsaved_bytes > expected * 8 / 10,
            "{}",
            report.expected_unsaved_bytes
        );
        // Once at the switch, once at the end.
        assert_eq!((nr_done, report.rounds[0].hinting.hinted), (2, 0));
    }
}

#[test]
fn a_driver_that_holds_on_to_what_was_not_honoured_is_told_again() {
    // It looks as often as others, and the first time it takes nothing back.
    let driver = Linux { deaf: 1, batch: 300, ..Linux::new(0, USED..PAGES / 64) };
    let (report, nr_done) = moved(driver, 4);
    assert!(report.rounds[0].bytes * 10 < BEST * 12, "{}", report.hints);
    // At the switch, once more, when it is through, and when all is over.
    assert_eq!(nr_done, 4);
}

#[test]
fn what_was_named_and_needed_no_sending_is_not_missed() {
    let vm = Model::new(192, false, vec![]).vm();
    let mut to_send = Bitmap::new(192);
    to_send.set_range(0, 64);
    let round = Arc::new(Round::new(1, 192, &Plan::of(to_send)));
    let guarded = Arc::new(word_map(192));
    let sink = Sink::checked_zero(&round, &vm.ram, &vm.log, &guarded, true);
    assert!(!sink.enough());
    // Content, so this guest does not zero; what follows is noted and not looked at.
    sink.hint(0, 64);
    assert!(sink.not_zeroing() && sink.enough());
    sink.hint(64, 128);
    assert_eq!(sink.not_honoured(), 0);
    let sent = round.claim(0);
    round.mark_sent(0, sent);
    assert_eq!(sink.not_honoured(), u64::from(sent.count_ones()));
}
