//! `--since` and `--until`: a time, or how long ago it was.

use std::time::Duration;

use jiff::Timestamp;

/// A time as people give it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    /// So long before now.
    Ago(Duration),
    /// Then.
    At(Timestamp),
}

impl Moment {
    /// The time that it is at that `now`; no earlier than there are times.
    pub(super) fn at(self, now: Timestamp) -> Timestamp {
        match self {
            Moment::Ago(ago) => now.checked_sub(ago).unwrap_or(Timestamp::MIN),
            Moment::At(time) => time,
        }
    }

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let time = || text.parse().map(Moment::At);
        let ago = humantime::parse_duration(text).map(Moment::Ago);
        ago.or_else(|_| time()).map_err(|_| {
            "use how long ago it was, such as \"90m\" or \"2days\", or a time of RFC 3339, such as \
             \"2026-11-22T17:00:00Z\" or \"2026-11-22T18:00:00+01:00\""
                .to_owned()
        })
    }
}

/// As keys have it: UTC, to the second.
pub(super) fn shown(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_or_how_long_ago_it_was() {
        let now: Timestamp = "2026-11-22T17:00:00Z".parse().expect("a time");
        for (text, time) in [
            ("2h", "2026-11-22T15:00:00Z"),
            ("1h 30m", "2026-11-22T15:30:00Z"),
            ("0s", "2026-11-22T17:00:00Z"),
            ("2026-11-01T00:00:00Z", "2026-11-01T00:00:00Z"),
            ("2026-11-01T00:00:00.5+01:00", "2026-10-31T23:00:00Z"),
        ] {
            assert_eq!(shown(Moment::parse(text).expect(text).at(now)), time, "{text}");
        }
        for bad in ["", "yesterday", "2", "2026-11-01", "2026-11-01T00:00:00", "-2h"] {
            assert!(Moment::parse(bad).expect_err(bad).starts_with("use how long ago"), "{bad}");
        }
        let long = Moment::parse("1000000years").expect("a duration").at(now);
        assert_eq!(long, Timestamp::MIN);
    }
}
