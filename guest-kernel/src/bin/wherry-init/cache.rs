//! A page cache full of clean data, as many files that were read leave it: in use, and given back
//! by the kernel whenever it likes.
//!
//! A loop device over a file on tmpfs takes the place of a disk. What is read through it stays in
//! the device's page cache, and is cut out of the file at once, so that it is in memory once. What
//! the kernel drops therefore comes back as zero.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use crate::mem::{PAGE, Random};
use crate::{modules, sys};

// include/uapi/linux/loop.h
const LOOP_SET_FD: libc::Ioctl = 0x4C00;
const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;

/// On tmpfs.
const DISK: &str = "/run/cache";
const MIB: usize = 1 << 20;
const SEED: u64 = 0x000c_ac4e;

/// Cached data. The kernel keeps it no longer than the device is open.
pub struct Cache {
    device: File,
    mib: u64,
}

/// Pages that were found again.
#[derive(Default)]
pub struct CacheCheck {
    /// With their content.
    pub intact: u64,
    /// Dropped by the kernel.
    pub dropped: u64,
    /// With other content.
    pub wrong: u64,
}

impl Cache {
    /// Reads `mib` MiB of random data from the device.
    pub fn fill(mib: u64) -> io::Result<Self> {
        modules::load("loop")?;
        let file = File::options().read(true).write(true).create(true).truncate(true).open(DISK)?;
        file.set_len(mib << 20)?;
        let device = attach(&file)?;
        // Exactly what is asked for, and not what follows it, which is not there yet.
        // SAFETY: a plain system call on an open descriptor.
        let code =
            unsafe { libc::posix_fadvise(device.as_raw_fd(), 0, 0, libc::POSIX_FADV_RANDOM) };
        if code != 0 {
            return Err(io::Error::from_raw_os_error(code));
        }
        // The device holds the file from here on.
        fs::remove_file(DISK)?;
        let cache = Self { device, mib };
        let mut random = Random::new(SEED);
        let (mut content, mut read) = (vec![0; MIB], vec![0; MIB]);
        for at in (0..mib).map(|n| n << 20) {
            random.fill_bytes(&mut content);
            file.write_all_at(&content, at)?;
            cache.device.read_exact_at(&mut read, at)?;
            if read != content {
                return Err(io::Error::other("the loop device reads something else"));
            }
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            // SAFETY: a plain system call on an open descriptor.
            sys::check(unsafe { libc::fallocate(file.as_raw_fd(), mode, at as i64, MIB as i64) })?;
        }
        Ok(cache)
    }

    /// Reads all of it again.
    pub fn look(&self) -> io::Result<CacheCheck> {
        let mut found = CacheCheck::default();
        let mut random = Random::new(SEED);
        let (mut content, mut read) = (vec![0; MIB], vec![0; MIB]);
        for at in (0..self.mib).map(|n| n << 20) {
            random.fill_bytes(&mut content);
            self.device.read_exact_at(&mut read, at)?;
            for (is, was) in read.chunks_exact(PAGE).zip(content.chunks_exact(PAGE)) {
                if is == was {
                    found.intact += 1;
                } else if is.iter().all(|byte| *byte == 0) {
                    found.dropped += 1;
                } else {
                    found.wrong += 1;
                }
            }
        }
        Ok(found)
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // SAFETY: no argument; the device then lets go of the file.
        unsafe { libc::ioctl(self.device.as_raw_fd(), LOOP_CLR_FD, 0) };
    }
}

/// A loop device that reads from `file`.
fn attach(file: &File) -> io::Result<File> {
    let control = File::open("/dev/loop-control")?;
    // SAFETY: no argument; returns a number.
    let number = sys::check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })?;
    let device = File::open(format!("/dev/loop{number}"))?;
    // SAFETY: the argument is an open descriptor's number.
    sys::check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_FD, file.as_raw_fd()) })?;
    Ok(device)
}
