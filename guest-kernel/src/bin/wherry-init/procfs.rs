//! Figures from the kernel's text files.

use std::fs;

/// The number after `key` in a file of `key value` or `key: value kB` lines.
pub fn lookup(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()?.trim_end_matches(':') == key).then(|| words.next()?.parse().ok()).flatten()
    })
}

/// A file's text; nothing if there is none.
pub fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats() {
        assert_eq!(lookup("MemTotal:  100 kB\nMemFree:  7 kB\n", "MemFree"), Some(7));
        assert_eq!(lookup("balloon_inflate 12\n", "balloon_inflate"), Some(12));
        assert_eq!(lookup("x 1\n", "y"), None);
    }
}
