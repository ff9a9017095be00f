//! What a migration costs where little is dirty: a guest of 64 GiB of which 1000 pages are in use.
//! Words of bitmaps are counted, and bitmaps that are made, on the engine's thread.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;

use super::model::Model;
use super::oracle::{config, migrate_over, pair};
use super::streams::linked;
use super::versions::{Noting, Sums};
use crate::bitmap::{Bitmap, cost};
use crate::observe::{Event, Observer};
use crate::traits::*;
use crate::wire::Kind;
use crate::*;

const PAGES: u64 = 1 << 24;
/// Words of a summary: a look at one is what a step costs at least.
const SUMMARY: u64 = PAGES / 64 / 64;
/// Pages that are written in each round, far from each other.
const WRITTEN: u64 = 100;

/// Memory of which little is there.
#[derive(Default)]
struct Sparse(Mutex<BTreeMap<u64, Vec<u8>>>);

impl GuestRam for Sparse {
    fn nr_pages(&self) -> u64 {
        PAGES
    }
    fn read(&self, first: u64, buf: &mut [u8]) -> io::Result<()> {
        let pages = self.0.lock().unwrap();
        for (page, bytes) in (first..).zip(buf.chunks_exact_mut(PAGE_SIZE)) {
            match pages.get(&page) {
                Some(content) => bytes.copy_from_slice(content),
                None => bytes.fill(0),
            }
        }
        Ok(())
    }
    fn write(&self, first: u64, data: &[u8]) -> io::Result<()> {
        let pages = (first..).zip(data.chunks_exact(PAGE_SIZE).map(<[u8]>::to_vec));
        self.0.lock().unwrap().extend(pages);
        Ok(())
    }
    fn zero(&self, first: u64, nr: u64) -> io::Result<()> {
        (first..first + nr).for_each(|page| drop(self.0.lock().unwrap().remove(&page)));
        Ok(())
    }
    fn populated(&self, pages: Range<u64>, out: &mut Bitmap) -> io::Result<()> {
        self.0
            .lock()
            .unwrap()
            .keys()
            .filter(|page| pages.contains(page))
            .for_each(|&page| out.set(page));
        Ok(())
    }
}

/// What it costs so far: words looked at, words of maps made.
fn now() -> [u64; 2] {
    [cost::WORDS.get(), cost::MADE.get()]
}

/// A guest that writes before each harvest, and what its migration had cost at each step.
#[derive(Default)]
struct Guest {
    ram: Arc<Sparse>,
    dirty: Mutex<BTreeSet<u64>>,
    harvests: AtomicU64,
    costs: Mutex<BTreeMap<String, [u64; 2]>>,
}

impl Guest {
    fn write(&self, page: u64) {
        let content = vec![1 + self.harvests.load(SeqCst) as u8; PAGE_SIZE];
        self.ram.write(page, &content).unwrap();
        self.dirty.lock().unwrap().insert(page);
    }
    fn note(&self, step: &str) {
        // The first time: a guest that has left is paused once more.
        self.costs.lock().unwrap().entry(step.into()).or_insert_with(now);
    }
    /// What was looked at and made between two steps.
    fn between(&self, from: &str, to: &str) -> [u64; 2] {
        let costs = self.costs.lock().unwrap();
        [0, 1].map(|at| costs[to][at] - costs[from][at])
    }
}

