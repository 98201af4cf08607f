//! Who tries a step first: a share of the workers that leaves some out.

use anyhow::bail;
use serde_json::Value;

use super::super::super::table::counted;
use super::super::asked;
use super::KEY;
use crate::settings::edit::{Change, Scope, Share};
use crate::settings::flagd::Document;
use crate::task::{PoolName, WorkerId};

/// N for a pool, or for a share of it.
pub(super) fn change(n: u32, pool: &PoolName, share: Option<Share>) -> Change {
    let scope = Scope::Some { pool: Some(pool.clone()), share };
    Change { key: KEY.into(), value: n.into(), scope, allow_jump: false }
}

/// Who is within a share, and who is not, is asked of flagd's own rule, as the workers will. The share is `wanted`, where
/// somebody is within it and somebody is not; otherwise the nearest one of which that is so.
pub(super) fn choose(
    wanted: Share,
    workers: &[WorkerId],
    n: u32,
    pool: &PoolName,
    trial: impl Fn(Share) -> Result<String, String>,
) -> anyhow::Result<(Share, Vec<WorkerId>)> {
    let within = |share: Share| -> anyhow::Result<Vec<WorkerId>> {
        let document = trial(share).map_err(anyhow::Error::msg)?;
        let values = values(&document, workers, pool)?;
        let has_it = |(worker, value): (&WorkerId, _)| (value == Some(n.into())).then(|| worker.clone());
        Ok(workers.iter().zip(values).filter_map(has_it).collect())
    };
    let canaries = within(wanted)?;
    if (1..workers.len()).contains(&canaries.len()) {
        return Ok((wanted, canaries));
    }
    // Who is within a share is within each larger one: the smallest share that has anybody is found by halving.
    let (mut none, mut some) = (Share::LEAST, Share::MOST);
    while let Some(middle) = Share::between(none, some) {
        if within(middle)?.is_empty() { none = middle } else { some = middle }
    }
    for share in [none, some] {
        let canaries = within(share)?;
        if (1..workers.len()).contains(&canaries.len()) {
            return Ok((share, canaries));
        }
    }
    bail!(
        "the {} of pool {pool} cannot be parted by a share: their ids are so close that flagd's hash puts all of them on one \
         side; give one of them another id (worker.id), or start another worker",
        counted(workers.len() as u64, "worker")
    )
}

/// A worker that is none of the canaries, and whose N would be another one.
pub(super) fn changed<'a>(
    before: Option<&str>,
    after: &str,
    workers: &'a [WorkerId],
    canaries: &[WorkerId],
    pool: &PoolName,
) -> anyhow::Result<Option<&'a WorkerId>> {
    let Some(before) = before else { return Ok(None) };
    let (before, after) = (values(before, workers, pool)?, values(after, workers, pool)?);
    let mut all = workers.iter().zip(before.iter().zip(&after));
    let changed = all.find(|(worker, (before, after))| before != after && !canaries.contains(worker));
    Ok(changed.map(|(worker, _)| worker))
}

/// What a document says of N to each worker; none where it leaves it the start value.
fn values(document: &str, workers: &[WorkerId], pool: &PoolName) -> anyhow::Result<Vec<Option<Value>>> {
    let document = Document::read(document.as_bytes()).map_err(anyhow::Error::msg)?;
    Ok(workers.iter().map(|worker| asked::value_for(&document, KEY, pool, worker)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{self, edit};

    fn workers(count: usize) -> Vec<WorkerId> {
        (0..count).map(|number| format!("worker-{number}").parse().expect("an id")).collect()
    }

    fn chosen(share: &str, count: usize) -> anyhow::Result<(Share, Vec<WorkerId>)> {
        let (pool, start) = (PoolName::default(), settings::Config::default().start());
        let trial = |share: Share| edit::edit(None, &[change(31, &pool, Some(share))], &start, 10.0);
        choose(share.parse().expect("a share"), &workers(count), 31, &pool, trial)
    }

    #[test]
    fn a_share_grows_until_somebody_is_within_it_and_never_takes_all() {
        let (share, canaries) = chosen("10%", 200).expect("many");
        assert_eq!(share.to_string(), "10%");
        assert!((8..40).contains(&canaries.len()), "{}", canaries.len());
        for count in 2..12 {
            let (share, canaries) = chosen("0.01%", count).expect("two or more");
            assert!(!canaries.is_empty() && canaries.len() < count, "{share} of {count}: {canaries:?}");
        }
        assert!(chosen("10%", 1).expect_err("one").to_string().contains("cannot be parted"));
    }

    #[test]
    fn a_rule_for_a_share_that_a_step_would_replace_is_seen() {
        let (pool, start, workers) = (PoolName::default(), settings::Config::default().start(), workers(20));
        let share: Share = "10%".parse().expect("a share");
        let after = |before: Option<&str>, changes: &[Change]| {
            edit::edit(before.map(str::as_bytes), changes, &start, 10.0).expect("good")
        };
        let would_change = |before: &str| {
            let trial = |share: Share| Ok(after(Some(before), &[change(41, &pool, Some(share))]));
            let (share, canaries) = choose(share, &workers, 41, &pool, trial).expect("they can be parted");
            let trial = trial(share).expect("good");
            changed(Some(before), &trial, &workers, &canaries, &pool).expect("documents").is_some()
        };
        let one_for_all = after(None, &[change(40, &pool, None)]);
        assert!(!would_change(&one_for_all));
        let nearly_all = after(None, &[change(40, &pool, Some(Share::MOST))]);
        assert!(would_change(&nearly_all), "the controls would have their start value again");
        assert!(!would_change(&after(Some(&nearly_all), &[change(40, &pool, None)])), "what it says helps");
    }
}
