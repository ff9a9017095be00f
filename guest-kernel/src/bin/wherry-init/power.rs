//! Powers off when the ACPI power button is pressed, as a distribution's login manager would.

use std::fs::{self, File};
use std::io::Read;
use std::thread;
use std::time::Duration;

use crate::serial::say;
use crate::sys::{self, End};

/// linux/input-event-codes.h
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
/// struct input_event: two 64-bit time fields, type@16, code@18, value@20.
const EVENT_BYTES: usize = 24;

/// Starts one thread per input device, once they are there.
pub fn watch_button() {
    thread::spawn(|| {
        for _ in 0..60 {
            let devices = fs::read_dir("/dev/input").into_iter().flatten().flatten();
            let events: Vec<_> = devices
                .filter(|d| d.file_name().to_string_lossy().starts_with("event"))
                .map(|d| d.path())
                .collect();
            if !events.is_empty() {
                events.into_iter().filter_map(|path| File::open(path).ok()).for_each(|device| {
                    thread::spawn(move || watch(device));
                });
                return;
            }
            thread::sleep(Duration::from_millis(500));
        }
    });
}

fn watch(mut device: File) {
    let mut event = [0; EVENT_BYTES];
    while device.read_exact(&mut event).is_ok() {
        let field = |at: usize| u16::from_le_bytes([event[at], event[at + 1]]);
        if field(16) == EV_KEY && field(18) == KEY_POWER && event[20] == 1 {
            say("poweroff reason=button");
            sys::end(End::Poweroff);
        }
    }
}
