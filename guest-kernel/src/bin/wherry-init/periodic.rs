//! What is done again and again in the background, each in a thread of its own: compaction, and a
//! memory hog that comes and goes.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use crate::pressure;
use crate::serial::say;

/// Something that is repeated with a pause in between.
struct Periodic {
    running: AtomicBool,
    stop: AtomicBool,
    turns: AtomicU64,
}

static COMPACTION: Periodic = Periodic::new();
static SURGE: Periodic = Periodic::new();
static SURGED_MIB: AtomicU64 = AtomicU64::new(0);
static SURGE_BAD: AtomicU64 = AtomicU64::new(0);
static SURGE_FAILED: AtomicU64 = AtomicU64::new(0);

impl Periodic {
    const fn new() -> Self {
        Self {
            running: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            turns: AtomicU64::new(0),
        }
    }

    /// Stops it, and waits for the end of its turn; with a pause it starts anew.
    fn set(&'static self, pause: Option<Duration>, mut turn: impl FnMut(u64) + Send + 'static) {
        self.stop.store(true, Relaxed);
        while self.running.load(Relaxed) {
            thread::sleep(Duration::from_millis(10));
        }
        self.stop.store(false, Relaxed);
        let Some(pause) = pause else { return };
        self.running.store(true, Relaxed);
        thread::spawn(move || {
            while !self.stop.load(Relaxed) {
                turn(self.turns.fetch_add(1, Relaxed));
                thread::sleep(pause);
            }
            self.running.store(false, Relaxed);
        });
    }
}

/// `compactions=… surges=… surged_mib=… surge_failed=… surge_bad=…`
pub fn status() -> String {
    let [compactions, surges, mib, killed, bad] =
        [&COMPACTION.turns, &SURGE.turns, &SURGED_MIB, &SURGE_FAILED, &SURGE_BAD]
            .map(|n| n.load(Relaxed));
    format!(
        "compactions={compactions} surges={surges} surged_mib={mib} surge_failed={killed} \
         surge_bad={bad}"
    )
}

/// Compacts memory every `ms` milliseconds; 0 stops it.
pub fn compaction(ms: u64) {
    COMPACTION.set((ms > 0).then(|| Duration::from_millis(ms)), |_| {
        if let Err(e) = fs::write("/proc/sys/vm/compact_memory", "1") {
            say(&format!("error compaction: {e}"));
        }
    });
}

/// Every `ms` milliseconds a process takes all the memory that is available but `reserve` MiB,
/// writes it, looks whether it is as it was written, and ends. 0 milliseconds stop it.
pub fn surge(reserve: u64, ms: u64) {
    SURGE.set((ms > 0).then(|| Duration::from_millis(ms)), move |turn| {
        let mib = pressure::available_mib().saturating_sub(reserve);
        if mib == 0 {
            return;
        }
        match pressure::surge(mib, turn) {
            Ok(pressure::Surge::Right) => {}
            Ok(pressure::Surge::Killed) => {
                SURGE_FAILED.fetch_add(1, Relaxed);
            }
            Ok(pressure::Surge::Wrong(what)) => {
                SURGE_BAD.fetch_add(1, Relaxed);
                say(&format!("BAD surge={turn} mib={mib} {what}"));
            }
            Err(e) => {
                SURGE_FAILED.fetch_add(1, Relaxed);
                say(&format!("error surge: {e}"));
            }
        }
        SURGED_MIB.fetch_add(mib, Relaxed);
    });
}
