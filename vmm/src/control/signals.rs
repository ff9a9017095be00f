//! SIGINT, SIGTERM, SIGHUP and SIGQUIT as ordinary events on a thread.
//!
//! [`watch`] blocks them in the calling thread; threads that are started later inherit that, so
//! call it before any other thread starts. Signals that end a process by default then reach only
//! the watcher.
//!
//! A signal that is ignored at that time stays ignored: whoever started the process (`nohup`, a
//! script with `&`) wants it to outlive that signal.

use std::io;
use std::mem::MaybeUninit;
use std::sync::{Arc, Mutex, Weak};

use super::VmControl;
use crate::sync::lock;

/// The signals that ask a process to end.
const ENDING: [i32; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// The VM that [`end_vm`] ends.
static VM: Mutex<Option<Weak<dyn VmControl>>> = Mutex::new(None);

fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: the action is only asked for, and `action` has room for it.
    let known = unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) } == 0;
    // SAFETY: sigaction succeeded, so it has filled `action` in.
    known && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

fn set_of(signals: &[i32]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set that it is given; sigaddset then changes it. The
    // signal numbers are valid.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    }
}

/// Calls `handler` on a thread of its own for each ending signal that is not ignored, for as long
/// as the process lives.
pub fn watch(mut handler: impl FnMut(i32) + Send + 'static) -> io::Result<()> {
    // Blocked, even an ignored signal would be delivered to sigwait.
    let signals: Vec<i32> = ENDING.into_iter().filter(|signal| !is_ignored(*signal)).collect();
    if signals.is_empty() {
        return Ok(());
    }
    let set = set_of(&signals);
    // SAFETY: `set` is initialised; the old mask is not asked for.
    let failed = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
    if failed != 0 {
        return Err(io::Error::from_raw_os_error(failed));
    }
    wherry_threads::of_kind("signals").spawn(move || {
        loop {
            let mut signal = 0;
            // SAFETY: both pointers are to initialised values that outlive the call.
            if unsafe { libc::sigwait(&set, &mut signal) } == 0 {
                handler(signal);
            }
        }
    })?;
    Ok(())
}

/// Names the VM that an ending signal ends; the machine calls this once its [`VmControl`] exists.
pub fn forward_to(vm: &Arc<dyn VmControl>) {
    *lock(&VM) = Some(Arc::downgrade(vm));
}

/// Kills the VM named by [`forward_to`]; false if there is none (any more).
pub fn end_vm() -> bool {
    let vm = lock(&VM).clone();
    match vm.and_then(|vm| vm.upgrade()) {
        Some(vm) => {
            vm.kill();
            true
        }
        None => false,
    }
}
