//! The destination's side of a migration.
//!
//! It trusts nothing that comes over the wire: every frame passes the checks in [`crate::wire`], only the kinds that are legal in the
//! present phase are let in, page runs are checked against guest RAM before a byte is written, the state's length is limited
//! and its checksum compared. Whatever is wrong ends the migration with an error, told to the source in an Abort; nothing panics and
//! nothing is allocated beyond the frame limits and [`MAX_STATE`].
//!
//! Phases: greeting → memory (rounds of pages) → (digests of it, if the source wants to verify) → state → loaded, waiting → **HandOff** → running.
//!
//! Invariant: [`DestinationVm::run`] is called once, after HandOff arrived whole, and never without it. Ownership in a [`Failure`]:
//! until this side has said Loaded the source cannot have sent HandOff, so the guest is the source's. After that, an Abort
//! from the source still proves it (the source aborts only before HandOff); a broken connection proves nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::control::CancelToken;
use crate::error::{Error, Failure, Ownership, Phase};
use crate::link::{FrameReader, FrameWriter, Interrupt};
use crate::report::{HintFigures, Progress, Snapshot};
use crate::source::describe;
use crate::traits::{DestinationVm, GuestRam, PAGE_SIZE};
use crate::transport::Transport;
use crate::verify::{Digester, chunk_at};
use crate::wire::digests::Digests;
use crate::wire::pages::{Run, parse, parse_lz4};
use crate::wire::{
    FEATURE_LZ4, FEATURE_VERIFY, FEATURES, Hello, Kind, MAX_STATE, RoundStart, StateEnd, VerifyChunk,
    Welcome, WireError,
};

/// How to receive.
#[derive(Clone, Debug)]
pub struct DestinationConfig {
    /// Give a source up that sends nothing for this long. The source shows signs of life every second.
    pub stall_timeout: Duration,
    /// Most pages of guest RAM to accept; the machine may refuse less in [`DestinationVm::prepare`].
    pub max_pages: u64,
    /// A deliberate mistake, for the tests that show that they notice.
    #[cfg(test)]
    pub(crate) mutation: Option<crate::tests::Mutation>,
}

impl Default for DestinationConfig {
    fn default() -> Self {
        Self {
            stall_timeout: Duration::from_secs(30),
            max_pages: (1 << 44) / PAGE_SIZE as u64,
            #[cfg(test)]
            mutation: None,
        }
    }
}

/// A guest that arrived and runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes received.
    pub bytes: u64,
    /// Whether the source could be told that the guest runs. If not, the source's user must be told by other means.
    pub acknowledged: bool,
}

/// Receives one guest over `transport` and runs it. Blocks until it runs or the migration has failed.
///
/// `cancel` is looked at until the source's hand-off arrives.
pub fn receive(
    transport: Box<dyn Transport>,
    vm: &mut dyn DestinationVm,
    cfg: &DestinationConfig,
    progress: &dyn Progress,
    cancel: &CancelToken,
) -> Result<Received, Failure> {
    let failed = |cause| Failure { phase: Phase::Handshake, ownership: Ownership::SourceRuns, cause };
    let (input, output) = (transport.split()).map_err(|e| failed(Error::Connection(e)))?;
    let interrupt = Interrupt { cancel: cancel.clone(), ..Interrupt::default() };
    let mut receiver = Receiver {
        reader: FrameReader::new(input, Some(cfg.stall_timeout), interrupt.clone()),
        writer: FrameWriter::new(output, None, cfg.stall_timeout, interrupt),
        cfg,
        progress,
        cancel,
        phase: Phase::Handshake,
        ownership: Ownership::SourceRuns,
        verify: false,
        verified: 0,
        lz4: false,
        round: 0,
        pages: 0,
        last_progress: Instant::now(),
    };
    let result = receiver.receive(vm);
    if let Err(cause) = &result
        && !matches!(cause, Error::PeerAbort(_) | Error::Closed | Error::NotWherry)
    {
        receiver.writer.abort(&describe(cause));
    }
    receiver.writer.shutdown();
    result.map_err(|cause| Failure { phase: receiver.phase, ownership: receiver.ownership, cause })
}

