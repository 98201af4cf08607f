//! `weir settings restore`: after Redis came back empty, the document that workers go on with is put back.
//!
//! Workers keep it on their disks. That is all that is left of it then: the history was in the same Redis.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};

use super::super::print;
use super::super::table::counted;
use super::{document, reason, who};
use crate::config::Config;
use crate::registry;
use crate::settings::store::{Edit, Store};
use crate::settings::{KeptDocument, START_VERSION, Source};
use crate::telemetry::Telemetry;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Which version is lost, and which workers run it, weir settings status says. On the machine of one of \
them, the file is settings-ID.json in its worker.state_dir.

Example:
  weir settings restore /var/lib/weir-worker/settings-worker-1.json --why 'Redis came back empty'"
)]
pub(super) struct Args {
    /// The file in which a worker keeps its last good settings.
    #[arg(value_name = "FILE")]
    kept: PathBuf,
    /// The reason, for the history.
    #[arg(long, value_name = "TEXT")]
    why: String,
}

pub(super) async fn run(args: Args, store: &dyn Store) -> anyhow::Result<ExitCode> {
    let why = reason(args.why)?;
    let KeptDocument { source, version, document: lost } =
        KeptDocument::read(&args.kept).map_err(anyhow::Error::msg)?;
    if source != store.name() {
        bail!("{} is from {source}, and the settings are in {}", args.kept.display(), store.name());
    }
    if document(store).await?.is_some() {
        bail!("{} has a document: change it with weir settings set or rollback", store.name());
    }
    let why = format!("{why} (restored {version})");
    let number = store.write(None, &Edit { document: lost, who: who(), why }).await?;
    print(&format!("v{number}: the document {version}"))
}

/// A document that is begun anew has one value, and all others would go back to where they started, unseen. So it is not
/// begun while workers run one that is gone.
pub(super) async fn refuse_if_lost(config: &Config) -> anyhow::Result<()> {
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
         not name back to the start values. Put it back with weir settings restore, or add --new",
        versions.join(", ")
    )
}
