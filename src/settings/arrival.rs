//! Whether a document has arrived: the version of the settings that hold, and what of which document was rejected.
//!
//! The version advances when any value of a document takes effect, so it says that a document was read, and not that each
//! value was good. Whoever asks whether a change has arrived needs both, of one moment: they are one value, published as
//! one. What was rejected names its document, for that need not be the one whose values hold.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Settings, spec};
use crate::limits::MAX_SLOTS;

/// The key of a rejection that is of a document as a whole, because it is none. A flag of that name is no setting, and is
/// named in quotes.
pub const WHOLE_DOCUMENT: &str = "document";

/// The most rejections that are told one by one: a document may have any number of flags.
pub const TOLD: usize = 8;

/// How the settings of a process stand to the last document that it read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// The version of the settings that hold.
    pub version: String,
    /// What did not take effect; none where all of the last document did.
    pub rejected: Option<Rejected>,
    /// The most slots that `max_parallelism` may become with the next document, unless that says `allow_jump`.
    pub jump_limit: u32,
}

/// What of a document did not take effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// Names the document: the one whose other values hold, or a later one of which nothing took effect.
    pub version: String,
    /// The first [`TOLD`], at least one; settings come before flags that are none.
    pub values: Vec<Rejection>,
    /// How many more there are.
    #[serde(default)]
    pub more: usize,
}

impl Arrival {
    /// That of the settings that hold, with what was rejected of the last document.
    pub(super) fn of(settings: &Settings, start: &Settings, max_jump: f64, rejected: Option<Rejected>) -> Self {
        let limit = spec("max_parallelism").and_then(|spec| spec.jump_limit(start, settings, max_jump));
        Arrival { version: settings.version.clone(), rejected, jump_limit: limit.unwrap_or(MAX_SLOTS) }
    }
}

impl Rejected {
    /// What of this document did not take effect; none where all did.
    pub(super) fn of(version: &str, rejections: &[Rejection]) -> Option<Self> {
        let told = rejections.iter().take(TOLD).cloned().collect::<Vec<_>>();
        let more = rejections.len() - told.len();
        (!told.is_empty()).then(|| Rejected { version: version.to_owned(), values: told, more })
    }

    /// How many values that is, or 1 for a document that is none.
    pub(super) fn count(&self) -> usize {
        self.values.len() + self.more
    }

    /// A document that is none.
    pub(super) fn whole(version: &str, reason: String) -> Self {
        let rejection = Rejection::new(WHOLE_DOCUMENT, reason);
        Rejected { version: version.to_owned(), values: vec![rejection], more: 0 }
    }
}

/// Something in a document that did not take effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    /// The key as the document has it.
    pub key: String,
    /// What is wrong with it, and what would be right.
    pub reason: String,
    /// The value that holds in its place, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeping: Option<Value>,
}

impl Rejection {
    /// One of which it is not known what holds in its place.
    pub fn new(key: impl Into<String>, reason: impl Into<String>) -> Self {
        Rejection { key: key.into(), reason: reason.into(), keeping: None }
    }

    /// The reason, and the value that holds in its place.
    pub fn reason_and_value(&self) -> String {
        let keeping = self.keeping.as_ref().map(|kept| format!("; keeping {kept}")).unwrap_or_default();
        format!("{}{keeping}", self.reason)
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.reason_and_value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Config;

    #[test]
    fn of_many_rejections_the_first_are_told_and_the_others_counted() {
        let rejection = |number: usize| Rejection::new(format!("flag-{number}"), "there is none");
        let many: Vec<_> = (0..50_000).map(rejection).collect();
        let rejected = Rejected::of("v", &many).expect("some");
        assert_eq!((rejected.values.as_slice(), rejected.more), (&many[..TOLD], 50_000 - TOLD));
        assert_eq!(rejected.count(), 50_000);
        assert_eq!(Rejected::of("v", &many[..2]).expect("some").more, 0);
        assert_eq!(Rejected::of("v", &[]), None);
    }

    #[test]
    fn what_n_may_become_follows_from_what_it_is_and_from_where_it_started() {
        let start = Settings { max_parallelism: 3, ..Config::default().start() };
        let limit = |n: u32, max_jump: f64| {
            let settings = Settings { max_parallelism: n, version: "v1".into(), ..start.clone() };
            Arrival::of(&settings, &start, max_jump, None).jump_limit
        };
        let limits = [limit(3, 10.0), limit(20, 10.0), limit(1, 10.0), limit(3, 1.5), limit(90_000, 10.0)];
        assert_eq!(limits, [30, 200, 30, 4, MAX_SLOTS]);
        let first = Arrival::of(&start, &start, 10.0, None);
        assert_eq!(first.jump_limit, MAX_SLOTS, "the first document is no jump, whatever it says");
    }
}
