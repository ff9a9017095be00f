//! The second opinion of a verified migration: which pages may differ, judged from outside the
//! engine.
//!
//! [`watch`] puts a layer around the machine's dirty log and balloon. It passes every call on and
//! draws its own conclusions, in code that shares nothing with rounds, sinks and gates. See
//! [`crate::verify`] for the rule, and why the engine's word is not enough.
//!
//! Invariant: a bit in `free` means that the page was hinted under an id, or found in the balloon,
//! while it was write-protected, and that no write since can have been forgotten. Every doubt
//! clears the bit or leaves it clear: then the page must be equal.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::bitmap::{AtomicBitmap, Bitmap, word_masks};
use crate::traits::{DirtyLog, HintSink, HintSource, SourceVm};

/// What was seen.
#[derive(Debug)]
pub(crate) struct Witness {
    nr_pages: u64,
    /// Pages that may differ.
    free: AtomicBitmap,
    /// Words of 64 pages that are write-protected.
    protected: AtomicBitmap,
    /// Words protected twice since the last harvest: writes to them may have been forgotten, so no
    /// hint is believed for them.
    twice: AtomicBitmap,
}

impl Witness {
    /// The pages that may differ.
    pub(crate) fn free(&self) -> Bitmap {
        self.free.snapshot()
    }

    fn new(nr_pages: u64) -> Self {
        let words = nr_pages.div_ceil(64);
        Self {
            nr_pages,
            free: AtomicBitmap::new(nr_pages),
            protected: AtomicBitmap::new(words),
            twice: AtomicBitmap::new(words),
        }
    }

    fn excuse(&self, first: u64, nr: u64, believed: impl Fn(u64) -> bool) {
        for (word, mask) in word_masks(self.nr_pages, first, nr) {
            if believed(word as u64) {
                self.free.set_mask(word, mask);
            }
        }
    }
}

/// The machine with the witness in between.
pub(crate) fn watch(vm: &SourceVm) -> (SourceVm, Arc<Witness>) {
    let witness = Arc::new(Witness::new(vm.ram.nr_pages()));
    let mut watched = vm.clone();
    watched.log = Arc::new(Log { inner: vm.log.clone(), witness: witness.clone() });
    watched.hints = vm.hints.clone().map(|inner| -> Arc<dyn HintSource> {
        Arc::new(Hints { inner, witness: witness.clone(), epoch: Mutex::default() })
    });
    (watched, witness)
}

struct Log {
    inner: Arc<dyn DirtyLog>,
    witness: Arc<Witness>,
}

impl DirtyLog for Log {
    fn start(&self) -> io::Result<()> {
        for word in 0..self.witness.protected.nr_words() {
            self.witness.protected.take(word);
        }
        self.inner.start()
    }

    fn protect(&self, first: u64, nr: u64) -> io::Result<()> {
        let words = first / 64..(first + nr).div_ceil(64);
        for word in words.clone().filter(|&word| self.witness.protected.test(word)) {
            self.witness.twice.set(word);
            self.witness.free.take(word as usize);
        }
        self.inner.protect(first, nr)?;
        for word in words {
            self.witness.protected.set(word);
        }
        Ok(())
    }

    fn harvest(&self, out: &mut Bitmap) -> io::Result<()> {
        self.inner.harvest(out)?;
        for (word, &written) in out.words().iter().enumerate() {
            self.witness.free.clear_mask(word, written);
        }
        // What was not protected before was dirty, and what was dirty is protected now.
        let words = &self.witness.protected;
        for bit in 0..words.len() {
            words.set(bit);
        }
        for word in 0..self.witness.twice.nr_words() {
            self.witness.twice.take(word);
        }
        Ok(())
    }

    fn stop(&self) -> io::Result<()> {
        self.inner.stop()
    }
}

/// Hints of one id.
struct Epoch {
    inner: Arc<dyn HintSink>,
    witness: Arc<Witness>,
    /// Words that were protected before the id was published.
    before: Bitmap,
    open: AtomicBool,
}

