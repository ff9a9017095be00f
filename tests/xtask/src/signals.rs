//! Ctrl-C ends a lab, or the build of an image, and leaves nothing behind.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

/// What a signal must clean up: temporary folders, and the child that works in each.
static RUNNING: Mutex<Vec<(Option<u32>, PathBuf)>> = Mutex::new(Vec::new());

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

fn running() -> MutexGuard<'static, Vec<(Option<u32>, PathBuf)>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on, signals end all guarded children, remove their folders and exit with 128 + signal.
/// Call before starting other threads: they inherit the mask that leaves the signals to ours.
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
                running().drain(..).for_each(|(child, folder)| clean_up(child, &folder));
                std::process::exit(128 + signal);
            }
        });
    });
}

fn clean_up(child: Option<u32>, folder: &Path) {
    if let Some(child) = child {
        // SAFETY: it is our child and not waited for yet, so its id is still its own.
        unsafe { libc::kill(child as libc::pid_t, libc::SIGKILL) };
    }
    // What a child started ends a moment after it, and may write until then.
    for _ in 0..50 {
        match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                std::thread::sleep(Duration::from_millis(100));
            }
            _ => return,
        }
    }
}

/// Names what to clean up. For a folder that is named already, the child that works in it now.
pub fn guard(child: Option<u32>, folder: &Path) {
    let mut running = running();
    running.retain(|(_, other)| other != folder);
    running.push((child, folder.to_owned()));
}

/// The child that works in this folder is about to be waited for, and the folder goes with it.
pub fn release(folder: &Path) {
    running().retain(|(_, other)| other != folder);
}
