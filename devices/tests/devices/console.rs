//! Serial input as drivers take it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use wherry_devices::serial::{MAX_BACKLOG, Serial};
use wherry_devices::{BusDevice, InterruptLine};

use crate::driver::Line;

const IIR: u64 = 2;
const LSR: u64 = 5;
const IER: u64 = 1;

fn read(device: &mut impl BusDevice, at: u64) -> u8 {
    let mut data = [0];
    device.read(at, &mut data);
    data[0]
}

fn serial(line: &Arc<Line>) -> Serial {
    Serial::new(line.clone(), Box::new(std::io::sink()))
}

/// Linux's handler (serial8250_rx_chars): at most 256 bytes, then it asks IIR whether there is
/// more.
fn linux_handler(
    serial: &mut Serial,
    got: &mut Vec<u8>,
    mut between: impl FnMut(&mut Serial, usize),
) {
    while read(serial, IIR) & 1 == 0 {
        for _ in 0..256 {
            if read(serial, LSR) & 1 == 0 {
                break;
            }
            got.push(read(serial, 0));
            between(serial, got.len());
        }
    }
}

/// Whatever arrives whenever: all is read while somebody answers the line. `moves` saves and
/// restores the port before every interrupt.
fn all_arrives(pieces: &[(usize, usize)], moves: bool) {
    let line = Arc::<Line>::default();
    let mut port = serial(&line);
    port.write(IER, &[1]);
    let mut sent = 0usize;
    let mut next = |port: &mut Serial, bytes: usize| {
        let input: Vec<u8> = (sent..sent + bytes).map(|n| n as u8).collect();
        sent += port.enqueue(&input);
    };
    let mut pieces = pieces.iter().copied().peekable();
    let mut got = Vec::new();
    while line.high() || pieces.peek().is_some() {
        if !line.high() {
            // Nothing is left to be read: the next piece comes.
            let (_, bytes) = pieces.next().unwrap();
            next(&mut port, bytes);
            assert!(line.high(), "unread input and no interrupt");
        }
        if moves {
            let out = Box::new(std::io::sink());
            port = Serial::restore(&port.state(), line.clone(), out).unwrap();
            port.restore_line().unwrap();
            assert!(line.high(), "unread input and no interrupt after a move");
        }
        let before = got.len();
        linux_handler(&mut port, &mut got, |port, nr| {
            while let Some((_, bytes)) = pieces.next_if(|(at, _)| *at <= nr) {
                next(port, bytes);
            }
        });
        assert!(got.len() > before, "unread input, and IIR says that there is none");
    }
    let expected: Vec<u8> = (0..sent).map(|n| n as u8).collect();
    assert_eq!(got, expected);
}

#[test]
fn input_never_stalls_under_linuxs_handler() {
    // Five bytes, and 1024 while the guest reads the second of them.
    all_arrives(&[(0, 5), (2, 1024)], false);
    for first in 1..70 {
        for second in [1, 31, 32, 33, 63, 64, 65, 255, 256, 257, 300, 2200] {
            all_arrives(&[(0, first), (first / 2, second)], false);
        }
    }
}

#[test]
fn input_never_stalls_in_random_patterns_nor_across_moves() {
    let mut seed = 1u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize % below
    };
    for round in 0..400 {
        let mut at = 0;
        let pieces: Vec<(usize, usize)> = (0..1 + random(12))
            .map(|_| {
                at += random(300);
                let most = if random(4) == 0 { 3000 } else { 40 };
                (at, 1 + random(most))
            })
            .collect();
        all_arrives(&pieces, round % 2 == 1);
    }
}

#[test]
fn iir_names_one_cause_at_a_time_and_reading_it_takes_only_that_one() {
    let line = Arc::<Line>::default();
    let mut port = serial(&line);
    port.write(IER, &[3]);
    port.enqueue(b"x");
    assert_eq!(
        [read(&mut port, IIR), read(&mut port, IIR)],
        [0xC4, 0xC4],
        "data, until it is read"
    );
    assert_eq!(read(&mut port, 0), b'x');
    assert!(line.high());
    assert_eq!([read(&mut port, IIR), read(&mut port, IIR)], [0xC2, 0xC1]);
    assert!(!line.high());
    port.write(0, b"y");
    assert!(line.high(), "room again");
    // As Linux's console does while it prints.
    port.write(IER, &[0]);
    assert!(!line.high());
    assert_eq!(read(&mut port, IIR), 0xC1);
    port.enqueue(b"z");
    assert!(!line.high());
    port.write(IER, &[1]);
    assert!(line.high());
}

