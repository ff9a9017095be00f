//! The destination's side of a migration.
//!
//! It trusts nothing that comes over the wire. Every frame passes the checks in [`crate::wire`];
//! only the kinds that are legal in the present phase are let in; page runs are checked against
//! guest RAM before a byte is written; the state's length is limited and its checksum compared.
//! Whatever is wrong ends the migration with an error, which an Abort tells to the source. Nothing
//! panics, and nothing is allocated beyond the frame limits and [`max_state`].
//!
//! Memory may come over data connections beside the first (module `lanes`).
//!
//! Phases: introduction → (what a reset boots, module `boot`) → memory (rounds of pages) → (digests
//! of it, if the source wants to verify) → state → loaded, waiting → **HandOff** → running.
//!
//! Invariant: [`DestinationVm::run`] is called once, after HandOff arrived whole, and never without
//! it.
//!
//! Ownership in a [`Failure`]: until this side has said Loaded the source cannot have sent HandOff,
//! so the guest is the source's. After that, an Abort from the source still proves it (the source
//! aborts only before HandOff); a broken connection proves nothing.

mod boot;
mod door;
mod lanes;
mod memory;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::DestinationConfig;
use crate::control::CancelToken;
use crate::error::{Error, Failure, Ownership, Phase, describe};
use crate::link::{FrameReader, FrameWriter, Interrupt};
use crate::observe::Progress;
use crate::report::Snapshot;
use crate::traits::{DestinationVm, GuestRam};
use crate::transport::{Connections, Listener, TICK, Transport, TransportError};
use crate::verify::digester::{Digester, chunk_at};
use crate::wire::digests::Digests;
use crate::wire::version::{Agreed, Hello, Welcome};
use crate::wire::{
    self, FEATURE_BOOT, FEATURE_LZ4, FEATURE_STREAMS, FEATURE_VERIFY, Kind, MAX_PAGES, RoundStart,
    StateEnd, SyncPoint, VerifyChunk, WireError, max_state,
};
use door::{Door, Heard, greet};
use lanes::{Lanes, Shared};
use memory::Memory;

/// A guest that arrived and runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes received.
    pub bytes: u64,
    /// Whether the source could be told that the guest runs. If not, the source's user must be told
    /// by other means.
    pub acknowledged: bool,
}

/// A source that has connected, agreed on a version and described its machine.
pub struct Arrival {
    agreed: Agreed,
    machine: wire::Machine,
    reader: FrameReader,
    writer: FrameWriter,
    /// Where data connections come from.
    connections: Option<Box<dyn Connections>>,
}

/// Waits for a source: the first that both sides' versions suit and that describes its machine, in
/// whole and valid frames. Everybody else is turned away, one beside the other, and told to
/// `turned_away` with who it was and why. Once the source is there nobody listens any more, but for
/// its data connections.
///
/// # Errors
/// Cancelled, or nobody came within [`DestinationConfig::patience`].
pub fn await_source(
    listener: Listener,
    cfg: &DestinationConfig,
    cancel: &CancelToken,
    turned_away: &mut dyn FnMut(&str, &Error),
) -> Result<Arrival, TransportError> {
    let config = cfg.clone();
    let mut door = Door::new(&listener, cancel, move |transport, interrupt| {
        hear(transport, &config, interrupt)
    });
    let began = Instant::now();
    loop {
        match door.next(cfg.patience.saturating_sub(began.elapsed()))? {
            Some(Heard { said: Ok(arrival), .. }) => {
                return Ok(Arrival { connections: Some(Box::new(listener.clone())), ..arrival });
            }
            Some(Heard { peer, said: Err(cause) }) => turned_away(&peer, &cause),
            None => {}
        }
        // Whoever else may come: there are strangers without end.
        if began.elapsed() >= cfg.patience {
            return Err(TransportError::TimedOut(cfg.patience));
        }
    }
}

/// Hears a source out, or turns whoever it is away.
fn hear(
    mut transport: Box<dyn Transport>,
    cfg: &DestinationConfig,
    interrupt: &Interrupt,
) -> Result<Arrival, Error> {
    let deadline = greet(&mut *transport, cfg, interrupt)?;
    let connections = transport.data_connections();
    let features = cfg.features(transport.finds_damage());
    let (input, output) = transport.split().map_err(Error::Connection)?;
    let (stall, frame) = (cfg.stall_timeout, cfg.frame_limit);
    let mut reader = FrameReader::new(input, (Some(stall), frame), interrupt.clone());
    reader.deadline = deadline;
    let mut writer = FrameWriter::new(output, None, (stall, frame), interrupt.clone());
    match introduce(&mut reader, &mut writer, (&cfg.versions, features)) {
        Ok((agreed, machine)) => {
            reader.deadline = None;
            Ok(Arrival { agreed, machine, reader, writer, connections })
        }
        Err(cause) => {
            if let Error::Version(versions) = &cause {
                // So that it can read why.
                writer.version = versions.version;
            }
            give_up(&mut writer, &cause);
            Err(cause)
        }
    }
}

