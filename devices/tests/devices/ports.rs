//! Serial port and power registers.

use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use wherry_devices::host::PowerSink;
use wherry_devices::power::{self, Power};
use wherry_devices::serial::{MAX_BACKLOG, Serial, SerialError, SerialStateV1};
use wherry_devices::{BusDevice, InterruptLine};

use crate::driver::Line;

#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);
impl Write for Screen {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(buf)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn read(device: &mut impl BusDevice, at: u64) -> u8 {
    let mut data = [0];
    device.read(at, &mut data);
    data[0]
}

#[test]
fn serial_output_reaches_the_sink() {
    let screen = Screen::default();
    let mut serial = Serial::new(Arc::<Line>::default(), Box::new(screen.clone()));
    b"ready\n".iter().for_each(|b| serial.write(0, &[*b]));
    assert_eq!(*screen.0.lock().unwrap(), b"ready\n");
    assert_ne!(read(&mut serial, 5) & 0x20, 0, "transmitter empty");
}

#[test]
fn serial_input_beyond_the_fifo_waits_and_arrives_in_order() {
    let line = Arc::<Line>::default();
    let mut serial = Serial::new(line.clone(), Box::new(std::io::sink()));
    serial.write(1, &[1]);
    let input: Vec<u8> = (0..1000).map(|n| n as u8).collect();
    assert_eq!(serial.enqueue(&input), 1000);
    assert!(line.edges() > 0);
    let mut got = Vec::new();
    while read(&mut serial, 5) & 1 != 0 {
        got.push(read(&mut serial, 0));
    }
    assert_eq!(got, input);
}

#[test]
fn serial_backlog_is_bounded() {
    let mut serial = Serial::new(Arc::<Line>::default(), Box::new(std::io::sink()));
    let taken = serial.enqueue(&vec![7; 2 * MAX_BACKLOG]);
    assert_eq!(taken, MAX_BACKLOG);
    assert_eq!(serial.enqueue(&[7]), 0);
    // Somebody listens: as much as went to the FIFO.
    serial.write(1, &[1]);
    assert_eq!(serial.enqueue(&[7; 100]), 64);
    assert_eq!(serial.enqueue(&[7]), 0);
}

#[test]
fn serial_input_waits_out_loopback_mode() {
    let mut serial = Serial::new(Arc::<Line>::default(), Box::new(std::io::sink()));
    serial.write(1, &[1]);
    serial.write(4, &[0x10]);
    serial.enqueue(b"x");
    assert_eq!(read(&mut serial, 5) & 1, 0);
    serial.write(4, &[0x08]);
    assert_eq!(read(&mut serial, 0), b'x');
}

#[test]
fn serial_refuses_hostile_state() {
    let restore = |s: &SerialStateV1| {
        Serial::restore(s, Arc::<Line>::default(), Box::new(std::io::sink())).err()
    };
    let fifo = SerialStateV1 { fifo: vec![0; 65], ..SerialStateV1::default() };
    assert!(matches!(restore(&fifo), Some(SerialError::Fifo)));
    let backlog = SerialStateV1 { backlog: vec![0; MAX_BACKLOG + 1], ..SerialStateV1::default() };
    assert!(matches!(restore(&backlog), Some(SerialError::Backlog)));
    assert!(restore(&SerialStateV1::default()).is_none());
}

#[test]
fn a_restored_device_sets_its_line_whatever_the_controllers_remember() {
    let mut serial = Serial::new(Arc::<Line>::default(), Box::new(std::io::sink()));
    serial.write(1, &[1]);
    serial.enqueue(b"x");
    let there = Arc::<Line>::default();
    let mut serial =
        Serial::restore(&serial.state(), there.clone(), Box::new(std::io::sink())).unwrap();
    assert!(!there.high(), "not before the controllers are restored");
    serial.restore_line().unwrap();
    assert!(there.high());
    assert_eq!(read(&mut serial, 0), b'x');
    assert!(!there.high());
    // Saved while the line was high in the controllers, which then took it.
    there.set(true).unwrap();
    let mut serial =
        Serial::restore(&serial.state(), there.clone(), Box::new(std::io::sink())).unwrap();
    serial.restore_line().unwrap();
    assert!(!there.high());

    let mut power = Power::new(Arc::<Line>::default(), Arc::<Ends>::default());
    power.press_power_button().unwrap();
    let there = Arc::<Line>::default();
    let mut power = Power::restore(power.state(), there.clone(), Arc::<Ends>::default());
    power.restore_line().unwrap();
    assert!(there.high());
    power.read(power::EVENTS, &mut [0; 4]);
    assert!(!there.high());
}

#[derive(Default)]
pub struct Ends {
    off: AtomicU32,
    reset: AtomicU32,
}
impl PowerSink for Ends {
    fn power_off(&self) {
        self.off.fetch_add(1, Ordering::SeqCst);
    }
    fn reset(&self) {
        self.reset.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn power_off_needs_enable_and_type_5() {
    let ends = Arc::<Ends>::default();
    let mut power = Power::new(Arc::<Line>::default(), ends.clone());
    for value in [0, 5 << 2, 0x20, 0x20 | 4 << 2, 0x20 | 7 << 2] {
        power.write(power::SLEEP_CONTROL, &[value]);
        assert_eq!(ends.off.load(Ordering::SeqCst), 0, "{value:#x}");
        assert_eq!(read(&mut power, power::SLEEP_CONTROL), value & !power::SLP_EN);
    }
    power.write(power::SLEEP_CONTROL, &[power::SLP_EN | power::SLP_TYP_S5 << 2]);
    assert_eq!(ends.off.load(Ordering::SeqCst), 1);
    assert_eq!(read(&mut power, 1), 0);
}

#[test]
fn reset_takes_the_value_1_only() {
    let ends = Arc::<Ends>::default();
    let mut power = Power::new(Arc::<Line>::default(), ends.clone());
    [0, 2, 0xff].iter().for_each(|v| power.write(power::RESET, &[*v]));
    assert_eq!(ends.reset.load(Ordering::SeqCst), 0);
    power.write(power::RESET, &[1]);
    assert_eq!(ends.reset.load(Ordering::SeqCst), 1);
}

#[test]
fn power_button_is_an_event_that_reading_clears() {
    let line = Arc::<Line>::default();
    let mut power = Power::new(line.clone(), Arc::<Ends>::default());
    power.press_power_button().unwrap();
    assert!(line.high());
    let mut data = [0xff; 4];
    power.read(power::EVENTS, &mut data);
    assert_eq!(u32::from_le_bytes(data), power::EVENT_POWER_BUTTON);
    assert!(!line.high());
    power.read(power::EVENTS, &mut data);
    assert_eq!(data, [0; 4]);
}
