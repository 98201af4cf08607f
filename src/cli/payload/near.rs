//! What to say of a key that is not there: what is near it.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use crate::config::Config;
use crate::payload::search::{Query, search};
use crate::payload::{Key, Store, StoreError};

/// How many are named.
const MOST: usize = 3;

/// How far from a key's time other runs of its task are near.
const AROUND: SignedDuration = SignedDuration::from_hours(24);

/// The error with the keys that may have been meant: of the same task, or that begin so. Where looking for them fails,
/// the error is all.
pub(super) async fn explain(error: StoreError, key: &str, store: &dyn Store, config: &Config) -> anyhow::Error {
    let prefix = config.payloads.prefix.as_str();
    let named = Key::parse(prefix, key).or_else(|_| Key::parse("", key));
    let (what, keys) = match named {
        Ok(named) => (format!("near it are of task {}", named.task), of_task(&named, store, prefix).await),
        Err(_) => ("with these it begins".to_owned(), begin_with(key, store).await),
    };
    match keys.is_empty() {
        true => error.into(),
        false => anyhow::anyhow!("{error}; {what}:\n  {}", keys.join("\n  ")),
    }
}

async fn of_task(key: &Key, store: &dyn Store, prefix: &str) -> Vec<String> {
    let started = key.started();
    let query = Query {
        integration: None,
        outcomes: BTreeSet::new(),
        task: Some(key.task.clone()),
        since: started.checked_sub(AROUND).unwrap_or(Timestamp::MIN),
        until: started.checked_add(AROUND).unwrap_or(Timestamp::MAX),
        after: None,
        limit: MOST,
    };
    let results = search(store, prefix, query).await.unwrap_or_default();
    results.payloads.into_iter().map(|found| found.name).collect()
}

async fn begin_with(key: &str, store: &dyn Store) -> Vec<String> {
    let page = store.list(key, "", MOST).await.unwrap_or_default();
    page.payloads.into_iter().map(|listed| listed.key).collect()
}
