//! What to say of a key that is not there: what is near it.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use crate::config::Config;
use crate::payload::search::{Query, search};
use crate::payload::{Store, StoreError, key};
use crate::task::{RunId, TaskId};

/// How many are named.
const MOST: usize = 3;

/// How far from a key's time other runs of its task are near.
const AROUND: SignedDuration = SignedDuration::from_hours(24);

/// How often a key is cut for keys that begin as it does.
const MOST_CUTS: usize = 8;

/// The folders of a whole key above its name, its prefix apart: shard, year, month, day, hour, integration, outcome.
const FOLDERS: usize = 7;

/// The error with the keys that may have been meant: of the same task, or that begin so. Where looking for them fails,
/// the error is all.
pub(super) async fn explain(error: StoreError, key: &str, store: &dyn Store, config: &Config) -> anyhow::Error {
    if let Some((task, run)) = named(key) {
        let keys = of_task(&task, run, store, &config.payloads.prefix).await;
        if !keys.is_empty() {
            return anyhow::anyhow!("{error}; near it are of task {task}:\n  {}", keys.join("\n  "));
        }
    }
    for start in starts(key) {
        let keys = begin_with(start, store).await;
        if !keys.is_empty() {
            let with = if start == key { "it" } else { start };
            return anyhow::anyhow!("{error}; these begin with {with}:\n  {}", keys.join("\n  "));
        }
    }
    error.into()
}

/// The task and the run that a text names, which need not be a key as a whole: its end, its shard or its hour may be wrong.
fn named(key: &str) -> Option<(TaskId, RunId)> {
    const UUID_CHARS: usize = 36;
    let name = key.rsplit('/').next()?;
    name.match_indices('.').find_map(|(dot, _)| {
        let run = Uuid::try_parse(name.get(dot + 1..dot + 1 + UUID_CHARS)?).ok()?;
        Some((name[..dot].parse().ok()?, RunId(run)))
    })
}

/// What a key that is wrong somewhere may begin with and still be right: itself, its name up to each dot, its folder.
fn starts(key: &str) -> Vec<&str> {
    let name = key.rfind('/').map_or(0, |slash| slash + 1);
    let dots = key[name..].rmatch_indices('.').map(|(dot, _)| name + dot + 1).take(MOST_CUTS);
    // A shorter path than a payload's is a folder of folders: what is first in it is near nothing.
    let folder = Some(name).filter(|_| key.matches('/').count() >= FOLDERS);
    std::iter::once(key.len()).chain(dots).chain(folder).map(|end| &key[..end]).collect()
}

async fn of_task(task: &TaskId, run: RunId, store: &dyn Store, prefix: &str) -> Vec<String> {
    let started = key::started(run);
    let query = Query {
        integration: None,
        outcomes: BTreeSet::new(),
        task: Some(task.clone()),
        since: started.checked_sub(AROUND).unwrap_or(Timestamp::MIN),
        until: started.checked_add(AROUND).unwrap_or(Timestamp::MAX),
        after: None,
        limit: MOST,
    };
    let results = search(store, prefix, query).await.unwrap_or_default();
    results.payloads.into_iter().map(|found| found.name).collect()
}

async fn begin_with(start: &str, store: &dyn Store) -> Vec<String> {
    let page = store.list(start, "", MOST).await.unwrap_or_default();
    page.payloads.into_iter().map(|listed| listed.key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "p/4/2025/08/20/04/bank/ok/t.1.0198c5d3-0c00-7000-8000-000000000000.json.zlib.b64";

    #[test]
    fn task_and_run_are_read_though_the_rest_is_wrong() {
        let whole = named(KEY).expect("both are in it");
        assert_eq!(whole.0.as_str(), "t.1");
        for (right, wrong) in
            [(".b64", ".b65"), (".json.zlib.b64", ""), ("/4/", "/5/"), ("/ok/", "/OK!/"), ("p/4/", "")]
        {
            assert_eq!(named(&KEY.replacen(right, wrong, 1)), Some(whole.clone()), "{right} {wrong}");
        }
        for none in ["", "p/4", "0000.json", "p/t.1.0198c5d3-0c00-7000-8000-00000000000g.json"] {
            assert_eq!(named(none), None, "{none}");
        }
    }

    #[test]
    fn a_key_is_cut_at_its_dots_and_then_to_its_folder() {
        let starts = starts(KEY);
        assert_eq!(starts[..2], [KEY, KEY.strip_suffix("b64").expect("it ends so")]);
        assert_eq!(starts[starts.len() - 2..], ["p/4/2025/08/20/04/bank/ok/t.", "p/4/2025/08/20/04/bank/ok/"]);
        assert_eq!(super::starts("payloads/x"), ["payloads/x"]);
        assert_eq!(super::starts(&"x.".repeat(100)).len(), MOST_CUTS + 1);
    }
}
