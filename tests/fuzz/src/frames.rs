//! Frames made of an input: with right checksums and numbers unless it says otherwise, else a
//! fuzzer would see none accepted.

use wherry_migration::wire::version::NEWEST;
use wherry_migration::wire::{FEATURE_CRC32, Header, Kind, Sum};

use crate::bytes::Bytes;

/// A frame of an input.
pub(crate) struct Record {
    /// The connection it belongs to, or what must have been seen before it is sent.
    pub(crate) place: u8,
    kind: u16,
    flags: u8,
    payload: Vec<u8>,
}

/// The checksum is wrong.
pub(crate) const BAD_SUM: u8 = 1;
/// The number is wrong.
pub(crate) const BAD_NUMBER: u8 = 2;
/// So many pages of content follow the payload as the byte after it says.
pub(crate) const CONTENT: u8 = 4;
/// Memory is summed by CRC32.
pub(crate) const CRC32: u8 = 8;

impl Record {
    pub(crate) fn take(input: &mut Bytes<'_>) -> Self {
        let (place, kind, flags, len) = (input.u8(), input.u8(), input.u8(), input.u16());
        let mut payload = input.take(usize::from(len)).to_vec();
        if flags & CONTENT != 0 {
            let nr = usize::from(input.u8());
            payload.extend((0..nr * 4096).map(|n| (n / 64) as u8));
        }
        Self { place, kind: u16::from(kind), flags, payload }
    }

    /// As an input has it.
    pub(crate) fn encode(place: u8, kind: Kind, payload: &[u8], pages: Option<u8>) -> Vec<u8> {
        let mut out = vec![place, kind as u8, if pages.is_some() { CONTENT } else { 0 }];
        out.extend((payload.len() as u16).to_le_bytes());
        out.extend_from_slice(payload);
        out.extend(pages);
        out
    }

    /// As the wire has it. `seq` is the number that is due in its direction.
    pub(crate) fn frame(&self, seq: &mut u64) -> Vec<u8> {
        let number = *seq + u64::from(self.flags & BAD_NUMBER != 0);
        *seq += 1;
        let features = if self.flags & CRC32 != 0 { FEATURE_CRC32 } else { 0 };
        let sum = Kind::from_u16(self.kind).map_or(Sum::Xxh64, |kind| Sum::of(kind, features));
        let sum = sum.over(&[&self.payload]) ^ u32::from(self.flags & BAD_SUM != 0);
        let len = self.payload.len() as u32;
        let header = Header { version: NEWEST, kind: self.kind, seq: number, len, sum };
        [&header.encode()[..], &self.payload].concat()
    }
}
