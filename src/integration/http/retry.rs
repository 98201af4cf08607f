//! Whether a request that failed is sent again within its step, and after which pause. Pure: time and chance come in.
//!
//! Only what may be repeated is: idempotent methods (RFC 9110: GET, HEAD, PUT, DELETE), steps that say so, and requests
//! that never left because there was no connection. Only what may have passed by then is tried again: no connection, a
//! broken one, no answer in time, the statuses 408, 429, 500, 502, 503 and 504, and answers that `errors` maps to
//! `retry`. Pauses double from `first_pause` to `max_pause`, less up to a half by chance, so that tasks that failed
//! together do not come back together. `Retry-After` is the least pause, with up to `first_pause` more by chance. What
//! would pause past the end of the step or the task is not tried: its place in the worker is worth more.
//!
//! There are two attempts unless configured otherwise. One more heals what is usual and short, such as a kept
//! connection that the bank has just closed; it at most doubles the load on a bank that is down.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::integration::Invalid;

/// More attempts are a mistake: a task is not the place to wait for a bank to be repaired.
const MAX_ATTEMPTS: u32 = 10;

/// Longer pauses are a mistake: a task keeps its place in the worker meanwhile.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// The statuses that may be gone the next time.
const TRANSIENT: [u16; 6] = [408, 429, 500, 502, 503, 504];

/// How often a request is sent, and how long it pauses before it is sent again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How often one request is sent at most; 1 tries nothing again.
    pub attempts: u32,
    /// Before the second attempt; it doubles with each one after.
    #[serde(with = "humantime_serde")]
    pub first_pause: Duration,
    /// No pause is longer, unless the bank asks for it by `Retry-After`.
    #[serde(with = "humantime_serde")]
    pub max_pause: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config { attempts: 2, first_pause: Duration::from_millis(200), max_pause: Duration::from_secs(5) }
    }
}

impl Config {
    /// Checks the values.
    pub(super) fn check(&self) -> Result<(), Invalid> {
        if !(1..=MAX_ATTEMPTS).contains(&self.attempts) {
            let problem = format!("{} is out of range: use 1 to {MAX_ATTEMPTS}", self.attempts);
            return Err(Invalid::new("attempts", problem));
        }
        let shown = humantime::format_duration;
        if self.first_pause.is_zero() || self.first_pause > self.max_pause {
            let problem = format!(
                "{} is out of range: use more than 0s and at most max_pause, which is {}",
                shown(self.first_pause),
                shown(self.max_pause)
            );
            return Err(Invalid::new("first_pause", problem));
        }
        if self.max_pause > MAX_PAUSE {
            let problem = format!("{} is out of range: use at most {}", shown(self.max_pause), shown(MAX_PAUSE));
            return Err(Invalid::new("max_pause", problem));
        }
        Ok(())
    }

    /// What comes after attempt number `attempt` has failed; 1 is the first. `chance` is from 0 to 1.
    pub(super) fn after(&self, attempt: u32, failed: &Failed, remaining: Duration, chance: f64) -> Next {
        if !failed.is_transient || !failed.may_repeat {
            return Next::Fail;
        }
        if attempt >= self.attempts {
            return Next::TriedAll;
        }
        let doubled = 2_u32.saturating_pow(attempt.saturating_sub(1));
        let backoff = self.first_pause.saturating_mul(doubled).min(self.max_pause).mul_f64(1.0 - chance / 2.0);
        let asked = failed.retry_after.map(|least| least.saturating_add(self.first_pause.mul_f64(chance)));
        let pause = asked.map_or(backoff, |asked| asked.max(backoff));
        if pause < remaining { Next::Again { pause } } else { Next::TooLate { pause } }
    }
}

/// What is known of an attempt that failed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Failed {
    /// It may be gone the next time.
    pub(super) is_transient: bool,
    /// Sending it twice does no harm.
    pub(super) may_repeat: bool,
    /// The least pause, where the bank names one.
    pub(super) retry_after: Option<Duration>,
}

/// What comes after an attempt that failed.
#[derive(Debug, PartialEq)]
pub(super) enum Next {
    /// Nothing: another attempt could not help, or could do harm.
    Fail,
    /// Nothing: that was the last one.
    TriedAll,
    /// Nothing: the pause would be longer than the time that is left.
    TooLate { pause: Duration },
    /// Another attempt, after a pause.
    Again { pause: Duration },
}

/// Whether a method may be sent twice by what it means.
pub(super) fn is_idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "PUT" | "DELETE")
}

/// Whether an answer of this status may be another one the next time.
pub(super) fn is_transient(status: u16) -> bool {
    TRANSIENT.contains(&status)
}

