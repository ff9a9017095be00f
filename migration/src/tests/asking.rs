//! When the driver is asked for hints, and when not any more.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::model::Model;
use super::oracle::{config, pair};
use crate::bitmap::Bitmap;
use crate::traits::{HintSink, HintSource, SourceVm};
use crate::*;

const PAGES: u64 = 64 * 64;

/// A driver that hints words as soon as it is asked, and may never stop when it is to rest. An id
/// for which it has no words it does not even read.
struct Driver {
    /// Words under each id.
    words: Mutex<VecDeque<Vec<u64>>>,
    stops: bool,
    /// Whether it has read the last id.
    read: AtomicBool,
    nr_started: AtomicU64,
    nr_rests: AtomicU64,
    /// Looks, after DONE, until it comes to taking its memory back.
    busy: AtomicU64,
    /// It was given a new id before that.
    hurried: AtomicBool,
}

impl HintSource for Driver {
    fn available(&self) -> bool {
        true
    }
    fn start(&self, sink: Arc<dyn HintSink>) -> io::Result<()> {
        self.nr_started.fetch_add(1, SeqCst);
        self.hurried.fetch_or(self.busy.load(SeqCst) > 0, SeqCst);
        let words = self.words.lock().unwrap().pop_front();
        self.read.store(words.is_some(), SeqCst);
        for word in words.unwrap_or_default() {
            sink.hint(word * 64, 64);
        }
        Ok(())
    }
    fn rest(&self) -> bool {
        let begun = self.read.load(SeqCst);
        self.nr_rests.fetch_add(u64::from(begun), SeqCst);
        begun
    }
    fn rested(&self) -> bool {
        self.stops
    }
    fn returned(&self) -> bool {
        let busy = self.busy.fetch_update(SeqCst, SeqCst, |looks| Some(looks.saturating_sub(1)));
        busy.unwrap() == 0
    }
    fn stop(&self) {}
    fn done(&self) {
        self.busy.store(5, SeqCst);
    }
    fn finished(&self) -> bool {
        false
    }
    fn wait_seen(&self, _: Duration) -> bool {
        self.read.load(SeqCst)
    }
    fn ballooned(&self, _: &mut Bitmap) {}
    fn guest_free_bytes(&self) -> Option<u64> {
        None
    }
}

/// Round one of a guest with this driver, over a link on which it takes some 300 ms.
fn ask(mode: HintMode, words: Vec<Vec<u64>>, stops: bool) -> (Arc<Driver>, Report) {
    ask_with(SourceConfig { bandwidth: Some(40 << 20), ..config(mode) }, PAGES, words, stops)
}

fn ask_with(
    cfg: SourceConfig,
    pages: u64,
    words: Vec<Vec<u64>>,
    stops: bool,
) -> (Arc<Driver>, Report) {
    let driver = Arc::new(Driver {
        words: Mutex::new(words.into()),
        stops,
        read: AtomicBool::new(false),
        nr_started: AtomicU64::new(0),
        nr_rests: AtomicU64::new(0),
        busy: AtomicU64::new(0),
        hurried: AtomicBool::new(false),
    });
    let vm = SourceVm { hints: Some(driver.clone()), ..Model::new(pages, true, vec![]).vm() };
    let cfg = SourceConfig {
        max_rounds: 1,
        hint_time: Duration::from_millis(1),
        hint_rest: Duration::from_millis(1),
        ..cfg
    };
    let (near, far) = pair();
    let receiver = std::thread::spawn(move || {
        let mut dest = super::dest::Dest::default();
        receive(far, &mut dest, &DestinationConfig::default(), &(), &CancelToken::new())
    });
    let report = migrate(&vm, near, &cfg, &(), &CancelToken::new()).unwrap();
    receiver.join().unwrap().unwrap();
    (driver, report)
}

#[test]
fn a_driver_that_does_not_stop_gets_no_new_id() {
    // Free words with content; after the last one the driver does not come to hinting any more.
    let words = || (0..6).map(|n| vec![2 * n + 1]).collect();
    let (driver, _) = ask(HintMode::CheckedZero, words(), true);
    assert_eq!((driver.nr_started.load(SeqCst), driver.nr_rests.load(SeqCst)), (7, 6));
    let (driver, _) = ask(HintMode::CheckedZero, words(), false);
    assert_eq!((driver.nr_started.load(SeqCst), driver.nr_rests.load(SeqCst)), (1, 1));
}

#[test]
fn a_driver_that_has_not_begun_is_not_asked_to_rest() {
    // It would never say that it has stopped.
    let (driver, _) = ask(HintMode::CheckedZero, vec![], false);
    assert_eq!((driver.nr_started.load(SeqCst), driver.nr_rests.load(SeqCst)), (1, 0));
}

#[test]
fn hints_that_clear_nothing_end_the_asking() {
    // The last quarter of the model's memory was never touched, the words before it have content.
    let holes = |nr: u64| vec![(48..48 + nr).collect()];
    let (driver, report) = ask(HintMode::CheckedZero, holes(16), true);
    assert_eq!(driver.nr_started.load(SeqCst), 1);
    assert!(matches!(report.hints.reason, Reason::OnlyIdle), "{}", report.hints);
    let (driver, report) = ask(HintMode::CheckedZero, holes(15), true);
    assert_eq!(driver.nr_started.load(SeqCst), 2);
    assert_eq!(report.hints, Reason::On.into());
}

#[test]
fn after_the_switch_it_may_name_as_much_again_before_what_it_named_first() {
    // Free words with content, by which it is found out; then as many holes less one; then the
    // words again.
    let free: Vec<u64> = (0..20).map(|n| 2 * n + 1).collect();
    let script = vec![free.clone(), (48..64).chain(48..51).collect(), free.clone()];
    let (driver, report) = ask(HintMode::Auto, script, true);
    assert!(driver.nr_started.load(SeqCst) >= 3, "{}", report.hints);
    assert!(report.rounds[0].hinting.hinted >= 10 * 64, "{:?}", report.rounds[0]);
    assert!(!driver.hurried.load(SeqCst), "it takes its memory back before it gets another id");
}

#[test]
fn what_it_names_again_after_the_switch_is_not_judged() {
    // A guest for which `auto` asks; more blocks than are judged together, by which it is found
    // out; then as many holes less one; then the blocks again.
    let pages = 64 * 512;
    let free: Vec<u64> = (0..150).map(|n| 2 * n + 1).collect();
    let script = vec![free.clone(), (0..149).map(|n| 384 + n % 128).collect(), free];
    let cfg = SourceConfig {
        hints: HintPolicy::Auto,
        bandwidth: Some(256 << 20),
        ..config(HintMode::Auto)
    };
    let (_, report) = ask_with(cfg, pages, script, true);
    assert!(
        report.rounds[0].hinting.hinted >= 100 * 64,
        "{}: {:?}",
        report.hints,
        report.rounds[0]
    );
}
