//! The control queue: what the driver wants changed.

use vm_memory::Bytes;

use super::constants::*;
use super::{MAX_CHAIN, Net, header};
use crate::virtio::{Chain, Completion, descriptors};

/// Bytes of the longest command: class, command, offloads.
const MAX_COMMAND: usize = 10;

impl Net {
    /// A chain of the control queue: a command, and a byte for what became of it.
    pub(super) fn control(&mut self, chain: Chain<'_>) -> Completion {
        let (descs, complete) = descriptors(chain, MAX_CHAIN);
        let answer = descs.iter().find(|desc| desc.is_write_only() && desc.len() > 0);
        let Some(answer) = answer.filter(|_| complete) else { return Completion::Used(0) };
        let mut command = Vec::with_capacity(MAX_COMMAND);
        for desc in descs.iter().filter(|desc| !desc.is_write_only()) {
            let (start, len) = (command.len(), desc.len() as usize);
            // One byte more is as wrong as many.
            command.resize((start + len).min(MAX_COMMAND + 1), 0);
            let part = command.get_mut(start..).unwrap_or_default();
            if self.mem.read_slice(part, desc.addr()).is_err() {
                command.clear();
                break;
            }
        }
        let done = if self.obey(&command) { CTRL_OK } else { CTRL_ERR };
        Completion::Used(self.mem.write_obj(done, answer.addr()).is_ok().into())
    }

    fn obey(&mut self, command: &[u8]) -> bool {
        let Some((command, data)) = command.split_first_chunk() else { return false };
        match *command {
            CTRL_ANNOUNCE_ACK if self.has(feature::GUEST_ANNOUNCE) && data.is_empty() => {
                self.announcement.taken();
                true
            }
            CTRL_GUEST_OFFLOADS_SET if self.has(feature::CTRL_GUEST_OFFLOADS) => {
                let Ok(bits) = data.try_into().map(u64::from_le_bytes) else { return false };
                let agreed = self.features & feature::GUEST_OFFLOADS;
                if bits & !agreed != 0 || self.frames.set_offloads(header::to_guest(bits)).is_err()
                {
                    return false;
                }
                self.guest_offloads = bits;
                true
            }
            _ => false,
        }
    }
}
