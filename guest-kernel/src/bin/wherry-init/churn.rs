//! Work like that of a compiler run: processes that come, use memory and go, and files that are
//! written, read and removed.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use crate::mem::{Mapping, PAGE, Random};
use crate::sys;

static JOBS: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);
static DONE: AtomicU64 = AtomicU64::new(0);

/// Processes that have come and gone.
pub fn done() -> u64 {
    DONE.load(Relaxed)
}

/// Starts `jobs` threads that each run one process of `mib` MiB after the other, as `make -j` does;
/// 0 jobs stop them.
pub fn set(jobs: u64, mib: u64) -> io::Result<u64> {
    STOP.store(true, Relaxed);
    while JOBS.load(Relaxed) > 0 {
        thread::sleep(Duration::from_millis(10));
    }
    STOP.store(false, Relaxed);
    for job in 0..jobs {
        JOBS.fetch_add(1, Relaxed);
        thread::spawn(move || {
            let mut random = Random::new(job);
            while !STOP.load(Relaxed) {
                if let Err(e) = turn(job, mib, &mut random) {
                    crate::serial::say(&format!("error churn: {e}"));
                    break;
                }
                DONE.fetch_add(1, Relaxed);
            }
            JOBS.fetch_sub(1, Relaxed);
        });
    }
    Ok(jobs * mib)
}

/// One process, and one file of a quarter of its size.
fn turn(job: u64, mib: u64, random: &mut Random) -> io::Result<()> {
    let pages = (mib << 20) as usize / PAGE;
    // SAFETY: between fork and _exit the child makes system calls and writes to its own new
    // mapping; it takes no lock and allocates nothing.
    let child = sys::check(unsafe { libc::fork() })?;
    if child == 0 {
        let status = match Mapping::new(pages) {
            Ok(mut memory) => {
                random.fill(memory.words());
                0
            }
            Err(_) => 1,
        };
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(status) };
    }
    let path = format!("/tmp/churn-{job}");
    let mut content = vec![0u8; (mib << 18) as usize];
    random.fill_bytes(&mut content);
    fs::write(&path, &content)?;
    fs::read(&path)?;
    fs::remove_file(&path)?;
    let mut status = 0;
    // SAFETY: `status` is a valid place for an int.
    sys::check(unsafe { libc::waitpid(child, &mut status, 0) })?;
    if status == 0 { Ok(()) } else { Err(io::Error::other("no memory in the child")) }
}
