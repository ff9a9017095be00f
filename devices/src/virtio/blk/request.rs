//! A request as the driver wrote it (virtio 1.3, section 5.2.6), checked.
//!
//! Header and ranges are copied once, and only the copies are looked at. The driver may lay out
//! its bytes as it likes (section 2.7.4): what the device reads is a header, then data; what it
//! writes is data, then one byte of status.

use std::sync::Arc;

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::config::{DiskOptions, MAX_DISCARD, MAX_RANGES, MAX_ZEROES, SECTOR};
use super::state::DescV1;
use crate::GuestMemory;
use crate::dma::{Dma, Part};

/// Types of requests.
#[allow(missing_docs)]
pub mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

/// Answers.
#[allow(missing_docs)]
pub mod status {
    pub const OK: u8 = 0;
    pub const IOERR: u8 = 1;
    pub const UNSUPP: u8 = 2;
}

/// Bytes of a header, and of a range.
const HEADER: usize = 16;
/// Flag of a range to zero: it need not stay allocated.
const UNMAP: u32 = 1;

/// A range of the disk in bytes, within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) at: u64,
    pub(super) len: u64,
    pub(super) unmap: bool,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Op {
    Read(u64),
    Write(u64),
    Flush,
    Id,
    Discard(Vec<Range>),
    Zero(Vec<Range>),
}

/// A request that can be done.
pub(super) struct Request {
    pub(super) op: Op,
    /// Data of a read or a write.
    pub(super) data: Option<Dma>,
    pub(super) answer: Answer,
}

/// Where the answer goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Answer {
    status: GuestAddress,
    /// Bytes of the chain that the device may write, the status included.
    pub(super) len: u32,
}

impl Answer {
    pub(super) fn write(self, mem: &GuestMemory, status: u8) {
        // It was RAM when it was parsed.
        let _ = mem.write_obj(status, self.status);
    }
}

/// A request that cannot.
pub(super) enum Refused {
    /// There is no place for an answer.
    Mute,
    /// This is the answer.
    With(Answer, u8),
}

impl From<&Descriptor> for DescV1 {
    fn from(desc: &Descriptor) -> Self {
        Self { addr: desc.addr().0, len: desc.len(), write: desc.is_write_only() }
    }
}

fn length(parts: &[Part]) -> u64 {
    parts.iter().map(|(_, len)| *len as u64).sum()
}

/// At most `len` bytes of the parts, without the first `skip`.
fn cut(parts: &[Part], skip: u64, len: u64) -> Vec<Part> {
    let (mut skip, mut len) = (skip, len);
    let mut out = Vec::with_capacity(parts.len());
    for (at, has) in parts {
        let from = skip.min(*has as u64);
        let take = (*has as u64 - from).min(len);
        (skip, len) = (skip - from, len - take);
        if let Some(start) = at.0.checked_add(from).filter(|_| take > 0) {
            out.push((GuestAddress(start), take as usize));
        }
    }
    out
}

