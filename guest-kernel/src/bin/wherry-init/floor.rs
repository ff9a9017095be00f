//! Counts the memory that this guest really uses: pages that its kernel does not have in its free
//! lists and that are not zero.
//!
//! No migration can send less than these without knowing more than the kernel does.
//! `/proc/kpageflags` says which pages are free (or in the balloon, or no memory at all), and the
//! others are read through `/proc/kcore`, each once. Pages on the CPUs' own short lists count as
//! used.
//!
//! It also counts what no hint can name: free pages with content in blocks of [`HINTED`] pages that
//! are not free as a whole.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use crate::mem::PAGE;

/// include/uapi/linux/kernel-page-flags.h
const KPF_BUDDY: u64 = 1 << 10;
const KPF_NOPAGE: u64 = 1 << 20;
const KPF_OFFLINE: u64 = 1 << 23;
/// Linux hints free blocks of this many pages: drivers/virtio/virtio_balloon.c,
/// VIRTIO_BALLOON_HINT_BLOCK_ORDER.
const HINTED: u64 = 1 << 10;
/// Pages looked at in one go.
const CHUNK: u64 = 4 * HINTED;

/// What was found, in pages.
#[derive(Debug, Default)]
struct Count {
    used: u64,
    zero: u64,
    free: u64,
    /// Of these, those that have content and are in a block that is not free as a whole.
    scattered: u64,
    offline: u64,
}

/// `pages=… zero=… free=… scattered=… offline=… ms=…`
pub fn line() -> io::Result<String> {
    let start = Instant::now();
    let flags = File::open("/proc/kpageflags")?;
    let memory = Kcore::open()?;
    let mut count = Count::default();
    let mut buffer = vec![0; CHUNK as usize * 8];
    for (first, end) in ram(&fs::read_to_string("/proc/iomem")?) {
        let mut page = first;
        while page < end {
            // Up to the next multiple of CHUNK, so that no block is cut in two.
            let nr = (CHUNK - page % CHUNK).min(end - page);
            let part = &mut buffer[..nr as usize * 8];
            flags.read_exact_at(part, page * 8)?;
            let words: Vec<u64> =
                part.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
            let cut = ((HINTED - page % HINTED) % HINTED).min(nr) as usize;
            let (head, blocks) = words.split_at(cut);
            for block in std::iter::once(head).chain(blocks.chunks(HINTED as usize)) {
                count.block(page, block, &memory)?;
                page += block.len() as u64;
            }
        }
    }
    let Count { used, zero, free, scattered, offline } = count;
    let ms = start.elapsed().as_millis();
    Ok(format!(
        "pages={used} zero={zero} free={free} scattered={scattered} offline={offline} ms={ms}"
    ))
}

impl Count {
    /// Counts the pages of a block, or of a part of one.
    fn block(&mut self, first: u64, flags: &[u64], memory: &Kcore) -> io::Result<()> {
        let free = |flags: &u64| flags & (KPF_BUDDY | KPF_NOPAGE | KPF_OFFLINE) == KPF_BUDDY;
        let whole = flags.len() as u64 == HINTED && flags.iter().all(free);
        for (page, flags) in (first..).zip(flags) {
            if flags & KPF_NOPAGE != 0 {
            } else if flags & KPF_OFFLINE != 0 {
                self.offline += 1;
            } else if free(flags) {
                self.free += 1;
                self.scattered += u64::from(!whole && !memory.is_zero(page)?);
            } else if memory.is_zero(page)? {
                self.zero += 1;
            } else {
                self.used += 1;
            }
        }
        Ok(())
    }
}

/// Page ranges of RAM, ends exclusive, whole pages only.
fn ram(iomem: &str) -> Vec<(u64, u64)> {
    let range = |line: &str| {
        let (first, last) = line.strip_suffix(" : System RAM")?.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some((number(first)?.div_ceil(PAGE as u64), (number(last)? + 1) / PAGE as u64))
    };
    iomem.lines().filter_map(range).collect()
}

/// Physical memory through `/proc/kcore`.
struct Kcore {
    file: File,
    /// Physical start, length, file offset.
    segments: Vec<(u64, u64, u64)>,
}

impl Kcore {
    fn open() -> io::Result<Self> {
        let file = File::open("/proc/kcore")?;
        let mut header = [0; 64];
        file.read_exact_at(&mut header, 0)?;
        let word = |bytes: &[u8], at: usize| {
            bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
        };
        let (offset, nr) = (word(&header, 32), u16::from_le_bytes([header[56], header[57]]));
        let mut segments = Vec::new();
        for index in 0..u64::from(nr) {
            let mut entry = [0; 56];
            file.read_exact_at(&mut entry, offset + index * 56)?;
            // PT_LOAD; what is not RAM has no physical address.
            if entry[..4] == [1, 0, 0, 0] && word(&entry, 24) != u64::MAX {
                segments.push((word(&entry, 24), word(&entry, 40), word(&entry, 8)));
            }
        }
        Ok(Self { file, segments })
    }

    fn is_zero(&self, page: u64) -> io::Result<bool> {
        let address = page * PAGE as u64;
        let segment =
            self.segments.iter().find(|s| s.0 <= address && address - s.0 + PAGE as u64 <= s.1);
        let (start, _, offset) =
            segment.ok_or_else(|| io::Error::other(format!("/proc/kcore lacks {address:#x}")))?;
        let mut content = [0; PAGE];
        self.file.read_exact_at(&mut content, offset + (address - start))?;
        Ok(content == [0; PAGE])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let text = "00000000-00000fff : Reserved\n00001000-0009fbff : System RAM\n  \
                    00002000-00002fff : Kernel code\n\
                    100000000-10fffffff : System RAM\n";
        assert_eq!(ram(text), [(1, 0x9f), (0x100000, 0x110000)]);
    }
}
