//! The four formulas that a raise is judged by, each short enough to do by hand.
//!
//! - [`quantile`] of Student's t: its distribution for a whole number of degrees of freedom in closed form (Abramowitz and
//!   Stegun, *Handbook of Mathematical Functions*, 26.7.3 and 26.7.4), inverted by bisection.
//! - [`shift`] between the means of two samples: Welch's interval, with his degrees of freedom rounded down.
//! - [`rise`] of a series: the slope of the straight line through it by least squares, with its interval.
//! - [`contrast`] of shares, such as (a − b) − (c − d): each share's Wilson interval, put together by Newcombe's square and
//!   add (Newcombe, *Statistics in Medicine* 17, 1998, method 10; for more than two: Zou and Donner, ibid. 27, 2008). They
//!   hold for few tasks, and where nothing failed.

/// Degrees of freedom beyond which Student's t is taken for the normal distribution; their quantiles differ by less than a
/// hundredth.
const NORMAL: u32 = 1_000;

/// An estimate, and between what it lies.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// The lower bound.
    pub low: f64,
    /// The most likely value.
    pub estimate: f64,
    /// The upper bound.
    pub high: f64,
}

/// How far Student's t goes with a probability of `1 - tail` on one side.
pub(super) fn quantile(tail: f64, freedom: u32) -> f64 {
    let freedom = freedom.clamp(1, NORMAL);
    let (mut low, mut high) = (0.0, 1e6);
    for _ in 0..100 {
        let middle = (low + high) / 2.0;
        if (1.0 - within(middle, freedom)) / 2.0 > tail { low = middle } else { high = middle }
    }
    high
}

/// The probability that Student's t lies within ±t.
fn within(t: f64, freedom: u32) -> f64 {
    let angle = (t / f64::from(freedom).sqrt()).atan();
    let (sine, cosine) = angle.sin_cos();
    // 1 + 1/2 cos² + 1·3/(2·4) cos⁴ + …, or for an odd number cos + 2/3 cos³ + 2·4/(3·5) cos⁵ + …
    let odd = freedom % 2;
    let (mut term, mut sum) = (if odd == 1 { cosine } else { 1.0 }, 0.0);
    let mut next = 1 + odd;
    while next < freedom {
        sum += term;
        term *= f64::from(next) / f64::from(next + 1) * cosine * cosine;
        next += 2;
    }
    match odd {
        0 => sine * sum,
        _ => (angle + sine * sum) * std::f64::consts::FRAC_2_PI,
    }
}

/// By how much the mean of `after` is above that of `before`; none with fewer than two values in either.
pub(super) fn shift(before: &[f64], after: &[f64], tail: f64) -> Option<Interval> {
    let (one, other) = (moments(before)?, moments(after)?);
    let squares = one.of_mean + other.of_mean;
    let freedom = squares.powi(2) / (one.of_mean.powi(2) / one.freedom + other.of_mean.powi(2) / other.freedom);
    // Values that do not vary at all have no error, and any number of degrees of freedom.
    let freedom = if freedom.is_finite() { freedom } else { one.freedom + other.freedom };
    let margin = quantile(tail, freedom.max(1.0) as u32) * squares.sqrt();
    let estimate = other.mean - one.mean;
    Some(Interval { low: estimate - margin, estimate, high: estimate + margin })
}

struct Moments {
    mean: f64,
    /// The variance of the mean.
    of_mean: f64,
    freedom: f64,
}

fn moments(values: &[f64]) -> Option<Moments> {
    let (count, freedom) = (values.len() as f64, values.len() as f64 - 1.0);
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (freedom >= 1.0).then(|| Moments { mean, of_mean: squares / freedom / count, freedom })
}

/// By how much the straight line through the values rises from one to the next; none with fewer than three.
pub(super) fn rise(values: &[f64], tail: f64) -> Option<Interval> {
    let count = values.len() as f64;
    if values.len() < 3 {
        return None;
    }
    let (middle, mean) = ((count - 1.0) / 2.0, values.iter().sum::<f64>() / count);
    let from_middle = |index: usize| index as f64 - middle;
    let square: f64 = (0..values.len()).map(|index| from_middle(index).powi(2)).sum();
    let product: f64 = values.iter().enumerate().map(|(index, value)| from_middle(index) * (value - mean)).sum();
    let slope = product / square;
    let residual = |(index, value): (usize, &f64)| (value - mean - slope * from_middle(index)).powi(2);
    let variance = values.iter().enumerate().map(residual).sum::<f64>() / (count - 2.0);
    let margin = quantile(tail, values.len() as u32 - 2) * (variance / square).sqrt();
    Some(Interval { low: slope - margin, estimate: slope, high: slope + margin })
}

