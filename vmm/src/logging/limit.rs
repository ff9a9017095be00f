//! How often a place in the code may say something.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tracing::Level;
use tracing::callsite::Identifier;

use super::line::Line;

/// Lines of one place within [`WINDOW`]. A receiver that shows its progress says fewer.
pub const LINES: u32 = 20;
/// See [`LINES`].
pub const WINDOW: Duration = Duration::from_secs(60);

/// What a place has said since its window began.
struct Kind {
    since: Instant,
    said: u32,
    left_out: u64,
    /// The last line.
    like: String,
}

/// Lines that were left out.
#[derive(Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// How many.
    pub lines: u64,
    /// One like them.
    pub like: String,
}

impl LeftOut {
    /// What to say about them.
    pub fn line(&self) -> Line {
        let Self { lines, like } = self;
        let message = format!("{lines} more lines like this one were left out: {like}");
        let fields = vec![("left_out", (*lines).into())];
        Line { level: Level::WARN, message, hint: String::new(), fields }
    }
}

/// All places that have said something lately.
#[derive(Default)]
pub struct Limits(HashMap<Identifier, Kind>);

impl Limits {
    /// One more line of this place: `None` if it is left out, else what was left out in windows
    /// that are over by now.
    pub fn admit(&mut self, place: &Identifier, now: Instant) -> Option<Vec<LeftOut>> {
        let over = |kind: &Kind| now.saturating_duration_since(kind.since) >= WINDOW;
        if let Some(kind) = self.0.get_mut(place)
            && kind.said >= LINES
            && !over(kind)
        {
            // All that a line of a flood costs.
            kind.left_out += 1;
            return None;
        }
        let left = self.0.extract_if(|_, kind| over(kind));
        let left = left.filter_map(|(_, kind)| kind.left()).collect();
        let new = || Kind { since: now, said: 0, left_out: 0, like: String::new() };
        self.0.entry(place.clone()).or_insert_with(new).said += 1;
        Some(left)
    }

    /// This is what the place has said.
    pub fn note(&mut self, place: &Identifier, text: &str) {
        if let Some(kind) = self.0.get_mut(place) {
            text.clone_into(&mut kind.like);
        }
    }

    /// All that was left out and not said so far.
    pub fn end(&mut self) -> Vec<LeftOut> {
        self.0.drain().filter_map(|(_, kind)| kind.left()).collect()
    }
}

impl Kind {
    fn left(self) -> Option<LeftOut> {
        (self.left_out > 0).then_some(LeftOut { lines: self.left_out, like: self.like })
    }
}
