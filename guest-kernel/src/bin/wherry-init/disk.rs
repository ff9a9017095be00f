//! A disk that is written, flushed, trimmed and read back: what a block device must not lose.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::thread;
use std::time::Duration;

use crate::mem::{Mapping, PAGE, Random};
use crate::modules;

/// Bytes written or read at once: 64 KiB.
const PIECE: usize = 16 * PAGE;
/// Pieces of the disk that are used: its last ones.
const PIECES: u64 = 256;

/// The first virtio disk. Its driver may still be at work.
fn open() -> io::Result<File> {
    modules::load("virtio_blk")?;
    for _ in 0..100 {
        // Past the page cache: what is read comes from the device.
        let disk =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open("/dev/vda");
        match disk {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                thread::sleep(Duration::from_millis(50));
            }
            disk => return disk,
        }
    }
    Err(ErrorKind::NotFound.into())
}

fn bytes(mapping: &mut Mapping) -> &mut [u8] {
    let words = mapping.words();
    // SAFETY: the same memory, borrowed as exclusively; bytes need no alignment.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), size_of_val(words)) }
}

fn content(seed: u64, pass: u64, piece: u64, out: &mut [u8]) {
    Random::new(seed ^ (pass << 32) ^ piece).fill_bytes(out);
}

/// Writes the whole of it again and again, in another order each time, and reads it back: what was
/// written before it with what is being written. `mib=… bad=…`
pub fn passes(passes: u64, seed: u64) -> io::Result<String> {
    let mut disk = open()?;
    let end = disk.seek(SeekFrom::End(0))?;
    let start = end.checked_sub(PIECES * PIECE as u64).ok_or(ErrorKind::InvalidInput)?;
    let at = |piece: u64| start + piece * PIECE as u64;
    let (mut buffer, mut wanted) = (Mapping::new(PIECE / PAGE)?, vec![0; PIECE]);
    let mut bad = 0;
    // What each piece was written in; 0: never.
    let mut written = vec![0; PIECES as usize];
    for pass in 1..=passes {
        for nth in 0..PIECES {
            // An odd factor visits each piece once.
            let piece = nth.wrapping_mul(2 * pass + 1) % PIECES;
            content(seed, pass, piece, bytes(&mut buffer));
            disk.write_all_at(bytes(&mut buffer), at(piece))?;
            written[piece as usize] = pass;
            let other = nth.wrapping_mul(7) % PIECES;
            disk.read_exact_at(bytes(&mut buffer), at(other))?;
            match written[other as usize] {
                0 => {}
                pass => {
                    content(seed, pass, other, &mut wanted);
                    bad += u64::from(wanted != bytes(&mut buffer));
                }
            }
        }
        disk.sync_all()?;
        if pass % 2 == 0 {
            // The last quarter is not needed any more; a trimmed disk need not read as zero.
            discard(&disk, at(PIECES / 4 * 3), PIECES / 4 * PIECE as u64)?;
            written[PIECES as usize / 4 * 3..].fill(0);
        }
    }
    Ok(format!("ok mib={} bad={bad}", (passes * PIECES * PIECE as u64) >> 20))
}

fn discard(disk: &File, at: u64, len: u64) -> io::Result<()> {
    /// `_IO(0x12, 119)` of linux/fs.h.
    const BLKDISCARD: u64 = 0x1277;
    let range = [at, len];
    // SAFETY: the kernel reads two numbers there.
    match unsafe { libc::ioctl(disk.as_raw_fd(), BLKDISCARD as _, range.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
