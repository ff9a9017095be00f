//! What is saved of a serial port.

use serde::{Deserialize, Serialize};
use vm_superio::serial::SerialState;

/// Why a saved serial port was refused.
#[derive(Debug, thiserror::Error)]
pub enum SerialError {
    /// More bytes in the FIFO than it holds.
    #[error("saved FIFO is too long")]
    Fifo,
    /// More bytes in the backlog than [`MAX_BACKLOG`](super::MAX_BACKLOG).
    #[error("saved backlog is too long")]
    Backlog,
}

/// Saved registers and unread input. Fields are named after the 16550's registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct SerialStateV1 {
    pub baud_divisor_low: u8,
    pub baud_divisor_high: u8,
    pub interrupt_enable: u8,
    /// 4 if received data is announced, 2 if room for output is, 1 if neither.
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
    /// Somebody in the guest takes input.
    pub listening: bool,
    /// How often the guest has read the line status, and nothing else, since.
    pub polls: u8,
}

impl Default for SerialStateV1 {
    fn default() -> Self {
        Self::from_uart(SerialState::default(), Vec::new())
    }
}

impl SerialStateV1 {
    pub(super) fn from_uart(s: SerialState, backlog: Vec<u8>) -> Self {
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
            listening: false,
            polls: 0,
        }
    }

    pub(super) fn to_uart(&self) -> SerialState {
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
