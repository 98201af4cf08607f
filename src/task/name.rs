//! Names that enter keys, paths, labels and log lines: checked once, where they come in, and cheap to clone.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Why a text is not a name, and what would be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?} is not valid: use 1 to {max} characters of {allowed}, the first a letter or a digit")]
pub struct InvalidName {
    what: &'static str,
    text: String,
    max: usize,
    allowed: &'static str,
}

#[derive(Clone, Copy)]
enum Alphabet {
    Identifier,
    Lowercase,
}

impl Alphabet {
    fn describe(self) -> &'static str {
        match self {
            Alphabet::Identifier => "A-Z a-z 0-9 . _ -",
            Alphabet::Lowercase => "a-z 0-9 . _ -",
        }
    }

    fn contains(self, byte: u8) -> bool {
        let letter = match self {
            Alphabet::Identifier => byte.is_ascii_alphabetic(),
            Alphabet::Lowercase => byte.is_ascii_lowercase(),
        };
        letter || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-')
    }
}

fn check(what: &'static str, text: &str, max: usize, alphabet: Alphabet) -> Result<Arc<str>, InvalidName> {
    let valid = text.len() <= max
        && text.bytes().all(|byte| alphabet.contains(byte))
        && text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric());
    if valid {
        return Ok(text.into());
    }
    // An endless name must not become an endless error message.
    let mut shown: String = text.chars().take(max.min(80)).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    Err(InvalidName { what, text: shown, max, allowed: alphabet.describe() })
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:literal, $alphabet:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The longest one, in bytes.
            pub const MAX_BYTES: usize = $max;

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                check($what, text, $max, $alphabet).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

name!(
    /// A task's id, chosen by the caller.
    TaskId, "task id", 128, Alphabet::Identifier
);
name!(
    /// A tenant.
    Tenant, "tenant", 64, Alphabet::Identifier
);
name!(
    /// An integration's name; a metric label, so it only ever comes from the configured list.
    IntegrationName, "integration", 64, Alphabet::Lowercase
);
name!(
    /// A worker's name: the same over restarts where the deployment gives it one; part of registry keys.
    WorkerId, "worker id", 128, Alphabet::Identifier
);
name!(
    /// A pool's name; part of registry keys and a metric label.
    PoolName, "pool", 64, Alphabet::Lowercase
);

name!(
    /// An integration's own word for why it failed, such as `consent_expired`, for programs to act on.
    FailureReason, "failure reason", 64, Alphabet::Lowercase
);

impl Default for Tenant {
    fn default() -> Self {
        Tenant("default".into())
    }
}

impl Default for PoolName {
    fn default() -> Self {
        PoolName("default".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "0", "Task-1_b.c", &"x".repeat(128)] {
            assert_eq!(good.parse::<TaskId>().expect(good).as_str(), good);
        }
        for bad in ["", ".hidden", "-x", "a/b", "a b", "ü", "a\n", "../x", &"x".repeat(129)] {
            let error = bad.parse::<TaskId>().expect_err(bad).to_string();
            assert!(error.contains("1 to 128 characters"), "{error}");
            assert!(error.len() < 300, "{error}");
        }
        assert!("Bank".parse::<IntegrationName>().is_err());
    }
}
