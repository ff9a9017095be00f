//! The terminal in raw mode, and back on every path out.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// Leaves the console.
pub const ESCAPE: u8 = 0x1D;

/// Said when typed bytes had to be dropped: a terminal is always read, or Ctrl-] would not be seen.
pub const INPUT_LOST: &str =
    "\r\n[wherry: the guest takes no input; what is typed now is lost]\r\n";

/// The terminal's state before raw mode, with its descriptor: a process has one terminal. Without a
/// lock, which a signal handler could wait for in vain.
static ORIGINAL: OnceLock<(OwnedFd, Termios)> = OnceLock::new();
/// The terminal may be raw.
static RAW: AtomicBool = AtomicBool::new(false);

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
        let _ = ORIGINAL.set((fd, original));
        RAW.store(true, Ordering::SeqCst);
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
    put_back(OptionalActions::Drain);
}

/// As [`restore`], and safe in a signal handler: it takes no lock, and does not wait for a terminal
/// that shows nothing.
pub fn restore_at_once() {
    put_back(OptionalActions::Now);
}

fn put_back(when: OptionalActions) {
    if let Some((fd, original)) = ORIGINAL.get()
        && RAW.load(Ordering::SeqCst)
    {
        let _ = tcsetattr(fd, when, original);
        // Not before: who finds it done may end the process.
        RAW.store(false, Ordering::SeqCst);
    }
}

/// Ends the process for a signal, terminal restored, as shells expect it.
pub fn exit_for_signal(signal: i32) -> ! {
    restore();
    // SAFETY: _exit takes any number and does not return. Not exit: other threads are in the middle
    // of things, and what exit handlers do is not meant for that.
    unsafe { libc::_exit(128 + signal) }
}
