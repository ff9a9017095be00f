//! Packets from the guest.

use super::connection::{Connection, Left, Ports};
use super::constants::*;
use super::packet::{Header, Pieces};
use super::{MAX_CHAIN, MAX_REFUSALS, Vsock};
use crate::virtio::{Chain, Completion, descriptors};

impl Vsock {
    /// A chain of the queue for packets from the guest.
    pub(super) fn transmit(&mut self, chain: Chain<'_>) -> Completion {
        if self.refusals.len() >= MAX_REFUSALS {
            self.tx_waits = true;
            return Completion::Wait;
        }
        let mem = self.mem.clone();
        let (descs, complete) = descriptors(chain, MAX_CHAIN);
        let descs = descs.into_iter().filter(|desc| !desc.is_write_only()).collect();
        let mut pieces = Pieces::new(&mem, descs);
        let mut header = [0; HEADER];
        if complete && pieces.read(&mut header) {
            self.packet(&Header::read(&header), &mut pieces);
            self.tell_rx();
        }
        Completion::Used(0)
    }

    fn packet(&mut self, header: &Header, payload: &mut Pieces<'_>) {
        if header.src_cid != u64::from(self.options.cid) {
            return;
        }
        if header.dst_cid != HOST_CID || header.kind != TYPE_STREAM {
            return self.refuse(header);
        }
        let ports = Ports { guest: header.src_port, host: header.dst_port };
        match self.table.token_of(ports) {
            Some(token) => self.packet_of(token, header, payload),
            None if header.op == op::REQUEST => self.request(ports, header),
            // A guest that has not heard yet that its connections are gone speaks of those.
            None if self.gate.is_open() => self.refuse(header),
            None => {}
        }
    }

    fn refuse(&mut self, header: &Header) {
        // Nobody refuses a refusal.
        if header.op != op::RST {
            self.refusals.push_back(header.reset());
        }
    }

    /// The guest wants to be connected to a port of the host.
    fn request(&mut self, ports: Ports, header: &Header) {
        if !self.has_room() {
            return self.refuse(header);
        }
        let token = self.table.token();
        let Ok(stream) = self.sockets.connect(token, ports.host) else {
            return self.refuse(header);
        };
        let mut one = Connection::to_host(ports, stream);
        one.hear(header.buf_alloc, header.fwd_cnt);
        self.table.add(token, one);
    }

    /// A packet of a connection.
    fn packet_of(&mut self, token: u64, header: &Header, payload: &mut Pieces<'_>) {
        let len = header.len as usize;
        let mut bytes = std::mem::take(&mut self.bytes);
        self.with(token, |one| {
            one.hear(header.buf_alloc, header.fwd_cnt);
            if header.op != op::RW {
                return one.obey(header.op, header.flags);
            }
            // As many as the connection takes are no more than `bytes` has room for.
            let Some(part) = bytes.get_mut(..len).filter(|_| one.takes(len)) else {
                one.kill();
                return Left::All;
            };
            if payload.read(part) {
                one.take(part)
            } else {
                one.kill()
            }
            Left::All
        });
        self.bytes = bytes;
    }
}
