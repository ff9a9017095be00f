//! Commands over the serial port, as `wherry-init` has them (docs/guest-init.md).

use crate::attacks::Attacker;
use crate::pages;
use crate::port;
use crate::second;
use crate::serial::{COM1, say};

const LINE_STATUS: u16 = COM1 + 5;
const DATA_READY: u8 = 1;
/// The machine's ACPI power registers (`devices/src/power`): sleep control and what powers off,
/// reset and what resets, events and the power button's.
const SLEEP_CONTROL_PORT: u16 = 0x600;
const POWER_OFF: u8 = 5 << 2 | 1 << 5;
const RESET_PORT: u16 = 0x602;
const RESET: u8 = 1;
const EVENTS_PORT: u16 = 0x604;
const POWER_BUTTON: u8 = 1;
/// Steps between two looks at the port, each of which is an exit.
const PATIENCE: u32 = 16;

/// A command that is being typed.
#[derive(Default)]
pub struct Console {
    line: [u8; 32],
    len: usize,
    calls: u32,
    heeds_button: bool,
}

impl Console {
    /// With the power button, which may be left alone.
    pub fn new(heeds_button: bool) -> Self {
        Self { heeds_button, ..Self::default() }
    }

    /// Takes what was typed, and answers a whole line.
    pub fn poll(&mut self, guest: &mut Attacker) {
        self.calls = self.calls.wrapping_add(1);
        if !self.calls.is_multiple_of(PATIENCE) {
            return;
        }
        if self.heeds_button && port::read(EVENTS_PORT) & POWER_BUTTON != 0 {
            say!("poweroff reason=button");
            port::write(SLEEP_CONTROL_PORT, POWER_OFF);
        }
        while port::read(LINE_STATUS) & DATA_READY != 0 {
            match port::read(COM1) {
                b'\r' | b'\n' => {
                    let text = core::str::from_utf8(&self.line[..self.len]).unwrap_or_default();
                    answer(text, guest);
                    self.len = 0;
                    // The guest goes on before it answers more.
                    return;
                }
                byte if self.len < self.line.len() => {
                    self.line[self.len] = byte;
                    self.len += 1;
                }
                _ => {}
            }
        }
    }
}

fn answer(command: &str, guest: &mut Attacker) {
    match command {
        "" => {}
        "verify" => {
            let (kept, lost) = (guest.tally.lies_kept, guest.tally.lies_lost);
            let pages = pages::check_all(&mut guest.tally);
            let tally = &guest.tally;
            let (kept, lost) = (tally.lies_kept - kept, tally.lies_lost - lost);
            let word = if tally.bad == 0 { "ok" } else { "failed" };
            say!("verify {word} pages={pages} bad={} lies_kept={kept} lies_lost={lost}", tally.bad);
        }
        "status" => {
            let (counts, tally) = (&guest.counts, &guest.tally);
            let (resets, written) = second::counts();
            say!(
                "status steps={} ids={} open_steps={} hints={} resets={} reinits={} checked={} \
                 bad={} second_wrote={written}",
                counts.steps,
                counts.ids,
                counts.open_steps,
                guest.balloon.hints,
                counts.resets + resets,
                guest.balloon.broken,
                tally.checked,
                tally.bad
            );
        }
        "reboot" => {
            say!("reboot reason=command");
            port::write(RESET_PORT, RESET);
        }
        // Spoils an honest page, so that it can be seen that this is noticed.
        "spoil" => {
            guest.spoil();
            say!("spoil ok");
        }
        _ => say!("error unknown command"),
    }
}
