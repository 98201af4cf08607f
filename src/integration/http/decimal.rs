//! Exact decimals: what expressions compute with, where a float would round.
//!
//! A [`Decimal`] is an integer and a power of ten. Each operation is exact, or says that it cannot be: a decimal library
//! that rounds at its 28th digit would need the same questions asked around each of its calls. [`Digits`] compares
//! numbers of any length.

use std::cmp::Ordering;
use std::fmt;

/// Digits after the point.
pub(super) const MAX_SCALE: u32 = 30;

/// A power that is larger is a mistake.
const MAX_POWER: i128 = 128;

/// `units` divided by ten to the power of `scale`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Decimal {
    pub(super) units: i128,
    pub(super) scale: u32,
}

impl Decimal {
    pub(super) const ZERO: Decimal = Decimal { units: 0, scale: 0 };

    /// Reads a plain decimal, such as `-12.50`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        if !is_plain(text) {
            return None;
        }
        let fraction = if fraction.len() > MAX_SCALE as usize { fraction.trim_end_matches('0') } else { fraction };
        let units = format!("{whole}{fraction}").parse().ok()?;
        Decimal { units, scale: u32::try_from(fraction.len()).ok()? }.fitting()
    }

    /// Reads a JSON number, which may have an exponent.
    pub(super) fn parse_number(token: &str) -> Option<Self> {
        let Some((mantissa, exponent)) = token.split_once(['e', 'E']) else { return Decimal::parse(token) };
        let (decimal, exponent) = (Decimal::parse(mantissa)?, exponent.parse::<i32>().ok()?);
        match decimal.units {
            0 => Some(Decimal::ZERO),
            _ if exponent >= 0 => decimal.times(Decimal { units: power(exponent.unsigned_abs())?, scale: 0 }),
            _ => Decimal { scale: decimal.scale.checked_add(exponent.unsigned_abs())?, ..decimal }.fitting(),
        }
    }

    pub(super) fn plus(self, other: Self) -> Option<Self> {
        let (one, other, scale) = self.aligned(other)?;
        Some(Decimal { units: one.checked_add(other)?, scale })
    }

    pub(super) fn minus(self, other: Self) -> Option<Self> {
        self.plus(other.negated()?)
    }

    pub(super) fn times(self, other: Self) -> Option<Self> {
        Decimal { units: self.units.checked_mul(other.units)?, scale: self.scale + other.scale }.fitting()
    }

    /// The quotient, where a decimal is exactly that.
    pub(super) fn divided_by(self, other: Self) -> Option<Self> {
        let (mut units, divisor, _) = self.aligned(other)?;
        for scale in 0..=MAX_SCALE {
            if units.checked_rem(divisor)? == 0 {
                return Some(Decimal { units: units / divisor, scale });
            }
            units = units.checked_mul(10)?;
        }
        None
    }

    /// The whole part of the quotient, so that the remainder is not negative.
    pub(super) fn whole_quotient(self, other: Self) -> Option<Self> {
        let (units, divisor, _) = self.aligned(other)?;
        Some(Decimal { units: units.checked_div_euclid(divisor)?, scale: 0 })
    }

    pub(super) fn remainder(self, other: Self) -> Option<Self> {
        let (units, divisor, scale) = self.aligned(other)?;
        Some(Decimal { units: units.checked_rem_euclid(divisor)?, scale })
    }

    pub(super) fn to_the(self, other: Self) -> Option<Self> {
        let exponent = other.whole().filter(|exponent| (0..=MAX_POWER).contains(exponent))?;
        (0..exponent).try_fold(Decimal { units: 1, scale: 0 }, |product, _| product.times(self))
    }

    pub(super) fn negated(self) -> Option<Self> {
        Some(Decimal { units: self.units.checked_neg()?, ..self })
    }

    /// With at most `places` digits after the point, half away from zero.
    pub(super) fn rounded(self, places: u32) -> Option<Self> {
        let Some(dropped) = self.scale.checked_sub(places).filter(|dropped| *dropped > 0) else { return Some(self) };
        let divisor = power(dropped)?;
        let (units, rest) = (self.units / divisor, self.units % divisor);
        let is_half = rest.unsigned_abs() >= divisor.unsigned_abs() - rest.unsigned_abs();
        let step = if is_half { self.units.signum() } else { 0 };
        Some(Decimal { units: units + step, scale: places })
    }

    /// With exactly `places` digits after the point, half away from zero.
    pub(super) fn fixed(self, places: u32) -> Option<Self> {
        let rounded = self.rounded(places)?;
        let units = rounded.units.checked_mul(power(places - rounded.scale)?)?;
        Some(Decimal { units, scale: places })
    }

    /// Without what is after the point.
    pub(super) fn truncated(self) -> Option<Self> {
        Some(Decimal { units: self.units / power(self.scale)?, scale: 0 })
    }

    /// The whole number that it is.
    fn whole(self) -> Option<i128> {
        let truncated = self.truncated()?.units;
        (truncated.checked_mul(power(self.scale)?)? == self.units).then_some(truncated)
    }

    fn aligned(self, other: Self) -> Option<(i128, i128, u32)> {
        let scale = self.scale.max(other.scale);
        let units = |decimal: Self| power(scale - decimal.scale)?.checked_mul(decimal.units);
        Some((units(self)?, units(other)?, scale))
    }

    /// Itself without zeros at its end as far as its scale needs it; nothing where it has too many digits even so.
    fn fitting(mut self) -> Option<Self> {
        while self.scale > MAX_SCALE {
            if self.units % 10 != 0 {
                return None;
            }
            self = match self.units {
                0 => Decimal::ZERO,
                units => Decimal { units: units / 10, scale: self.scale - 1 },
            };
        }
        Some(self)
    }
}