impl DirtyLog for Guest {
    fn start(&self) -> io::Result<()> {
        self.dirty.lock().unwrap().clear();
        Ok(())
    }
    fn protect(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
    fn harvest(&self, out: &mut Bitmap) -> io::Result<()> {
        let nth = self.harvests.fetch_add(1, SeqCst);
        for n in 0..WRITTEN {
            self.write((n * 160_001 + nth * 77_777) % PAGES);
        }
        std::mem::take(&mut *self.dirty.lock().unwrap()).iter().for_each(|&page| out.set(page));
        Ok(())
    }
    fn stop(&self) -> io::Result<()> {
        Ok(())
    }
}

impl Machine for Guest {
    fn pause(&self) -> io::Result<()> {
        self.note("pause");
        Ok(())
    }
    fn resume(&self) -> io::Result<()> {
        Ok(())
    }
    fn hand_over(&self, _: bool) -> io::Result<()> {
        self.note("hand-over");
        Ok(())
    }
    fn describe(&self, _: u16) -> io::Result<Vec<u8>> {
        Ok(vec![])
    }
    fn save(&self, _: u16) -> io::Result<Vec<u8>> {
        Ok(vec![])
    }
}

struct Watch(Arc<Guest>);

impl Observer for Watch {
    fn observe(&self, event: &Event<'_>) {
        if let Event::Round(round, _) = event {
            self.0.note(&format!("round {}", round.number));
        }
    }
}

impl Progress for Watch {
    fn update(&self, _: &Snapshot) {}
    fn observer(&self) -> Option<Arc<dyn Observer>> {
        Some(Arc::new(Watch(self.0.clone())))
    }
}

#[derive(Default)]
struct There(Arc<Sparse>);

impl DestinationVm for There {
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

#[test]
fn later_rounds_and_the_pause_cost_what_is_dirty() {
    for streams in [1, 2] {
        let guest = Arc::new(Guest::default());
        (0..1000).for_each(|n| guest.write(n * 16_001));
        let vm = SourceVm {
            ram: guest.ram.clone(),
            log: guest.clone(),
            hints: None,
            machine: guest.clone(),
        };
        let there = Arc::new(Sparse::default());
        let mut dest = There(there.clone());
        let (near, far) = if streams == 1 { pair() } else { linked(2, |_| pair()) };
        let receiver = thread::spawn(move || {
            receive(far, &mut dest, &DestinationConfig::default(), &(), &CancelToken::new())
        });
        let cfg = SourceConfig { streams, ..config(HintMode::Auto) };
        let watch = Watch(guest.clone());
        let report = migrate(&vm, near, &cfg, &watch, &CancelToken::new()).unwrap();
        receiver.join().unwrap().unwrap();
        assert!(*guest.ram.0.lock().unwrap() == *there.0.lock().unwrap(), "memory differs");
        // Three rounds, and one in the pause.
        let sent: Vec<_> = report.rounds.iter().map(|round| round.sent).collect();
        assert_eq!(sent, [1000, WRITTEN, WRITTEN, 2 * WRITTEN]);
        for (from, to, looks) in [("round 2", "round 3", 14), ("pause", "hand-over", 8)] {
            let [words, made] = guest.between(from, to);
            let most = looks * SUMMARY + 64 * WRITTEN;
            assert!(words <= most, "{from} to {to}: {words} words, of {most}");
            assert_eq!(made, 0, "{from} to {to}: words of new bitmaps");
        }
    }
}

#[test]
fn connections_share_what_is_little() {
    // 170 pages in use: two frames, as a last round may have, claimed and protected in one go.
    let model = Model::new(256, false, vec![]);
    let sums = [(); 2].map(|()| Sums::default());
    let ends = linked(2, |lane| {
        let (inner, far) = pair();
        let sums = sums[lane as usize].clone();
        (Box::new(Noting { inner, finds_damage: false, sums }), far)
    });
    let cfg = SourceConfig { hints: HintPolicy::Off, streams: 2, ..config(HintMode::Auto) };
    let (report, received, dest) = migrate_over(&model, &cfg, &DestinationConfig::default(), ends);
    assert_eq!((report.unwrap().rounds[0].sent, received.is_ok()), (170, true));
    model.compare(&dest.memory()).unwrap();
    let frames = sums
        .map(|sums| sums.lock().unwrap().iter().filter(|(kind, _)| *kind == Kind::Pages).count());
    assert_eq!(frames, [1, 1]);
}
