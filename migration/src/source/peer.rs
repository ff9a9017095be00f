//! The connection: what is sent and answered on it, signs of life, and reasons to give up.
//!
//! The destination is silent between Welcome and Loaded, so its half of the connection is read by a
//! thread of its own: it passes answers on through a channel and, when the stream ends or an Abort
//! comes, raises the stop flag that interrupts sending. The source is never silent for long: after
//! a second without a frame it sends Idle, so that scanning gigabytes of zeros, or holding back for
//! hints, is not taken for a stall. Opening data connections has a limit of its own.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::config::{Compression, SourceConfig};
use crate::control::CancelToken;
use crate::error::{Error, Phase};
use crate::link::{Cap, FrameReader, FrameWriter, Interrupt, SIGN_OF_LIFE};
use crate::traits::{Boot, BootFile, SourceVm};
use crate::transport::{Connections, TICK, Throttle, Transport, TransportError};
use crate::wire::boot::{self, BootWanted};
use crate::wire::codec;
use crate::wire::version::{Agreed, Hello, Welcome};
use crate::wire::{
    self, FEATURE_BOOT, FEATURE_CRC32, FEATURE_LZ4, FEATURE_STREAMS, FEATURE_UNSUMMED,
    FEATURE_VERIFY, Kind, MAX_DESCRIPTION, MAX_STREAMS, WireError,
};

use super::lanes::{Lanes, random_token};
use super::reader::Reader;

/// Answers that a destination may have under way: more were not asked for, and would fill memory.
const MAX_UNREAD: u32 = 4;

type Answer = Result<(Kind, Vec<u8>), Error>;

/// The destination.
pub(super) struct Peer {
    pub(super) writer: FrameWriter,
    pub(super) interrupt: Interrupt,
    /// Where data connections come from.
    connections: Option<Box<dyn Connections>>,
    /// As [`Transport::finds_damage`] says of them.
    finds_damage: bool,
    cap: Option<Cap>,
    /// Bytes of files that the machine boots, if the destination was told of them.
    pub(super) boot_file_bytes: Option<u64>,
    /// How long to wait for an answer.
    stall: Duration,
    answers: Receiver<Answer>,
    /// Answers that were read and not yet expected.
    unread: Arc<AtomicU32>,
    reader: Option<JoinHandle<()>>,
    /// Tells the reading thread that nobody waits any more.
    over: Interrupt,
}

impl Peer {
    pub(super) fn new(
        transport: Box<dyn Transport>,
        cfg: &SourceConfig,
        cancel: &CancelToken,
    ) -> Result<Self, Error> {
        let connections = transport.data_connections();
        let finds_damage = transport.finds_damage();
        let (input, output) = transport.split().map_err(Error::Connection)?;
        let cap = cfg.bandwidth.map(|rate| Arc::new(Mutex::new(Throttle::new(rate))));
        let interrupt = Interrupt { cancel: cancel.clone(), ..Interrupt::default() };
        let over = Interrupt::default();
        let mut frames = FrameReader::new(input, (None, cfg.frame_limit), over.clone());
        let (tell, answers) = channel();
        let unread = Arc::new(AtomicU32::new(0));
        let (stop, queued, verify) = (interrupt.clone(), unread.clone(), cfg.verify);
        let reader = wherry_threads::of_kind("migration-answers")
            .spawn(move || read_answers(&mut frames, verify, &queued, &tell, &stop))
            .map_err(Error::Connection)?;
        let patience = (cfg.stall_timeout, cfg.frame_limit);
        Ok(Self {
            writer: FrameWriter::new(output, cap.clone(), patience, interrupt.clone()),
            interrupt,
            connections,
            finds_damage,
            cap,
            boot_file_bytes: None,
            stall: cfg.stall_timeout,
            answers,
            unread,
            reader: Some(reader),
            over,
        })
    }

    /// Agrees on a version and on features, has the machine built, and opens data connections if
    /// they are wanted: with readers like this one.
    pub(super) fn handshake(
        &mut self,
        vm: &SourceVm,
        cfg: &SourceConfig,
        reader: &Reader,
    ) -> Result<Lanes, Error> {
        let needed = [
            (cfg.verify, FEATURE_VERIFY),
            (cfg.compression == Compression::Lz4, FEATURE_LZ4),
            (cfg.streams > 1, FEATURE_STREAMS),
        ];
        let boot = vm.machine.boot().map_err(Error::machine("say what it boots"))?;
        let offered = [
            (boot.is_some(), FEATURE_BOOT),
            (cfg.crc32, FEATURE_CRC32),
            (self.finds_damage, FEATURE_UNSUMMED),
        ];
        let offered = features(&offered);
        let hello = Hello { offered, ..Hello::new(&cfg.versions, features(&needed)) };
        self.writer.send_control(Kind::Hello, &hello)?;
        let agreed = Welcome::decode(&self.answer(Kind::Welcome)?, &hello)?;
        (self.writer.version, self.writer.features) = (agreed.version, agreed.features);

        let description = vm.machine.describe(agreed.version);
        let description = description.map_err(Error::machine("describe the machine"))?;
        if description.len() > MAX_DESCRIPTION {
            return Err(WireError::Payload(Kind::Machine).into());
        }
        let machine = wire::Machine { nr_pages: vm.ram.nr_pages(), description };
        self.writer.send_control(Kind::Machine, &machine)?;
        self.answer(Kind::Ready)?;
        if let Some(boot) = boot.filter(|_| agreed.features & FEATURE_BOOT != 0) {
            self.boot_file_bytes = Some(self.send_boot(boot)?);
        }
        if cfg.streams > 1 { self.open_lanes(cfg, reader) } else { Ok(Lanes::none()) }
    }

