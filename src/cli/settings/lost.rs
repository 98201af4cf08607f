//! Whether the source has lost the document that workers run: they go on with it, and a Redis that came back empty has not
//! even its history.

use anyhow::{Context as _, bail};

use super::super::table::counted;
use crate::config::Config;
use crate::registry;
use crate::settings::{START_VERSION, Source};
use crate::telemetry::Telemetry;

/// A document that is begun anew has one value, and all others would go back to where they started, unseen. So it is not
/// begun while workers run one that is gone.
pub(super) async fn refuse(config: &Config) -> anyhow::Result<()> {
    if config.settings.source != Source::Redis {
        return Ok(());
    }
    let pool = &config.router.pool;
    let snapshot = registry::open(&config.registry, pool, &Telemetry::new()?)?.snapshot().await;
    let unknown = "there is no document, and whether workers run one that is gone is not known; --new begins one";
    let workers = snapshot.context(unknown)?.workers;
    let mut versions: Vec<_> = workers.into_iter().map(|worker| worker.settings_version).collect();
    versions.retain(|version| version != START_VERSION);
    if versions.is_empty() {
        return Ok(());
    }
    let count = counted(versions.len() as u64, "worker");
    let run = if versions.len() == 1 { "runs" } else { "run" };
    versions.sort();
    versions.dedup();
    bail!(
        "there is no document, and {count} of pool {pool} {run} one that is gone ({}): a new one would set all that it does \
         not name back to the start values. Put it back with \"weir settings rollback --kept\", or add --new",
        versions.join(", ")
    )
}
