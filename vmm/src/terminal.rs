//! The terminal in raw mode, and back on every path out but SIGKILL.
//!
//! A signal by which a fault ends the process puts it back first, in a handler that does what is
//! safe in one alone, with system calls that every thread may make ([`handle`], [`end_by`]). Then
//! the process ends by that signal, as it would have (one that was ignored ends it, too).

use std::ffi::{c_int, c_void};
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

/// Signals by which a fault ends a process, but for that of a call that is not allowed: who handles
/// it has something to say.
const FAULTS: [c_int; 5] = [libc::SIGABRT, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGSEGV];
/// Who handled these before: the standard library, which says whose stack has overflowed.
static BEFORE: OnceLock<[libc::sighandler_t; FAULTS.len()]> = OnceLock::new();

/// What is called with a signal, what there is to know of it, and the thread's registers.
pub type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

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
        // SAFETY: it does what is safe in a signal handler alone.
        BEFORE.get_or_init(|| FAULTS.map(|signal| unsafe { handle(signal, fault) }));
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

fn put_back(when: OptionalActions) {
    if let Some((fd, original)) = ORIGINAL.get()
        && RAW.load(Ordering::SeqCst)
    {
        let _ = tcsetattr(fd, when, original);
        // Not before: who finds it done may end the process.
        RAW.store(false, Ordering::SeqCst);
    }
}

/// Has this called with a signal, which must be one that can be handled. Returns who was before.
///
/// # Safety
/// It does what is safe in a signal handler alone.
pub unsafe fn handle(signal: c_int, handler: Handler) -> libc::sighandler_t {
    // SAFETY: zeros are a valid sigaction, whose fields are then set; the handler is safe as one.
    // On the alternative stack: the thread's own may be what is broken.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let mut before = action;
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // Who sets a terminal in the background is stopped by it, with all locks that the VM has.
        libc::sigaddset(&mut action.sa_mask, libc::SIGTTOU);
        libc::sigaction(signal, &action, &mut before);
        before.sa_sigaction
    }
}

/// The end of a handler: the terminal is as it was, and the process ends by this signal as soon as
/// the handler returns.
pub fn end_by(signal: c_int) {
    // It does not wait for a terminal that shows nothing.
    put_back(OptionalActions::Now);
    // SAFETY: both take plain numbers and are safe in a signal handler. The signal is blocked until
    // then.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

extern "C" fn fault(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    put_back(OptionalActions::Now);
    let place = FAULTS.iter().position(|fault| *fault == signal);
    let before = BEFORE.get().zip(place).and_then(|(all, place)| all.get(place));
    if let Some(before) = before.filter(|of| ![libc::SIG_DFL, libc::SIG_IGN].contains(of)) {
        // SAFETY: signal takes plain numbers and is safe in a signal handler. What was installed is
        // a function that is safe as one, and takes these three or the first of them. It may abort,
        // and the alternative stack has no room for one more handler.
        unsafe {
            libc::signal(libc::SIGABRT, libc::SIG_DFL);
            std::mem::transmute::<*const (), Handler>(*before as *const ())(signal, info, context);
        }
    }
    end_by(signal);
}

/// Ends the process for a signal, terminal restored, as shells expect it.
pub fn exit_for_signal(signal: i32) -> ! {
    restore();
    // SAFETY: _exit takes any number and does not return. Not exit: other threads are in the middle
    // of things, and what exit handlers do is not meant for that.
    unsafe { libc::_exit(128 + signal) }
}