#[test]
fn input_waits_for_a_driver_that_empties_the_receiver_first() {
    let line = Arc::<Line>::default();
    let mut port = serial(&line);
    port.enqueue(b"echo one\n");
    // Linux's start: the receiver is read to empty it, then the interrupt is enabled.
    for register in [LSR, 0, IIR, 6, LSR, 0, IIR, 6] {
        read(&mut port, register);
    }
    port.write(IER, &[5]);
    let mut got = Vec::new();
    linux_handler(&mut port, &mut got, |_, _| {});
    assert_eq!(got, b"echo one\n");
}

#[test]
fn a_guest_that_polls_gets_its_input() {
    let mut port = serial(&Arc::default());
    port.enqueue(b"hi");
    let mut got = Vec::new();
    for _ in 0..100 {
        if read(&mut port, LSR) & 1 != 0 {
            got.push(read(&mut port, 0));
        }
    }
    assert_eq!(got, b"hi");
}

#[test]
fn who_found_no_room_is_told_of_it_and_a_paused_port_takes_nothing() {
    let mut port = serial(&Arc::default());
    let told = Arc::new(AtomicU32::new(0));
    let count = told.clone();
    port.on_room(Box::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
    }));
    port.write(IER, &[1]);
    let mut sent = 0;
    loop {
        match port.enqueue(&[0; 1000]) {
            0 => break,
            n => sent += n,
        }
    }
    let mut got = Vec::new();
    linux_handler(&mut port, &mut got, |_, _| {});
    assert_eq!((got.len(), told.load(Ordering::SeqCst)), (sent, 1));
    assert!(sent > MAX_BACKLOG);

    port.set_paused(true);
    let before = port.state();
    assert_eq!((port.enqueue(b"x"), port.state()), (0, before));
    port.set_paused(false);
    assert_eq!(told.load(Ordering::SeqCst), 2);
    assert_eq!(port.enqueue(b"x"), 1);
}

/// One entry of an IOAPIC as KVM models it: the line, what is pending, and whether it is masked.
#[derive(Default)]
struct Entry {
    level: bool,
    high: bool,
    irr: bool,
    masked: bool,
    remote_irr: bool,
    delivered: u32,
}

impl Entry {
    fn line(&mut self, high: bool) {
        let rose = high && !self.high;
        self.high = high;
        if !high {
            // KVM forgets an edge with the line's fall if it was not delivered.
            self.irr = false;
        } else if self.level || rose {
            self.irr = true;
            self.service();
        }
    }

    fn service(&mut self) {
        if self.irr && !self.masked && !self.remote_irr {
            self.delivered += 1;
            self.irr = self.level;
            self.remote_irr = self.level;
        }
    }

    fn mask(&mut self, masked: bool) {
        self.masked = masked;
        self.service();
    }

    fn end_of_interrupt(&mut self) {
        self.remote_irr = false;
        self.service();
    }
}

struct Pin(Mutex<Entry>);
impl InterruptLine for Pin {
    fn set(&self, high: bool) -> std::io::Result<()> {
        self.0.lock().unwrap().line(high);
        Ok(())
    }
}

/// Linux masks an entry while it moves the interrupt to another CPU. A pulse that comes then is
/// lost for good; a level is not.
#[test]
fn an_interrupt_at_a_masked_entry_is_delivered_later() {
    let mut edge = Entry { masked: true, ..Entry::default() };
    edge.line(true);
    edge.line(false);
    edge.mask(false);
    assert_eq!(edge.delivered, 0, "what a pulse on an edge entry would do");

    let pin = Arc::new(Pin(Mutex::new(Entry { level: true, ..Entry::default() })));
    let mut port = Serial::new(pin.clone(), Box::new(std::io::sink()));
    port.write(IER, &[1]);
    pin.0.lock().unwrap().mask(true);
    port.enqueue(b"x");
    assert_eq!(pin.0.lock().unwrap().delivered, 0);
    pin.0.lock().unwrap().mask(false);
    assert_eq!(pin.0.lock().unwrap().delivered, 1);
    assert_eq!(read(&mut port, 0), b'x');
    pin.0.lock().unwrap().end_of_interrupt();
    assert_eq!(pin.0.lock().unwrap().delivered, 1, "and once");
    // More that comes before the end of the interrupt is not forgotten either.
    port.enqueue(b"y");
    port.enqueue(b"z");
    assert_eq!(read(&mut port, 0), b'y');
    pin.0.lock().unwrap().end_of_interrupt();
    assert_eq!(pin.0.lock().unwrap().delivered, 3);
}
