//! What the engine needs from the machine that it moves.
//!
//! `vmm` implements these on KVM; the tests implement them on a model guest. The engine knows
//! neither KVM nor virtio.
//!
//! Guest RAM is a flat array of 4 KiB pages numbered `0..nr_pages()`, the RAM regions one after
//! another with no gaps (a *page number* here is therefore **not** a guest frame number above the
//! 32-bit hole).

use std::io::{self, Read, Write};
use std::ops::Range;
use std::sync::Arc;

use crate::bitmap::Bitmap;
pub use crate::units::PAGE_SIZE;
pub use crate::wire::boot::{Digest, FileId};

/// Guest memory, as source or destination. Access may race with running vCPUs; only whole pages are
/// moved.
pub trait GuestRam: Send + Sync {
    /// Number of pages of guest RAM.
    fn nr_pages(&self) -> u64;

    /// Copies pages starting at page `first` into `buf` (a multiple of [`PAGE_SIZE`]). Never
    /// populates a hole.
    fn read(&self, first: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Copies as many pages as `buf` has room for, from page `first` on, and leaves out those that
    /// `keep`, which is given each page's number and its copy, does not want. The others are at the
    /// front of `buf`, one behind the other; returns their length. Never populates a hole.
    ///
    /// So each page can be looked at while it is in the CPU's first cache.
    fn take(&self, first: u64, buf: &mut [u8], keep: &mut Keep<'_>) -> io::Result<usize> {
        self.read(first, buf)?;
        Ok(sift(first, buf, keep))
    }

    /// Writes `data` (a multiple of [`PAGE_SIZE`]) from page `first` on. Destination only.
    fn write(&self, first: u64, data: &[u8]) -> io::Result<()>;

    /// Makes `nr` pages from `first` on read as zero and gives their memory back to the host.
    fn zero(&self, first: u64, nr: u64) -> io::Result<()>;

    /// Sets in `out` the bit of every one of these pages that may hold something other than zero. A
    /// page whose bit stays clear was a hole (reads as zero) at some time during the call. Costs
    /// time by extents, and by the pages in them, and populates nothing.
    fn populated(&self, pages: Range<u64>, out: &mut Bitmap) -> io::Result<()>;

    /// The first page from `first` on that may hold something other than zero; `nr_pages()` or more
    /// if there is none. Costs time by the holes that it skips, so it may be called in the pause.
    fn data_from(&self, first: u64) -> io::Result<u64> {
        Ok(first)
    }

    /// Guest-physical address of a page in bytes, for messages.
    fn address(&self, page: u64) -> u64 {
        page.saturating_mul(PAGE_SIZE as u64)
    }
}

/// Whether [`GuestRam::take`] is to keep a page, by its number and its copy.
pub type Keep<'a> = dyn FnMut(u64, &[u8]) -> bool + 'a;

/// For [`GuestRam::take`]: moves the pages in `buf` that `keep` wants, whose first is number
/// `first`, to the front, and returns their length.
pub fn sift(first: u64, buf: &mut [u8], keep: &mut Keep<'_>) -> usize {
    let mut len = 0;
    for (page, at) in (first..).zip((0..buf.len()).step_by(PAGE_SIZE)) {
        let bytes = at..buf.len().min(at + PAGE_SIZE);
        if keep(page, buf.get(bytes.clone()).unwrap_or_default()) {
            if at != len {
                buf.copy_within(bytes, len);
            }
            len += PAGE_SIZE;
        }
    }
    len
}

/// The dirty log: KVM's log OR the VMM's own writes to guest memory.
///
/// KVM's manual-protect log with all bits initially set: [`start`](DirtyLog::start) protects
/// nothing and calls every page dirty; [`protect`](DirtyLog::protect) write-protects a range and
/// forgets its dirty bits, so that a write after it is seen.
pub trait DirtyLog: Send + Sync {
    /// Turns the log on. Afterwards every page counts as dirty and none is write-protected.
    fn start(&self) -> io::Result<()>;

    /// Write-protects the pages and clears their dirty bits. `first` and `nr` are multiples of 64
    /// (`nr` may also end at the last page of RAM). A write that happens after this returns sets
    /// the page's bit again; read the page only after it returned.
    fn protect(&self, first: u64, nr: u64) -> io::Result<()>;

    /// Sets in `out` the bits of all pages written since they were last protected, and protects
    /// these pages again (a bit once returned is consumed).
    fn harvest(&self, out: &mut Bitmap) -> io::Result<()>;

    /// Turns the log off. Idempotent.
    fn stop(&self) -> io::Result<()>;
}

/// Receives hints: page range `first..first + nr` was free at some time after the current command
/// id was published.
pub trait HintSink: Send + Sync {
    /// One hinted range. Called from the device's thread; must not block on the sender.
    fn hint(&self, first: u64, nr: u64);

    /// Whether the driver had better hint no more under this command id: nothing of it would be
    /// honoured. What it hints all the same is noted.
    fn enough(&self) -> bool {
        false
    }
}

/// Where hints come from: the balloon device.
pub trait HintSource: Send + Sync {
    /// Whether the guest's driver negotiated free page hinting and is live.
    fn available(&self) -> bool;

    /// Publishes a new command id (never one used before) and lets hints flow to `sink`, which
    /// replaces an earlier one.
    fn start(&self, sink: Arc<dyn HintSink>) -> io::Result<()>;

    /// Asks the driver to let the guest do other work for a while. Hints that are on their way
    /// still reach the sink; the next [`start`](HintSource::start) lets the driver go on with what
    /// it has not hinted yet. False, and nothing was done, if it has not begun or is through.
    fn rest(&self) -> bool;

