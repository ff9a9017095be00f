//! An address space (ports or MMIO) and the devices in it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What the bus needs from a device. Offsets are in bytes from the device's base; an access never
/// leaves the device.
pub trait BusDevice: Send {
    /// The guest reads `data.len()` bytes at `offset`. Every byte of `data` must be filled.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// The guest writes `data` at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]);
    /// Whether this write may take effect only after it has returned: then the vCPU that wrote asks
    /// whether it has ([`settled`](Self::settled)).
    fn may_last(&self, _offset: u64, _data: &[u8]) -> bool {
        true
    }
    /// Whether all that was written has taken effect. The vCPU that wrote does not run before it
    /// has; it waits without any lock, and a pause does not wait for it.
    fn settled(&mut self) -> bool {
        true
    }
}

/// Why a device could not be put on the bus.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The range has no bytes or runs past the end of the address space.
    #[error("range {base:#x}+{len:#x} is empty or overflows")]
    BadRange {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Another device has part of the range.
    #[error("range {base:#x}+{len:#x} overlaps a device")]
    Overlap {
        /// First address.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
}

struct Slot {
    len: u64,
    device: Arc<Mutex<dyn BusDevice>>,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, dyn BusDevice + 'static> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Devices by address. Filled while the machine is assembled, then shared read-only by the vCPU
/// threads.
#[derive(Default)]
pub struct Bus {
    slots: BTreeMap<u64, Slot>,
}

impl Bus {
    /// An empty bus.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at `base..base + len` (bytes).
    pub fn insert(
        &mut self,
        base: u64,
        len: u64,
        device: Arc<Mutex<dyn BusDevice>>,
    ) -> Result<(), BusError> {
        let last = len
            .checked_sub(1)
            .and_then(|l| base.checked_add(l))
            .ok_or(BusError::BadRange { base, len })?;
        // Ranges never overlap, so only the last device that starts at or before `last` can reach
        // into ours.
        if let Some((start, slot)) = self.slots.range(..=last).next_back()
            && start + (slot.len - 1) >= base
        {
            return Err(BusError::Overlap { base, len });
        }
        self.slots.insert(base, Slot { len, device });
        Ok(())
    }

    /// Reads from the device at `addr`. Without one, or if the access runs past the device's end,
    /// fills `data` with 0xff (as an empty bus does) and returns false.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> bool {
        match self.find(addr, data.len()) {
            Some((offset, slot)) => {
                slot.lock().read(offset, data);
                true
            }
            None => {
                data.fill(0xff);
                false
            }
        }
    }

    /// Writes to the device at `addr`. Returns false, and does nothing, without one or if the
    /// access runs past its end.
    pub fn write(&self, addr: u64, data: &[u8]) -> bool {
        match self.find(addr, data.len()) {
            Some((offset, slot)) => {
                slot.lock().write(offset, data);
                true
            }
            None => false,
        }
    }

    /// Whether this write may last: see [`BusDevice::may_last`].
    pub fn may_last(&self, addr: u64, data: &[u8]) -> bool {
        self.find(addr, data.len()).is_some_and(|(at, slot)| slot.lock().may_last(at, data))
    }

    /// Whether what was written at `addr` has taken effect: see [`BusDevice::settled`].
    pub fn settled(&self, addr: u64) -> bool {
        self.find(addr, 1).is_none_or(|(_, slot)| slot.lock().settled())
    }

    fn find(&self, addr: u64, len: usize) -> Option<(u64, &Slot)> {
        let (base, slot) = self.slots.range(..=addr).next_back()?;
        let offset = addr - base;
        let end = offset.checked_add(len as u64)?;
        (end <= slot.len && offset < slot.len).then_some((offset, slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(Vec<(u64, Vec<u8>)>);
    impl BusDevice for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0.push((offset, data.to_vec()));
        }
    }

    fn echo() -> Arc<Mutex<Echo>> {
        Arc::new(Mutex::new(Echo(Vec::new())))
    }

    #[test]
    fn routes_by_address() {
        let mut bus = Bus::new();
        let (a, b) = (echo(), echo());
        bus.insert(0x100, 0x10, a.clone()).unwrap();
        bus.insert(0x110, 0x10, b.clone()).unwrap();
        let mut data = [0u8; 2];
        assert!(bus.read(0x11e, &mut data));
        assert_eq!(data, [0xe, 0xe]);
        assert!(bus.write(0x10f, &[7]));
        assert_eq!(a.lock().unwrap().0, vec![(0xf, vec![7])]);
        assert!(b.lock().unwrap().0.is_empty());
    }

    #[test]
    fn unclaimed_reads_are_all_ones_and_crossing_accesses_are_refused() {
        let mut bus = Bus::new();
        let a = echo();
        bus.insert(0x100, 0x10, a.clone()).unwrap();
        for addr in [0, 0xff, 0x10d, 0x110, u64::MAX] {
            let mut data = [0u8; 4];
            assert!(!bus.read(addr, &mut data), "{addr:#x}");
            assert_eq!(data, [0xff; 4]);
            assert!(!bus.write(addr, &data));
        }
        assert!(a.lock().unwrap().0.is_empty());
    }

    #[test]
    fn overlaps_and_bad_ranges_are_errors() {
        let mut bus = Bus::new();
        bus.insert(0x100, 0x10, echo()).unwrap();
        for (base, len) in [(0x100, 0x10), (0xff, 2), (0x10f, 1), (0x80, 0x1000), (0x104, 4)] {
            assert_eq!(bus.insert(base, len, echo()), Err(BusError::Overlap { base, len }));
        }
        assert!(matches!(bus.insert(0x10, 0, echo()), Err(BusError::BadRange { .. })));
        assert!(matches!(bus.insert(u64::MAX, 2, echo()), Err(BusError::BadRange { .. })));
        bus.insert(u64::MAX, 1, echo()).unwrap();
        bus.insert(0xf0, 0x10, echo()).unwrap();
    }
}
