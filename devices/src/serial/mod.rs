//! A 16550 serial port: `vm-superio`'s UART with level interrupts, a backlog for input and a saved
//! state.
//!
//! **Interrupts.** In a 16550 an interrupt is a level: received data is announced (IIR, and the
//! line) as long as there is some and the guest has enabled that. `vm-superio` announces it once
//! per arrival instead. A driver that leaves bytes behind, as Linux's does after 256, would never
//! hear of them, so IIR and the line are worked out here.
//!
//! **Input.** The UART's FIFO takes 64 bytes. Input beyond that waits in a backlog, which is
//! retried when the guest has made room; the backlog is bounded, so a guest that never reads costs
//! 64 KiB and no more. Whoever can wait is told of new room ([`Serial::on_room`]). A driver that
//! starts reads the receiver to empty it: until one listens (has enabled the receive interrupt, or
//! polls) all input stays in the backlog.

mod state;

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vm_superio::serial::{Error as UartError, NoEvents, Serial as Uart};
use wherry_codec::CodecError;

use crate::bus::BusDevice;
use crate::device::{Build, BuildError, Built, Busy, Device, Kind};
use crate::interrupt::{InterruptLine, Level};

pub use self::state::{SerialError, SerialStateV1};

/// The kind.
pub static KIND: Kind =
    Kind { name: "serial", id: "com1", options: 1, states: &[(2, 1)], virtio: false, build };

/// Number of ports the device takes.
pub const SERIAL_PORTS: u64 = 8;
/// Most bytes of input that wait for room in the FIFO.
pub const MAX_BACKLOG: usize = 64 * 1024;
/// Bytes that the UART's FIFO takes.
const FIFO: usize = 64;
/// The FIFO is refilled once this many bytes are free.
const REFILL_ROOM: usize = 32;
/// Who waits for room is told when the backlog has fallen to this.
const ROOM_AT: usize = MAX_BACKLOG / 2;
/// A guest that reads the line status so often, and nothing else, polls for input.
const POLLS: u8 = 4;

// Registers, and bits of them.
const DATA: u8 = 0;
const IER: u8 = 1;
const IIR: u8 = 2;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;
const IER_RDI: u8 = 1;
const IER_THRI: u8 = 2;
const IIR_NONE: u8 = 1;
const IIR_THRI: u8 = 2;
const IIR_RDI: u8 = 4;
const IIR_FIFO: u8 = 0xC0;
const LCR_DLAB: u8 = 0x80;
const LSR_DR: u8 = 1;
const MCR_LOOP: u8 = 0x10;

/// The line is not the UART's to raise.
struct NoTrigger;

impl vm_superio::Trigger for NoTrigger {
    type E = io::Error;
    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The device.
pub struct Serial {
    uart: Uart<NoTrigger, NoEvents, Box<dyn Write + Send>>,
    line: Level,
    /// The interrupt enable register.
    enabled: u8,
    /// "There is room for output" is announced. It always is; reading IIR ends the announcement.
    sent: bool,
    /// Somebody in the guest takes input.
    listening: bool,
    polls: u8,
    paused: bool,
    backlog: VecDeque<u8>,
    on_room: Option<Box<dyn Fn() + Send>>,
}

impl Serial {
    /// The port after power on; the guest's output goes to `out`.
    pub fn new(irq: Arc<dyn InterruptLine>, out: Box<dyn Write + Send>) -> Self {
        Self::around(Uart::new(NoTrigger, out), irq)
    }

    fn around(
        uart: Uart<NoTrigger, NoEvents, Box<dyn Write + Send>>,
        irq: Arc<dyn InterruptLine>,
    ) -> Self {
        Self {
            uart,
            line: Level::new(irq),
            enabled: 0,
            sent: false,
            listening: false,
            polls: 0,
            paused: false,
            backlog: VecDeque::new(),
            on_room: None,
        }
    }

    /// The port as saved. Call [`restore_line`](Self::restore_line) when the interrupt controllers
    /// are as saved, too.
    ///
    /// # Errors
    /// More input than can have been waiting.
    pub fn restore(
        state: &SerialStateV1,
        irq: Arc<dyn InterruptLine>,
        out: Box<dyn Write + Send>,
    ) -> Result<Self, SerialError> {
        if state.backlog.len() > MAX_BACKLOG {
            return Err(SerialError::Backlog);
        }
        let mut saved = state.to_uart();
        let ready = if saved.in_buffer.is_empty() { 0 } else { LSR_DR };
        saved.line_status = saved.line_status & !LSR_DR | ready;
        let uart = Uart::from_state(&saved, NoTrigger, NoEvents, out)
            .map_err(|_: UartError<io::Error>| SerialError::Fifo)?;
        let mut this = Self::around(uart, irq);
        this.enabled = state.interrupt_enable;
        this.sent = state.interrupt_identification & state.interrupt_enable & IIR_THRI != 0;
        (this.listening, this.polls) = (state.listening, state.polls);
        this.backlog = state.backlog.iter().copied().collect();
        Ok(this)
    }

    /// Sets the interrupt line as the port's state wants it.
    ///
    /// # Errors
    /// The line cannot be set.
    pub fn restore_line(&mut self) -> io::Result<()> {
        let high = self.pending() != IIR_NONE;
        self.line.set(high)
    }