struct Receiver<'a> {
    reader: FrameReader,
    writer: FrameWriter,
    cfg: &'a DestinationConfig,
    progress: &'a dyn Progress,
    cancel: &'a CancelToken,
    phase: Phase,
    ownership: Ownership,
    /// The source wants to verify: no state before all memory was digested.
    verify: bool,
    /// Pages digested so far.
    verified: u64,
    /// Content may come compressed.
    lz4: bool,
    round: u32,
    pages: u64,
    last_progress: Instant,
}

impl Receiver<'_> {
    fn receive(&mut self, vm: &mut dyn DestinationVm) -> Result<Received, Error> {
        let ram = self.greet(vm)?;
        self.enter(Phase::Rounds);
        let state = self.memory_and_state(&*ram)?;
        vm.load(&state).map_err(Error::machine("load machine state"))?;
        drop(state);

        // The source may hand over as soon as it reads this; so from the first byte on it may have.
        self.enter(Phase::Commit);
        self.ownership = Ownership::Unknown;
        self.writer.send(Kind::Loaded, &[])?;
        #[cfg(test)]
        if self.cfg.mutation == Some(crate::tests::Mutation::RunBeforeHandOff) {
            vm.run().map_err(Error::machine("run the guest"))?;
        }
        self.wait_for_hand_off()?;
        // Nobody else may run the guest any more: a cancel now, or just before, comes too late.
        self.cancel.commit();
        self.writer.ignore_interrupts();
        vm.run().map_err(Error::machine("run the guest"))?;
        // It runs here, whatever becomes of the answer.
        let acknowledged = self.writer.send(Kind::Running, &[]).is_ok();
        self.enter(Phase::Done);
        Ok(Received { bytes: self.reader.bytes(), acknowledged })
    }

    fn greet(&mut self, vm: &mut dyn DestinationVm) -> Result<Arc<dyn GuestRam>, Error> {
        self.enter(Phase::Handshake);
        self.reader.next(&[Kind::Hello], "as a greeting")?;
        let hello: Hello = self.reader.control("hello")?;
        if hello.features & !FEATURES != 0 {
            return Err(WireError::Features(hello.features & !FEATURES).into());
        }
        self.verify = hello.features & FEATURE_VERIFY != 0;
        self.lz4 = hello.features & FEATURE_LZ4 != 0;
        if hello.nr_pages == 0 || hello.nr_pages > self.cfg.max_pages {
            return Err(WireError::Payload("hello").into());
        }
        let ram =
            vm.prepare(&hello.description, hello.nr_pages).map_err(Error::machine("build the machine"))?;
        if ram.nr_pages() != hello.nr_pages {
            let found = std::io::Error::other(format!(
                "{} pages of guest RAM, the source has {}",
                ram.nr_pages(),
                hello.nr_pages
            ));
            return Err(Error::machine("build the machine")(found));
        }
        let welcome = Welcome { features: hello.features };
        self.writer.send_control(Kind::Welcome, "welcome", &welcome)?;
        Ok(ram)
    }

    /// Takes rounds of pages, then the state. Returns the state.
    fn memory_and_state(&mut self, ram: &dyn GuestRam) -> Result<Vec<u8>, Error> {
        let nr_pages = ram.nr_pages();
        let (mut runs, mut unpacked) = (Vec::new(), Vec::new());
        let mut state: Vec<u8> = Vec::new();
        let mut digester = None;
        loop {
            let (legal, during) = self.legal(nr_pages);
            match self.reader.next(legal, during)? {
                Kind::Round => {
                    let start: RoundStart = self.reader.control("round")?;
                    if start.round != self.round.saturating_add(1) {
                        return Err(WireError::Round { found: start.round, previous: self.round }.into());
                    }
                    self.round = start.round;
                    self.pages = 0;
                }
                Kind::Pages => {
                    let content = parse(self.reader.payload(), nr_pages, &mut runs)?;
                    self.pages += apply(ram, &runs, content)?;
                }
                Kind::PagesLz4 => {
                    let content = parse_lz4(self.reader.payload(), nr_pages, &mut runs, &mut unpacked)?;
                    self.pages += apply(ram, &runs, content)?;
                }
                Kind::Verify => self.answer(ram, &mut digester)?,
                Kind::State => {
                    // Not needed any more, and machine state may be long.
                    digester = None;
                    if self.phase != Phase::State {
                        self.enter(Phase::State);
                    }
                    let part = self.reader.payload();
                    if state.len() + part.len() > MAX_STATE {
                        return Err(WireError::State("too long").into());
                    }
                    state.extend_from_slice(part);
                }
                Kind::StateEnd => {
                    let end: StateEnd = self.reader.control("state end")?;
                    if end.len != state.len() as u64 {
                        return Err(WireError::State("not of the announced length").into());
                    }
                    if end.crc != crc32fast::hash(&state) {
                        return Err(WireError::State("checksum does not match").into());
                    }
                    self.phase = Phase::State;
                    return Ok(state);
                }
                _ => {}
            }
            if self.last_progress.elapsed() >= Duration::from_millis(200) {
                self.report();
            }
        }
    }

    /// What may come now. Once verification or state has begun no memory may follow; before the first round nothing but a round
    /// may come; a source that wants to verify must do so; nothing is compressed that was not agreed to be.
    fn legal(&self, nr_pages: u64) -> (&'static [Kind], &'static str) {
        use Kind::{Idle, Pages, PagesLz4, Round, State, StateEnd, Verify};
        match (self.phase, self.round) {
            (Phase::State, _) => (&[State, StateEnd], "in machine state"),
            (Phase::Verify, _) if self.verified < nr_pages => (&[Verify, Idle], "during verification"),
            (Phase::Verify, _) => (&[Idle, State, StateEnd], "after verification"),
            (_, 0) => (&[Round, Idle], "before the first round"),
            _ => match (self.verify, self.lz4) {
                (true, true) => (&[Round, Pages, PagesLz4, Idle, Verify], "in a round, before verification"),
                (true, false) => (&[Round, Pages, Idle, Verify], "in a round, before verification"),
                (false, true) => (&[Round, Pages, PagesLz4, Idle, State, StateEnd], "in a round"),
                (false, false) => (&[Round, Pages, Idle, State, StateEnd], "in a round"),
            },
        }
    }

    /// Digests the chunk that the source asks for: they come in order, each once.
    fn answer(&mut self, ram: &dyn GuestRam, digester: &mut Option<Digester>) -> Result<(), Error> {
        let VerifyChunk { first, nr } = self.reader.control("verify")?;
        let due = self.verified;
        if first != due || nr == 0 || nr != chunk_at(due, ram.nr_pages()) {
            return Err(WireError::Chunk { first, nr, due }.into());
        }
        if self.phase != Phase::Verify {
            self.enter(Phase::Verify);
        }
        let digester = match digester {
            Some(digester) => digester,
            none => none.insert(Digester::new(ram)?),
        };
        let (mut digests, mut payload) = (Digests::default(), Vec::new());
        digester.digest(ram, first, nr, &mut digests)?;
        digests.encode(&mut payload);
        self.verified += u64::from(nr);
        self.writer.send(Kind::Digests, &[&payload])
    }

    fn wait_for_hand_off(&mut self) -> Result<(), Error> {
        match self.reader.next(&[Kind::HandOff], "before the hand-off") {
            Ok(_) => Ok(()),
            Err(error) => {
                if let Error::PeerAbort(_) = error {
                    self.ownership = Ownership::SourceRuns;
                }
                Err(error)
            }
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.report();
    }

    fn report(&mut self) {
        self.last_progress = Instant::now();
        self.progress.update(&Snapshot {
            phase: self.phase,
            round: self.round,
            sent: self.pages,
            remaining: 0,
            hinted: 0,
            round_hinting: HintFigures::default(),
            hinting: HintFigures::default(),
            bytes: self.reader.bytes(),
            rate: 0,
        });
    }
}

/// Writes checked runs to guest RAM. Returns the number of pages with content.
fn apply(ram: &dyn GuestRam, runs: &[Run], mut content: &[u8]) -> Result<u64, Error> {
    let mut pages = 0;
    for run in runs {
        if run.zero {
            let zeroed = ram.zero(run.first, u64::from(run.nr));
            zeroed.map_err(Error::machine("zero guest memory"))?;
            continue;
        }
        // `parse` has checked that the content is exactly this long.
        let (data, rest) = content
            .split_at_checked(run.nr as usize * PAGE_SIZE)
            .ok_or(WireError::Runs("length of content"))?;
        content = rest;
        ram.write(run.first, data).map_err(Error::machine("write guest memory"))?;
        pages += u64::from(run.nr);
    }
    Ok(pages)
}
