//! Moves a guest over a pair of sockets, within one process: what a machine has to offer to the
//! engine, and how little that is.
//!
//! The guest is a model: memory, and one "vCPU" that counts and writes each number to the next
//! page. So its memory is a function of its count, and a page that is lost or stale is seen.
//!
//! `cargo run --package wherry-migration --example socket_pair`

use std::io;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use wherry_migration::bitmap::Bitmap;
use wherry_migration::traits::{DestinationVm, DirtyLog, GuestRam, Machine, PAGE_SIZE, SourceVm};
use wherry_migration::{CancelToken, DestinationConfig, SourceConfig, migrate, receive};

const NR_PAGES: u64 = 4096;

/// The whole machine. A page that was never written is a hole, which is never sent.
struct Guest {
    pages: Vec<Mutex<Option<Box<[u8]>>>>,
    /// Pages written since they were last protected, while the log is on.
    dirty: Mutex<Option<Bitmap>>,
    cpu: Mutex<Cpu>,
}

#[derive(Default)]
struct Cpu {
    runs: bool,
    count: u64,
}

impl Guest {
    fn new(nr_pages: u64) -> Arc<Self> {
        let pages = (0..nr_pages).map(|_| Mutex::new(None)).collect();
        Arc::new(Self { pages, dirty: Mutex::default(), cpu: Mutex::default() })
    }

    fn start(self: &Arc<Self>) {
        self.cpu.lock().unwrap().runs = true;
        let guest = self.clone();
        thread::spawn(move || {
            while guest.step() {
                thread::sleep(Duration::from_micros(50));
            }
        });
    }

    /// One instruction; false if the vCPU is stopped. Whoever holds the lock sees no half of one.
    fn step(&self) -> bool {
        let mut cpu = self.cpu.lock().unwrap();
        if cpu.runs {
            cpu.count += 1;
            // Half of memory stays empty.
            let page = cpu.count % (NR_PAGES / 2);
            let mut content = vec![0; PAGE_SIZE];
            content[..8].copy_from_slice(&cpu.count.to_le_bytes());
            *self.pages[page as usize].lock().unwrap() = Some(content.into());
            // After the write: what is read before this is read again.
            if let Some(dirty) = &mut *self.dirty.lock().unwrap() {
                dirty.set(page);
            }
        }
        cpu.runs
    }

    /// Whether every page holds the last number that the vCPU has written to it.
    fn is_whole(&self) -> bool {
        let count = self.cpu.lock().unwrap().count;
        (count.saturating_sub(NR_PAGES / 2 - 1).max(1)..=count).all(|number| {
            let page = self.pages[(number % (NR_PAGES / 2)) as usize].lock().unwrap();
            page.as_ref().is_some_and(|page| page[..8] == number.to_le_bytes())
        })
    }
}

impl GuestRam for Guest {
    fn nr_pages(&self) -> u64 {
        self.pages.len() as u64
    }

    fn read(&self, first: u64, buf: &mut [u8]) -> io::Result<()> {
        for (page, out) in self.pages[first as usize..].iter().zip(buf.chunks_mut(PAGE_SIZE)) {
            match &*page.lock().unwrap() {
                Some(content) => out.copy_from_slice(content),
                None => out.fill(0),
            }
        }
        Ok(())
    }

    fn write(&self, first: u64, data: &[u8]) -> io::Result<()> {
        for (page, content) in self.pages[first as usize..].iter().zip(data.chunks(PAGE_SIZE)) {
            *page.lock().unwrap() = Some(content.into());
        }
        Ok(())
    }

    fn zero(&self, first: u64, nr: u64) -> io::Result<()> {
        let pages = &self.pages[first as usize..][..nr as usize];
        pages.iter().for_each(|page| *page.lock().unwrap() = None);
        Ok(())
    }

    fn populated(&self, range: Range<u64>, out: &mut Bitmap) -> io::Result<()> {
        let pages = self.pages.iter().zip(0..).filter(|(_, n)| range.contains(n));
        pages.filter(|(page, _)| page.lock().unwrap().is_some()).for_each(|(_, n)| out.set(n));
        Ok(())
    }
}

impl DirtyLog for Guest {
    fn start(&self) -> io::Result<()> {
        *self.dirty.lock().unwrap() = Some(Bitmap::full(self.nr_pages()));
        Ok(())
    }