    /// Says what the machine boots, and sends what of that the destination lacks. Returns how many
    /// bytes that took.
    fn send_boot(&mut self, boot: Boot) -> Result<u64, Error> {
        let Boot { description, files } = boot;
        let said = boot::Boot { description, files: files.iter().map(|file| file.id).collect() };
        said.check()?;
        self.writer.send_control(Kind::Boot, &said)?;
        let wanted = self.answer(Kind::BootWanted)?;
        let wanted: BootWanted = codec::decode(&wanted, Kind::BootWanted)?;
        if wanted.files.len() != files.len() {
            return Err(WireError::Payload(Kind::BootWanted).into());
        }
        let before = self.writer.bytes();
        for (BootFile { id, mut content }, _) in
            files.into_iter().zip(wanted.files).filter(|(_, wanted)| *wanted)
        {
            let mut left = id.len;
            let mut part = vec![0; boot::PART];
            while left > 0 {
                let len = usize::try_from(left).unwrap_or(usize::MAX).min(boot::PART);
                let part = part.get_mut(..len).unwrap_or_default();
                content.read_exact(part).map_err(Error::machine("read what it boots"))?;
                self.writer.send(Kind::BootPart, &[part])?;
                left -= len as u64;
            }
        }
        Ok(self.writer.bytes() - before)
    }

    /// The destination's answer, which may be that it does not take this guest.
    fn answer(&mut self, kind: Kind) -> Result<Vec<u8>, Error> {
        match self.expect(kind) {
            Err(Error::PeerAbort(reason)) => Err(Error::Refused(reason)),
            other => other,
        }
    }

    fn open_lanes(&mut self, cfg: &SourceConfig, reader: &Reader) -> Result<Lanes, Error> {
        let Some(connections) = self.connections.take() else {
            return Err(Error::Stream(TransportError::Single));
        };
        let token = random_token().map_err(Error::Connection)?;
        let announced = wire::Streams { nr: cfg.streams.min(MAX_STREAMS), token };
        let agreed = Agreed { version: self.writer.version, features: self.writer.features };
        let with = (self.cap.as_ref(), reader);
        let first = connections.need_both();
        if first {
            self.writer.send_control(Kind::Streams, &announced)?;
        }
        let lanes = Lanes::open(&*connections, &announced, cfg, with, &self.interrupt, agreed)?;
        if !first {
            // They wait to be accepted by then, so that a destination need not wait for one that
            // never comes.
            self.writer.send_control(Kind::Streams, &announced)?;
        }
        Ok(lanes)
    }

    /// Waits for the destination's next answer, which must be `kind`.
    pub(super) fn expect(&mut self, kind: Kind) -> Result<Vec<u8>, Error> {
        let until = Instant::now() + self.stall;
        loop {
            let answer = self.answers.recv_timeout(TICK);
            if let Ok(Ok(_)) = answer {
                self.unread.fetch_sub(1, Ordering::AcqRel);
            }
            match answer {
                Ok(Ok((found, payload))) if found == kind => return Ok(payload),
                Ok(Ok((found, _))) => {
                    let during = "as the next answer";
                    return Err(WireError::Unexpected { found, during }.into());
                }
                Ok(Err(cause)) => return Err(cause),
                Err(RecvTimeoutError::Disconnected) => return Err(Error::Closed),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.interrupt.cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            self.interrupt.limit.check()?;
            if Instant::now() >= until {
                return Err(Error::Stalled(self.stall));
            }
        }
    }

    /// To be called often: notices interruption, shows signs of life.
    pub(super) fn tick(&mut self) -> Result<(), Error> {
        self.interrupt.check()?;
        if self.writer.last_sent().elapsed() >= SIGN_OF_LIFE {
            self.writer.send(Kind::Idle, &[])?;
        }
        Ok(())
    }

    /// The true cause of an error that may only be its consequence: a broken pipe is what an Abort
    /// looks like to the writer.
    pub(super) fn explain(&mut self, error: Error, phase: Phase) -> Error {
        if !matches!(error, Error::Closed | Error::Connection(_)) {
            return error;
        }
        let until = Instant::now() + TICK;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.answers.recv_timeout(left) {
                Ok(Ok(_)) => {}
                Ok(Err(Error::PeerAbort(reason))) if phase == Phase::Handshake => {
                    return Error::Refused(reason);
                }
                Ok(Err(cause)) => return cause,
                Err(_) => return error,
            }
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.over.stop.store(true, Ordering::Release);
        self.writer.shutdown();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// Those that are wanted.
fn features(all: &[(bool, u64)]) -> u64 {
    all.iter().filter(|(wanted, _)| *wanted).fold(0, |all, (_, feature)| all | feature)
}

/// The reading thread: passes answers on until the connection ends or nobody waits any more.
fn read_answers(
    frames: &mut FrameReader,
    verify: bool,
    unread: &AtomicU32,
    tell: &Sender<Answer>,
    stop: &Interrupt,
) {
    use Kind::{BootWanted, Digests, Loaded, Ready, Running, Welcome};
    let legal: &[Kind] = match verify {
        true => &[Welcome, Ready, BootWanted, Digests, Loaded, Running],
        false => &[Welcome, Ready, BootWanted, Loaded, Running],
    };
    loop {
        let next = frames.next(legal, "from a destination").and_then(|found| {
            let during = "without having been asked for";
            match unread.fetch_add(1, Ordering::AcqRel) {
                MAX_UNREAD.. => Err(WireError::Unexpected { found, during }.into()),
                _ => Ok((found, frames.payload().to_vec())),
            }
        });
        let end = next.is_err();
        // The channel first: who sees the flag finds the cause there.
        let gone = tell.send(next).is_err();
        if end || gone {
            stop.stop.store(true, Ordering::Release);
            return;
        }
    }
}
