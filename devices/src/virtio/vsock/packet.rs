//! The header of a packet, and the pieces of guest memory that a packet is in.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress};

use super::constants::*;
use crate::GuestMemory;

/// `struct virtio_vsock_hdr`. From a guest it is copied once, and then looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Header {
    /// From its bytes.
    pub fn read(bytes: &[u8; HEADER]) -> Self {
        let mut rest = &bytes[..];
        // In the order that they have in memory.
        Self {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let cids = [self.src_cid, self.dst_cid].map(u64::to_le_bytes);
        let ports = [self.src_port, self.dst_port, self.len].map(u32::to_le_bytes);
        let kinds = [self.kind, self.op].map(u16::to_le_bytes);
        let rest = [self.flags, self.buf_alloc, self.fwd_cnt].map(u32::to_le_bytes);
        let all = cids.as_flattened().iter().chain(ports.as_flattened());
        let all = all.chain(kinds.as_flattened()).chain(rest.as_flattened());
        bytes.iter_mut().zip(all).for_each(|(to, byte)| *to = *byte);
        bytes
    }

    /// The refusal of this packet: to where it came from, from where it was to go.
    pub fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: op::RST,
            ..Self::default()
        }
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (first, more) = rest.split_first_chunk().unwrap_or((&[0; N], &[]));
    *rest = more;
    *first
}

/// The part of a chain that goes one way, from its beginning on.
pub struct Pieces<'a> {
    mem: &'a GuestMemory,
    descs: std::vec::IntoIter<Descriptor>,
    at: GuestAddress,
    left: usize,
}

impl<'a> Pieces<'a> {
    /// Of these descriptors.
    pub fn new(mem: &'a GuestMemory, descs: Vec<Descriptor>) -> Self {
        Self { mem, descs: descs.into_iter(), at: GuestAddress(0), left: 0 }
    }

    /// Bytes that are left of it.
    pub fn room(&self) -> usize {
        let descs = self.descs.as_slice().iter();
        descs.fold(self.left, |sum, desc| sum.saturating_add(desc.len() as usize))
    }

    /// Passes over up to `most` bytes that lie together. Returns where, and how many. `None`: there
    /// is no more.
    fn next(&mut self, most: usize) -> Option<(GuestAddress, usize)> {
        while self.left == 0 {
            let desc = self.descs.next()?;
            (self.at, self.left) = (desc.addr(), desc.len() as usize);
        }
        let (at, len) = (self.at, self.left.min(most));
        self.left -= len;
        // Where it overflows there is no RAM either.
        self.at = at.checked_add(len as u64).unwrap_or(GuestAddress(u64::MAX));
        Some((at, len))
    }

    /// Copies from it. `false`: it is shorter, or not all of it is RAM.
    pub fn read(&mut self, mut to: &mut [u8]) -> bool {
        while !to.is_empty() {
            let Some((at, len)) = self.next(to.len()) else { return false };
            let (part, rest) = to.split_at_mut(len);
            if self.mem.read_slice(part, at).is_err() {
                return false;
            }
            to = rest;
        }
        true
    }

    /// Copies into it, and marks it. `false`: it is shorter, or not all of it is RAM.
    pub fn write(&mut self, mut from: &[u8]) -> bool {
        while !from.is_empty() {
            let Some((at, len)) = self.next(from.len()) else { return false };
            let (part, rest) = from.split_at(len);
            if self.mem.write_slice(part, at).is_err() {
                return false;
            }
            from = rest;
        }
        true
    }
}
