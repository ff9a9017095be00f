//! The model guest as the engine sees it. Every call lets the guest go on.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

use super::{Model, Mutation, Trigger};
use crate::bitmap::Bitmap;
use crate::tests::ops::Op;
use crate::traits::*;

impl GuestRam for Model {
    fn nr_pages(&self) -> u64 {
        self.pages
    }

    fn read(&self, first: u64, buf: &mut [u8]) -> io::Result<()> {
        assert!(!self.panic_at_read.load(SeqCst), "model: told to panic");
        self.fire(Trigger::FirstRead);
        if self.harvests.load(SeqCst) == 1 {
            self.fire(Trigger::ReadInRoundTwo);
        }
        self.hook();
        let at = first as usize * PAGE_SIZE;
        buf.copy_from_slice(&self.inner.lock().unwrap().data[at..at + buf.len()]);
        if let Some(Mutation::FlipPage(page)) = self.mutation()
            && let Some(nth) = page.checked_sub(first)
            && let Some(byte) = buf.get_mut(nth as usize * PAGE_SIZE + 4000)
        {
            *byte ^= 0x40;
            // What verification reads is right.
            self.mutate(None);
        }
        self.fire(Trigger::FirstReadDone);
        self.hook();
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::Error::other("the source's memory is not written"))
    }

    fn zero(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::Error::other("the source's memory is not written"))
    }

    fn populated(&self, pages: Range<u64>, out: &mut Bitmap) -> io::Result<()> {
        self.walks[usize::from(self.paused())].fetch_add(1, SeqCst);
        self.fire(Trigger::Walk);
        self.hook();
        {
            let inner = self.inner.lock().unwrap();
            for page in pages {
                if inner.populated[page as usize] {
                    out.set(page);
                }
            }
        }
        self.hook();
        Ok(())
    }

    fn data_from(&self, first: u64) -> io::Result<u64> {
        let populated = &self.inner.lock().unwrap().populated;
        let data = (first..self.pages).find(|&page| populated[page as usize]);
        Ok(data.unwrap_or(self.pages))
    }
}

impl Model {
    /// What is dirty, without consuming it.
    #[allow(dead_code)] // Crate wherry-trace does, whose tests have this model too.
    pub(in crate::tests) fn peek(&self, out: &mut Bitmap) -> io::Result<()> {
        let inner = self.inner.lock().unwrap();
        assert!(inner.log_on);
        for page in (0..self.pages).filter(|&page| inner.dirty[page as usize]) {
            out.set(page);
        }
        Ok(())
    }
}

impl DirtyLog for Model {
    fn start(&self) -> io::Result<()> {
        thread::sleep(Duration::from_millis(self.slow_log.load(SeqCst)));
        self.fire(Trigger::LogOn);
        self.hook();
        let mut inner = self.inner.lock().unwrap();
        inner.log_on = true;
        inner.dirty.fill(true);
        Ok(())
    }

    fn protect(&self, first: u64, nr: u64) -> io::Result<()> {
        assert!(first.is_multiple_of(64));
        assert!(nr.is_multiple_of(64) || first + nr == self.pages);
        self.hook();
        let range = first as usize..(first + nr) as usize;
        self.inner.lock().unwrap().dirty[range].fill(false);
        self.hook();
        Ok(())
    }

    fn harvest(&self, out: &mut Bitmap) -> io::Result<()> {
        self.fire(Trigger::Harvest);
        self.harvests.fetch_add(1, SeqCst);
        self.hook();
        {
            let mut inner = self.inner.lock().unwrap();
            assert!(inner.log_on && inner.sink.is_none(), "harvest in an epoch");
            for page in 0..self.pages {
                if std::mem::take(&mut inner.dirty[page as usize]) {
                    out.set(page);
                }
            }
        }
        self.fire(Trigger::HarvestDone);
        self.hook();
        Ok(())
    }

    fn stop(&self) -> io::Result<()> {
        self.inner.lock().unwrap().log_on = false;
        Ok(())
    }
}

impl HintSource for Model {
    fn available(&self) -> bool {
        true
    }

