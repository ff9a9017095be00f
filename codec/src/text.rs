//! Words of a guest, a peer, a file or another user's process, on their way to people.

/// The text with nothing in it that a terminal acts on: neither control characters nor those that
/// change the direction of writing or begin a line. Each is replaced.
#[must_use]
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if acts(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Whether a terminal acts on it.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_peer_does_nothing_to_a_terminal() {
        let text =
            printable("no\x1b]0;pwned\x07 room\r\n\u{9b}31m\u{202e}\u{2067}\0 für diesen Gast");
        assert!(!text.contains(|c: char| c.is_control() || c == '\u{202e}'), "{text:?}");
        assert!(
            text.starts_with("no\u{fffd}]0;pwned") && text.ends_with("für diesen Gast"),
            "{text}"
        );
    }
}
