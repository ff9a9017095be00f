//! The ACPI power registers of a hardware-reduced machine: sleep control, reset, and a power
//! button.
//!
//! | offset | register |
//! |---|---|
//! | 0 | sleep control (ACPI 6.5, 4.8.3.7): `SLP_TYP` bits 2..=4, `SLP_EN` bit 5; type 5 powers off |
//! | 1 | sleep status (4.8.3.8): always 0, the machine never sleeps |
//! | 2 | reset (4.8.3.6): writing 1 resets |
//! | 4..=7 | event register: bit 0 power button; the bits that are read are cleared |
//!
//! The event register is Wherry's own; the DSDT's generic event device (ACPI0013) reads it in its
//! `_EVT` method. Its interrupt line is high while there are events that were not read.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use wherry_codec::CodecError;

use crate::bus::BusDevice;
use crate::device::{Build, BuildError, Built, Busy, Device, Kind};
use crate::host::PowerSink;
use crate::interrupt::{InterruptLine, Level};

/// The kind.
pub static KIND: Kind =
    Kind { name: "power", id: "power", options: 1, states: &[(2, 1)], virtio: false, build };

/// Number of ports the device takes.
pub const POWER_PORTS: u64 = 16;
/// Offset of the sleep control register.
pub const SLEEP_CONTROL: u64 = 0;
/// Offset of the sleep status register.
pub const SLEEP_STATUS: u64 = 1;
/// Offset of the reset register.
pub const RESET: u64 = 2;
/// Value that resets when written to [`RESET`].
pub const RESET_VALUE: u8 = 1;
/// Offset of the 32-bit event register.
pub const EVENTS: u64 = 4;
/// Bit of the event register: the power button was pressed.
pub const EVENT_POWER_BUTTON: u32 = 1;
/// `SLP_TYP` that powers off; the DSDT's `\_S5` object must give the same.
pub const SLP_TYP_S5: u8 = 5;
/// `SLP_EN`: act on the sleep type now.
pub const SLP_EN: u8 = 1 << 5;

/// Saved registers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerStateV1 {
    /// Last value of the sleep control register, without `SLP_EN`.
    pub sleep_control: u8,
    /// Events that the guest has not read.
    pub events: u32,
}

/// The device.
pub struct Power {
    state: PowerStateV1,
    line: Level,
    sink: Arc<dyn PowerSink>,
}

impl Power {
    /// The device after power on. `irq` is the generic event device's line.
    pub fn new(irq: Arc<dyn InterruptLine>, sink: Arc<dyn PowerSink>) -> Self {
        Self::restore(PowerStateV1::default(), irq, sink)
    }

    /// The device as saved. Any state is acceptable: unknown event bits mean nothing to the guest.
    pub fn restore(
        state: PowerStateV1,
        irq: Arc<dyn InterruptLine>,
        sink: Arc<dyn PowerSink>,
    ) -> Self {
        Self { state, line: Level::new(irq), sink }
    }

    /// Sets the interrupt line as the state wants it; for a restored device, when the interrupt
    /// controllers are as saved, too.
    ///
    /// # Errors
    /// The line cannot be set.
    pub fn restore_line(&mut self) -> std::io::Result<()> {
        self.line.set(self.state.events != 0)
    }

    /// The registers.
    pub fn state(&self) -> PowerStateV1 {
        self.state.clone()
    }

    /// Presses the power button: the guest is asked to shut down.
    pub fn press_power_button(&mut self) -> std::io::Result<()> {
        self.state.events |= EVENT_POWER_BUTTON;
        self.restore_line()
    }

    fn read_port(&mut self, offset: u64) -> u8 {
        match offset {
            SLEEP_CONTROL => self.state.sleep_control,
            EVENTS..=7 => {
                let shift = (offset - EVENTS) * 8;
                let byte = (self.state.events >> shift) as u8;
                self.state.events &= !(0xff << shift);
                byte
            }
            _ => 0,
        }
    }

    fn write_port(&mut self, offset: u64, value: u8) {
        match offset {
            SLEEP_CONTROL => {
                self.state.sleep_control = value & !SLP_EN;
                if value & SLP_EN != 0 && (value >> 2) & 7 == SLP_TYP_S5 {
                    self.sink.power_off();
                }
            }
            RESET if value == RESET_VALUE => self.sink.reset(),
            _ => {}
        }
    }
}

fn build(build: Build<'_>) -> Result<Built, BuildError> {
    let () = build.options()?;
    let state = build.state()?.unwrap_or_default();
    let power = Arc::new(Mutex::new(Power::restore(state, build.irq, build.host.power())));
    Ok(Built { device: power.clone(), bus: power, kicks: Vec::new(), subscriber: None })
}

/// It works only while the guest reads and writes, and when somebody presses its button.
impl Device for Mutex<Power> {
    fn pause(&self, _: Instant) -> Result<(), Busy> {
        Ok(())
    }

    fn resume(&self) {}

    fn save(&self, _: u32) -> Result<Vec<u8>, CodecError> {
        wherry_codec::encode(&self.lock().unwrap_or_else(PoisonError::into_inner).state())
    }

    fn after_restore(&self) -> std::io::Result<()> {
        self.lock().unwrap_or_else(PoisonError::into_inner).restore_line()
    }
}

impl BusDevice for Power {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (port, byte) in (offset..).zip(data) {
            *byte = self.read_port(port);
        }
        // A line that cannot be set is the VMM's trouble, which it knows; the next change tries
        // again.
        let _ = self.restore_line();
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (port, byte) in (offset..).zip(data) {
            self.write_port(port, *byte);
        }
    }
}