/// So many of so many.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Share {
    pub(super) part: f64,
    pub(super) of: f64,
}

impl Share {
    pub(super) fn ratio(self) -> f64 {
        self.part / self.of.max(1.0)
    }

    fn wilson(self, z: f64) -> Interval {
        let (share, square) = (self.ratio(), z * z);
        let of = self.of.max(1.0);
        let centre = (share + square / 2.0 / of) / (1.0 + square / of);
        let spread = z * (share * (1.0 - share) / of + square / 4.0 / of / of).sqrt() / (1.0 + square / of);
        Interval { low: (centre - spread).max(0.0), estimate: share, high: (centre + spread).min(1.0) }
    }
}

/// The sum of the shares in `plus`, less those in `minus`; none while one of them is of nothing.
pub(super) fn contrast(plus: &[Share], minus: &[Share], tail: f64) -> Option<Interval> {
    if plus.iter().chain(minus).any(|share| share.of < 1.0) {
        return None;
    }
    let z = quantile(tail, NORMAL);
    let (mut estimate, mut below, mut above) = (0.0, 0.0, 0.0);
    for interval in plus.iter().map(|share| share.wilson(z)) {
        estimate += interval.estimate;
        below += (interval.estimate - interval.low).powi(2);
        above += (interval.high - interval.estimate).powi(2);
    }
    for interval in minus.iter().map(|share| share.wilson(z)) {
        estimate -= interval.estimate;
        below += (interval.high - interval.estimate).powi(2);
        above += (interval.estimate - interval.low).powi(2);
    }
    Some(Interval { low: estimate - below.sqrt(), estimate, high: estimate + above.sqrt() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(one: f64, other: f64, by: f64) {
        assert!((one - other).abs() <= by, "{one} is not {other}");
    }

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (tail, freedom, expected) in [
            (0.025, 1, 12.706),
            (0.025, 2, 4.303),
            (0.05, 3, 2.353),
            (0.005, 4, 4.604),
            (0.001, 5, 5.893),
            (0.025, 10, 2.228),
            (0.0005, 15, 4.073),
            (0.025, 30, 2.042),
            (0.025, NORMAL, 1.962),
            (0.025, u32::MAX, 1.962),
        ] {
            near(quantile(tail, freedom), expected, 0.0006);
        }
    }

    #[test]
    fn a_shift_of_means_is_welchs() {
        // Worked by hand: means 2 and 6, variances of the means 1/3 and 4/3, 2.94 degrees of freedom, so 2: t = 4.303.
        let found = shift(&[1.0, 2.0, 3.0], &[4.0, 6.0, 8.0], 0.025).expect("enough values");
        near(found.estimate, 4.0, 1e-9);
        near(found.high - 4.0, 4.303 * (5.0f64 / 3.0).sqrt(), 0.001);
        assert_eq!(shift(&[1.0], &[1.0, 2.0], 0.025), None);
        let certain = shift(&[1.0, 1.0], &[1.5, 1.5], 0.025).expect("enough values");
        assert_eq!((certain.low, certain.high), (0.5, 0.5));
    }

    #[test]
    fn a_rise_is_the_slope_of_least_squares() {
        // Worked by hand: slope 8/10, residuals -0.4, 0.8, -1, 1.2, -0.6: 3.6/3 = 1.2; 3 degrees of freedom: t = 3.182.
        let found = rise(&[0.0, 2.0, 1.0, 4.0, 3.0], 0.025).expect("enough values");
        near(found.estimate, 0.8, 1e-9);
        near(found.high - 0.8, 3.182 * (1.2f64 / 10.0).sqrt(), 0.001);
        assert_eq!(rise(&[1.0, 2.0], 0.025), None);
    }

    #[test]
    fn a_contrast_of_two_shares_is_newcombes() {
        // With 1.962 in the place of 1.96, ends are a little farther out. Newcombe's example (a): 56 of 70 and 48 of 80, by method 10: 0.0524 to 0.3339.
        let share = |part, of| Share { part, of };
        let found = contrast(&[share(56.0, 70.0)], &[share(48.0, 80.0)], 0.025).expect("of something");
        near(found.low, 0.0524, 0.0005);
        near(found.high, 0.3339, 0.0005);
        // And (h): 0 of 10 and 0 of 10, -0.2775 to 0.2775.
        let none = contrast(&[share(0.0, 10.0)], &[share(0.0, 10.0)], 0.025).expect("of something");
        near(none.high, 0.2775, 0.0006);
        near(none.low, -0.2775, 0.0006);
        assert_eq!(contrast(&[share(0.0, 0.0)], &[share(1.0, 10.0)], 0.025), None);
    }
}
