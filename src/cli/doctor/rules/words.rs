//! Numbers as a report says them: two or three digits and a unit.

use std::collections::BTreeMap;

use crate::cli::table::duration;
use crate::overload::bytes_text;

/// `40 ms`, `1.2s`, `3m 12s`.
pub(in crate::cli::doctor) fn time(seconds: f64) -> String {
    match seconds {
        _ if seconds.is_nan() || seconds <= 0.0 => "0 ms".into(),
        0.0..0.001 => "less than 1 ms".into(),
        0.001..1.0 => format!("{:.0} ms", seconds * 1e3),
        _ => duration(seconds),
    }
}

/// `12%`, and for what is little `0.4%`.
pub(in crate::cli::doctor) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent > 0.0 && percent < 1.0 { format!("{percent:.1}%") } else { format!("{percent:.0}%") }
}

/// A mean of things that one counts, or a rate: `0.25`, `3.2`, `120`.
pub(in crate::cli::doctor) fn amount(amount: f64) -> String {
    match amount.abs() {
        0.0 => "0".into(),
        0.0..1.0 => format!("{amount:.2}"),
        1.0..100.0 => format!("{amount:.1}"),
        _ => format!("{amount:.0}"),
    }
}

/// `64 MiB`, `1.2 GiB`.
pub(in crate::cli::doctor) fn bytes(bytes: f64) -> String {
    let sign = if bytes < 0.0 { "-" } else { "" };
    format!("{sign}{}", bytes_text(bytes.abs() as u64))
}

/// `2xx 60, 5xx 80`.
pub(super) fn counts(of: &BTreeMap<String, f64>) -> String {
    let counts: Vec<_> = of.iter().map(|(name, count)| format!("{name} {count:.0}")).collect();
    if counts.is_empty() { "none".into() } else { counts.join(", ") }
}

/// The command that lets the tasks of an integration hold so many slots. It replaces the caps that there are.
pub(super) fn cap(integration: &str, slots: f64) -> String {
    format!("weir settings set 'integration_caps={{\"{integration}\": {slots:.0}}}' --why 'weir doctor'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_two_or_three_digits_and_a_unit() {
        let times = [0.0, 0.0004, 0.04, 1.25, 192.0, f64::NAN].map(time);
        assert_eq!(times, ["0 ms", "less than 1 ms", "40 ms", "1.2s", "3m 12s", "0 ms"]);
        assert_eq!([0.0, 0.004, 0.5, 1.0].map(percent), ["0%", "0.4%", "50%", "100%"]);
        assert_eq!([0.0, 0.25, 3.21, 120.4].map(amount), ["0", "0.25", "3.2", "120"]);
        assert_eq!([-(2 << 20) as f64, f64::from(3 << 20)].map(bytes), ["-2 MiB", "3 MiB"]);
        assert!(cap("bank", 5.0).contains(r#"'integration_caps={"bank": 5}'"#));
    }
}
