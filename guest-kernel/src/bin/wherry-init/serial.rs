//! The serial console. Every line of ours begins with `WHERRY: `.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, OnceLock, PoisonError};

const PREFIX: &str = "WHERRY: ";
const TTY: &str = "/dev/ttyS0";

static OUTPUT: OnceLock<Mutex<File>> = OnceLock::new();

/// Opens the serial console: input by the byte without echo, output with CR LF.
pub fn attach() {
    let path = if fs::metadata(TTY).is_ok() { TTY } else { "/dev/console" };
    let Ok(tty) = OpenOptions::new().read(true).write(true).open(path) else { return };
    // SAFETY: all-zero is a valid termios; tcgetattr fills it.
    let mut mode: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open and `mode` lives through both calls.
    unsafe {
        if libc::tcgetattr(tty.as_raw_fd(), &mut mode) == 0 {
            mode.c_lflag &= !(libc::ICANON | libc::ECHO | libc::ISIG | libc::IEXTEN);
            mode.c_iflag &= !(libc::IXON | libc::INLCR | libc::ICRNL | libc::IGNCR | libc::ISTRIP);
            mode.c_oflag |= libc::OPOST | libc::ONLCR;
            libc::tcsetattr(tty.as_raw_fd(), libc::TCSANOW, &mode);
        }
    }
    let _ = OUTPUT.set(Mutex::new(tty));
}

/// Prints one line, whole.
pub fn say(text: &str) {
    let Some(output) = OUTPUT.get() else { return };
    let line = format!("{PREFIX}{text}\n");
    let _ = output.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes());
}

/// A handle of its own for what is typed.
pub fn input() -> Option<File> {
    let output = OUTPUT.get()?.lock().unwrap_or_else(PoisonError::into_inner);
    output.try_clone().ok()
}
