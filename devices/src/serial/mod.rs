//! A 16550 serial port: `vm-superio`'s UART with a backlog for input and a saved state.
//!
//! The UART's FIFO takes 64 bytes. Input beyond that waits in a backlog, which is retried when the guest has made room;
//! the backlog is bounded, so a guest that never reads costs 64 KiB and no more.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vm_superio::serial::{NoEvents, Serial as Uart, SerialState};

use crate::bus::BusDevice;
use crate::interrupt::InterruptLine;

/// Number of ports the device takes.
pub const SERIAL_PORTS: u64 = 8;
/// Most bytes of input that wait for room in the FIFO.
pub const MAX_BACKLOG: usize = 64 * 1024;
/// The FIFO is refilled once this many bytes are free: one interrupt per half FIFO instead of one per byte.
const REFILL_ROOM: usize = 32;

/// Why a saved serial port was refused.
#[derive(Debug, thiserror::Error)]
pub enum SerialError {
    /// More bytes in the FIFO than it holds.
    #[error("saved FIFO is too long")]
    Fifo,
    /// More bytes in the backlog than [`MAX_BACKLOG`].
    #[error("saved backlog is too long")]
    Backlog,
    /// The interrupt for restored data could not be raised.
    #[error("cannot raise the interrupt")]
    Interrupt(#[source] io::Error),
}

/// Saved registers and unread input. Fields are named after the 16550's registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct SerialStateV1 {
    pub baud_divisor_low: u8,
    pub baud_divisor_high: u8,
    pub interrupt_enable: u8,
    pub interrupt_identification: u8,
    pub line_control: u8,
    pub line_status: u8,
    pub modem_control: u8,
    pub modem_status: u8,
    pub scratch: u8,
    /// Received bytes that the guest has not read.
    pub fifo: Vec<u8>,
    /// Input that is waiting for room in the FIFO.
    pub backlog: Vec<u8>,
}

impl Default for SerialStateV1 {
    fn default() -> Self {
        Self::from_uart(SerialState::default(), Vec::new())
    }
}

impl SerialStateV1 {
    fn from_uart(s: SerialState, backlog: Vec<u8>) -> Self {
        Self {
            baud_divisor_low: s.baud_divisor_low,
            baud_divisor_high: s.baud_divisor_high,
            interrupt_enable: s.interrupt_enable,
            interrupt_identification: s.interrupt_identification,
            line_control: s.line_control,
            line_status: s.line_status,
            modem_control: s.modem_control,
            modem_status: s.modem_status,
            scratch: s.scratch,
            fifo: s.in_buffer,
            backlog,
        }
    }

    fn to_uart(&self) -> SerialState {
        SerialState {
            baud_divisor_low: self.baud_divisor_low,
            baud_divisor_high: self.baud_divisor_high,
            interrupt_enable: self.interrupt_enable,
            interrupt_identification: self.interrupt_identification,
            line_control: self.line_control,
            line_status: self.line_status,
            modem_control: self.modem_control,
            modem_status: self.modem_status,
            scratch: self.scratch,
            in_buffer: self.fifo.clone(),
        }
    }
}

struct Line(Arc<dyn InterruptLine>);

impl vm_superio::Trigger for Line {
    type E = io::Error;
    fn trigger(&self) -> io::Result<()> {
        self.0.pulse()
    }
}

/// The device.
pub struct Serial {
    uart: Uart<Line, NoEvents, Box<dyn Write + Send>>,
    irq: Arc<dyn InterruptLine>,
    backlog: VecDeque<u8>,
    lost: u64,
}

impl Serial {
    /// The port after power on; the guest's output goes to `out`.
    pub fn new(irq: Arc<dyn InterruptLine>, out: Box<dyn Write + Send>) -> Self {
        Self { uart: Uart::new(Line(irq.clone()), out), irq, backlog: VecDeque::new(), lost: 0 }
    }

    /// The port as saved. Call [`repeat_interrupt`](Self::repeat_interrupt) when the interrupt controllers are as saved, too.
    pub fn restore(
        state: &SerialStateV1,
        irq: Arc<dyn InterruptLine>,
        out: Box<dyn Write + Send>,
    ) -> Result<Self, SerialError> {
        if state.backlog.len() > MAX_BACKLOG {
            return Err(SerialError::Backlog);
        }
        let uart =
            Uart::from_state(&state.to_uart(), Line(irq.clone()), NoEvents, out).map_err(
                |error| match error {
                    vm_superio::serial::Error::Trigger(e) | vm_superio::serial::Error::IOError(e) => {
                        SerialError::Interrupt(e)
                    }
                    vm_superio::serial::Error::FullFifo => SerialError::Fifo,
                },
            )?;
        Ok(Self { uart, irq, backlog: state.backlog.iter().copied().collect(), lost: 0 })
    }

    /// Raises the interrupt again if one is pending. Input may come at any time, also between the saving of the interrupt
    /// controllers and that of the port, and a UART whose interrupt was lost never raises another.
    ///
    /// # Errors
    /// The line cannot be pulsed.
    pub fn repeat_interrupt(&self) -> io::Result<()> {
        // 16550, interrupt identification register: bit 0 says that none is pending.
        let pending = self.uart.state().interrupt_identification & 1 == 0;
        if pending { self.irq.pulse() } else { Ok(()) }
    }

    /// Registers and unread input.
    pub fn state(&self) -> SerialStateV1 {
        SerialStateV1::from_uart(self.uart.state(), self.backlog.iter().copied().collect())
    }

    /// Input for the guest. Returns how many bytes were taken; the rest found the backlog full.
    pub fn enqueue(&mut self, input: &[u8]) -> usize {
        let room = MAX_BACKLOG - self.backlog.len().min(MAX_BACKLOG);
        let taken = input.len().min(room);
        self.backlog.extend(input.iter().take(taken));
        self.refill();
        taken
    }

    /// Bytes of the guest's output that `out` refused (the guest is not told: a UART cannot).
    pub fn lost_output(&self) -> u64 {
        self.lost
    }

    fn refill(&mut self) {
        if self.backlog.is_empty() || self.uart.fifo_capacity() == 0 {
            return;
        }
        // In loopback mode the UART takes nothing and says 0; the bytes stay for later. An interrupt error comes after
        // the bytes were taken, so what was taken is measured by the room that went.
        let room = self.uart.fifo_capacity();
        let chunk: Vec<u8> = self.backlog.iter().copied().take(room).collect();
        let _ = self.uart.enqueue_raw_bytes(&chunk);
        let taken = room - self.uart.fifo_capacity();
        self.backlog.drain(..taken.min(self.backlog.len()));
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (port, byte) in (offset..).zip(data) {
            *byte = self.uart.read(u8::try_from(port).unwrap_or(u8::MAX));
        }
        if self.uart.fifo_capacity() >= REFILL_ROOM {
            self.refill();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (port, byte) in (offset..).zip(data) {
            if self.uart.write(u8::try_from(port).unwrap_or(u8::MAX), *byte).is_err() {
                self.lost += 1;
            }
        }
        // Leaving loopback mode may have made the FIFO usable.
        self.refill();
    }
}