fn power(exponent: u32) -> Option<i128> {
    10_i128.checked_pow(exponent)
}

/// Whether a text is digits with at most one point between them, and at most a minus before them.
pub(super) fn is_plain(text: &str) -> bool {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let whole = whole.strip_prefix('-').unwrap_or(whole);
    [whole, fraction].iter().all(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (digits, scale) = (self.units.unsigned_abs().to_string(), self.scale as usize);
        let padded = format!("{digits:0>width$}", width = scale + 1);
        let (whole, fraction) = padded.split_at(padded.len() - scale);
        let (sign, point) = (if self.units < 0 { "-" } else { "" }, if scale == 0 { "" } else { "." });
        write!(f, "{sign}{whole}{point}{fraction}")
    }
}

/// A number without what does not change it: `-1.50e1` and `-15` are the same.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Digits {
    is_negative: bool,
    /// Neither the first nor the last is a zero; none for zero.
    digits: String,
    /// The power of ten of the first digit, and one more.
    magnitude: i64,
}

impl Digits {
    pub(super) fn of(token: &str) -> Self {
        let (is_negative, token) = token.strip_prefix('-').map_or((false, token), |rest| (true, rest));
        let (mantissa, exponent) = token.split_once(['e', 'E']).unwrap_or((token, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all = format!("{whole}{fraction}");
        let digits = all.trim_start_matches('0');
        if digits.is_empty() {
            return Digits { is_negative: false, digits: String::new(), magnitude: 0 };
        }
        // An exponent that is no i64 is the largest of its sign: no such number is told from another one like it.
        let most = if exponent.starts_with('-') { i64::MIN } else { i64::MAX };
        let exponent = exponent.parse::<i64>().unwrap_or(most);
        let before_point = whole.len() as i64 - (all.len() - digits.len()) as i64;
        let (magnitude, digits) = (exponent.saturating_add(before_point), digits.trim_end_matches('0').to_owned());
        Digits { is_negative, digits, magnitude }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.digits.len()
    }

    fn sign(&self) -> i8 {
        match (self.digits.is_empty(), self.is_negative) {
            (true, _) => 0,
            (_, true) => -1,
            _ => 1,
        }
    }
}

impl Ord for Digits {
    fn cmp(&self, other: &Self) -> Ordering {
        let size = |digits: &Self| (digits.magnitude, digits.digits.clone());
        match (self.sign(), other.sign()) {
            (-1, -1) => size(other).cmp(&size(self)),
            (1, 1) => size(self).cmp(&size(other)),
            (sign, other) => sign.cmp(&other),
        }
    }
}

impl PartialOrd for Digits {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimal(text: &str) -> Decimal {
        Decimal::parse_number(text).expect(text)
    }

    #[test]
    fn every_operation_is_exact_or_there_is_no_result() {
        let shown = |decimal: Option<Decimal>| decimal.map(|decimal| decimal.to_string());
        for (computed, expected) in [
            (decimal("0.1").plus(decimal("0.2")), Some("0.3")),
            (decimal("1e2").minus(decimal("0.01")), Some("99.99")),
            (decimal("19.99").times(decimal("100")), Some("1999.00")),
            (decimal("1").divided_by(decimal("0.8")), Some("1.25")),
            (decimal("1").divided_by(decimal("3")), None),
            (decimal("1").divided_by(decimal("0.0")), None),
            (decimal("1").whole_quotient(decimal("0.1")), Some("10")),
            (decimal("-7").whole_quotient(decimal("2")), Some("-4")),
            (decimal("-7.5").remainder(decimal("2")), Some("0.5")),
            (decimal("1").remainder(decimal("0")), None),
            (decimal("1.1").to_the(decimal("2.0")), Some("1.21")),
            (decimal("2").to_the(decimal("0.5")), None),
            (decimal("2").to_the(decimal("128")), None),
            (decimal("1.005").rounded(2), Some("1.01")),
            (decimal("-2.675").rounded(2), Some("-2.68")),
            (decimal("2.674").rounded(2), Some("2.67")),
            (decimal("0.5").rounded(0), Some("1")),
            (decimal("0.1").rounded(2), Some("0.1")),
            (decimal("0.1").fixed(2), Some("0.10")),
            (decimal("-0.9").truncated(), Some("0")),
            (decimal("12345678901234567890.9").truncated(), Some("12345678901234567890")),
            (decimal("170141183460469231731687303715884105727").plus(decimal("1")), None),
            (decimal("1e-20").times(decimal("1e-20")), None),
            (Decimal::parse("1e2"), None),
            (Decimal::parse("1."), None),
            (Decimal::parse_number("1e309"), None),
            (Decimal::parse_number("-2.50e-1"), Some("-0.250")),
        ] {
            assert_eq!(shown(computed).as_deref(), expected);
        }
    }

    #[test]
    fn numbers_of_any_length_are_compared_as_what_they_are() {
        let ascending = [
            "-1e309",
            "-2",
            "-1.5",
            "-1.000000000000000001",
            "0",
            "1e-400",
            "0.1",
            "0.10000000000000000001",
            "1",
            "12",
            "100",
            "1e2000",
        ];
        for (position, one) in ascending.iter().enumerate() {
            for (other_position, other) in ascending.iter().enumerate() {
                let compared = Digits::of(one).cmp(&Digits::of(other));
                assert_eq!(compared, position.cmp(&other_position), "{one} {other}");
            }
        }
        for (one, other) in [("1.50e1", "15"), ("-0.0", "0"), ("0.0010", "1e-3"), ("120", "1.2E+2")] {
            assert_eq!(Digits::of(one), Digits::of(other), "{one} {other}");
        }
    }
}