    /// After [`rest`](HintSource::rest): whether the driver has stopped and its last hint has
    /// reached the sink.
    fn rested(&self) -> bool;

    /// Publishes STOP. When this returns, no call into the sink is under way and none follows: the
    /// epoch is closed.
    fn stop(&self);

    /// Publishes DONE: the guest takes its hinted memory back. Implies [`stop`](HintSource::stop).
    /// Idempotent.
    fn done(&self);

    /// After [`done`](HintSource::done): whether the driver takes its memory back before it can see
    /// another id, or is gone. Ask again and again: it may take the driver any time, and some
    /// must be told twice.
    fn returned(&self) -> bool;

    /// Whether the guest has said that it has no more pages to hint under the current id.
    fn finished(&self) -> bool;

    /// Waits up to `timeout` until the driver has read the last published id. Returns whether it
    /// did. One that was hinting reads it between two blocks, stops, and acts on it only then, if
    /// there is no other by that time.
    fn wait_seen(&self, timeout: std::time::Duration) -> bool;

    /// Sets in `out` the bit of every page that is in the balloon now.
    fn ballooned(&self, out: &mut Bitmap);

    /// Bytes that the guest's statistics last called free, if it sends statistics.
    fn guest_free_bytes(&self) -> Option<u64>;

    /// Whether the guest writes every page that it frees, and so all that it takes back after
    /// [`done`](HintSource::done) (virtio 1.3, section 5.5.6.4, `VIRTIO_BALLOON_F_PAGE_POISON`).
    fn writes_what_it_frees(&self) -> bool {
        false
    }
}

/// The machine's vCPUs, devices and their state.
pub trait Machine: Send + Sync {
    /// The guest is about to be paused for the switchover: does beforehand what would take long
    /// then.
    fn before_pause(&self) -> io::Result<()> {
        Ok(())
    }

    /// Stops vCPUs, then devices. When this returns guest memory and state no longer change.
    fn pause(&self) -> io::Result<()>;

    /// Undoes [`pause`](Machine::pause). Only called while this side still owns the guest.
    fn resume(&self) -> io::Result<()>;

    /// The hand-off is about to be sent (`begun`): from here on the machine must refuse to run,
    /// whoever asks. An error means that it is not as [`pause`](Machine::pause) left it, and
    /// nothing is sent. With `begun` false: not a byte was sent after all, it is paused as before.
    fn hand_over(&self, begun: bool) -> io::Result<()>;

    /// What an empty machine like this one is built from, in the machine's own encoding of this
    /// version of the protocol.
    fn describe(&self, version: u16) -> io::Result<Vec<u8>>;

    /// What it boots at a reset, for a destination that can do that. Asked for once in a migration.
    /// `None`: nothing is said, and a reset there ends the guest.
    fn boot(&self) -> io::Result<Option<Boot>> {
        Ok(None)
    }

    /// Bytes that the state takes now in this version of the protocol beyond a few KiB, if it
    /// depends on what the guest does: they are sent in the pause. The machine runs.
    fn state_bytes(&self, _version: u16) -> u64 {
        0
    }

    /// State of all vCPUs and devices, in the same way. Paused machines only.
    fn save(&self, version: u16) -> io::Result<Vec<u8>>;

    /// The state is about to be sent: lets go of what the destination needs to load it. What goes
    /// on here after all takes that back ([`resume`](Machine::resume)).
    fn let_go(&self) -> io::Result<()> {
        Ok(())
    }
}

/// What a machine boots at a reset.
pub struct Boot {
    /// In the machine's own encoding.
    pub description: Vec<u8>,
    /// The files that it takes.
    pub files: Vec<BootFile>,
}

/// A file of it.
pub struct BootFile {
    /// By which a destination knows whether it has it.
    pub id: FileId,
    /// What is in it. Reading does not wait.
    pub content: Box<dyn Read + Send>,
}

/// Everything that a source needs.
#[derive(Clone)]
pub struct SourceVm {
    /// Guest memory.
    pub ram: Arc<dyn GuestRam>,
    /// Its dirty log.
    pub log: Arc<dyn DirtyLog>,
    /// The balloon, if the machine has one.
    pub hints: Option<Arc<dyn HintSource>>,
    /// vCPUs and devices.
    pub machine: Arc<dyn Machine>,
}

/// Where a file goes that is not here.
pub type Sink = Option<Box<dyn Write>>;

/// What the destination builds. Called in this order by the engine; an `Err` at any point refuses
/// the migration.
pub trait DestinationVm {
    /// Builds the empty machine from the source's description and gives its RAM. Refusals (less
    /// CPU, no memory) are errors whose text is sent to the source.
    fn prepare(&mut self, description: &[u8], nr_pages: u64) -> io::Result<Arc<dyn GuestRam>>;

    /// What it boots at a reset, from a source that says so, and the files that takes. Gives for
    /// each where it is to be written, or `None` if it is here. What was written counts from
    /// [`load`](Self::load) on; before that it may be half a file, or another.
    fn boot(&mut self, description: &[u8], files: &[FileId]) -> io::Result<Vec<Sink>> {
        let _ = description;
        Ok(files.iter().map(|_| None).collect())
    }

    /// Loads vCPU and device state, completely, without running anything.
    fn load(&mut self, state: &[u8]) -> io::Result<()>;

    /// Runs the guest. Called once, only after the source's hand-off arrived.
    fn run(&mut self) -> io::Result<()>;
}
