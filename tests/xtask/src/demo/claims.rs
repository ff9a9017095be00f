//! What the demo claims of its figures. Bytes and memory are the same on every machine and decide
//! how the demo ends; times are only judged when nothing was in the way, and are not Wherry's
//! failure even then.

use super::case::{CASES, Figures, Results};

/// With less of its CPU a guest's or a migration's time says nothing.
const ENOUGH_CPU: f64 = 0.8;

/// What became of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It holds.
    Held,
    /// It does not.
    Failed,
    /// It is about time, and something was in the way.
    NotJudged,
}

/// A claim.
#[derive(Debug)]
pub struct Claim {
    text: &'static str,
    /// The least share of its CPU that one of the cases had, for claims about time.
    share: Option<Option<f64>>,
    verdict: Verdict,
}

impl Claim {
    fn exact(text: &'static str, holds: bool) -> Self {
        Self { text, share: None, verdict: if holds { Verdict::Held } else { Verdict::Failed } }
    }

    fn time(text: &'static str, cases: &[&Figures], holds: bool) -> Self {
        let shares = cases.iter().map(|f| f.cpu_share);
        let share = shares.reduce(|a, b| Some(a?.min(b?))).flatten();
        let judged = share.is_some_and(|share| share >= ENOUGH_CPU);
        let verdict = if judged { Self::exact(text, holds).verdict } else { Verdict::NotJudged };
        Self { text, share: Some(share), verdict }
    }

    /// Whether the demo fails for it.
    pub fn is_fatal(&self) -> bool {
        self.share.is_none() && self.verdict == Verdict::Failed
    }

    /// In words.
    pub fn line(&self) -> String {
        let word = match self.verdict {
            Verdict::Held => "yes",
            Verdict::Failed => "NO ",
            Verdict::NotJudged => " - ",
        };
        let note = match (self.verdict, self.share) {
            (Verdict::NotJudged, Some(Some(share))) => format!(
                " (not judged: other programs left {:.0} % of a CPU, less than {:.0} %)",
                100.0 * share,
                100.0 * ENOUGH_CPU
            ),
            (Verdict::NotJudged, _) => {
                " (not judged: nobody knows what other programs took)".into()
            }
            (Verdict::Failed, Some(_)) => " (a time: not what the demo fails for)".into(),
            _ => String::new(),
        };
        format!("{word} {}{note}", self.text)
    }
}

/// Looks at every claim.
pub fn judge(results: &Results) -> Vec<Claim> {
    let [idle, off, on, off_plain, on_plain] = CASES.map(|c| &results[c.key]);
    let still = [on, on_plain].iter().all(|f| f.longest_gap_ms <= f.downtime_ms + 200.0);
    vec![
        Claim::exact("every guest found its memory intact", results.values().all(|f| f.guest_ok)),
        Claim::exact(
            "hints on: at most 1.3 times the idle guest's bytes",
            10 * on.total_bytes <= 13 * idle.total_bytes,
        ),
        Claim::exact(
            "hints on: at most a quarter of hints off",
            4 * on.total_bytes <= off.total_bytes,
        ),
        Claim::exact(
            "init_on_alloc=0: at most 1.3 times idle",
            10 * on_plain.total_bytes <= 13 * idle.total_bytes,
        ),
        Claim::exact(
            "init_on_alloc=0: at most a quarter of hints off",
            4 * on_plain.total_bytes <= off_plain.total_bytes,
        ),
        Claim::time("hints on is faster than hints off", &[on, off], on.total_ms < off.total_ms),
        Claim::time(
            "init_on_alloc=0: hints on is faster than hints off",
            &[on_plain, off_plain],
            on_plain.total_ms < off_plain.total_ms,
        ),
        Claim::time(
            "the hinted guests stood still no longer than downtime + 200 ms",
            &[on, on_plain],
            still,
        ),
    ]
}

/// How many held, and what became of the others.
pub fn summary(claims: &[Claim]) -> String {
    let count = |verdict| claims.iter().filter(|claim| claim.verdict == verdict).count();
    let held = format!("{} of {} claims held", count(Verdict::Held), claims.len());
    let others = [(Verdict::Failed, "did not"), (Verdict::NotJudged, "not judged")];
    let others = others.map(|(verdict, word)| (count(verdict), word));
    others
        .iter()
        .filter(|(n, _)| *n > 0)
        .fold(held, |text, (n, word)| format!("{text}, {n} {word}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Results {
        let of = |total_bytes, total_ms| Figures {
            guest_ram_bytes: 1 << 30,
            round_one_bytes: total_bytes,
            total_bytes,
            rounds: 2,
            total_ms,
            downtime_ms: 40.0,
            longest_gap_ms: 150.0,
            guest_ok: true,
            began_unix_ms: 0,
            ended_unix_ms: 0,
            cpu_share: Some(0.97),
        };
        let figures = [of(109, 984), of(855, 6965), of(117, 2633), of(857, 7199), of(109, 1082)];
        CASES.iter().map(|case| case.key.to_owned()).zip(figures).collect()
    }

    /// The summary, and whether the demo fails.
    fn outcome(results: &Results) -> (String, bool) {
        let claims = judge(results);
        (summary(&claims), claims.iter().any(Claim::is_fatal))
    }

    #[test]
    fn bytes_and_memory_decide() {
        assert_eq!(outcome(&good()), ("8 of 8 claims held".into(), false));
        let with = |key: &str, change: &dyn Fn(&mut Figures)| {
            let mut results = good();
            change(results.get_mut(key).unwrap());
            outcome(&results)
        };
        assert!(with("idle", &|f| f.guest_ok = false).1);
        assert!(with("hints_on", &|f| f.total_bytes = 214).1);
        assert!(with("hints_off", &|f| f.total_bytes = 300).1);
        // Slow, with the CPU at hand: said, and no failure.
        let slow = with("hints_on", &|f| f.longest_gap_ms = 2500.0);
        assert_eq!(slow, ("7 of 8 claims held, 1 did not".into(), false));
        let slow = with("hints_on", &|f| f.total_ms = 9000);
        assert_eq!(slow, ("7 of 8 claims held, 1 did not".into(), false));
    }

    #[test]
    fn times_are_not_judged_when_something_was_in_the_way() {
        let mut results = good();
        let hints_on = results.get_mut("hints_on").unwrap();
        (hints_on.cpu_share, hints_on.longest_gap_ms) = (Some(0.63), 2500.0);
        assert_eq!(outcome(&results), ("6 of 8 claims held, 2 not judged".into(), false));
        let lines: Vec<String> = judge(&results).iter().map(Claim::line).collect();
        assert!(lines[5].contains("not judged: other programs left 63 % of a CPU"), "{lines:?}");
        assert!(lines[6].starts_with("yes init_on_alloc=0: hints on is faster"), "{lines:?}");
        // Nor when nobody knows.
        results.values_mut().for_each(|f| f.cpu_share = None);
        assert_eq!(outcome(&results), ("5 of 8 claims held, 3 not judged".into(), false));
        // Bytes are judged all the same.
        results.get_mut("hints_on").unwrap().total_bytes = 800;
        assert_eq!(outcome(&results), ("3 of 8 claims held, 2 did not, 3 not judged".into(), true));
    }
}