    /// Registers and unread input.
    pub fn state(&self) -> SerialStateV1 {
        let mut uart = self.uart.state();
        // All that is announced, and not only what the guest would be told first.
        let sent = if self.sent { IIR_THRI } else { 0 };
        let received = if self.received() { IIR_RDI } else { 0 };
        uart.interrupt_identification = (sent | received).max(IIR_NONE);
        let backlog = self.backlog.iter().copied().collect();
        let (listening, polls) = (self.listening, self.polls);
        SerialStateV1 { listening, polls, ..SerialStateV1::from_uart(uart, backlog) }
    }

    /// Called, with the port locked, when somebody whose input was not taken may try again.
    pub fn on_room(&mut self, call: Box<dyn Fn() + Send>) {
        self.on_room = Some(call);
    }

    /// While paused the port takes no input.
    pub fn set_paused(&mut self, paused: bool) {
        let was = std::mem::replace(&mut self.paused, paused);
        if was && !paused {
            self.tell_room();
        }
    }

    /// Input for the guest. Returns how many bytes were taken; the rest found the backlog full, or
    /// the port paused.
    pub fn enqueue(&mut self, input: &[u8]) -> usize {
        if self.paused {
            return 0;
        }
        let room = MAX_BACKLOG.saturating_sub(self.backlog.len());
        let taken = input.len().min(room);
        self.backlog.extend(input.iter().take(taken));
        self.refill();
        self.update_line();
        taken
    }

    fn tell_room(&self) {
        if let Some(call) = &self.on_room {
            call();
        }
    }

    fn refill(&mut self) {
        let room = self.uart.fifo_capacity();
        if !self.listening || self.backlog.is_empty() || room == 0 {
            return;
        }
        let before = self.backlog.len();
        let chunk: Vec<u8> = self.backlog.iter().copied().take(room).collect();
        // In loopback mode the UART takes nothing and says 0; the bytes stay for later.
        let taken = self.uart.enqueue_raw_bytes(&chunk).unwrap_or(0);
        self.backlog.drain(..taken);
        if before > ROOM_AT && self.backlog.len() <= ROOM_AT {
            self.tell_room();
        }
    }

    fn received(&self) -> bool {
        self.enabled & IER_RDI != 0 && self.uart.fifo_capacity() < FIFO
    }

    /// What IIR says, without its FIFO bits. Received data comes before room for output.
    fn pending(&self) -> u8 {
        match (self.received(), self.sent) {
            (true, _) => IIR_RDI,
            (false, true) => IIR_THRI,
            (false, false) => IIR_NONE,
        }
    }

    fn update_line(&mut self) {
        // A line that cannot be set is the VMM's trouble, which it knows; the next change tries
        // again.
        let _ = self.restore_line();
    }

    fn read_register(&mut self, register: u8) -> u8 {
        self.polls = if register == LSR { self.polls.saturating_add(1) } else { 0 };
        if self.polls >= POLLS {
            self.listening = true;
        }
        match register {
            IIR => {
                let pending = self.pending();
                self.sent &= pending != IIR_THRI;
                pending | IIR_FIFO
            }
            _ => self.uart.read(register),
        }
    }

    fn write_register(&mut self, register: u8, value: u8) {
        self.polls = 0;
        let divisor = self.uart.read(LCR) & LCR_DLAB != 0;
        let loopback = self.uart.read(MCR) & MCR_LOOP != 0;
        match register {
            DATA if !divisor && !loopback => self.sent = self.enabled & IER_THRI != 0,
            IER if !divisor => {
                self.enabled = value & 0xF;
                // Enabling it announces room at once: there always is.
                self.sent = value & IER_THRI != 0;
                self.listening |= value & IER_RDI != 0;
            }
            _ => {}
        }
        // Output that nobody takes is lost; the guest is not told: a UART cannot.
        let _ = self.uart.write(register, value);
    }
}

fn build(build: Build<'_>) -> Result<Built, BuildError> {
    let () = build.options()?;
    let (irq, out) = (build.irq.clone(), build.host.console());
    let mut serial = match build.state()? {
        None => Serial::new(irq, out),
        Some(state) => Serial::restore(&state, irq, out).map_err(|e| build.refuse(e))?,
    };
    serial.set_paused(true);
    let serial = Arc::new(Mutex::new(serial));
    Ok(Built { device: serial.clone(), bus: serial, kicks: Vec::new(), subscriber: None })
}

fn locked(serial: &Mutex<Serial>) -> MutexGuard<'_, Serial> {
    serial.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is typed while it is paused waits outside.
impl Device for Mutex<Serial> {
    fn pause(&self, _: Instant) -> Result<(), Busy> {
        locked(self).set_paused(true);
        Ok(())
    }

    fn resume(&self) {
        locked(self).set_paused(false);
    }

    fn save(&self, _: u32) -> Result<Vec<u8>, CodecError> {
        wherry_codec::encode(&locked(self).state())
    }

    fn after_restore(&self) -> io::Result<()> {
        locked(self).restore_line()
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (port, byte) in (offset..).zip(data) {
            *byte = self.read_register(u8::try_from(port).unwrap_or(u8::MAX));
        }
        if self.uart.fifo_capacity() >= REFILL_ROOM {
            self.refill();
        }
        self.update_line();
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (port, byte) in (offset..).zip(data) {
            self.write_register(u8::try_from(port).unwrap_or(u8::MAX), *byte);
        }
        // Leaving loopback mode, or listening, may have made the FIFO usable.
        self.refill();
        self.update_line();
    }
}