/// Copies the first bytes of the parts. `None`: there are fewer, or not all in RAM.
fn copy(mem: &GuestMemory, parts: &[Part], len: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut rest = bytes.as_mut_slice();
    for (at, len) in cut(parts, 0, len as u64) {
        let (piece, after) = rest.split_at_mut_checked(len)?;
        mem.read_slice(piece, at).ok()?;
        rest = after;
    }
    rest.is_empty().then_some(bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Bytes of the disk, if they are.
fn place(options: &DiskOptions, sector: u64, len: u64) -> Option<u64> {
    let inside = len.is_multiple_of(SECTOR)
        && sector.checked_add(len / SECTOR).is_some_and(|end| end <= options.sectors);
    // As many sectors as the disk can have do not overflow.
    inside.then(|| sector * SECTOR)
}

/// A chain that is complete.
pub(super) fn parse(
    mem: &Arc<GuestMemory>,
    options: &DiskOptions,
    descs: &[DescV1],
) -> Result<Request, Refused> {
    let parts = |write| -> Vec<Part> {
        let mine = descs.iter().filter(|desc| desc.write == write);
        mine.map(|desc| (GuestAddress(desc.addr), desc.len as usize)).collect()
    };
    let (readable, writable) = (parts(false), parts(true));
    let len = length(&writable);
    let last = len.checked_sub(1).ok_or(Refused::Mute)?;
    let status = cut(&writable, last, 1).first().map(|(at, _)| *at).ok_or(Refused::Mute)?;
    if mem.read_obj::<u8>(status).is_err() {
        return Err(Refused::Mute);
    }
    let answer = Answer { status, len: u32::try_from(len).unwrap_or(u32::MAX) };
    let checked = check(mem, options, &readable, cut(&writable, 0, last));
    let (op, data) = checked.map_err(|status| Refused::With(answer, status))?;
    Ok(Request { op, data, answer })
}

fn check(
    mem: &Arc<GuestMemory>,
    options: &DiskOptions,
    readable: &[Part],
    into: Vec<Part>,
) -> Result<(Op, Option<Dma>), u8> {
    let header = copy(mem, readable, HEADER).ok_or(status::IOERR)?;
    let (kind, sector) = u32_at(&header, 0).zip(u64_at(&header, 8)).ok_or(status::IOERR)?;
    let from = cut(readable, HEADER as u64, u64::MAX);
    let op = match kind {
        kind::IN => {
            let at = place(options, sector, length(&into)).ok_or(status::IOERR)?;
            return Ok((Op::Read(at), Some(Dma::writes(mem, into).ok_or(status::IOERR)?)));
        }
        kind::OUT if !options.read_only => {
            let at = place(options, sector, length(&from)).ok_or(status::IOERR)?;
            return Ok((Op::Write(at), Some(Dma::reads(mem, from).ok_or(status::IOERR)?)));
        }
        kind::GET_ID => {
            return Ok((Op::Id, Some(Dma::writes(mem, into).ok_or(status::IOERR)?)));
        }
        kind::FLUSH => Op::Flush,
        kind::DISCARD if options.discards() => {
            Op::Discard(ranges(mem, options, &from, MAX_DISCARD, 0)?)
        }
        kind::WRITE_ZEROES if options.zeroes() => {
            Op::Zero(ranges(mem, options, &from, MAX_ZEROES, UNMAP)?)
        }
        kind::OUT | kind::DISCARD | kind::WRITE_ZEROES if options.read_only => {
            return Err(status::IOERR);
        }
        _ => return Err(status::UNSUPP),
    };
    Ok((op, None))
}

/// The ranges of a request (section 5.2.6, `virtio_blk_discard_write_zeroes`).
fn ranges(
    mem: &GuestMemory,
    options: &DiskOptions,
    from: &[Part],
    most: u32,
    flags: u32,
) -> Result<Vec<Range>, u8> {
    let len = length(from);
    let most_bytes = u64::from(MAX_RANGES) * HEADER as u64;
    if len == 0 || len > most_bytes || !len.is_multiple_of(HEADER as u64) {
        return Err(status::IOERR);
    }
    let bytes = copy(mem, from, len as usize).ok_or(status::IOERR)?;
    let range = |bytes: &[u8]| {
        let sector = u64_at(bytes, 0).ok_or(status::IOERR)?;
        let nr = u32_at(bytes, 8).filter(|nr| *nr <= most).ok_or(status::IOERR)?;
        let asked = u32_at(bytes, 12).ok_or(status::IOERR)?;
        if asked & !flags != 0 {
            return Err(status::UNSUPP);
        }
        let len = u64::from(nr) * SECTOR;
        let at = place(options, sector, len).ok_or(status::IOERR)?;
        Ok(Range { at, len, unmap: asked & UNMAP != 0 })
    };
    bytes.chunks(HEADER).map(range).collect()
}
