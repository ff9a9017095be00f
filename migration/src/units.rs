//! Pages and times, as everything here counts them.

use std::time::Duration;

/// Size of a page in bytes. x86-64 base pages; the unit of the dirty log, of hints and of the wire
/// format.
pub const PAGE_SIZE: usize = 4096;

/// Whether all bytes are zero. Written so that the compiler vectorises it.
pub fn is_zero(bytes: &[u8]) -> bool {
    let mut chunks = bytes.chunks_exact(128);
    chunks.by_ref().all(|c| c.iter().fold(0, |a, b| a | b) == 0)
        && chunks.remainder().iter().all(|&b| b == 0)
}

/// Whole milliseconds.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Whole microseconds.
pub fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_makes_a_page_not_zero() {
        let mut page = vec![0; PAGE_SIZE + 5];
        assert!(is_zero(&page));
        for at in [0, 1, 127, 128, 4095, 4096, PAGE_SIZE + 4] {
            page[at] = 1;
            assert!(!is_zero(&page));
            page[at] = 0;
        }
    }
}