/// Agrees on a version and on features, and hears what machine it is.
fn introduce(
    reader: &mut FrameReader,
    writer: &mut FrameWriter,
    (versions, features): (&RangeInclusive<u16>, u64),
) -> Result<(Agreed, wire::Machine), Error> {
    reader.next(&[Kind::Hello], "as a greeting")?;
    let agreed = Hello::decode(reader.payload())?.agree(versions, features)?;
    (reader.version, writer.version) = (agreed.version, agreed.version);
    reader.features = agreed.features;
    writer.send_control(Kind::Welcome, &Welcome::new(agreed))?;
    reader.next(&[Kind::Machine], "before a machine")?;
    let machine: wire::Machine = reader.control(Kind::Machine)?;
    if machine.nr_pages == 0 || machine.nr_pages > MAX_PAGES {
        return Err(WireError::Payload(Kind::Machine).into());
    }
    Ok((agreed, machine))
}

/// Ends the connection and says why, to a peer that may understand it.
fn give_up(writer: &mut FrameWriter, cause: &Error) {
    if !matches!(cause, Error::PeerAbort(_) | Error::Closed | Error::NotWherry) {
        writer.abort(&describe(cause));
    }
    writer.shutdown();
}

/// Receives one guest over `transport` and runs it, as [`receive_from`] does.
pub fn receive(
    transport: Box<dyn Transport>,
    vm: &mut dyn DestinationVm,
    cfg: &DestinationConfig,
    progress: &dyn Progress,
    cancel: &CancelToken,
) -> Result<Received, Failure> {
    let interrupt = Interrupt { cancel: cancel.clone(), ..Interrupt::default() };
    let arrival = hear(transport, cfg, &interrupt).map_err(|cause| Failure {
        phase: Phase::Handshake,
        ownership: Ownership::SourceRuns,
        cause,
    })?;
    receive_from(arrival, vm, cfg, progress, cancel)
}

/// Receives the guest of a source and runs it. Blocks until it runs or the migration has failed.
///
/// `cancel` is looked at until the source's hand-off arrives.
pub fn receive_from(
    arrival: Arrival,
    vm: &mut dyn DestinationVm,
    cfg: &DestinationConfig,
    progress: &dyn Progress,
    cancel: &CancelToken,
) -> Result<Received, Failure> {
    let Arrival { agreed, machine, mut reader, mut writer, connections } = arrival;
    let interrupt = Interrupt { cancel: cancel.clone(), ..Interrupt::default() };
    reader.interrupt = interrupt.clone();
    writer.interrupt = interrupt;
    let mut receiver = Receiver {
        reader,
        writer,
        connections,
        lanes: None,
        cfg,
        progress,
        cancel,
        phase: Phase::Handshake,
        ownership: Ownership::SourceRuns,
        agreed,
        verified: 0,
        memory: Memory::new(agreed.features & FEATURE_LZ4 != 0),
        round: 0,
        pages: 0,
        last_progress: Instant::now(),
    };
    let result = receiver.receive(machine, vm).map_err(|cause| receiver.explain(cause));
    match &result {
        Ok(_) => receiver.writer.shutdown(),
        Err(cause) => give_up(&mut receiver.writer, cause),
    }
    result.map_err(|cause| Failure { phase: receiver.phase, ownership: receiver.ownership, cause })
}

struct Receiver<'a> {
    reader: FrameReader,
    writer: FrameWriter,
    /// Where data connections come from.
    connections: Option<Box<dyn Connections>>,
    /// Data connections that carry memory, until they have ended.
    lanes: Option<Lanes>,
    cfg: &'a DestinationConfig,
    progress: &'a dyn Progress,
    cancel: &'a CancelToken,
    phase: Phase,
    ownership: Ownership,
    agreed: Agreed,
    /// Pages digested so far.
    verified: u64,
    memory: Memory,
    round: u32,
    pages: u64,
    last_progress: Instant,
}

