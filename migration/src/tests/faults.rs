//! A transport that damages one chosen frame.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::transport::{TICK, Transport, WriteHalf};
use crate::wire::{HEADER_LEN, Kind};

/// What happens to the frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    /// The connection breaks; the frame's first write fails.
    CutBefore,
    /// The transport takes the frame, half of it arrives, the connection breaks.
    CutHalf,
    /// The transport takes the frame, all of it arrives, then the connection breaks.
    CutAfter,
    /// One bit of the header is wrong.
    FlipHeader,
    /// One bit of the last byte is wrong (of the header, if there is no payload).
    FlipLast,
    /// The frame and all that follows is taken and never arrives; the connection stays.
    Swallow,
    /// Nothing is taken any more.
    Block,
    /// The frame arrives twice.
    Duplicate,
    /// From this frame on bytes come one by one, each well before the connection counts as stalled.
    Trickle,
}

pub(super) const FAULTS: [Fault; 9] = [
    Fault::CutBefore,
    Fault::CutHalf,
    Fault::CutAfter,
    Fault::FlipHeader,
    Fault::FlipLast,
    Fault::Swallow,
    Fault::Block,
    Fault::Duplicate,
    Fault::Trickle,
];

/// Between two bytes that trickle.
pub(super) const DRIP: Duration = Duration::from_millis(40);

/// Which frame, and what happens to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct FaultPlan {
    which: Which,
    fault: Fault,
}

#[derive(Clone, Copy, Debug)]
enum Which {
    Index(u64),
    /// All of this kind.
    Kind(Kind),
    /// Of this kind the n-th, from 0.
    Nth(Kind, usize),
}

impl FaultPlan {
    pub(super) fn at_index(index: u64, fault: Fault) -> Self {
        Self { which: Which::Index(index), fault }
    }

    pub(super) fn at_kind(kind: Kind, fault: Fault) -> Self {
        Self { which: Which::Kind(kind), fault }
    }

    pub(super) fn at_nth(kind: Kind, nth: usize, fault: Fault) -> Self {
        Self { which: Which::Nth(kind, nth), fault }
    }

    /// Whether it hits this frame, behind those that went before.
    fn hits(&self, before: &[Kind], kind: Kind) -> bool {
        match self.which {
            Which::Index(index) => index == before.len() as u64,
            Which::Kind(wanted) => wanted == kind,
            Which::Nth(wanted, nth) => {
                wanted == kind && before.iter().filter(|before| **before == kind).count() == nth
            }
        }
    }
}

/// The frames that a writer was given, in order.
pub(super) type Seen = Arc<Mutex<Vec<Kind>>>;

struct FaultyTransport {
    stream: UnixStream,
    plan: Option<FaultPlan>,
    seen: Seen,
}

struct FaultyWriter {
    stream: UnixStream,
    plan: Option<FaultPlan>,
    seen: Seen,
    /// What happens to the present frame.
    hit: Option<Fault>,
    frame: Vec<u8>,
    dead: Option<Fault>,
}

/// A connection whose two directions may each have a fault: (source's end, destination's end).
pub(super) fn faulty_pair(
    to_destination: Option<FaultPlan>,
    to_source: Option<FaultPlan>,
) -> (Box<dyn Transport>, Box<dyn Transport>) {
    noted_pair(to_destination, to_source, [Seen::default(), Seen::default()])
}

/// The same, and notes the frames that each end sends.
pub(super) fn noted_pair(
    to_destination: Option<FaultPlan>,
    to_source: Option<FaultPlan>,
    [by_source, by_destination]: [Seen; 2],
) -> (Box<dyn Transport>, Box<dyn Transport>) {
    let (near, far) = UnixStream::pair().unwrap();
    let end = |stream, plan, seen| Box::new(FaultyTransport { stream, plan, seen });
    (end(near, to_destination, by_source), end(far, to_source, by_destination))
}

impl Transport for FaultyTransport {
    fn split(self: Box<Self>) -> io::Result<(Box<dyn Read + Send>, Box<dyn WriteHalf>)> {
        self.stream.set_read_timeout(Some(TICK / 4))?;
        let writer = FaultyWriter {
            stream: self.stream.try_clone()?,
            plan: self.plan,
            seen: self.seen,
            hit: None,
            frame: Vec::new(),
            dead: None,
        };
        Ok((Box::new(self.stream), Box::new(writer)))
    }
}

impl FaultyWriter {
    fn cut(&mut self) {
        self.dead = Some(Fault::CutBefore);
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }

    /// A whole frame was taken.
    fn deliver(&mut self) -> io::Result<()> {
        let mut frame = std::mem::take(&mut self.frame);
        match self.hit {
            Some(Fault::CutHalf) => {
                let half = frame.len() / 2;
                let _ = self.stream.write_all(&frame[..half]);
                self.cut();
            }
            Some(Fault::CutAfter) => {
                let _ = self.stream.write_all(&frame);
                self.cut();
            }
            Some(Fault::FlipHeader) => {
                frame[9] ^= 4;
                return self.stream.write_all(&frame);
            }
            Some(Fault::FlipLast) => {
                *frame.last_mut().unwrap() ^= 0x10;
                return self.stream.write_all(&frame);
            }
            Some(Fault::Swallow) => self.dead = Some(Fault::Swallow),
            Some(Fault::Duplicate) => {
                self.stream.write_all(&frame)?;
                // The first is delivered. A destination that is through with it may have left
                // before the second, and a transport whose write fails must have taken nothing.
                let _ = self.stream.write_all(&frame);
            }
            _ => return self.stream.write_all(&frame),
        }
        Ok(())
    }
}

/// Writes one byte, slowly.
pub(super) fn drip(stream: &mut UnixStream, buf: &[u8]) -> io::Result<usize> {
    thread::sleep(DRIP);
    stream.write(buf.get(..1).unwrap_or_default())
}

impl Write for FaultyWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self.dead {
            Some(Fault::CutBefore) => return Err(ErrorKind::BrokenPipe.into()),
            Some(Fault::Block) => {
                thread::sleep(TICK / 4);
                return Err(ErrorKind::WouldBlock.into());
            }
            Some(Fault::Trickle) => return drip(&mut self.stream, buf),
            Some(_) => return Ok(buf.len()),
            None => {}
        }
        // Our writer sends the header in one piece, then the payload.
        if self.frame.is_empty() {
            assert!(buf.len() >= HEADER_LEN);
            let kind = Kind::from_u16(u16::from_le_bytes([buf[6], buf[7]])).unwrap();
            let mut seen = self.seen.lock().unwrap();
            self.hit = self.plan.filter(|plan| plan.hits(&seen, kind)).map(|plan| plan.fault);
            seen.push(kind);
            drop(seen);
            match self.hit {
                Some(Fault::CutBefore) => {
                    self.cut();
                    return Err(ErrorKind::BrokenPipe.into());
                }
                Some(Fault::Block) => {
                    self.dead = Some(Fault::Block);
                    return Err(ErrorKind::WouldBlock.into());
                }
                Some(Fault::Trickle) => {
                    self.dead = Some(Fault::Trickle);
                    return drip(&mut self.stream, buf);
                }
                _ => {}
            }
        }
        self.frame.extend_from_slice(buf);
        let header = &self.frame[16..20];
        let len = u32::from_le_bytes(header.try_into().unwrap()) as usize;
        if self.frame.len() >= HEADER_LEN + len {
            self.deliver()?;
        }
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl WriteHalf for FaultyWriter {
    fn shutdown(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}
