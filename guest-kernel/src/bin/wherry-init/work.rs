//! The workload: memory written, held, given back and rewritten, step by step in one thread.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::cache::{Cache, CacheCheck};
use crate::churn;
use crate::cmdline::Step;
use crate::disk;
use crate::mem::{Mapping, PAGE, Random, WORDS};
use crate::serial::say;
use crate::sys::{self, End};
use crate::{periodic, pressure};

/// Memory is mapped and given back in pieces of this many MiB.
const PIECE_MIB: u64 = 4;
const PAGES_PER_MIB: usize = (1 << 20) / PAGE;

static PENDING: AtomicU64 = AtomicU64::new(0);
static FILLED: AtomicU64 = AtomicU64::new(0);
static HOGGED: AtomicU64 = AtomicU64::new(0);
static WRITTEN: AtomicU64 = AtomicU64::new(0);
static WRITER_MIB: AtomicU64 = AtomicU64::new(0);
static WRITER_STOP: AtomicBool = AtomicBool::new(false);

/// Steps to do: from the command line first, then from the console.
pub type Worker = Sender<Step>;

/// `work=busy|idle filled_mib=… hogged_mib=… writer_mib=… written_mib=…`
pub fn status() -> String {
    let work = if PENDING.load(Relaxed) > 0 { "busy" } else { "idle" };
    let [filled, hogged, writer, written] =
        [&FILLED, &HOGGED, &WRITER_MIB, &WRITTEN].map(|counter| counter.load(Relaxed));
    format!(
        "work={work} filled_mib={filled} hogged_mib={hogged} writer_mib={writer} \
         written_mib={written} churned={}",
        churn::done()
    )
}

/// Hands a step to the worker.
pub fn submit(worker: &Worker, step: Step) {
    PENDING.fetch_add(1, Relaxed);
    // The worker lives as long as PID 1.
    let _ = worker.send(step);
}

/// Starts the worker on the command line's steps; `WHERRY: work done` follows them, then `exit` if
/// there is one.
pub fn start(steps: Vec<Step>, exit: Option<End>) -> Worker {
    let (sender, receiver) = mpsc::channel();
    PENDING.fetch_add(1, Relaxed);
    thread::spawn(move || {
        let start = Instant::now();
        let mut state = State::default();
        steps.into_iter().for_each(|step| state.run(step));
        PENDING.fetch_sub(1, Relaxed);
        say(&format!("work done ms={}", start.elapsed().as_millis()));
        if let Some(how) = exit {
            say(&format!(
                "{} reason=work",
                if how == End::Poweroff { "poweroff" } else { "reboot" }
            ));
            sys::end(how);
        }
        state.serve(receiver);
    });
    sender
}

#[derive(Default)]
struct State {
    filled: Vec<Mapping>,
    /// One file, so that freed pages are not kept apart by the caches that many files leave behind.
    tmpfs: Option<(File, u64)>,
    hogged: Vec<Mapping>,
    cached: Option<Cache>,
    scattered: Option<Mapping>,
}

impl State {
    fn serve(&mut self, receiver: Receiver<Step>) {
        for step in receiver {
            self.run(step);
            PENDING.fetch_sub(1, Relaxed);
        }
    }

    fn run(&mut self, step: Step) {
        let start = Instant::now();
        let ok = |mib: u64| format!("ok mib={mib}");
        let (name, result) = match step {
            Step::Fill(mib) => ("fill", self.fill(mib).map(ok)),
            Step::Tmpfs(mib) => ("tmpfs", self.write_file(mib).map(ok)),
            Step::Free(mib) => ("free", Ok(ok(self.free(mib)))),
            Step::Hog(mib) => ("hog", self.hog(mib).map(ok)),
            Step::Writer(mib, rate) => ("writer", writer(mib, rate).map(ok)),
            Step::Churn(jobs, mib) => ("churn", churn::set(jobs, mib).map(ok)),
            Step::Disk(passes, seed) => ("disk", disk::passes(passes, seed)),
            Step::Cache(mib) => ("cache", self.cache(mib)),
            Step::Scatter(mib, order) => ("scatter", self.scatter(mib, order).map(ok)),
            Step::Eat(mib) => ("eat", pressure::eat(mib)),
            Step::Huge(mib) => ("huge", pressure::huge(mib)),
            Step::Surge(reserve, ms) => {
                periodic::surge(reserve, ms);
                ("surge", Ok(ok(reserve)))
            }
            Step::Compaction(ms) => {
                periodic::compaction(ms);
                ("compaction", Ok(ok(0)))
            }
            Step::Sleep(ms) => {
                thread::sleep(Duration::from_millis(ms));
                ("sleep", Ok(ok(0)))
            }
        };
        match result {
            Ok(outcome) => say(&format!("{name} {outcome} ms={}", start.elapsed().as_millis())),
            Err(e) => say(&format!("error {name}: {e}")),
        }
    }

