//! Frames over a transport: what both sides share.
//!
//! [`FrameWriter`] numbers, checksums, counts and throttles what goes out. [`FrameReader`] uses
//! nothing of what comes in before the checks listed in [`crate::wire`] have passed. Both wait in
//! ticks (see [`crate::transport`]) and give up when cancelled, when told to stop, or when nothing
//! has moved for the stall time.

mod interrupt;

use std::io::{ErrorKind, IoSlice, Read};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::{Serialize, de::DeserializeOwned};
use wherry_codec::text::printable;

use crate::config::FrameLimit;
use crate::error::Error;
use crate::sync::lock;
use crate::transport::{TICK, Throttle, WriteHalf, unsent};
use crate::wire::pages::pack_lz4;
use crate::wire::sum::ContentSum;
use crate::wire::version::{FIRST, NEWEST, not_agreed};
use crate::wire::{Abort, HEADER_LEN, Header, Kind, MAGIC, Sum, WireError, codec};
pub use interrupt::{Deadline, Interrupt, PauseLimit};

/// A connection on which nothing was sent for this long gets an Idle.
pub(crate) const SIGN_OF_LIFE: Duration = Duration::from_secs(1);

fn is_tick(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// A bandwidth cap, which the connections of one migration share.
pub type Cap = Arc<Mutex<Throttle>>;

/// Time over which a connection's rate is measured, to tell how much the kernel may take ahead.
const PACE: Duration = Duration::from_millis(20);

/// The sending direction.
pub struct FrameWriter {
    out: Box<dyn WriteHalf>,
    seq: u64,
    bytes: u64,
    throttle: Option<Cap>,
    /// Version of all frames; until one is agreed on, the newest.
    pub version: u16,
    /// Features that are used: none until they are agreed on.
    pub features: u64,
    stall: Duration,
    /// How long a frame may take; waiting for the cap does not count.
    frame_limit: FrameLimit,
    /// When the present frame has taken too long.
    late: Deadline,
    /// Reasons to give up earlier.
    pub interrupt: Interrupt,
    last: Instant,
    /// Connections that share the link, this one among them.
    pub sharers: u32,
    /// When the present [`PACE`] began, and what was on the wire then.
    pace: (Instant, u64),
    /// Part of a frame is out: nothing that follows would be understood.
    broken: bool,
}

impl FrameWriter {
    /// Writes to `out`, as fast as the cap allows; a peer that takes nothing for `stall` is given
    /// up.
    pub fn new(
        out: Box<dyn WriteHalf>,
        throttle: Option<Cap>,
        (stall, frame_limit): (Duration, FrameLimit),
        interrupt: Interrupt,
    ) -> Self {
        let now = Instant::now();
        Self {
            out,
            seq: 0,
            bytes: 0,
            throttle,
            version: NEWEST,
            features: 0,
            stall,
            frame_limit,
            late: Deadline { until: now, time: Duration::ZERO },
            interrupt,
            last: now,
            sharers: 1,
            pace: (now, 0),
            broken: false,
        }
    }

    /// Bytes on the wire so far, headers included.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// When the last frame was complete.
    pub fn last_sent(&self) -> Instant {
        self.last
    }

    /// Sends one frame whose payload is the parts one after another.
    pub fn send(&mut self, kind: Kind, parts: &[&[u8]]) -> Result<(), Error> {
        self.send_summed(kind, parts, Sum::of(kind, self.features).over(parts))
    }

    fn send_summed(&mut self, kind: Kind, parts: &[&[u8]], sum: u32) -> Result<(), Error> {
        let len: usize = parts.iter().map(|p| p.len()).sum();
        let len = u32::try_from(len).ok().filter(|&l| l as usize <= kind.limit());
        let len = len.ok_or(WireError::TooLong { kind, len: u32::MAX })?;
        let (version, seq) = (self.version, self.seq);
        let header = Header { version, kind: kind as u16, seq, len, sum };
        self.interrupt.check()?;
        let time = self.frame_limit.of(len);
        self.late = Deadline { until: Instant::now() + time, time };
        self.broken = true;
        let header = header.encode();
        let mut all = vec![IoSlice::new(&header)];
        all.extend(parts.iter().map(|part| IoSlice::new(part)));
        self.write(&mut all)?;
        self.broken = false;
        self.seq += 1;
        self.last = Instant::now();
        self.keep_pace();
        Ok(())
    }

    fn keep_pace(&mut self) {
        let (began, before) = self.pace;
        let time = self.last.saturating_duration_since(began);
        if time >= PACE {
            let rate = (self.bytes - before) as f64 / time.as_secs_f64();
            self.out.set_unsent(unsent(rate, self.sharers));
            self.pace = (self.last, self.bytes);
        }
    }

    /// Sends pages: their run table and the content of those that have some, with the CRC32 of that
    /// if it is known. The content is compressed if
    /// `room` has [`packed_room`](crate::wire::pages::packed_room) bytes for that, and that saves
    /// anything; `room` may be empty.
    pub fn send_pages(
        &mut self,
        table: &[u8],
        (content, sum): (&[u8], Option<&ContentSum>),
        room: &mut [u8],
    ) -> Result<(), Error> {
        let packed = if room.is_empty() { None } else { pack_lz4(content, room) };
        let (packed, parts) = (packed.is_some(), [table, packed.unwrap_or(content)]);
        match sum.filter(|_| Sum::of(Kind::Pages, self.features) == Sum::Crc32) {
            _ if packed => self.send(Kind::PagesLz4, &parts),
            Some(sum) => self.send_summed(Kind::Pages, &parts, sum.behind(table)),
            None => self.send(Kind::Pages, &parts),
        }
    }

    /// Sends a control frame.
    pub fn send_control<T: Serialize>(&mut self, kind: Kind, payload: &T) -> Result<(), Error> {
        let payload = codec::encode(payload, kind)?;
        self.send(kind, &[&payload])
    }

    /// Tells the peer why, if it can still understand it. Does not wait for a peer that does not
    /// listen.
    pub fn abort(&mut self, reason: &str) {
        if self.broken {
            return;
        }
        // What interrupted this side must not keep it from saying so.
        self.ignore_interrupts();
        self.stall = Duration::from_millis(200);
        self.frame_limit = FrameLimit { time: 2 * self.stall, rate: u64::MAX };
        self.throttle = None;
        let _ = self.send_control(Kind::Abort, &Abort::new(reason));
    }

    /// From here on neither a cancel nor the stop flag keeps frames from being sent.
    pub fn ignore_interrupts(&mut self) {
        self.interrupt = Interrupt::default();
    }

    /// Ends the connection.
    pub fn shutdown(&self) {
        self.out.shutdown();
    }

    /// Writes all of a frame, in one call if the connection takes that much and no cap forbids it.
    fn write(&mut self, mut rest: &mut [IoSlice<'_>]) -> Result<(), Error> {
        let mut moved = Instant::now();
        // Skips parts that have nothing in them.
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            self.interrupt.check()?;
            let mut due = rest.iter().map(|part| part.len()).sum();
            if let Some(throttle) = &self.throttle {
                let wait = {
                    let mut throttle = lock(throttle);
                    due = throttle.piece().min(due);
                    throttle.charge(due, Instant::now())
                };
                if !wait.is_zero() {
                    self.wait(wait)?;
                    self.late.until += wait;
                    moved = Instant::now();
                }
            }
            while due > 0 {
                match write_some(&mut *self.out, rest, due) {
                    Ok(0) => return Err(Error::Closed),
                    Ok(n) => {
                        self.bytes += n as u64;
                        due = due.saturating_sub(n);
                        IoSlice::advance_slices(&mut rest, n);
                        moved = Instant::now();
                        if moved >= self.late.until && !rest.is_empty() {
                            return Err(Error::Late(self.late.time));
                        }
                        if due > 0 {
                            self.interrupt.check()?;
                        }
                    }
                    Err(e) => self.bear(e, moved)?,
                }
            }
        }
        // What the connection has taken and kept: nothing may follow that would push it out.
        while let Err(e) = self.out.flush() {
            self.bear(e, moved)?;
        }
        Ok(())
    }

    /// `Err` unless it is only that nothing has `moved` for a moment.
    fn bear(&self, e: std::io::Error, moved: Instant) -> Result<(), Error> {
        match e.kind() {
            kind if is_tick(kind) => {
                self.interrupt.check()?;
                match moved.elapsed() >= self.stall {
                    true => Err(Error::Stalled(self.stall)),
                    false => Ok(()),
                }
            }
            ErrorKind::BrokenPipe => Err(Error::Closed),
            _ => Err(Error::Connection(e)),
        }
    }

    /// Sleeps in ticks, so that a cap of a few bytes a second does not delay a cancel.
    fn wait(&self, time: Duration) -> Result<(), Error> {
        let until = Instant::now() + time;
        loop {
            self.interrupt.check()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.interrupt.cancel.sleep(left.min(TICK));
        }
    }
}

/// Writes up to `due` bytes of what is left of a frame, which is not empty.
fn write_some(
    out: &mut dyn WriteHalf,
    rest: &[IoSlice<'_>],
    mut due: usize,
) -> std::io::Result<usize> {
    let mut whole = 0;
    for part in rest {
        if part.len() > due {
            break;
        }
        due -= part.len();
        whole += 1;
    }
    match rest.split_at_checked(whole) {
        // The cap ends within the first part.
        Some(([], [first, ..])) => out.write(first.get(..due).unwrap_or_default()),
        Some((parts, _)) => out.write_vectored(parts),
        None => Ok(0),
    }
}

/// The receiving direction.
pub struct FrameReader {
    input: Box<dyn Read + Send>,
    seq: u64,
    /// Version of all frames, but for those with which one is agreed on.
    pub version: u16,
    /// Features that are used: none until they are agreed on.
    pub features: u64,
    /// Give up after this long without a byte; `None` waits for ever.
    stall: Option<Duration>,
    /// Give up at this time, whatever comes.
    pub deadline: Option<Deadline>,
    /// How long a frame may take.
    frame_limit: FrameLimit,
    /// When the present frame has taken too long. `None` before its first byte.
    late: Option<Deadline>,
    /// Reasons to give up earlier.
    pub interrupt: Interrupt,
    payload: Vec<u8>,
    bytes: u64,
}

impl FrameReader {
    /// Reads from `input`.
    pub fn new(
        input: Box<dyn Read + Send>,
        (stall, frame_limit): (Option<Duration>, FrameLimit),
        interrupt: Interrupt,
    ) -> Self {
        Self {
            input,
            seq: 0,
            version: NEWEST,
            features: 0,
            stall,
            deadline: None,
            frame_limit,
            late: None,
            interrupt,
            payload: Vec::new(),
            bytes: 0,
        }
    }

    /// Bytes received so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// All that comes has to come within this time from now.
    pub fn within(&mut self, time: Duration) {
        self.deadline = Deadline::after(time);
    }

    /// The next frame, which must be one of `legal`; its payload is then in
    /// [`payload`](Self::payload). An Abort is always legal and becomes [`Error::PeerAbort`].
    /// `during` says what was going on, for the error.
    pub fn next(&mut self, legal: &[Kind], during: &'static str) -> Result<Kind, Error> {
        let mut raw = [0; HEADER_LEN];
        self.late = None;
        self.fill(&mut raw, &MAGIC)?;
        let header = Header::decode(&raw)?;
        let agreed = match Kind::from_u16(header.kind) {
            Some(Kind::Abort) => true,
            Some(Kind::Hello | Kind::Welcome) => header.version >= FIRST,
            _ => header.version == self.version,
        };
        if !agreed {
            return Err(not_agreed(header.version).into());
        }
        if header.seq != self.seq {
            return Err(WireError::Sequence { found: header.seq, expected: self.seq }.into());
        }
        let kind = Kind::from_u16(header.kind).ok_or(WireError::UnknownKind(header.kind))?;
        if kind != Kind::Abort && !legal.contains(&kind) {
            return Err(WireError::Unexpected { found: kind, during }.into());
        }
        if header.len as usize > kind.limit() {
            return Err(WireError::TooLong { kind, len: header.len }.into());
        }
        let begun = self.late.map_or_else(Instant::now, |late| late.until - late.time);
        let time = self.frame_limit.of(header.len);
        self.late = Some(Deadline { until: begun + time, time });
        // Bounded by the kind's limit, about 1 MiB, and kept for the next frame.
        let mut payload = std::mem::take(&mut self.payload);
        payload.resize(header.len as usize, 0);
        self.fill(&mut payload, &[])?;
        self.payload = payload;
        if Sum::of(kind, self.features).over(&[&self.payload]) != header.sum {
            return Err(WireError::PayloadSum.into());
        }
        if kind == Kind::Welcome {
            self.version = header.version;
        }
        self.seq += 1;
        if kind == Kind::Abort {
            let abort = Abort::decode(&self.payload)?;
            // It goes to a terminal in the end.
            return Err(Error::PeerAbort(printable(&abort.reason)));
        }
        Ok(kind)
    }

    /// Payload of the last frame.
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Payload of the last frame, which is of this kind, decoded.
    pub fn control<T: Serialize + DeserializeOwned>(&self, kind: Kind) -> Result<T, Error> {
        Ok(codec::decode(&self.payload, kind)?)
    }

    /// Fills `buf`, whose first bytes have to be these.
    fn fill(&mut self, buf: &mut [u8], first: &[u8]) -> Result<(), Error> {
        let mut done = 0;
        let mut moved = Instant::now();
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            for deadline in [self.deadline, self.late].into_iter().flatten() {
                if deadline.is_over() {
                    return Err(Error::Late(deadline.time));
                }
            }
            // A payload may come bit by bit and never pause. A header is read to its end: it may be
            // HandOff's.
            if first.is_empty() && self.interrupt.cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            match self.input.read(rest) {
                Ok(0) => return Err(Error::Closed),
                Ok(n) => {
                    done += n;
                    self.bytes += n as u64;
                    moved = Instant::now();
                    let time = self.frame_limit.time;
                    self.late.get_or_insert(Deadline { until: moved + time, time });
                    // Say so at once when it is something else that answers, however little it
                    // says.
                    let seen = buf.get(..done.min(first.len())).unwrap_or_default();
                    if !first.starts_with(seen) {
                        return Err(WireError::Magic.into());
                    }
                    continue;
                }
                Err(e) if is_tick(e.kind()) => {}
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return Err(Error::Closed),
                Err(e) => return Err(Error::Connection(e)),
            }
            self.interrupt.check()?;
            match self.stall {
                Some(stall) if moved.elapsed() >= stall => return Err(Error::Stalled(stall)),
                _ => {}
            }
        }
        Ok(())
    }
}
