//! Whether workers profile themselves, and for how long.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The longest time that can be set.
const MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Whether the workers of a pool profile themselves, one at a time. As text: `off`, `until_exit`, or a time such as `10m`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Profiling {
    /// They do not.
    #[default]
    Off,
    /// One does until it ends.
    UntilExit,
    /// Each does once for this time, one after the other.
    For(Duration),
}

impl Profiling {
    /// What it may be, in words.
    pub const EXPECTED: &str = "\"off\", \"until_exit\", or a time from 1s to 24h such as \"10m\"";
}

impl FromStr for Profiling {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let time = || humantime::parse_duration(text).ok().filter(|time| (Duration::from_secs(1)..=MAX).contains(time));
        match text {
            "off" => Ok(Profiling::Off),
            "until_exit" => Ok(Profiling::UntilExit),
            _ => time().map(Profiling::For).ok_or_else(|| format!("use {}", Profiling::EXPECTED)),
        }
    }
}

impl TryFrom<String> for Profiling {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Profiling> for String {
    fn from(profiling: Profiling) -> String {
        profiling.to_string()
    }
}

impl fmt::Display for Profiling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Profiling::Off => f.write_str("off"),
            Profiling::UntilExit => f.write_str("until_exit"),
            Profiling::For(time) => humantime::format_duration(*time).fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_is_written() {
        for good in ["off", "until_exit", "1s", "10m", "1day"] {
            assert_eq!(good.parse::<Profiling>().expect(good).to_string(), good);
        }
        for bad in ["", "on", "10", "0s", "25h", "-1s"] {
            assert!(bad.parse::<Profiling>().expect_err(bad).contains("until_exit"), "{bad}");
        }
    }
}
