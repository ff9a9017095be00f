//! What the benchmark says while it works.

/// One line of progress.
pub fn note(text: &str) {
    eprintln!("bench: {text}");
}
