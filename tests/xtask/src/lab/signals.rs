//! Ctrl-C ends the lab and leaves nothing behind.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// What a signal must clean up: QEMU's process id and the temporary folder.
static RUNNING: Mutex<Option<(u32, PathBuf)>> = Mutex::new(None);

const SIGNALS: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// Under `nohup`, or with `&` in a script: blocked, it would be delivered to sigwait all the same.
fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: the action is only asked for, into a place for one.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, std::ptr::null(), &mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    }
}

fn set() -> libc::sigset_t {
    // SAFETY: sigemptyset and sigaddset initialise and change only this set.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        SIGNALS.iter().filter(|signal| !is_ignored(**signal)).for_each(|&signal| {
            libc::sigaddset(&mut set, signal);
        });
        set
    }
}

/// From now on, signals end `qemu`, remove `folder` and exit with 128 + signal. Call before
/// starting other threads: they inherit the mask that leaves the signals to ours.
pub fn handle() {
    let set = set();
    // SAFETY: the set is initialised; only this thread's mask changes (children get a clean mask
    // from std).
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
    std::thread::spawn(move || {
        let mut signal = 0;
        // SAFETY: the set is initialised and `signal` is a valid place for an int.
        if unsafe { libc::sigwait(&set, &mut signal) } == 0 {
            if let Some((qemu, folder)) =
                RUNNING.lock().unwrap_or_else(PoisonError::into_inner).take()
            {
                // SAFETY: QEMU is our child and not waited for yet, so its id is still its own.
                unsafe { libc::kill(qemu as libc::pid_t, libc::SIGKILL) };
                let _ = std::fs::remove_dir_all(folder);
            }
            std::process::exit(128 + signal);
        }
    });
}

/// Names what to clean up; `None` once QEMU is about to be waited for.
pub fn guard(running: Option<(u32, PathBuf)>) {
    *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) = running;
}
