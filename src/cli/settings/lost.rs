//! Whether the source has lost the document that workers run: they go on with it, and a Redis that came back empty has not
//! even its history, nor, until their next heartbeats, the workers.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::time::Instant;

use super::super::remark;
use super::super::table::counted;
use super::asked;
use crate::config::Config;
use crate::registry::{Presence, TTL};
use crate::settings::store::Store;
use crate::settings::{START_VERSION, Source};

/// How often the registry is asked until whoever lives must have been heard.
const ASK_INTERVAL: Duration = Duration::from_millis(500);

/// A document that is begun anew has one value, and all others would go back to where they started, unseen. So it is not
/// begun while its history is there, or while a worker of any pool runs one that is gone.
pub(super) async fn refuse(store: &dyn Store, config: &Config) -> anyhow::Result<()> {
    if let Some(last) = store.history().await?.last() {
        bail!(
            "there is no document, and there was one (v{}): a new one would set all that it does not name back to the start \
             values. Put it back with \"weir settings rollback\", or begin a new one with \"weir settings set --new\"",
            last.number
        )
    }
    let running = running(config).await?;
    if running.is_empty() {
        return Ok(());
    }
    let (pools, versions): (BTreeSet<_>, BTreeSet<_>) =
        running.iter().map(|worker| (worker.pool.as_str(), worker.settings_version.as_str())).unzip();
    let all = |names: BTreeSet<&str>| names.into_iter().collect::<Vec<_>>().join(", ");
    let pool = if pools.len() == 1 { "pool" } else { "the pools" };
    let run = if running.len() == 1 { "runs" } else { "run" };
    let (workers, pools, versions) = (counted(running.len() as u64, "worker"), all(pools), all(versions));
    if config.settings.source == Source::File {
        bail!(
            "there is no {}, and {workers} of {pool} {pools} {run} a document ({versions}). Where that is of this file, a new one \
             would set all that it does not name back to the start values: put it back with \"weir settings rollback --kept \
             FILE\", where FILE is the one in which a worker keeps it. Where it is of another file or source, begin a new one \
             with \"weir settings set --new\"",
            store.name()
        )
    }
    bail!(
        "there is no document, and {workers} of {pool} {pools} {run} one that is gone ({versions}): a new one would set all that \
         it does not name back to the start values. Put it back with \"weir settings rollback --kept FILE\", where FILE is the \
         one in which a worker keeps it, or begin a new one with \"weir settings set --new\""
    )
}

/// The workers that run a document. A Redis may have come back empty a moment ago: that it knows of none counts once all that
/// live have had the time to be announced again.
async fn running(config: &Config) -> anyhow::Result<Vec<Presence>> {
    // A file may be one worker's own, and that it is found by routers need not be so.
    let is_file = config.settings.source == Source::File;
    if is_file && config.registry.url.is_none() {
        return Ok(Vec::new());
    }
    let began = Instant::now();
    let heard_within = if is_file { Duration::ZERO } else { TTL };
    let mut is_told = false;
    loop {
        let mut workers = match asked::workers(None, config).await {
            Err(_) if is_file => return Ok(Vec::new()),
            asked => asked.context(
                "there is no document, and whether workers run one that is gone is not known; \"weir settings set --new\" \
                 begins one",
            )?,
        };
        workers.retain(|worker| worker.settings_version != START_VERSION);
        if !workers.is_empty() || began.elapsed() >= heard_within {
            return Ok(workers);
        }
        if !std::mem::replace(&mut is_told, true) {
            remark(format_args!(
                "weir: there is no document: listening for {} for workers that run one that is gone",
                humantime::format_duration(heard_within)
            ));
        }
        tokio::time::sleep(ASK_INTERVAL).await;
    }
}
