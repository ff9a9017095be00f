//! The terminal in raw mode, and back on every path out.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::sync::lock;

/// Leaves the console.
pub const ESCAPE: u8 = 0x1D;

/// Said when typed bytes had to be dropped: a terminal is always read, or Ctrl-] would not be seen.
pub const INPUT_LOST: &str =
    "\r\n[wherry: the guest takes no input; what is typed now is lost]\r\n";

/// The terminal's state before raw mode, with its descriptor.
static ORIGINAL: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

/// While this lives the terminal is raw.
#[must_use]
pub struct RawMode(());

impl RawMode {
    /// Makes the terminal on standard input raw. `None` if it is not a terminal.
    pub fn enter() -> io::Result<Option<Self>> {
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        // Descriptors of our own: standard input may be replaced later.
        let fd = io::stdin().as_fd().try_clone_to_owned()?;
        let terminal = fd.try_clone()?;
        let original = tcgetattr(&fd)?;
        let mut raw = original.clone();
        raw.make_raw();
        // Before the change, so that a signal in between restores.
        *lock(&ORIGINAL) = Some((fd, original));
        if let Err(e) = tcsetattr(&terminal, OptionalActions::Drain, &raw) {
            restore();
            return Err(e.into());
        }
        Ok(Some(Self(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back as it was before raw mode. From any thread; without effect if it is not
/// raw.
pub fn restore() {
    if let Some((fd, original)) = lock(&ORIGINAL).take() {
        let _ = tcsetattr(&fd, OptionalActions::Drain, &original);
    }
}

/// Ends the process for a signal, terminal restored, as shells expect it.
pub fn exit_for_signal(signal: i32) -> ! {
    restore();
    // SAFETY: _exit takes any number and does not return. Not exit: other threads are in the middle
    // of things, and what exit handlers do is not meant for that.
    unsafe { libc::_exit(128 + signal) }
}
