//! When the driver is asked for hints, and when not any more.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::model::Model;
use super::oracle::{config, pair};
use crate::bitmap::Bitmap;
use crate::traits::{HintSink, HintSource, SourceVm};
use crate::*;

const PAGES: u64 = 64 * 64;

/// A driver that hints one word after another as soon as it is asked, and may never stop when it is to rest.
struct Driver {
    words: Mutex<Vec<u64>>,
    /// Words under each id.
    per_id: usize,
    stops: bool,
    nr_started: AtomicU64,
    nr_rests: AtomicU64,
}

impl HintSource for Driver {
    fn available(&self) -> bool {
        true
    }
    fn start(&self, sink: Arc<dyn HintSink>) -> io::Result<()> {
        self.nr_started.fetch_add(1, SeqCst);
        let mut words = self.words.lock().unwrap();
        let nr = words.len().min(self.per_id);
        for word in words.drain(..nr) {
            sink.hint(word * 64, 64);
        }
        Ok(())
    }
    fn rest(&self) {
        self.nr_rests.fetch_add(1, SeqCst);
    }
    fn rested(&self) -> bool {
        self.stops
    }
    fn stop(&self) {}
    fn done(&self) {}
    fn finished(&self) -> bool {
        false
    }
    fn wait_seen(&self, _: Duration) -> bool {
        true
    }
    fn ballooned(&self, _: &mut Bitmap) {}
    fn guest_free_bytes(&self) -> Option<u64> {
        None
    }
}

/// Round one of a guest with this driver, over a link on which it takes some 300 ms.
fn ask(words: Vec<u64>, per_id: usize, stops: bool) -> (Arc<Driver>, Report) {
    let driver = Arc::new(Driver {
        words: Mutex::new(words),
        per_id,
        stops,
        nr_started: AtomicU64::new(0),
        nr_rests: AtomicU64::new(0),
    });
    let vm = SourceVm { hints: Some(driver.clone()), ..Model::new(PAGES, true, vec![]).vm() };
    let cfg = SourceConfig {
        bandwidth: Some(40 << 20),
        max_rounds: 1,
        hint_time: Duration::from_millis(1),
        hint_rest: Duration::from_millis(1),
        ..config(HintMode::CheckedZero)
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
    let words = || (0..6).map(|n| 2 * n + 1).collect::<Vec<_>>();
    let (driver, _) = ask(words(), 1, true);
    assert_eq!((driver.nr_started.load(SeqCst), driver.nr_rests.load(SeqCst)), (7, 6));
    let (driver, _) = ask(words(), 1, false);
    assert_eq!((driver.nr_started.load(SeqCst), driver.nr_rests.load(SeqCst)), (1, 1));
}

#[test]
fn a_driver_that_has_not_begun_is_not_asked_to_rest() {
    // It would never say that it has stopped.
    let (driver, _) = ask(vec![], 1, false);
    assert_eq!((driver.nr_started.load(SeqCst), driver.nr_rests.load(SeqCst)), (1, 0));
}

#[test]
fn hints_that_clear_nothing_end_the_asking() {
    // The last quarter of the model's memory was never touched, the words before it have content.
    let holes = |nr: u64| (48..48 + nr).collect::<Vec<_>>();
    let (driver, report) = ask(holes(16), 16, true);
    assert_eq!(driver.nr_started.load(SeqCst), 1);
    assert!(report.hints.contains("needs no sending"), "{}", report.hints);
    let (driver, report) = ask(holes(15), 15, true);
    assert_eq!(driver.nr_started.load(SeqCst), 2);
    assert_eq!(report.hints, "on");
}
