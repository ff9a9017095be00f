//! The terminal in raw mode, and back on every path out.

use std::io;
use std::sync::{Mutex, PoisonError};

/// Leaves the console.
pub const ESCAPE: u8 = 0x1D;

/// Said when typed bytes had to be dropped: a terminal is always read, or Ctrl-] would not be seen.
pub const INPUT_LOST: &str =
    "\r\n[wherry: the guest takes no input; what is typed now is lost]\r\n";

/// The terminal's state before raw mode, with its descriptor.
static ORIGINAL: Mutex<Option<(i32, libc::termios)>> = Mutex::new(None);

/// While this lives the terminal is raw.
#[must_use]
pub struct RawMode(());

impl RawMode {
    /// Makes the terminal on standard input raw. `None` if it is not a terminal.
    pub fn enter() -> io::Result<Option<Self>> {
        const FD: i32 = libc::STDIN_FILENO;
        // SAFETY: isatty takes any number.
        if unsafe { libc::isatty(FD) } != 1 {
            return Ok(None);
        }
        let mut original = std::mem::MaybeUninit::uninit();
        // SAFETY: `original` has room for one termios, which tcgetattr fills in.
        if unsafe { libc::tcgetattr(FD, original.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: tcgetattr succeeded.
        let original: libc::termios = unsafe { original.assume_init() };
        // A descriptor of our own: standard input may be replaced later.
        // SAFETY: dup takes any number.
        let fd = unsafe { libc::fcntl(FD, libc::F_DUPFD_CLOEXEC, 3) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut raw = original;
        // SAFETY: `raw` is an initialised termios.
        unsafe { libc::cfmakeraw(&mut raw) };
        // Before the change, so that a signal in between restores.
        *ORIGINAL.lock().unwrap_or_else(PoisonError::into_inner) = Some((fd, original));
        // SAFETY: `raw` is an initialised termios and outlives the call.
        if unsafe { libc::tcsetattr(fd, libc::TCSADRAIN, &raw) } != 0 {
            let error = io::Error::last_os_error();
            restore();
            return Err(error);
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
    if let Some((fd, original)) = ORIGINAL.lock().unwrap_or_else(PoisonError::into_inner).take() {
        // SAFETY: `original` is an initialised termios that outlives the call; `fd` is ours, and
        // closed once.
        unsafe {
            libc::tcsetattr(fd, libc::TCSADRAIN, &original);
            libc::close(fd);
        }
    }
}

/// Ends the process for a signal, terminal restored, as shells expect it.
pub fn exit_for_signal(signal: i32) -> ! {
    restore();
    // SAFETY: _exit takes any number and does not return. Not exit: other threads are in the middle
    // of things, and what exit handlers do is not meant for that.
    unsafe { libc::_exit(128 + signal) }
}
