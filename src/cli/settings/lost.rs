//! Whether the source has lost the document that workers run: they go on with it, and a Redis that came back empty has not
//! even its history.

use anyhow::{Context as _, bail};

use super::super::table::counted;
use crate::config::Config;
use crate::registry;
use crate::settings::store::Store;
use crate::settings::{START_VERSION, Source};
use crate::task::PoolName;
use crate::telemetry::Telemetry;

/// A document that is begun anew has one value, and all others would go back to where they started, unseen. So it is not
/// begun while its history is there, or while workers run one that is gone: those of the pool that is meant, and of the one
/// that is asked of otherwise.
pub(super) async fn refuse(pool: Option<&PoolName>, store: &dyn Store, config: &Config) -> anyhow::Result<()> {
    if let Some(last) = store.history().await?.last() {
        bail!(
            "there is no document, and there was one (v{}): a new one would set all that it does not name back to the start \
             values. Put it back with \"weir settings rollback\", or begin a new one with \"weir settings set --new\"",
            last.number
        )
    }
    // A file may be one worker's own, and that it is found by routers need not be so.
    let is_file = config.settings.source == Source::File;
    if is_file && config.registry.url.is_none() {
        return Ok(());
    }
    let mut pools = vec![&config.router.pool];
    pools.extend(pool);
    pools.dedup();
    for pool in pools {
        let snapshot = registry::open(&config.registry, pool, &Telemetry::new()?)?.snapshot().await;
        let unknown = "there is no document, and whether workers run one that is gone is not known; \
                       \"weir settings set --new\" begins one";
        let workers = match snapshot {
            Err(_) if is_file => continue,
            snapshot => snapshot.context(unknown)?.workers,
        };
        let mut versions: Vec<_> = workers.into_iter().map(|worker| worker.settings_version).collect();
        versions.retain(|version| version != START_VERSION);
        if versions.is_empty() {
            continue;
        }
        let count = counted(versions.len() as u64, "worker");
        let run = if versions.len() == 1 { "runs" } else { "run" };
        versions.sort();
        versions.dedup();
        bail!(
            "there is no document, and {count} of pool {pool} {run} one that is gone ({}): a new one would set all that it \
             does not name back to the start values. Put it back with \"weir settings rollback --kept FILE\", where FILE is the one in \
             which a worker keeps it, or begin a new one with \"weir settings set --new\"",
            versions.join(", ")
        )
    }
    Ok(())
}
