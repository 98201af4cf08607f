//! Who tries a step first: a share of the workers that leaves some out.

use anyhow::bail;

use super::super::super::table::counted;
use super::KEY;
use crate::settings::edit::{Change, Scope, Share};
use crate::settings::{Context, flagd};
use crate::task::{PoolName, WorkerId};

/// N for a pool, or for a share of it.
pub(super) fn change(n: u32, pool: &PoolName, share: Option<Share>) -> Change {
    let scope = Scope::Some { pool: Some(pool.clone()), share };
    Change { key: KEY.into(), value: n.into(), scope, allow_jump: false }
}

/// The smallest share from `wanted` on that has a worker within it and one outside, and who is within it.
pub(super) fn choose(
    wanted: Share,
    workers: &[WorkerId],
    n: u32,
    pool: &PoolName,
    trial: impl Fn(Share) -> Result<String, String>,
) -> anyhow::Result<(Share, Vec<WorkerId>)> {
    let larger =
        (1..100).filter_map(|percent| format!("{percent}%").parse().ok()).filter(|share: &Share| *share > wanted);
    for share in std::iter::once(wanted).chain(larger) {
        let document = trial(share).map_err(anyhow::Error::msg)?;
        let mut within = Vec::new();
        for worker in workers {
            let context = Context { pool: pool.clone(), worker: Some(worker.clone()), zone: None };
            let flags = flagd::evaluate(document.as_bytes(), &context).map_err(anyhow::Error::msg)?;
            let value = flags.get(KEY).and_then(|flag| flag.as_ref().ok()?.as_ref()).map(|flag| flag.value.clone());
            if value == Some(n.into()) {
                within.push(worker.clone());
            }
        }
        if !within.is_empty() && within.len() < workers.len() {
            return Ok((share, within));
        }
    }
    bail!(
        "the {} of pool {pool} cannot be parted by a share: their ids are so close that flagd's hash puts all of them on one \
         side; give one of them another id (worker.id), or start another worker",
        counted(workers.len() as u64, "worker")
    )
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
}
