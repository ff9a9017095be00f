//! Packets to the guest: one for each chain. Refusals first, then connections in turn.

use super::connection::{Left, Word};
use super::constants::*;
use super::packet::{Header, Pieces};
use super::{MAX_CHAIN, MAX_REFUSALS, Vsock, tell};
use crate::virtio::{Chain, Completion};

impl Vsock {
    /// A chain of the queue for packets to the guest.
    pub(super) fn receive(&mut self, chain: Chain<'_>) -> Completion {
        if !self.gate.is_open() {
            return Completion::Wait;
        }
        let mem = self.mem.clone();
        let descs = chain.take(MAX_CHAIN).filter(|desc| desc.is_write_only()).collect();
        let mut pieces = Pieces::new(&mem, descs);
        let Some(room) = pieces.room().checked_sub(HEADER).filter(|room| *room > 0) else {
            return Completion::Used(0);
        };
        let Some((header, token)) = self.next_packet(room.min(MAX_PAYLOAD)) else {
            return Completion::Wait;
        };
        let payload = self.bytes.get(..header.len as usize).unwrap_or_default();
        if pieces.write(&header.bytes()) && pieces.write(payload) {
            return Completion::Used(HEADER as u32 + header.len);
        }
        // The driver's memory is none, and the bytes are lost: so is the connection.
        if let Some(token) = token {
            self.with(token, |one| {
                one.kill();
                Left::All
            });
        }
        Completion::Used(0)
    }

    /// The next packet, and whose it is; what is behind its header is in `self.bytes`.
    fn next_packet(&mut self, room: usize) -> Option<(Header, Option<u64>)> {
        if let Some(refusal) = self.refusals.pop_front() {
            if self.refusals.len() < MAX_REFUSALS / 2 && std::mem::take(&mut self.tx_waits) {
                tell(&self.tx_wanted);
            }
            return Some((refusal, None));
        }
        while let Some(token) = self.table.next_in_queue() {
            let mut bytes = std::mem::take(&mut self.bytes);
            let mut next = None;
            self.with(token, |one| {
                let word = one.word(bytes.get_mut(..room).unwrap_or_default());
                next = word.map(|word| (word, one.ports, one.tell()));
                if word.is_some_and(|word| word.op == op::RST) { Left::Nothing } else { Left::All }
            });
            self.bytes = bytes;
            if let Some((Word { op, flags, len }, ports, (buf_alloc, fwd_cnt))) = next {
                if op == op::SHUTDOWN && flags == ENDS_BOTH {
                    // It gives way now to somebody who may wait.
                    self.look_due = true;
                    tell(&self.rx_wanted);
                }
                let header = Header {
                    src_cid: HOST_CID,
                    dst_cid: self.options.cid.into(),
                    src_port: ports.host,
                    dst_port: ports.guest,
                    // At most MAX_PAYLOAD.
                    len: len as u32,
                    kind: TYPE_STREAM,
                    op,
                    flags,
                    buf_alloc,
                    fwd_cnt,
                };
                return Some((header, Some(token)));
            }
        }
        None
    }
}
