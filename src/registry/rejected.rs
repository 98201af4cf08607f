//! What of a settings document a worker rejected, as its presence says it: names alone, and few of them, for each heartbeat
//! carries them. The reasons are in the worker's description and log.

use serde::{Deserialize, Serialize};

/// The most names in a presence.
pub const NAMES: usize = 8;

/// The most bytes of a name; longer ones are cut. Those of settings are shorter, those of other flags may be any text.
pub const NAME_BYTES: usize = 32;

/// The names of what a worker rejected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// Names the document; not always the one whose values the worker has.
    pub version: String,
    /// The first [`NAMES`].
    pub keys: Vec<String>,
    /// How many more there are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: usize,
}

impl Rejected {
    /// Those of a document's rejections that have a place in a presence; `more` have been left out already.
    pub fn new<'a>(version: &str, keys: impl IntoIterator<Item = &'a str>, more: usize) -> Self {
        let mut keys = keys.into_iter();
        let named = keys.by_ref().take(NAMES).map(cut).collect();
        Rejected { version: version.to_owned(), keys: named, more: more + keys.count() }
    }
}

fn cut(name: &str) -> String {
    const MARK: &str = "…";
    if name.len() <= NAME_BYTES {
        return name.to_owned();
    }
    format!("{}{MARK}", &name[..name.floor_char_boundary(NAME_BYTES - MARK.len())])
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_few_and_short_and_the_others_are_counted() {
        let long = "é".repeat(1_000);
        let rejected = Rejected::new("v", [long.as_str(); 20], 3);
        assert_eq!((rejected.keys.len(), rejected.more), (NAMES, 15));
        assert_eq!(rejected.keys[0], format!("{}…", "é".repeat(14)), "cut between two characters");
        let whole = "n".repeat(NAME_BYTES);
        assert_eq!(Rejected::new("v", [whole.as_str()], 0).keys, [whole]);
    }
}
