//! The source's machine as the engine's traits want it: hints, and pausing.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use wherry_devices::virtio::balloon::{BalloonHandle, HintRange};
use wherry_migration::bitmap::Bitmap;
use wherry_migration::traits::{Boot, BootFile, HintSink, HintSource, Machine as EngineMachine};

use crate::boot::kept::Kept;
use crate::disks::FLUSH_RUNNING;
use crate::life::Event;
use crate::life::owner::Owner;
use crate::machine::Machine;
use crate::machine::offer::Offer;
use crate::memory::Ram;

/// The balloon as a source of hints: guest-physical ranges become page numbers.
pub struct Hints {
    /// What the ranges are of.
    pub ram: Arc<Ram>,
    /// Who names them.
    pub balloon: BalloonHandle,
}

struct Translate {
    ram: Arc<Ram>,
    sink: Arc<dyn HintSink>,
}

impl HintRange for Translate {
    fn range(&self, gpa: u64, len: u64) {
        self.ram.for_pages(gpa, len, |first, nr| self.sink.hint(first, nr));
    }

    fn enough(&self) -> bool {
        self.sink.enough()
    }
}

impl HintSource for Hints {
    fn available(&self) -> bool {
        self.balloon.hints_available()
    }

    fn start(&self, sink: Arc<dyn HintSink>) -> io::Result<()> {
        let sink = Arc::new(Translate { ram: self.ram.clone(), sink });
        self.balloon.hint_start(sink).map(drop).map_err(io::Error::other)
    }

    fn rest(&self) -> bool {
        self.balloon.hint_rest()
    }

    fn rested(&self) -> bool {
        self.balloon.hint_rested()
    }

    fn stop(&self) {
        self.balloon.hint_stop();
    }

    fn done(&self) {
        self.balloon.hint_done();
    }

    fn returned(&self) -> bool {
        self.balloon.hint_returned()
    }

    fn finished(&self) -> bool {
        self.balloon.hint_finished()
    }

    fn wait_seen(&self, timeout: Duration) -> bool {
        self.balloon.wait_id_seen(timeout)
    }

    fn ballooned(&self, out: &mut Bitmap) {
        // Both number the pages of all RAM alike.
        if !self.balloon.ballooned_words(|word, pages| out.or_word(word, pages)) {
            out.clear_all();
        }
    }

    fn guest_free_bytes(&self) -> Option<u64> {
        self.balloon.guest_free_bytes()
    }

    fn writes_what_it_frees(&self) -> bool {
        self.balloon.poisons()
    }
}

/// vCPUs and devices of a machine that runs, or that its user had paused.
pub struct SourceMachine {
    /// The machine.
    pub machine: Arc<Machine>,
    /// Who stops it, starts it and gives it away.
    pub owner: Arc<Owner<Machine>>,
    /// Whether the guest runs: before, after a failure, and at the destination.
    pub run: bool,
    /// What a destination is told of its resets.
    pub offer: Offer,
}

impl SourceMachine {
    fn event(&self, event: Event) -> io::Result<()> {
        self.owner.event(event).map(drop).map_err(io::Error::other)
    }
}

impl EngineMachine for SourceMachine {
    fn before_pause(&self) -> io::Result<()> {
        self.machine.disks().flush(FLUSH_RUNNING)
    }

    fn pause(&self) -> io::Result<()> {
        self.event(Event::Hold)
    }

    fn resume(&self) -> io::Result<()> {
        self.event(Event::Release)
    }

    fn hand_over(&self, begun: bool) -> io::Result<()> {
        self.event(if begun { Event::HandOver } else { Event::TakeBack })
    }

    fn describe(&self, version: u16) -> io::Result<Vec<u8>> {
        self.machine.description().encode(version).map_err(io::Error::other)
    }

    fn boot(&self) -> io::Result<Option<Boot>> {
        let description = self.machine.description().encode_reset(self.offer.reset);
        let description = description.map_err(io::Error::other)?;
        let file = |kept: &Kept| BootFile { id: kept.id(), content: Box::new(kept.part()) };
        let files = self.offer.files.iter().map(file).collect();
        Ok(Some(Boot { description, files }))
    }

    fn state_bytes(&self, version: u16) -> u64 {
        self.machine.state_bytes(version)
    }

    fn save(&self, version: u16) -> io::Result<Vec<u8>> {
        let state = self.machine.save(self.run, version);
        let state = state.map_err(|e| io::Error::other(format!("{e:#}")))?;
        state.encode(version).map_err(io::Error::other)
    }

    fn let_go(&self) -> io::Result<()> {
        self.machine.disks().let_go()
    }
}