    fn protect(&self, first: u64, nr: u64) -> io::Result<()> {
        if let Some(dirty) = &mut *self.dirty.lock().unwrap() {
            dirty.clear_range(first, nr);
        }
        Ok(())
    }

    fn harvest(&self, out: &mut Bitmap) -> io::Result<()> {
        if let Some(dirty) = &mut *self.dirty.lock().unwrap() {
            out.or(dirty);
            *dirty = Bitmap::new(dirty.len());
        }
        Ok(())
    }

    fn stop(&self) -> io::Result<()> {
        *self.dirty.lock().unwrap() = None;
        Ok(())
    }
}

/// The source's machine; here it and its memory are one.
struct Source(Arc<Guest>);

impl Machine for Source {
    fn pause(&self) -> io::Result<()> {
        self.0.cpu.lock().unwrap().runs = false;
        Ok(())
    }

    fn resume(&self) -> io::Result<()> {
        self.0.start();
        Ok(())
    }

    fn hand_over(&self, _begun: bool) -> io::Result<()> {
        // A real machine refuses `resume` from here on.
        Ok(())
    }

    fn describe(&self, _version: u16) -> io::Result<Vec<u8>> {
        Ok(b"a guest that counts".to_vec())
    }

    fn save(&self, _version: u16) -> io::Result<Vec<u8>> {
        Ok(self.0.cpu.lock().unwrap().count.to_le_bytes().to_vec())
    }
}

/// What the destination builds: nothing yet.
#[derive(Default)]
struct Destination(Option<Arc<Guest>>);

impl Destination {
    fn guest(&self) -> io::Result<&Arc<Guest>> {
        self.0.as_ref().ok_or_else(|| io::Error::other("nothing was prepared"))
    }
}

impl DestinationVm for Destination {
    fn prepare(&mut self, description: &[u8], nr_pages: u64) -> io::Result<Arc<dyn GuestRam>> {
        if description != b"a guest that counts" {
            return Err(io::Error::other("this host has no such guests"));
        }
        Ok(self.0.insert(Guest::new(nr_pages)).clone())
    }

    fn load(&mut self, state: &[u8]) -> io::Result<()> {
        let count = state.try_into().map_err(|_| io::Error::other("not the state of a counter"))?;
        self.guest()?.cpu.lock().unwrap().count = u64::from_le_bytes(count);
        Ok(())
    }

    fn run(&mut self) -> io::Result<()> {
        self.guest()?.start();
        Ok(())
    }
}

/// Moves a guest that runs, and looks at it afterwards.
pub fn main() {
    let guest = Guest::new(NR_PAGES);
    // It has counted for a while already.
    guest.cpu.lock().unwrap().runs = true;
    (0..10_000).for_each(|_| assert!(guest.step()));
    guest.start();

    let (here, there) = UnixStream::pair().expect("a pair of sockets");
    let destination = thread::spawn(move || {
        let (mut vm, config) = (Destination::default(), DestinationConfig::default());
        let received = receive(Box::new(there), &mut vm, &config, &(), &CancelToken::new());
        (received, vm)
    });
    let source = SourceVm {
        ram: guest.clone(),
        log: guest.clone(),
        hints: None,
        machine: Arc::new(Source(guest.clone())),
    };
    let config = SourceConfig::default();
    let report = migrate(&source, Box::new(here), &config, &(), &CancelToken::new())
        .expect("the guest is moved");
    let (received, vm) = destination.join().expect("the destination does not panic");
    assert!(received.expect("the guest has arrived").acknowledged);

    let moved = vm.guest().expect("there is a guest");
    while moved.cpu.lock().unwrap().count <= guest.cpu.lock().unwrap().count {
        thread::yield_now();
    }
    assert!(!guest.cpu.lock().unwrap().runs, "it must not run twice");
    moved.cpu.lock().unwrap().runs = false;
    assert!(moved.is_whole() && guest.is_whole());
    println!(
        "moved {} pages in {} rounds: {} sent, {} bytes; paused for {} µs",
        report.nr_pages,
        report.rounds.len(),
        report.sent,
        report.total_bytes,
        report.downtime.total_us,
    );
}
