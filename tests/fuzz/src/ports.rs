//! The devices on ports: whatever is read, written and typed, their own state is taken by a new
//! device.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use wherry_devices::BusDevice;
use wherry_devices::host::PowerSink;
use wherry_devices::power::Power;
use wherry_devices::serial::{MAX_BACKLOG, Serial};

use crate::bytes::Bytes;
use crate::guest::Line;

fn access(device: &mut dyn BusDevice, input: &mut Bytes<'_>) {
    let (at, len) = (u64::from(input.u8() % 20), usize::from(input.u8() % 9));
    let data = input.take(len);
    if len & 1 == 0 { device.write(at, data) } else { device.read(at, &mut vec![0; len]) }
}

/// The serial port.
pub fn serial(data: &[u8]) {
    let mut input = Bytes(data);
    let mut serial = Serial::new(Arc::new(Line), Box::new(io::sink()));
    while !input.is_empty() {
        match input.u8() % 8 {
            0 => {
                let text = vec![input.u8(); usize::from(input.u16() / 8)];
                let taken = serial.enqueue(&text);
                assert!(taken <= text.len());
            }
            1 => {
                let typed = input.take(4).to_vec();
                serial.enqueue(&typed);
            }
            2 => serial = moved(&serial),
            3 | 4 => serial.write(u64::from(input.u8() % 8), &[input.u8()]),
            5 => serial.read(u64::from(input.u8() % 8), &mut [0]),
            _ => access(&mut serial, &mut input),
        }
    }
    moved(&serial);
}

fn moved(serial: &Serial) -> Serial {
    let state = serial.state();
    let there = Serial::restore(&state, Arc::new(Line), Box::new(io::sink()));
    assert!(state.backlog.len() <= MAX_BACKLOG);
    let there = there.unwrap_or_else(|e| panic!("its own state is refused: {e:?}"));
    let again = there.state();
    assert_eq!((&again.fifo, &again.backlog), (&state.fifo, &state.backlog));
    assert_eq!(again.interrupt_enable, state.interrupt_enable);
    there
}

#[derive(Default)]
struct Ends(AtomicU64);
impl PowerSink for Ends {
    fn power_off(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn reset(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The power registers.
pub fn power(data: &[u8]) {
    let mut input = Bytes(data);
    let ends = Arc::new(Ends::default());
    let mut power = Power::new(Arc::new(Line), ends.clone());
    while !input.is_empty() {
        match input.u8() % 4 {
            0 => drop(power.press_power_button()),
            1 => {
                let state = power.state();
                power = Power::restore(state.clone(), Arc::new(Line), ends.clone());
                assert_eq!(power.state(), state);
            }
            _ => access(&mut power, &mut input),
        }
    }
}
