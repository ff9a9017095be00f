//! How many distinct pages a guest writes in a time.
//!
//! The curve is `c·τ + W·(1 − e^(−λτ))`: a set of `W` pages that are written again and again, each
//! at the rate λ, and new pages at a steady rate `c`. It saturates where only old pages are
//! written, and goes on where a guest uses new memory. For a choice of λ the two others follow by
//! least squares; λ is tried from once a minute to 50 times a second.
//!
//! In round one pages are watched from the time on at which they are sent, so what is seen there is
//! the mean of the curve over many exposures.

/// A curve.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Growth {
    /// New pages per second.
    pub steady: f64,
    /// Pages of the set.
    pub set: f64,
    /// Writes to each of them per second.
    pub rate: f64,
}

/// For how long pages had been watched: parts of them, with seconds. The parts sum up to 1 or, if
/// not all are watched yet, to less.
pub type Exposure = Vec<(f64, f64)>;

/// Distinct pages that were seen dirty after an exposure.
#[derive(Clone, Debug)]
pub struct Seen {
    /// How they had been watched.
    pub exposure: Exposure,
    /// Pages.
    pub pages: f64,
}

/// Rates that are tried, per second.
const SLOWEST: f64 = 1.0 / 60.0;
const FASTEST: f64 = 50.0;

impl Growth {
    /// Pages after `seconds`.
    pub fn at(&self, seconds: f64) -> f64 {
        self.steady * seconds + self.set * (1.0 - (-self.rate * seconds).exp())
    }

    /// Pages after an exposure.
    pub fn after(&self, exposure: &[(f64, f64)]) -> f64 {
        exposure.iter().map(|&(part, seconds)| part * self.at(seconds)).sum()
    }

    /// The curve that fits best, by relative error (in counts below 256 by absolute error).
    pub fn fit(seen: &[Seen]) -> Self {
        let mut best = (f64::INFINITY, Self::default());
        let attempt = |rate: f64, best: &mut (f64, Self)| {
            let candidate = Self::fit_at(seen, rate);
            let error: f64 = seen
                .iter()
                .map(|s| ((candidate.after(&s.exposure) - s.pages) / s.pages.max(256.0)).powi(2))
                .sum();
            if error < best.0 {
                *best = (error, candidate);
            }
        };
        // Coarsely over the whole span, then around the best.
        for step in 0..=40 {
            attempt(SLOWEST * (FASTEST / SLOWEST).powf(f64::from(step) / 40.0), &mut best);
        }
        let coarse = best.1.rate;
        for step in -20..=20 {
            attempt(coarse * 1.22f64.powf(f64::from(step) / 20.0), &mut best);
        }
        best.1
    }

    /// The two linear parameters for this rate.
    fn fit_at(seen: &[Seen], rate: f64) -> Self {
        let unit = Self { steady: 0.0, set: 1.0, rate };
        let rows = seen.iter().map(|s| {
            let weight = 1.0 / s.pages.max(256.0);
            let linear: f64 = s.exposure.iter().map(|(part, seconds)| part * seconds).sum();
            [linear * weight, unit.after(&s.exposure) * weight, s.pages * weight]
        });
        let (steady, set) = least_squares(rows);
        Self { steady, set, rate }
    }
}

/// The `(x, y)`, neither negative, that bring `a·x + b·y` closest to `c` over rows `[a, b, c]`.
pub(crate) fn least_squares(rows: impl Iterator<Item = [f64; 3]>) -> (f64, f64) {
    let (mut aa, mut ab, mut bb, mut ac, mut bc) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for [a, b, c] in rows {
        aa += a * a;
        ab += a * b;
        bb += b * b;
        ac += a * c;
        bc += b * c;
    }
    let alone = |sum: f64, square: f64| if square > 0.0 { (sum / square).max(0.0) } else { 0.0 };
    let (x, y) = (alone(ac, aa), alone(bc, bb));
    let determinant = aa * bb - ab * ab;
    if determinant > 1e-9 * aa * bb {
        let both = ((ac * bb - bc * ab) / determinant, (bc * aa - ac * ab) / determinant);
        if both.0 >= 0.0 && both.1 >= 0.0 {
            return both;
        }
    }
    // One of them is zero: the one whose absence costs less.
    let error =
        |x: f64, y: f64| aa * x * x + 2.0 * ab * x * y + bb * y * y - 2.0 * (ac * x + bc * y);
    if error(x, 0.0) <= error(0.0, y) { (x, 0.0) } else { (0.0, y) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watched_for(curve: &Growth, seconds: f64) -> Seen {
        Seen { exposure: vec![(1.0, seconds)], pages: curve.at(seconds) }
    }

    #[test]
    fn a_curve_is_found_again_from_its_points() {
        for (steady, set, rate) in [(0.0, 25_000.0, 0.5), (900.0, 0.0, 1.0), (200.0, 8000.0, 3.0)] {
            let curve = Growth { steady, set, rate };
            let seen: Vec<Seen> =
                (1..30).map(|i| watched_for(&curve, f64::from(i) * 0.2)).collect();
            let found = Growth::fit(&seen);
            for seconds in [0.1, 1.0, 5.0, 12.0] {
                let (is, should) = (found.at(seconds), curve.at(seconds));
                assert!((is - should).abs() < 0.05 * should, "{curve:?} {found:?} at {seconds}");
            }
        }
    }

    #[test]
    fn round_one_alone_tells_the_curve_too() {
        let curve = Growth { steady: 0.0, set: 20_000.0, rate: 1.0 };
        let seen: Vec<Seen> = (1..40)
            .map(|end| {
                // Sent evenly over 8 s.
                let exposure: Exposure =
                    (0..end).map(|at| (1.0 / 40.0, f64::from(end - at) * 0.2 - 0.1)).collect();
                Seen { pages: curve.after(&exposure), exposure }
            })
            .collect();
        let found = Growth::fit(&seen);
        for seconds in [0.5, 2.0, 8.0] {
            let (is, should) = (found.at(seconds), curve.at(seconds));
            assert!((is - should).abs() < 0.05 * should, "{found:?} at {seconds}");
        }
    }

    #[test]
    fn nothing_seen_is_nothing_written() {
        assert_eq!(Growth::fit(&[]).at(100.0), 0.0);
        let nothing = [Seen { exposure: vec![(1.0, 0.0)], pages: 0.0 }];
        assert_eq!(Growth::fit(&nothing).at(100.0), 0.0);
    }
}
