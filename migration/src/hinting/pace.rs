//! Round one with hints: when to send and when to wait for more hints.
//!
//! A page that is sent before its hint arrives was sent for nothing. A slice of `t` seconds spent
//! waiting costs `link_rate × t` bytes that could have been sent, and saves up to `hint_rate × t`
//! bytes from being sent at all. So while hints clear at least as fast as the link could send,
//! waiting is at least as good as sending even if none of the waiting is repaid by the end; when
//! they are slower, sending is better, for hints go on arriving meanwhile. Pages go out in
//! ascending order: a kernel keeps its image low and hands out free memory from the top, so the two
//! tend to meet late.
//!
//! **Patience.** A rate that drops says little: the guest has other work to do and a host may have
//! few CPUs, on which sending takes from the guest the time in which it would hint. Sending after
//! every dip would then keep the hints slow for good. So the pacer also holds back while hints are
//! slower than the link, out of a budget: what the first hint left of `first_wait` (the first
//! blocks are the slowest), an eighth of the time that hints have saved beyond the waiting so far,
//! and a twentieth of the time spent sending. When it is used up, the pacer sends until there is
//! enough for a window, and then looks again how fast hints are while nothing is sent.
//!
//! **The waiting is bounded.** Before the first hint: `first_wait`, and not at all if the driver
//! has not read the id. After it a slice is either *paid* (the slices just before it, a window,
//! cleared at the link's rate, so the paid slices together cannot be longer than sending what was
//! cleared would have taken, plus one window), or it comes out of the budget. All waiting together
//! is therefore at most the time that hints save, a twentieth of the time spent sending,
//! `first_wait`, and a window.
//!
//! The pacer itself is arithmetic on times and counters. The caller sleeps, or sends for a slice,
//! and asks again.

use std::time::Duration;

/// Time over which the hint rate is measured: longer than a burst of hinting and the rest after it.
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
    /// Hold back whatever the hints are like: it is paid for otherwise.
    pub advance: bool,
}

/// The part of the time saved by hints, beyond what was waited for them, that may be waited for
/// slower ones.
const OF_SAVED: f64 = 1.0 / 8.0;
/// The part of the time spent sending that may be waited to see whether hints have become faster.
const OF_SENDING: f64 = 1.0 / 20.0;

/// Decides slice by slice.
#[derive(Debug, Default)]
pub struct Pacer {
    first_wait: Duration,
    /// The last samples, oldest first; starts with the first hint.
    window: Vec<(Duration, u64)>,
    /// When the first hint was seen.
    first_hint: Option<Duration>,
    /// What was last decided, and when.
    last: Option<(Duration, Pace)>,
    /// Time held while hints kept up with the link.
    paid: Duration,
    /// Time held while they did not.
    unpaid: Duration,
    /// Time spent sending since the first hint.
    sending: Duration,
}

impl Pacer {
    /// Waits up to `first_wait` for the first hint.
    pub fn new(first_wait: Duration) -> Self {
        Self { first_wait, ..Self::default() }
    }

    /// Decides the next slice.
    pub fn pace(&mut self, sample: &Sample) -> Pace {
        if !sample.any_hint {
            let patient = sample.advance || sample.now < self.first_wait;
            return if patient { Pace::Hold } else { Pace::Send };
        }
        let good = self.keeps_up(sample);
        if let Some((then, pace)) = self.last {
            // A slice is short: when more has passed nobody ran here, and sending had stood still
            // as well.
            let passed = sample.now.saturating_sub(then).min(WINDOW);
            match pace {
                Pace::Send => self.sending += passed,
                Pace::Hold if !good => self.unpaid += passed,
                Pace::Hold => self.paid += passed,
            }
        }
        let saved = sample.cleared as f64 / sample.link_rate.max(1.0) - self.paid.as_secs_f64();
        let earned = saved.max(0.0) * OF_SAVED + self.sending.as_secs_f64() * OF_SENDING;
        let begun = self.first_hint.get_or_insert(sample.now);
        let left = self.first_wait.saturating_sub(*begun).as_secs_f64();
        let budget = left + earned - self.unpaid.as_secs_f64();
        let pace = match self.last {
            // The first hint has just come: one slice to see how fast they are.
            None => Pace::Hold,
            _ if good || sample.advance => Pace::Hold,
            Some((_, Pace::Hold)) if budget > 0.0 => Pace::Hold,
            Some((_, Pace::Send)) if budget >= WINDOW.as_secs_f64() => {
                // From here on only what comes while nothing is sent counts.
                self.window = vec![(sample.now, sample.cleared)];
                Pace::Hold
            }
            _ => Pace::Send,
        };
        self.last = Some((sample.now, pace));
        pace
    }

