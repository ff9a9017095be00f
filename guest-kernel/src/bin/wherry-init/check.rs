//! Memory that notices when one of its pages is lost or stale.
//!
//! The content of every page is a function of its number and its version. The versions are kept in
//! a table elsewhere, so a page that comes out of a migration with an older version, as zeros or as
//! another page disagrees with the table, and is reported by number and guest-physical address.
//! Pages of the area `rw` are verified and then rewritten with the next version, all the time and
//! in random order; pages of `ro`, a quarter of all, are written once at start, so that they travel
//! in the first round or never.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::mem::{Mapping, PAGE, Random, WORDS};
use crate::serial::say;
use crate::sys::monotonic_ns;

/// Marks a page of ours; the low half is the page's number.
const MAGIC: u64 = 0x5745_5252 << 32;
/// After so many reports only the count goes on.
const REPORTS: u64 = 20;

static CHECKED: AtomicU64 = AtomicU64::new(0);
static BAD: AtomicU64 = AtomicU64::new(0);

/// Pages verified and mismatches found so far.
pub fn counts() -> (u64, u64) {
    (CHECKED.load(Relaxed), BAD.load(Relaxed))
}

/// The self-checking memory.
#[derive(Debug)]
pub struct Check {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    memory: Mapping,
    versions: Vec<u32>,
    /// Pages from here on are never rewritten.
    read_only_from: usize,
}

fn write_page(words: &mut [u64], page: usize, version: u32) {
    words[0] = MAGIC | page as u64;
    words[1] = u64::from(version);
    pattern(page, version).fill(&mut words[2..]);
}

fn pattern(page: usize, version: u32) -> Random {
    Random::new((page as u64) << 32 | u64::from(version))
}

/// Index of the first word that is not what it should be.
fn first_bad_word(words: &[u64], page: usize, version: u32) -> Option<usize> {
    let mut random = pattern(page, version);
    let expected = [MAGIC | page as u64, u64::from(version)];
    let expected = expected.into_iter().chain(std::iter::repeat_with(move || random.word()));
    words.iter().zip(expected).position(|(&found, expected)| found != expected)
}

/// What a bad page holds instead: `zero`, `version-N` (a whole page of another version), `page-N`
/// or `mixed`.
fn describe(words: &[u64], page: usize) -> String {
    let (head, version) = (words[0], words[1]);
    if words.iter().all(|&w| w == 0) {
        "zero".into()
    } else if head >> 32 == MAGIC >> 32 && head as u32 as usize != page {
        format!("page-{}", head as u32)
    } else if first_bad_word(words, page, version as u32).is_none() {
        format!("version-{version}")
    } else {
        "mixed".into()
    }
}

impl State {
    /// Verifies one page; reports and repairs it when it is bad, so that one loss is counted once.
    fn verify(&mut self, page: usize) -> bool {
        CHECKED.fetch_add(1, Relaxed);
        let version = self.versions[page];
        let Some(word) = first_bad_word(self.memory.page(page), page, version) else { return true };
        if BAD.fetch_add(1, Relaxed) < REPORTS {
            let found = describe(self.memory.page(page), page);
            let gpa = self.memory.physical(page).unwrap_or(0);
            let area = if page < self.read_only_from { "rw" } else { "ro" };
            say(&format!(
                "BAD page={page} area={area} gpa={gpa:#x} expected=version-{version} found={found} \
                 first_bad_word={word}"
            ));
        }
        write_page(self.memory.page(page), page, version);
        false
    }

    fn step(&mut self, random: &mut Random) {
        let page = random.word() as usize % self.versions.len();
        self.verify(page);
        if page < self.read_only_from {
            self.versions[page] = self.versions[page].wrapping_add(1);
            let version = self.versions[page];
            write_page(self.memory.page(page), page, version);
        }
    }
}

impl Check {
    /// Writes version 1 of every page of `mib` MiB; less when there is not so much memory.
    pub fn new(mib: u64) -> Self {
        let pages = (mib as usize) << 20 >> PAGE.trailing_zeros();
        let memory = Mapping::new(pages.max(1))
            .unwrap_or_else(|e| panic!("no {mib} MiB of memory to check: {e}"));
        memory.small_pages();
        let pages = memory.pages();
        let mut state =
            State { memory, versions: vec![1; pages], read_only_from: pages - pages / 4 };
        debug_assert_eq!(WORDS * 8, PAGE);
        for page in 0..pages {
            write_page(state.memory.page(page), page, 1);
        }
        Self { state: Mutex::new(state) }
    }

    /// Verifies every page once; returns how many there are and how many were bad.
    pub fn verify_all(&self) -> (usize, usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let pages = state.versions.len();
        let bad = (0..pages).filter(|&page| !state.verify(page)).count();
        (pages, bad)
    }

    /// Spoils one page, to show that the check works.
    pub fn spoil(&self, page: usize) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let exists = page < state.versions.len();
        if exists {
            state.memory.page(page).fill(0);
        }
        exists
    }
}

/// Starts the thread that verifies and rewrites about `rate` pages a second; 0 for none.
pub fn start(check: Arc<Check>, rate: u64) {
    if rate == 0 {
        return;
    }
    thread::spawn(move || {
        let mut random = Random::from_clock();
        let (mut last, mut owed) = (monotonic_ns(), 0.0);
        loop {
            thread::sleep(Duration::from_millis(10));
            let now = monotonic_ns();
            // At most a tenth of a second's work is owed: after a pause there is no burst.
            owed += (now.saturating_sub(last) as f64 / 1e9).min(0.1) * rate as f64;
            last = now;
            let mut state = check.state.lock().unwrap_or_else(PoisonError::into_inner);
            while owed >= 1.0 {
                state.step(&mut random);
                owed -= 1.0;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_loss_is_seen() {
        let mut page = vec![0; WORDS];
        write_page(&mut page, 7, 3);
        assert_eq!(first_bad_word(&page, 7, 3), None);
        assert_eq!(first_bad_word(&page, 7, 4), Some(1));
        assert_eq!(describe(&page, 7), "version-3");
        assert_eq!(describe(&page, 8), "page-7");
        page[500] ^= 1;
        assert_eq!(first_bad_word(&page, 7, 3), Some(500));
        assert_eq!(describe(&page, 7), "mixed");
        assert_eq!(describe(&vec![0; WORDS], 7), "zero");
    }

    #[test]
    fn spoiled_pages_are_found_once() {
        let check = Check::new(1);
        assert_eq!(check.verify_all(), (256, 0));
        assert!(check.spoil(255) && !check.spoil(256));
        assert_eq!(check.verify_all(), (256, 1));
        assert_eq!(check.verify_all(), (256, 0));
    }
}
