//! What describes a machine and what its state is: decoded, restored, driven, and saved again.

use std::io;
use std::sync::{Arc, Mutex};

use vm_memory::GuestAddress;
use wherry_devices::device::Saved;
use wherry_devices::host::BalloonBackend;
use wherry_devices::serial::{Serial, SerialStateV1};
use wherry_devices::virtio::balloon::{Balloon, BalloonConfig, BalloonDeviceState, BalloonHandle};
use wherry_devices::{BusDevice, GuestMemory, InterruptLine};
use wherry_migration::wire::version::NEWEST;
use wherry_vmm::cpu::state::VcpuStateV1;
use wherry_vmm::machine::{Description, MachineState};

use crate::bytes::Bytes;

/// RAM of the balloon in the seeds.
pub(crate) const RAM: usize = 1 << 20;

struct Nobody;
impl InterruptLine for Nobody {
    fn set(&self, _: bool) -> io::Result<()> {
        Ok(())
    }
}
impl BalloonBackend for Nobody {
    fn discard(&self, gpa: u64, len: u64) -> io::Result<()> {
        assert!(gpa.checked_add(len).is_some_and(|end| end <= RAM as u64));
        Ok(())
    }
}

/// See the module's text. The first byte says what the others are.
pub fn machine(data: &[u8]) {
    let mut input = Bytes(data);
    match input.u8() % 5 {
        0 => {
            let Ok(description) = Description::decode(input.0) else { return };
            let bytes = description.encode(NEWEST).expect("it was decoded");
            let again = Description::decode(&bytes).expect("it was encoded");
            assert_eq!(again.encode(NEWEST).expect("it was decoded"), bytes);
        }
        1 => {
            let Ok(state) = MachineState::decode(input.0) else { return };
            let bytes = state.encode(NEWEST).expect("it was decoded");
            let again = MachineState::decode(&bytes).expect("it was encoded");
            assert_eq!(again.encode(NEWEST).expect("it was decoded"), bytes);
            for Saved { kind, bytes, .. } in &state.devices {
                match kind.name {
                    "serial" => drop(wherry_codec::decode(bytes).inspect(serial)),
                    "virtio-balloon" => drop(wherry_codec::decode(bytes).inspect(balloon)),
                    _ => {}
                }
            }
        }
        2 => drop(wherry_codec::decode::<BalloonDeviceState>(input.0).inspect(balloon)),
        3 => drop(wherry_codec::decode::<SerialStateV1>(input.0).inspect(serial)),
        _ => {
            if let Ok(state) = wherry_codec::decode::<VcpuStateV1>(input.0) {
                assert_eq!(wherry_codec::encode(&state).expect("it was decoded"), input.0);
            }
        }
    }
}

fn serial(state: &SerialStateV1) {
    let restore =
        |state: &SerialStateV1| Serial::restore(state, Arc::new(Nobody), Box::new(io::sink()));
    let Ok(mut serial) = restore(state) else { return };
    for port in 0..8 {
        serial.read(port, &mut [0]);
        serial.write(port, &[3]);
        serial.enqueue(b"typed");
    }
    restore(&serial.state()).unwrap_or_else(|e| panic!("its own state is refused: {e:?}"));
}

fn restore(state: &BalloonDeviceState, mem: &Arc<GuestMemory>) -> Option<BalloonHandle> {
    let cfg = BalloonConfig::default();
    Balloon::restore(cfg, mem.clone(), Arc::new(Nobody), Arc::new(Nobody), state).ok()
}

fn balloon(state: &BalloonDeviceState) {
    let mem = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), RAM)]).expect("memory"));
    let Some(balloon) = restore(state, &mem) else { return };
    assert!(restore(&balloon.state(), &mem).is_some(), "its own state is refused");
    let bus = balloon.bus_device();
    balloon.set_paused(false);
    balloon.device().urgent().announce();
    for queue in 0..5 {
        for _ in 0..16 {
            balloon.device().patient().process_queue(queue);
        }
    }
    let _ = (balloon.request_stats(), balloon.ballooned(), balloon.figures());
    let access = |at: u64, value: u32| Mutex::lock(&bus).unwrap().write(at, &value.to_le_bytes());
    for register in [0x30, 0x38, 0x44, 0x50, 0x64, 0x80, 0x70] {
        access(register, 2);
        balloon.set_paused(true);
        assert!(restore(&balloon.state(), &mem).is_some(), "its own state is refused");
        balloon.set_paused(false);
    }
}