    /// Whether the last window's hints cleared at the link's rate.
    fn keeps_up(&mut self, sample: &Sample) -> bool {
        self.window.push((sample.now, sample.cleared));
        // The oldest sample that is kept is the youngest of those at least a window old.
        while self.window.get(1).is_some_and(|(at, _)| sample.now.saturating_sub(*at) >= WINDOW) {
            self.window.remove(0);
        }
        let Some(&(since, cleared)) = self.window.first() else {
            return false;
        };
        let time = sample.now.saturating_sub(since).as_secs_f64();
        let hints = sample.cleared.saturating_sub(cleared) as f64;
        hints >= sample.link_rate * time && hints > 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(ms: u64, cleared: u64, any_hint: bool) -> Sample {
        Sample { now: Duration::from_millis(ms), cleared, any_hint, link_rate: 1e9, advance: false }
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
        // 62 ms saved by waiting 60: no patience.
        assert_eq!(pacer.pace(&sample(80, 62 * mb, true)), Pace::Send);
        assert_eq!(pacer.pace(&sample(100, 200 * mb, true)), Pace::Hold);
    }

    #[test]
    fn the_first_hints_may_be_slow() {
        let mut pacer = Pacer::new(Duration::from_millis(250));
        let hold = |pacer: &mut Pacer, ms| pacer.pace(&sample(ms, 1000, true)) == Pace::Hold;
        assert_eq!(pacer.pace(&sample(90, 0, false)), Pace::Hold);
        // The first at 100 ms: 150 ms are left.
        let held = (0..20).take_while(|slice| hold(&mut pacer, 100 + 20 * slice)).count();
        assert_eq!(held, 160 / 20);
    }

    #[test]
    fn what_was_saved_buys_patience_with_a_dip() {
        let mut pacer = Pacer::new(Duration::ZERO);
        let mb = 1_000_000;
        // 4 GB in 400 ms over a link of 1 GB/s: 440 ms of patience.
        for slice in 0..=20 {
            assert_eq!(pacer.pace(&sample(slice * 20, slice * 200 * mb, true)), Pace::Hold);
        }
        let held = (21..200)
            .take_while(|&slice| pacer.pace(&sample(slice * 20, 4000 * mb, true)) == Pace::Hold);
        // The window sees the dip after 80 ms, which were paid.
        assert_eq!(held.count(), (80 + 440) / 20 - 1);
    }

    #[test]
    fn a_host_that_stands_still_does_not_use_patience_up() {
        let mut pacer = Pacer::new(Duration::ZERO);
        let mb = 1_000_000;
        for slice in 0..=20 {
            pacer.pace(&sample(slice * 20, slice * 200 * mb, true));
        }
        // 440 ms of patience, and three seconds later.
        assert_eq!(pacer.pace(&sample(3400, 4000 * mb, true)), Pace::Hold);
        assert_eq!(pacer.pace(&sample(3420, 4001 * mb, true)), Pace::Hold);
    }

    #[test]
    fn hints_that_are_slow_only_while_it_sends_are_noticed() {
        let mut pacer = Pacer::new(Duration::ZERO);
        let (mut now, mut cleared) = (0, 1);
        let mut sent = 0;
        // Ten times the link's rate while held, nothing while sending; and nothing at all in the
        // first 200 ms.
        while cleared < 4_000_000_000 {
            let pace = pacer.pace(&sample(now, cleared, true));
            now += 20;
            match pace {
                Pace::Hold if now > 200 => cleared += 200_000_000,
                Pace::Hold => {}
                Pace::Send => sent += 20,
            }
            assert!(now < 10_000, "{cleared} of 4 GB cleared, sent for {sent} ms");
        }
        assert!(sent <= 2500, "sent for {sent} ms");
    }

    proptest! {
        #[test]
        fn waiting_is_bounded_by_what_hints_save(steps in prop::collection::vec(0u64..60_000_000,
            1..200)) {
            let mut pacer = Pacer::new(Duration::from_millis(100));
            let (mut now, mut cleared, mut held) = (0, 0, 0);
            for step in steps {
                cleared += step;
                if pacer.pace(&sample(now, cleared, cleared > 0)) == Pace::Hold { held += 20; }
                now += 20;
            }
            // Each slice's hints can justify at most a window of waiting, by the rate they alone
            // would sustain.
            let slices = WINDOW.as_millis() as u64 / 20;
            let paid = 20 * (slices + 1) + slices * cleared / 1_000_000;
            let budget = cleared / 8_000_000 + (now - held) / 20 + 2 * 20;
            let bound = 100 + paid + budget;
            prop_assert!(held <= bound, "held {} of {}", held, bound);
        }
    }
}
