//! A model destination.

use std::io;
use std::sync::{Arc, Mutex};

use crate::bitmap::Bitmap;
use crate::traits::*;

/// The destination's memory.
pub(super) struct DestRam {
    pub(super) data: Mutex<Vec<u8>>,
}

impl GuestRam for DestRam {
    fn nr_pages(&self) -> u64 {
        (self.data.lock().unwrap().len() / PAGE_SIZE) as u64
    }

    fn read(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
        Err(io::Error::other("the destination's memory is not read"))
    }

    fn write(&self, first: u64, data: &[u8]) -> io::Result<()> {
        let at = first as usize * PAGE_SIZE;
        self.data.lock().unwrap()[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn zero(&self, first: u64, nr: u64) -> io::Result<()> {
        let at = first as usize * PAGE_SIZE;
        self.data.lock().unwrap()[at..at + nr as usize * PAGE_SIZE].fill(0);
        Ok(())
    }

    fn populated(&self, _: &mut Bitmap) -> io::Result<()> {
        Err(io::Error::other("the destination's memory is not asked"))
    }
}

/// The destination.
#[derive(Default)]
pub(super) struct Dest {
    pub(super) ram: Option<Arc<DestRam>>,
    pub(super) state: Option<Vec<u8>>,
    pub(super) runs: u32,
    pub(super) refuse: bool,
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
        let ram = Arc::new(DestRam { data: Mutex::new(vec![0; nr_pages as usize * PAGE_SIZE]) });
        self.ram = Some(ram.clone());
        Ok(ram)
    }

    fn load(&mut self, state: &[u8]) -> io::Result<()> {
        self.state = Some(state.to_vec());
        Ok(())
    }

    fn run(&mut self) -> io::Result<()> {
        assert!(self.state.is_some(), "run without state");
        self.runs += 1;
        Ok(())
    }
}
