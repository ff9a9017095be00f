//! Round one with hints: when to send and when to wait for more hints.
//!
//! A page that is sent before its hint arrives was sent for nothing. A slice of `t` seconds spent waiting costs
//! `link_rate × t` bytes that could have been sent, and saves up to `hint_rate × t` bytes from being sent at all. So while hints
//! clear at least as fast as the link could send, waiting is at least as good as sending even if none of the waiting is
//! repaid by the end; when they are slower, sending is better, for hints go on arriving meanwhile. Pages go out in ascending
//! order: a kernel keeps its image low and hands out free memory from the top, so the two tend to meet late.
//!
//! **The waiting is bounded.** Before the first hint: `first_wait`, and not at all if the driver has not read the id. After it: a slice
//! is spent waiting only if the slices just before it (a window) cleared at the link's rate, so the waiting slices together
//! cannot be longer than sending what was cleared would have taken, plus one window.
//!
//! The pacer itself is arithmetic on times and counters. The caller sleeps, or sends for a slice, and asks again.

use std::time::Duration;

/// Time over which the hint rate is measured: longer than a spell of hinting and the rest after it.
const WINDOW: Duration = Duration::from_millis(100);

/// What to do with the next slice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pace {
    /// Hold back: hints come faster than the link sends.
    Hold,
    /// Send.
    Send,
}

/// What the pacer looks at, once a slice.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Since the id was published.
    pub now: Duration,
    /// Bytes that hints have removed from the to-send bitmap so far.
    pub cleared: u64,
    /// Whether any hint has arrived.
    pub any_hint: bool,
    /// The link, in bytes per second.
    pub link_rate: f64,
}

/// Decides slice by slice.
#[derive(Debug)]
pub struct Pacer {
    first_wait: Duration,
    /// The last samples, oldest first; starts with the first hint.
    window: Vec<(Duration, u64)>,
}

impl Pacer {
    /// Waits up to `first_wait` for the first hint.
    pub fn new(first_wait: Duration) -> Self {
        Self { first_wait, window: Vec::new() }
    }

    /// Decides the next slice.
    pub fn pace(&mut self, sample: &Sample) -> Pace {
        if !sample.any_hint {
            let patient = sample.now < self.first_wait;
            return if patient { Pace::Hold } else { Pace::Send };
        }
        self.window.push((sample.now, sample.cleared));
        // The oldest sample that is kept is the youngest of those at least a window old.
        while self.window.get(1).is_some_and(|(at, _)| sample.now.saturating_sub(*at) >= WINDOW) {
            self.window.remove(0);
        }
        let Some(&(since, cleared)) = self.window.first() else {
            return Pace::Send;
        };
        if self.window.len() == 1 {
            // The first hint has just come: one slice to see how fast they are.
            return Pace::Hold;
        }
        let time = sample.now.saturating_sub(since).as_secs_f64();
        let hints = sample.cleared.saturating_sub(cleared) as f64;
        if hints >= sample.link_rate * time && hints > 0.0 { Pace::Hold } else { Pace::Send }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(ms: u64, cleared: u64, any_hint: bool) -> Sample {
        Sample { now: Duration::from_millis(ms), cleared, any_hint, link_rate: 1e9 }
    }

    #[test]
    fn waits_for_the_first_hint_but_not_for_ever() {
        let mut pacer = Pacer::new(Duration::from_millis(250));
        assert_eq!(pacer.pace(&sample(0, 0, false)), Pace::Hold);
        assert_eq!(pacer.pace(&sample(249, 0, false)), Pace::Hold);
        assert_eq!(pacer.pace(&sample(250, 0, false)), Pace::Send);
        assert_eq!(Pacer::new(Duration::ZERO).pace(&sample(0, 0, false)), Pace::Send);
    }

    #[test]
    fn holds_while_hints_are_faster_than_the_link() {
        let mut pacer = Pacer::new(Duration::ZERO);
        let mb = 1_000_000;
        // 20 ms at 1 GB/s is 20 MB.
        assert_eq!(pacer.pace(&sample(0, mb, true)), Pace::Hold);
        assert_eq!(pacer.pace(&sample(20, 41 * mb, true)), Pace::Hold);
        assert_eq!(pacer.pace(&sample(40, 60 * mb, true)), Pace::Hold);
        assert_eq!(pacer.pace(&sample(60, 61 * mb, true)), Pace::Hold);
        assert_eq!(pacer.pace(&sample(80, 62 * mb, true)), Pace::Send);
        assert_eq!(pacer.pace(&sample(100, 200 * mb, true)), Pace::Hold);
    }

    proptest! {
        #[test]
        fn waiting_is_bounded_by_what_hints_save(steps in prop::collection::vec(0u64..60_000_000, 1..200)) {
            let mut pacer = Pacer::new(Duration::from_millis(100));
            let (mut now, mut cleared, mut held) = (0, 0, 0);
            for step in steps {
                cleared += step;
                if pacer.pace(&sample(now, cleared, cleared > 0)) == Pace::Hold { held += 20; }
                now += 20;
            }
            // Each slice's hints can justify at most a window of waiting, by the rate they alone would sustain.
            let slices = WINDOW.as_millis() as u64 / 20;
            let bound = 100 + 20 * (slices + 1) + slices * cleared / 1_000_000;
            prop_assert!(held <= bound, "held {} of {}", held, bound);
        }
    }
}