impl HintSink for Epoch {
    fn hint(&self, first: u64, nr: u64) {
        if self.open.load(Ordering::Acquire) {
            let witness = &self.witness;
            witness.excuse(first, nr, |word| self.before.test(word) && !witness.twice.test(word));
        }
        self.inner.hint(first, nr);
    }
}

struct Hints {
    inner: Arc<dyn HintSource>,
    witness: Arc<Witness>,
    epoch: Mutex<Option<Arc<Epoch>>>,
}

impl Hints {
    fn close(&self, next: Option<Arc<Epoch>>) {
        let mut epoch = self.epoch.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = std::mem::replace(&mut *epoch, next) {
            old.open.store(false, Ordering::Release);
        }
    }
}

impl HintSource for Hints {
    fn available(&self) -> bool {
        self.inner.available()
    }

    fn start(&self, sink: Arc<dyn HintSink>) -> io::Result<()> {
        let epoch = Arc::new(Epoch {
            inner: sink,
            witness: self.witness.clone(),
            before: self.witness.protected.snapshot(),
            open: AtomicBool::new(true),
        });
        self.close(Some(epoch.clone()));
        self.inner.start(epoch)
    }

    fn rest(&self) -> bool {
        self.inner.rest()
    }

    fn rested(&self) -> bool {
        self.inner.rested()
    }

    fn returned(&self) -> bool {
        self.inner.returned()
    }

    fn stop(&self) {
        self.inner.stop();
        self.close(None);
    }

    fn done(&self) {
        self.inner.done();
        self.close(None);
    }

    fn finished(&self) -> bool {
        self.inner.finished()
    }

    fn wait_seen(&self, timeout: Duration) -> bool {
        self.inner.wait_seen(timeout)
    }

    fn ballooned(&self, out: &mut Bitmap) {
        self.inner.ballooned(out);
        for (first, nr) in out.runs() {
            self.witness.excuse(first, nr, |word| self.witness.protected.test(word));
        }
    }

    fn guest_free_bytes(&self) -> Option<u64> {
        self.inner.guest_free_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::idle_model;

    struct Deaf;
    impl HintSink for Deaf {
        fn hint(&self, _: u64, _: u64) {}
    }

    fn free(witness: &Witness) -> Vec<(u64, u64)> {
        witness.free().runs().collect()
    }

    #[test]
    fn only_hints_of_an_open_id_about_pages_protected_before_it_are_believed() {
        let (vm, witness) = watch(&idle_model(64 * 4 + 5));
        let hints =
            Hints { inner: vm.hints.unwrap(), witness: witness.clone(), epoch: Mutex::default() };
        vm.log.start().unwrap();
        vm.log.protect(64, 64).unwrap();
        hints.start(Arc::new(Deaf)).unwrap();
        let epoch = hints.epoch.lock().unwrap().clone().unwrap();
        vm.log.protect(128, 64).unwrap();
        epoch.hint(60, 100);
        assert_eq!(
            free(&witness),
            [(64, 64)],
            "the words around were not protected when the id was published"
        );
        epoch.hint(u64::MAX, u64::MAX);
        // Protecting again forgets writes: no excuse, not even by another hint.
        vm.log.protect(64, 64).unwrap();
        epoch.hint(64, 64);
        assert_eq!(free(&witness), []);
        hints.stop();
        vm.log.harvest(&mut Bitmap::new(witness.nr_pages)).unwrap();
        epoch.hint(64, 64);
        assert_eq!(free(&witness), [], "the epoch is closed");

        hints.start(Arc::new(Deaf)).unwrap();
        let epoch = hints.epoch.lock().unwrap().clone().unwrap();
        epoch.hint(256, 100);
        epoch.hint(3, 2);
        hints.done();
        assert_eq!(free(&witness), [(3, 2), (256, 5)], "the harvest has protected everything");
    }
}
