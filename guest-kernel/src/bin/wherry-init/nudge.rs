//! Keeps the emulated KVM host awake.
//!
//! QEMU's emulation of a CPU that runs a nested guest sometimes loses the request bit of a pending
//! timer interrupt. The interrupt stays marked as pending, so no later tick raises it again, and
//! that CPU runs its guest, or sleeps, without ever coming back to its kernel: RCU stands still,
//! and everything that waits for it. Any other interrupt makes the emulation look again. So the
//! caller sends a byte fifty times a second, which comes with an interrupt, and each CPU wakes a
//! thread on every other one, which sends an interrupt there. Some of the caller's bytes are
//! answered, so that it can tell a lab that froze.

use std::fs::File;
use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use wherry_guest_kernel::labconf::NUDGES_PER_ANSWER;

/// Time between two nudges.
const PERIOD: Duration = Duration::from_millis(20);

/// Reads and answers the caller's nudges for as long as the lab lives.
pub fn answer(mut port: File) {
    thread::spawn(move || {
        let mut nr_read = 0;
        loop {
            match port.read(&mut [0]) {
                // The caller is not connected yet.
                Ok(0) => thread::sleep(PERIOD),
                Ok(_) => nr_read += 1,
                Err(_) => break,
            }
            if nr_read == NUDGES_PER_ANSWER {
                nr_read = 0;
                let _ = port.write(&[0]);
            }
        }
    });
}

/// Starts the threads with which the lab's CPUs nudge each other; they live as long as the lab.
pub fn start() {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    for from in 0..cpus {
        for to in (0..cpus).filter(|&to| to != from) {
            let Ok((mut sleeper, mut nudger)) = std::io::pipe() else { return };
            thread::spawn(move || {
                pin(to);
                while let Ok(1) = sleeper.read(&mut [0]) {}
            });
            thread::spawn(move || {
                pin(from);
                while nudger.write_all(&[0]).is_ok() {
                    thread::sleep(PERIOD);
                }
            });
        }
    }
}

/// Moves the calling thread to one CPU for good.
fn pin(cpu: usize) {
    // SAFETY: an all-zero set is a valid, empty one; CPU_SET checks its bound; the call reads the
    // set, of the size that is given.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}