/// What `Retry-After` asks for: seconds, or a date. A date counts from the answer's own `Date` where there is one, so
/// that the clocks need not agree.
pub(super) fn retry_after(value: Option<&str>, date: Option<&str>, now: SystemTime) -> Option<Duration> {
    let value = value?.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let until = httpdate::parse_http_date(value).ok()?;
    let now = date.and_then(|date| httpdate::parse_http_date(date.trim()).ok()).unwrap_or(now);
    Some(until.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn pauses_double_up_to_the_limit_and_are_shortened_by_chance() {
        let config = Config { attempts: 9, first_pause: ms(200), max_pause: ms(1_000) };
        let failed = Failed { is_transient: true, may_repeat: true, retry_after: None };
        for (attempt, chance, pause) in
            [(1, 0.0, 200), (1, 1.0, 100), (2, 0.0, 400), (3, 0.5, 600), (4, 0.0, 1_000), (8, 1.0, 500)]
        {
            let next = config.after(attempt, &failed, ms(60_000), chance);
            assert_eq!(next, Next::Again { pause: ms(pause) }, "{attempt}, {chance}");
        }
    }

    #[test]
    fn what_may_not_be_repeated_or_is_too_late_is_not_sent_again() {
        let config = Config { attempts: 3, first_pause: ms(200), max_pause: ms(1_000) };
        let good = Failed { is_transient: true, may_repeat: true, retry_after: None };
        let asks = |retry_after| Failed { retry_after: Some(retry_after), ..good };
        for (name, attempt, failed, remaining, expected) in [
            ("first", 1, good, ms(201), Next::Again { pause: ms(200) }),
            ("permanent", 1, Failed { is_transient: false, ..good }, ms(9_000), Next::Fail),
            ("not idempotent", 1, Failed { may_repeat: false, ..good }, ms(9_000), Next::Fail),
            ("last", 3, good, ms(9_000), Next::TriedAll),
            ("no time for the pause", 1, good, ms(200), Next::TooLate { pause: ms(200) }),
            ("no time at all", 1, good, ms(0), Next::TooLate { pause: ms(200) }),
            ("asked for less", 1, asks(ms(100)), ms(9_000), Next::Again { pause: ms(200) }),
            ("asked for more than max_pause", 1, asks(ms(3_000)), ms(9_000), Next::Again { pause: ms(3_000) }),
            ("asked for too much", 1, asks(ms(9_000)), ms(9_000), Next::TooLate { pause: ms(9_000) }),
            ("asked for ages", 1, asks(Duration::MAX), ms(9_000), Next::TooLate { pause: Duration::MAX }),
        ] {
            assert_eq!(config.after(attempt, &failed, remaining, 0.0), expected, "{name}");
        }
        let spread = config.after(1, &asks(ms(3_000)), ms(9_000), 0.5);
        assert_eq!(spread, Next::Again { pause: ms(3_100) }, "not all at once");
        let off = Config { attempts: 1, ..config };
        assert_eq!(off.after(1, &good, ms(9_000), 0.0), Next::TriedAll);
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").expect("a date");
        for (value, date, expected) in [
            (Some("120"), None, Some(120)),
            (Some(" 0 "), None, Some(0)),
            (Some("99999999999999999999"), None, Some(u64::MAX)),
            (Some("Sun, 06 Nov 1994 08:49:47 GMT"), None, Some(10)),
            (Some("Sun, 06 Nov 1994 08:49:47 GMT"), Some("Sun, 06 Nov 1994 08:49:45 GMT"), Some(2)),
            (Some("Sun, 06 Nov 1994 08:49:47 GMT"), Some("yesterday"), Some(10)),
            (Some("Sun, 06 Nov 1994 08:00:00 GMT"), None, Some(0)),
            (Some("-1"), None, None),
            (Some("1.5"), None, None),
            (Some("soon"), None, None),
            (Some(""), None, None),
            (None, None, None),
        ] {
            assert_eq!(retry_after(value, date, now), expected.map(Duration::from_secs), "{value:?}");
        }
    }

    #[test]
    fn wrong_values_are_refused_with_key_value_and_what_would_be_right() {
        let ok = Config::default();
        ok.check().expect("the default is valid");
        for (config, says) in [
            (Config { attempts: 0, ..ok.clone() }, "attempts: 0 is out of range: use 1 to 10"),
            (Config { attempts: 11, ..ok.clone() }, "attempts: 11"),
            (Config { first_pause: ms(0), ..ok.clone() }, "first_pause: 0s"),
            (Config { first_pause: ms(9_000), ..ok.clone() }, "at most max_pause, which is 5s"),
            (Config { max_pause: ms(61_000), ..ok }, "max_pause: 1m 1s is out of range: use at most 1m"),
        ] {
            let error = config.check().expect_err(says).to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
