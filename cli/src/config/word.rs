//! Words that a file becomes, and what is wrong with it.

/// Where something in a file is wrong, and why.
pub struct Fault {
    /// Position of a byte.
    pub at: usize,
    /// In words, with the key.
    pub why: String,
}

impl Fault {
    pub fn new(at: usize, why: impl Into<String>) -> Self {
        Self { at, why: why.into() }
    }
}

/// One value of an option.
pub struct Word {
    /// Position of it.
    pub at: usize,
    /// Its parts, with commas between, each with its position.
    pub parts: Vec<(usize, String)>,
}

impl Word {
    pub fn new(at: usize, text: String) -> Self {
        Self { at, parts: vec![(at, text)] }
    }

    /// All of it.
    pub fn text(&self) -> String {
        let parts: Vec<&str> = self.parts.iter().map(|(_, text)| text.as_str()).collect();
        parts.join(",")
    }

    /// All but one part.
    pub fn without(&self, nth: usize) -> Self {
        let parts = self.parts.iter().enumerate().filter(|(part, _)| *part != nth);
        Self { at: self.at, parts: parts.map(|(_, part)| part.clone()).collect() }
    }
}

/// What clap says, without usage and advice, in one line.
pub fn first_words(error: &clap::Error) -> String {
    let text = error.to_string();
    let first = text.split("\n\n").next().unwrap_or(&text);
    let words = first.strip_prefix("error: ").unwrap_or(first).split_whitespace();
    words.collect::<Vec<_>>().join(" ")
}