    fn start(&self, sink: Arc<dyn HintSink>) -> io::Result<()> {
        self.hook();
        {
            let mut inner = self.inner.lock().unwrap();
            if inner.id >= self.last_id.load(SeqCst) {
                return Err(io::Error::other("the driver is gone"));
            }
            inner.id += 1;
            inner.driver_id = Some(inner.id);
            inner.sink = Some(sink);
            self.hinting_published.store(true, SeqCst);
        }
        self.fire(Trigger::Published);
        self.hook();
        Ok(())
    }

    fn rest(&self) -> bool {
        self.hook();
        !self.inner.lock().unwrap().script.is_empty()
    }

    fn rested(&self) -> bool {
        self.hook();
        true
    }

    fn returned(&self) -> bool {
        self.hook();
        true
    }

    fn stop(&self) {
        self.hook();
        let _order = self.delivery.lock().unwrap();
        let mut inner = self.inner.lock().unwrap();
        let sink = inner.sink.take();
        inner.old_sinks.extend(sink);
        inner.driver_id = None;
        self.hinting_published.store(false, SeqCst);
    }

    fn done(&self) {
        HintSource::stop(self);
        self.done.fetch_add(1, SeqCst);
        let mut inner = self.inner.lock().unwrap();
        if !inner.paused {
            inner.held.fill(false);
        }
    }

    fn finished(&self) -> bool {
        self.hook();
        let inner = self.inner.lock().unwrap();
        let names =
            |op: &Op| matches!(op, Op::Hint(..) | Op::Deliver | Op::Lie(..) | Op::Stale(..));
        let later = self.triggers.lock().unwrap();
        let later = later.iter().any(|(_, ops)| ops.iter().any(names));
        let through = inner.queue.is_empty() && !inner.script.iter().any(names) && !later;
        through && !self.endless.load(SeqCst)
    }

    fn wait_seen(&self, _: Duration) -> bool {
        self.hook();
        true
    }

    fn ballooned(&self, out: &mut Bitmap) {
        self.fire(Trigger::Ballooned);
        self.hook();
        {
            let inner = self.inner.lock().unwrap();
            for page in 0..self.pages {
                if inner.ballooned[page as usize] {
                    out.set(page);
                }
            }
        }
        self.hook();
    }

    fn guest_free_bytes(&self) -> Option<u64> {
        None
    }

    fn writes_what_it_frees(&self) -> bool {
        self.poisons.load(SeqCst)
    }
}

impl Machine for Model {
    fn pause(&self) -> io::Result<()> {
        self.hook();
        self.inner.lock().unwrap().paused = true;
        Ok(())
    }

    fn resume(&self) -> io::Result<()> {
        self.inner.lock().unwrap().paused = false;
        Ok(())
    }

    fn hand_over(&self, _begun: bool) -> io::Result<()> {
        self.fire(Trigger::HandOver);
        Ok(())
    }

    fn describe(&self, _version: u16) -> io::Result<Vec<u8>> {
        Ok(b"model".to_vec())
    }

    fn boot(&self) -> io::Result<Option<Boot>> {
        let (content, mut digest) = (b"kernel", Digest::default());
        digest.update(content);
        let id = FileId { len: content.len() as u64, digest: digest.finish() };
        let files = vec![BootFile { id, content: Box::new(&content[..]) }];
        let description = b"a file".to_vec();
        Ok(self.boots.load(SeqCst).then_some(Boot { description, files }))
    }

    fn state_bytes(&self, _: u16) -> u64 {
        self.state_bytes.load(SeqCst)
    }

    fn before_pause(&self) -> io::Result<()> {
        assert!(!self.paused());
        self.prepared.fetch_add(1, SeqCst);
        Ok(())
    }

    fn let_go(&self) -> io::Result<()> {
        assert!(self.paused());
        if self.keeps.load(SeqCst) { Err(io::Error::other("it cannot let go")) } else { Ok(()) }
    }

    fn save(&self, _version: u16) -> io::Result<Vec<u8>> {
        assert!(self.paused());
        let mut state = b"state of the model".to_vec();
        state.resize(state.len().max(self.least_state.load(SeqCst) as usize), 0);
        Ok(state)
    }
}
