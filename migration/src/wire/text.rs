//! Words of a peer.

/// What a peer wrote, with nothing in it that a terminal acts on: neither control characters nor
/// those that change the direction of writing or begin a line.
#[must_use]
pub fn printable(text: &str) -> String {
    let acts = |c: char| {
        c.is_control()
            || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}')
            || matches!(c, '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if acts(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
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
