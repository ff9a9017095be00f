//! What a verification found, and what it says of a page.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Wrong pages named in an error; more are only counted.
pub const NAMED: usize = 16;
/// Highest round number that a [`History`] can tell apart.
const LAST_ROUND: u32 = 31;

/// Outcome of a verification that found nothing wrong. `equal + free + wrong` is the number of
/// pages of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VerifyReport {
    /// Pages with the same content on both sides.
    pub equal: u64,
    /// Pages that differ and were free and unwritten.
    pub free: u64,
    /// Pages that differ otherwise. 0 in a report: a migration with a wrong page has none.
    pub wrong: u64,
    /// Time for which it kept the guest paused, in milliseconds.
    pub ms: u64,
    /// Bytes on the wire, both directions, headers included.
    pub bytes: u64,
}

/// What a round last did with a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum PageOutcome {
    /// Sent with content.
    Sent = 1,
    /// Read, and zero.
    Zero = 2,
    /// Never populated.
    Hole = 3,
    /// Skipped for a hint.
    Hinted = 4,
    /// Skipped because it was in the balloon.
    Ballooned = 5,
}

/// What is known of a page: the last thing that a round did with it. In all rounds since then it
/// was clean.
///
/// One byte: three bits of what, five bits of when.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct History(u8);

impl History {
    /// PageOutcome with in this round (from 1).
    pub fn new(what: PageOutcome, round: u32) -> Self {
        Self((what as u8) << 5 | round.min(LAST_ROUND) as u8)
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.0 >> 5 {
            1 => "sent",
            2 => "zero",
            3 => "a hole",
            4 => "hinted",
            5 => "ballooned",
            _ => return f.write_str("in no round"),
        };
        let round = u32::from(self.0 & 0x1f);
        let more = if round == LAST_ROUND { " or later" } else { "" };
        write!(f, "{what} in round {round}{more}, clean since")
    }
}

/// A page whose content did not arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WrongPage {
    /// Page number.
    pub page: u64,
    /// Guest-physical address in bytes.
    pub address: u64,
    /// What the source did with it last.
    pub history: History,
}

impl fmt::Display for WrongPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page {} at {:#x} ({})", self.page, self.address, self.history)
    }
}

/// Pages that are wrong: the first [`NAMED`] of them, and how many there are.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WrongPages {
    /// How many.
    pub count: u64,
    /// The first of them, ascending.
    pub named: Vec<WrongPage>,
}

impl fmt::Display for WrongPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} wrong page{}", self.count, if self.count == 1 { "" } else { "s" })?;
        for (at, page) in self.named.iter().enumerate() {
            write!(f, "{} {page}", if at == 0 { ":" } else { "," })?;
        }
        let more = self.count.saturating_sub(self.named.len() as u64);
        if more > 0 { write!(f, " and {more} more") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_pages_are_named_with_their_history() {
        let page = |page, history| WrongPage { page, address: page * 4096, history };
        let mut wrong =
            WrongPages { count: 1, named: vec![page(7, History::new(PageOutcome::Sent, 2))] };
        assert_eq!(
            wrong.to_string(),
            "1 wrong page: page 7 at 0x7000 (sent in round 2, clean since)"
        );
        wrong.named.push(page(9, History::new(PageOutcome::Hole, 99)));
        wrong.named.push(page(10, History::default()));
        wrong.count = 1000;
        assert_eq!(
            wrong.to_string(),
            "1000 wrong pages: page 7 at 0x7000 (sent in round 2, clean since), \
             page 9 at 0x9000 (a hole in round 31 or later, clean since), page 10 at 0xa000 (in no \
             round) and 997 more"
        );
    }
}