impl Receiver<'_> {
    fn receive(
        &mut self,
        machine: wire::Machine,
        vm: &mut dyn DestinationVm,
    ) -> Result<Received, Error> {
        let ram = self.greet(machine, vm)?;
        if self.uses(FEATURE_BOOT) {
            self.take_boot(vm)?;
        }
        if self.uses(FEATURE_STREAMS) {
            self.accept_lanes(&ram)?;
        }
        self.connections = None;
        self.enter(Phase::Rounds);
        let state = self.memory_and_state(&*ram)?;
        vm.load(&state).map_err(Error::machine("load machine state"))?;
        drop(state);

        // The source may hand over as soon as it reads this; so from the first byte on it may have.
        self.enter(Phase::Commit);
        self.ownership = Ownership::Unknown;
        self.writer.send(Kind::Loaded, &[])?;
        self.wait_for_hand_off()?;
        // Nobody else may run the guest any more: a cancel now, or just before, comes too late.
        self.cancel.commit();
        self.writer.ignore_interrupts();
        vm.run().map_err(Error::machine("run the guest"))?;
        // It runs here, whatever becomes of the answer.
        let acknowledged = self.writer.send(Kind::Running, &[]).is_ok();
        self.enter(Phase::Done);
        Ok(Received { bytes: self.bytes(), acknowledged })
    }

    fn uses(&self, feature: u64) -> bool {
        self.agreed.features & feature != 0
    }

    /// Builds the machine. Returns guest RAM.
    fn greet(
        &mut self,
        machine: wire::Machine,
        vm: &mut dyn DestinationVm,
    ) -> Result<Arc<dyn GuestRam>, Error> {
        self.enter(Phase::Handshake);
        let wire::Machine { nr_pages, description } = machine;
        if nr_pages > self.cfg.max_pages {
            return Err(Error::TooLarge { pages: nr_pages, most: self.cfg.max_pages });
        }
        let ram =
            vm.prepare(&description, nr_pages).map_err(Error::machine("build the machine"))?;
        if ram.nr_pages() != nr_pages {
            let found = std::io::Error::other(format!(
                "{} pages of guest RAM, the source has {nr_pages}",
                ram.nr_pages(),
            ));
            return Err(Error::machine("build the machine")(found));
        }
        self.writer.send(Kind::Ready, &[])?;
        Ok(ram)
    }

    fn accept_lanes(&mut self, ram: &Arc<dyn GuestRam>) -> Result<(), Error> {
        self.reader.next(&[Kind::Streams], "before data connections")?;
        let announced: wire::Streams = self.reader.control(Kind::Streams)?;
        let Some(connections) = &self.connections else {
            return Err(Error::Stream(TransportError::Single));
        };
        let interrupt = &self.reader.interrupt;
        let shared = Shared { ram, interrupt, cfg: self.cfg, agreed: self.agreed };
        self.lanes = Some(Lanes::accept(&announced, &**connections, &shared)?);
        Ok(())
    }

    /// The true cause of an error that may only be the stop flag that a data connection raised,
    /// and that only because the source gave up: it says so on the first connection before it
    /// closes any other.
    fn explain(&mut self, error: Error) -> Error {
        use Kind::{Idle, Pages, PagesLz4, Round, Sync};
        let Error::Closed = error else { return error };
        // There are no streams yet if one ended before all had joined.
        let cause = self.lanes.as_ref().and_then(Lanes::failure).unwrap_or(error);
        if matches!(cause, Error::Closed) {
            self.reader.interrupt = Interrupt::default();
            self.reader.within(2 * TICK);
            loop {
                match self.reader.next(&[Idle, Round, Pages, PagesLz4, Sync], "at the end") {
                    Ok(_) => {}
                    Err(Error::PeerAbort(reason)) => return Error::PeerAbort(reason),
                    Err(_) => return cause,
                }
            }
        }
        cause
    }

    /// No memory may follow: from here on nobody but this thread touches guest RAM.
    fn end_of_memory(&mut self) -> Result<(), Error> {
        let Some(lanes) = &mut self.lanes else { return Ok(()) };
        lanes.finish(self.cfg.stall_timeout)
    }

    /// Bytes received, over all connections.
    fn bytes(&self) -> u64 {
        self.reader.bytes() + self.lanes.as_ref().map_or(0, Lanes::bytes)
    }

    /// Takes rounds of pages, then the state. Returns the state.
    fn memory_and_state(&mut self, ram: &dyn GuestRam) -> Result<Vec<u8>, Error> {
        let nr_pages = ram.nr_pages();
        let mut state: Vec<u8> = Vec::new();
        let mut digester = Digester::default();
        loop {
            // A source that never pauses would keep the reader from looking.
            self.reader.interrupt.check()?;
            let legal = self.legal(nr_pages);
            let (kind, pages) = self.memory.next(&mut self.reader, legal, ram)?;
            self.pages += pages;
            match kind {
                Kind::Round => {
                    let start: RoundStart = self.reader.control(Kind::Round)?;
                    if start.round != self.round.saturating_add(1) {
                        return Err(
                            WireError::Round { found: start.round, previous: self.round }.into()
                        );
                    }
                    self.round = start.round;
                    self.pages = 0;
                }
                Kind::Sync => {
                    let SyncPoint { round } = self.reader.control(Kind::Sync)?;
                    self.memory.sync(round)?;
                    if let Some(lanes) = &self.lanes {
                        lanes.barrier().sync(round)?;
                    }
                }
                Kind::Verify => self.answer(ram, &mut digester)?,
                Kind::State => {
                    self.begin_state()?;
                    let part = self.reader.payload();
                    if state.len() + part.len() > max_state(ram.nr_pages()) {
                        return Err(WireError::State("too long").into());
                    }
                    state.extend_from_slice(part);
                }
                Kind::StateEnd => {
                    self.begin_state()?;
                    let end: StateEnd = self.reader.control(Kind::StateEnd)?;
                    if end.len != state.len() as u64 {
                        return Err(WireError::State("not of the announced length").into());
                    }
                    if end.crc != crc32fast::hash(&state) {
                        return Err(WireError::State("checksum does not match").into());
                    }
                    return Ok(state);
                }
                _ => {}
            }
            self.report_now_and_then();
        }
    }

    fn report_now_and_then(&mut self) {
        if self.last_progress.elapsed() >= Duration::from_millis(200) {
            self.report();
        }
    }

    fn begin_state(&mut self) -> Result<(), Error> {
        if self.phase != Phase::State {
            self.end_of_memory()?;
            self.enter(Phase::State);
        }
        Ok(())
    }

    /// What may come now. Once verification or state has begun no memory may follow; before the
    /// first round nothing but a round may come; a source that wants to verify must do so; nothing
    /// is compressed that was not agreed to be; where memory comes over data connections, each
    /// round ends with a sync, and only after one may anything else follow.
    fn legal(&self, nr_pages: u64) -> (&'static [Kind], &'static str) {
        use Kind::{Idle, Pages, PagesLz4, Round, State, StateEnd, Sync, Verify};
        match (self.phase, self.round) {
            (Phase::State, _) => (&[State, StateEnd], "in machine state"),
            (Phase::Verify, _) if self.verified < nr_pages => {
                (&[Verify, Idle], "during verification")
            }
            (Phase::Verify, _) => (&[Idle, State, StateEnd], "after verification"),
            (_, 0) => (&[Round, Idle], "before the first round"),
            _ if self.lanes.is_some() && self.memory.synced < self.round => {
                (&[Sync, Idle], "in a round over data connections")
            }
            _ => match (self.uses(FEATURE_VERIFY), self.memory.lz4) {
                (true, true) => {
                    (&[Round, Pages, PagesLz4, Idle, Verify], "in a round, before verification")
                }
                (true, false) => (&[Round, Pages, Idle, Verify], "in a round, before verification"),
                (false, true) => (&[Round, Pages, PagesLz4, Idle, State, StateEnd], "in a round"),
                (false, false) => (&[Round, Pages, Idle, State, StateEnd], "in a round"),
            },
        }
    }

    /// Digests the chunk that the source asks for: they come in order, each once.
    fn answer(&mut self, ram: &dyn GuestRam, digester: &mut Digester) -> Result<(), Error> {
        let VerifyChunk { first, nr } = self.reader.control(Kind::Verify)?;
        let due = self.verified;
        if first != due || nr == 0 || nr != chunk_at(due, ram.nr_pages()) {
            return Err(WireError::Chunk { first, nr, due }.into());
        }
        if self.phase != Phase::Verify {
            self.end_of_memory()?;
            self.enter(Phase::Verify);
        }
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
            sent: self.pages + self.lanes.as_ref().map_or(0, Lanes::pages),
            bytes: self.bytes(),
            ..Snapshot::default()
        });
    }
}
