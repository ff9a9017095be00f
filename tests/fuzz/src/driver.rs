//! A driver that knows what it gave to its device and has not got back. As long as it keeps its
//! rings in order, what the device writes to memory must lie there.

use std::time::Duration;

use vm_memory::{Bytes as _, GuestAddress};
use wherry_devices::device::Spec;

use crate::bytes::Bytes;
use crate::guest::{BUFFER, Backend, Guest, RAM, RINGS};

/// Size of every ring.
const SIZE: u16 = 64;
/// A chain has up to so many descriptors, and a fixed place for them and its buffers.
const DESCS: u16 = 4;
const SLOTS: usize = (SIZE / DESCS) as usize;

/// No RAM.
pub(crate) const NOWHERE: u64 = 1 << 40;

/// Where buffers are, and how long they are.
type Buffers = Vec<(u64, u32)>;

/// See the module's text.
pub(crate) struct Driver {
    pub(crate) at: Guest,
    /// Whether all in its rings is as the driver made it.
    pub(crate) orderly: bool,
    /// Buffers of a slot, by queue: where those of slot 0 are, and bytes of each slot.
    places: &'static [(u64, u64)],
    /// What the device may write, by queue and slot, of what it has.
    given: Vec<[Option<Buffers>; SLOTS]>,
    used: Vec<u16>,
    /// RAM as it has to be, but for the rings.
    ram: Vec<u8>,
}

impl Driver {
    /// For a device with as many queues as there are places. Nothing is ever in flight in it.
    pub(crate) fn new(
        spec: Spec,
        host: std::sync::Arc<dyn Backend>,
        places: &'static [(u64, u64)],
    ) -> Self {
        let queues = places.len();
        Self {
            at: Guest::new(spec, host, (queues, SIZE), Duration::ZERO),
            orderly: false,
            places,
            given: vec![Default::default(); queues],
            used: vec![0; queues],
            ram: Vec::new(),
        }
    }

    /// See [`Guest::disorder`].
    pub(crate) fn disorder(&mut self, what: u8, input: &mut Bytes<'_>) {
        self.orderly = false;
        self.at.disorder(what, input);
    }

    /// All is in order again; what was given is the driver's.
    pub(crate) fn bring_up(&mut self, wanted: u32) {
        self.at.bring_up(wanted, true);
        // Zeroes that are written where they do not belong are to be seen, too.
        self.at.put(BUFFER, &[0xa5; (RAM - BUFFER) as usize]);
        self.given.fill(Default::default());
        self.used.fill(0);
        self.ram = self.at.get(0, RAM as usize);
        self.orderly = true;
    }

    /// A chain of these buffers: where each is, its length, and whether the device may write there.
    /// Returns where its slot is, from which `buffers` makes them. `None`: no slot is free.
    pub(crate) fn give(
        &mut self,
        queue: usize,
        buffers: impl FnOnce(u64) -> Vec<(u64, u32, bool)>,
    ) -> Option<u64> {
        let slot = match self.orderly {
            true => self.given[queue].iter().position(Option::is_none)?,
            false => usize::from(self.at.avail[queue]) % SLOTS,
        };
        let (base, size) = self.places[queue];
        let place = base + slot as u64 * size;
        let buffers = buffers(place);
        let may_write = buffers.iter().filter(|(.., write)| *write);
        self.given[queue][slot] = Some(may_write.map(|(at, len, _)| (*at, *len)).collect());
        self.at.chain(queue, slot as u16 * DESCS, &buffers);
        Some(place)
    }

    /// Fills what the device may read.
    pub(crate) fn put(&mut self, at: u64, bytes: &[u8]) {
        self.at.put(at, bytes);
        if self.orderly {
            self.ram[at as usize..][..bytes.len()].copy_from_slice(bytes);
        }
    }

    /// What came back of a queue, in order: the bytes that the device wrote.
    pub(crate) fn back(&mut self, queue: usize) -> Vec<Vec<u8>> {
        let (mut all, end) = (Vec::new(), self.at.used(queue));
        while self.used[queue] != end {
            let (head, len) = self.at.used_entry(queue, self.used[queue]);
            self.used[queue] = self.used[queue].wrapping_add(1);
            let slot = (head / u32::from(DESCS)) as usize;
            assert_eq!(head % u32::from(DESCS), 0, "the head of no chain");
            let given = self.given[queue].get_mut(slot).and_then(Option::take);
            all.push(self.written(&given.expect("what the device had"), len as usize));
        }
        all
    }

    fn written(&mut self, buffers: &Buffers, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (at, room) in buffers {
            let left = len - bytes.len();
            // Of a chain that it could not use the device may have written a part.
            let part = if len == 0 { *room as usize } else { left.min(*room as usize) };
            let mut written = vec![0; part];
            if self.at.mem.read_slice(&mut written, GuestAddress(*at)).is_err() {
                assert!(len == 0, "written to {at:#x}");
            } else if part > 0 {
                self.ram[*at as usize..][..part].copy_from_slice(&written);
            }
            if len > 0 {
                bytes.extend(written);
            }
        }
        assert_eq!(bytes.len(), len, "more than there was room for");
        bytes
    }

    /// Whether all of a queue came back.
    pub(crate) fn is_idle(&self, queue: usize) -> bool {
        self.used[queue] == self.at.avail[queue]
    }

    /// All that came back has been looked at: the rest of RAM is as it was.
    pub(crate) fn check(&self) {
        let ram = self.at.get(0, RAM as usize);
        for part in [0..RINGS as usize, BUFFER as usize..RAM as usize] {
            let same = ram[part.clone()] == self.ram[part.clone()];
            let at = || part.clone().find(|at| ram[*at] != self.ram[*at]);
            assert!(same, "the device wrote to {:#x?}", at());
        }
    }
}
