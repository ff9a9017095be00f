//! Ctrl-C ends the lab and leaves nothing behind.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

/// What a signal must clean up: the process ids of QEMU and the temporary folders.
static RUNNING: Mutex<Vec<(u32, PathBuf)>> = Mutex::new(Vec::new());

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

fn running() -> MutexGuard<'static, Vec<(u32, PathBuf)>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on, signals end all QEMUs, remove their folders and exit with 128 + signal. Call before
/// starting other threads: they inherit the mask that leaves the signals to ours.
pub fn handle() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let set = set();
        // SAFETY: the set is initialised; only this thread's mask changes (children get a clean
        // mask from std).
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
        std::thread::spawn(move || {
            let mut signal = 0;
            // SAFETY: the set is initialised and `signal` is a valid place for an int.
            if unsafe { libc::sigwait(&set, &mut signal) } == 0 {
                for (qemu, folder) in running().drain(..) {
                    // SAFETY: QEMU is our child and not waited for yet, so its id is still its own.
                    unsafe { libc::kill(qemu as libc::pid_t, libc::SIGKILL) };
                    let _ = std::fs::remove_dir_all(folder);
                }
                std::process::exit(128 + signal);
            }
        });
    });
}

/// Names what to clean up.
pub fn guard(qemu: u32, folder: &Path) {
    running().push((qemu, folder.to_owned()));
}

/// This QEMU is about to be waited for.
pub fn release(qemu: u32) {
    running().retain(|(other, _)| *other != qemu);
}
