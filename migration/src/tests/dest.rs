//! A model destination.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::model::Mutation;
use crate::bitmap::Bitmap;
use crate::traits::*;

/// The destination's memory.
pub(super) struct DestRam {
    pub(super) data: Mutex<Vec<u8>>,
    /// Whether writing page 0 takes until it was zeroed, or for long.
    dawdles: bool,
    zeroed: (Mutex<bool>, Condvar),
    mutation: Option<Mutation>,
}

impl GuestRam for DestRam {
    fn nr_pages(&self) -> u64 {
        (self.data.lock().unwrap().len() / PAGE_SIZE) as u64
    }

    fn read(&self, first: u64, buf: &mut [u8]) -> io::Result<()> {
        let at = first as usize * PAGE_SIZE;
        buf.copy_from_slice(&self.data.lock().unwrap()[at..at + buf.len()]);
        Ok(())
    }

    fn write(&self, first: u64, data: &[u8]) -> io::Result<()> {
        if self.dawdles && first == 0 {
            let (zeroed, changed) = &self.zeroed;
            let long = Duration::from_millis(200);
            drop(changed.wait_timeout_while(zeroed.lock().unwrap(), long, |zeroed| !*zeroed));
        }
        let mut own = self.data.lock().unwrap();
        for (page, bytes) in (first..).zip(data.chunks_exact(PAGE_SIZE)) {
            if self.mutation != Some(Mutation::DropPage(page)) {
                let at = page as usize * PAGE_SIZE;
                own[at..at + PAGE_SIZE].copy_from_slice(bytes);
            }
        }
        Ok(())
    }

    fn zero(&self, first: u64, nr: u64) -> io::Result<()> {
        let at = first as usize * PAGE_SIZE;
        self.data.lock().unwrap()[at..at + nr as usize * PAGE_SIZE].fill(0);
        *self.zeroed.0.lock().unwrap() |= first == 0;
        self.zeroed.1.notify_all();
        Ok(())
    }

    fn populated(&self, _: Range<u64>, _: &mut Bitmap) -> io::Result<()> {
        Err(io::Error::other("the destination has no time to look at all of its memory"))
    }

    fn data_from(&self, first: u64) -> io::Result<u64> {
        let data = self.data.lock().unwrap();
        let mut pages = (0u64..).zip(data.chunks_exact(PAGE_SIZE)).skip(first as usize);
        // Every third page counts as data though it may be zero.
        let found = pages.find(|(page, bytes)| page % 3 == 0 || bytes.iter().any(|&b| b != 0));
        Ok(found.map_or(u64::MAX, |(page, _)| page))
    }
}

/// The destination.
#[derive(Default)]
pub(super) struct Dest {
    pub(super) ram: Option<Arc<DestRam>>,
    pub(super) state: Option<Vec<u8>>,
    pub(super) runs: u32,
    pub(super) refuse: bool,
    /// The state does not load.
    pub(super) spoiled: bool,
    /// It has died by the time it is to run.
    pub(super) dead: bool,
    /// See [`DestRam`].
    pub(super) dawdles: bool,
    pub(super) mutation: Option<Mutation>,
    /// So many of the last pages hold something before anything was sent.
    pub(super) stray: usize,
}

impl Dest {
    pub(super) fn memory(&self) -> Vec<u8> {
        self.ram.as_ref().unwrap().data.lock().unwrap().clone()
    }
}

impl DestinationVm for Dest {
    fn prepare(&mut self, description: &[u8], nr_pages: u64) -> io::Result<Arc<dyn GuestRam>> {
        if self.refuse || description != b"model" || nr_pages > 1 << 20 {
            return Err(io::Error::other("no room for this guest"));
        }
        let mut data = vec![0; nr_pages as usize * PAGE_SIZE];
        for page in data.chunks_exact_mut(PAGE_SIZE).rev().take(self.stray) {
            page[77] = 1;
        }
        let ram = Arc::new(DestRam {
            data: Mutex::new(data),
            dawdles: self.dawdles,
            zeroed: Default::default(),
            mutation: self.mutation,
        });
        self.ram = Some(ram.clone());
        Ok(ram)
    }

    fn boot(&mut self, _: &[u8], files: &[FileId]) -> io::Result<Vec<Sink>> {
        Ok(files.iter().map(|_| Some(Box::new(io::sink()) as _)).collect())
    }

    fn load(&mut self, state: &[u8]) -> io::Result<()> {
        if self.spoiled {
            return Err(io::Error::other("no such state"));
        }
        self.state = Some(state.to_vec());
        if self.mutation == Some(Mutation::RunBeforeHandOff) {
            return self.run();
        }
        Ok(())
    }

    fn run(&mut self) -> io::Result<()> {
        assert!(self.state.is_some(), "run without state");
        if self.dead {
            return Err(io::Error::other("died on arrival"));
        }
        self.runs += 1;
        Ok(())
    }
}