    fn fill(&mut self, mib: u64) -> std::io::Result<u64> {
        let mut random = Random::from_clock();
        let mut left = mib;
        while left > 0 {
            let piece = left.min(PIECE_MIB);
            let mut mapping = Mapping::new(piece as usize * PAGES_PER_MIB)?;
            random.fill(mapping.words());
            self.filled.push(mapping);
            FILLED.fetch_add(piece, Relaxed);
            left -= piece;
        }
        Ok(mib)
    }

    fn write_file(&mut self, mib: u64) -> std::io::Result<u64> {
        fs::create_dir_all("/run/fill")?;
        // The default limit is half of memory.
        let _ = sys::mount("tmpfs", "/run/fill", "tmpfs", libc::MS_REMOUNT, "size=95%")
            .or_else(|_| sys::mount("tmpfs", "/run/fill", "tmpfs", 0, "size=95%"));
        let mut random = Random::from_clock();
        let mut buffer = vec![0u8; 1 << 20];
        let (mut file, mut size) = match self.tmpfs.take() {
            Some(open) => open,
            None => (File::create("/run/fill/data")?, 0),
        };
        for _ in 0..mib {
            random.fill_bytes(&mut buffer);
            file.seek(SeekFrom::Start(size << 20))?;
            file.write_all(&buffer)?;
            size += 1;
            FILLED.fetch_add(1, Relaxed);
        }
        self.tmpfs = Some((file, size));
        Ok(mib)
    }

    /// Gives back the file's end first, then memory; pieces are not split. Returns the MiB that
    /// were given back.
    fn free(&mut self, mib: u64) -> u64 {
        let mut freed = 0;
        if let Some((file, size)) = &mut self.tmpfs {
            freed = mib.min(*size);
            *size -= freed;
            let _ = file.set_len(*size << 20);
        }
        while freed < mib {
            if let Some(mapping) = self.filled.pop() {
                freed += (mapping.pages() / PAGES_PER_MIB) as u64;
            } else {
                break;
            }
        }
        FILLED.fetch_sub(freed, Relaxed);
        freed
    }

    fn hog(&mut self, mib: u64) -> std::io::Result<u64> {
        if mib == 0 {
            self.hogged.clear();
            HOGGED.store(0, Relaxed);
            return Ok(0);
        }
        for _ in 0..mib {
            let mut mapping = Mapping::new(PAGES_PER_MIB)?;
            mapping
                .words()
                .iter_mut()
                .step_by(WORDS)
                .enumerate()
                .for_each(|(i, word)| *word = i as u64 + 1);
            self.hogged.push(mapping);
            HOGGED.fetch_add(1, Relaxed);
        }
        Ok(mib)
    }

    /// Reads again what was cached before.
    fn cache(&mut self, mib: u64) -> std::io::Result<String> {
        let found = self.cached.take().map(|cache| cache.look()).transpose()?.unwrap_or_default();
        if mib > 0 {
            self.cached = Some(Cache::fill(mib)?);
        }
        let CacheCheck { intact, dropped, wrong } = found;
        Ok(format!("ok mib={mib} intact={intact} dropped={dropped} wrong={wrong}"))
    }

    /// Returns the MiB that were given back.
    fn scatter(&mut self, mib: u64, order: u64) -> std::io::Result<u64> {
        self.scattered = None;
        if mib == 0 {
            return Ok(0);
        }
        let (memory, freed) = pressure::scatter(mib as usize * PAGES_PER_MIB, order)?;
        self.scattered = Some(memory);
        Ok((freed / PAGES_PER_MIB) as u64)
    }
}

/// Starts the writer (or stops it with 0 MiB). It goes round and round its memory, at most `rate`
/// MiB a second.
fn writer(mib: u64, rate: u64) -> std::io::Result<u64> {
    if WRITER_MIB.load(Relaxed) > 0 {
        WRITER_STOP.store(true, Relaxed);
        while WRITER_MIB.load(Relaxed) > 0 {
            thread::sleep(Duration::from_millis(10));
        }
        WRITER_STOP.store(false, Relaxed);
    }
    if mib == 0 {
        return Ok(0);
    }
    let mut memory = Mapping::new(mib as usize * PAGES_PER_MIB)?;
    WRITER_MIB.store(mib, Relaxed);
    thread::spawn(move || {
        let mut random = Random::from_clock();
        let pages_a_second = rate as f64 * PAGES_PER_MIB as f64;
        let (mut page, mut owed, mut pages) = (0, 0.0, 0u64);
        let mut last = Instant::now();
        while !WRITER_STOP.load(Relaxed) {
            // At most a tenth of a second's work is owed: after a pause there is no burst.
            owed += last.elapsed().as_secs_f64().min(0.1) * pages_a_second;
            last = Instant::now();
            while owed >= 1.0 {
                random.fill(memory.page(page));
                page = (page + 1) % memory.pages();
                pages += 1;
                owed -= 1.0;
            }
            WRITTEN.store(pages / PAGES_PER_MIB as u64, Relaxed);
            thread::sleep(Duration::from_millis(10));
        }
        drop(memory);
        WRITER_MIB.store(0, Relaxed);
    });
    Ok(mib)
}
