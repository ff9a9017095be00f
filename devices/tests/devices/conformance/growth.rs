//! A kind of device whose state has grown: guests move between this release, which knows the second
//! version of it, and the former one, both ways.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use wherry_codec::{CodecError, encode};
use wherry_devices::BusDevice;
use wherry_devices::device::{Built, Busy, Device, Kind, Saved};

use super::{Bench, RAM};

/// The former release's.
const FORMER: Kind = Kind {
    name: "grown",
    id: "grown",
    options: 1,
    states: &[(2, 1)],
    virtio: false,
    build: |build| {
        let state = match build.saved.map_or(2, |saved| saved.version) {
            1 => build.state()?.map(|count| Counter(count, 0)),
            _ => build.state()?.map(|(count, more)| Counter(count, more)),
        };
        let device = Arc::new(state.unwrap_or(Counter(7, 9)));
        let bus = Arc::new(Mutex::new(NoRegisters));
        Ok(Built { device, bus, kicks: Vec::new(), subscriber: None })
    },
};
/// This release's: version 2 of the state came with version 3 of the protocol.
static GROWN: Kind = Kind { states: &[(2, 1), (3, 2)], ..FORMER };
static BEFORE: Kind = FORMER;

/// What it counts, and what it also counts since version 2.
struct Counter(u32, u32);

impl Device for Counter {
    fn pause(&self, _: Instant) -> Result<(), Busy> {
        Ok(())
    }
    fn resume(&self) {}
    fn save(&self, version: u32) -> Result<Vec<u8>, CodecError> {
        let Counter(count, more) = self;
        if version == 1 { encode(count) } else { encode(&(count, more)) }
    }
}

struct NoRegisters;
impl BusDevice for NoRegisters {
    fn read(&mut self, _: u64, _: &mut [u8]) {}
    fn write(&mut self, _: u64, _: &[u8]) {}
}

/// Its state after a move from one to the other, by this version of the protocol.
fn moved(from: &'static Kind, to: &'static Kind, protocol: u16) -> (u32, Vec<u8>) {
    let saved = Bench::new(from).devices.save(protocol).unwrap().remove(0);
    assert!(to.reads(saved.version), "version {} is refused", saved.version);
    let there = Bench::build(to, &[0; RAM], Some(&saved));
    let Saved { version, bytes, .. } = there.devices.save(u16::MAX).unwrap().remove(0);
    (version, bytes)
}

#[test]
fn a_state_that_grew_is_written_as_the_peer_reads_it() {
    let (count, both) = (encode(&7u32).unwrap(), encode(&(7u32, 9u32)).unwrap());
    let since = encode(&(7u32, 0u32)).unwrap();
    assert_eq!(moved(&GROWN, &GROWN, 3), (2, both.clone()));
    assert_eq!(moved(&GROWN, &GROWN, 9), (2, both));
    assert_eq!(moved(&GROWN, &BEFORE, 2), (1, count));
    assert_eq!(moved(&BEFORE, &GROWN, 2), (2, since));
    assert!(!BEFORE.reads(2) && !GROWN.reads(3));
}
