//! `weir settings status`: the document, and on how many workers it is applied.
//!
//! Which document a worker runs is in its presence. It says what the worker has read, not that each value was good there:
//! what it refused is in its log and metrics.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;

use super::super::table::printable;
use super::super::{Signals, print};
use super::document;
use crate::config::Config;
use crate::registry::{self, Change, Cursor, Presence, Registry, RegistryError};
use crate::settings::store::{Revision, Store, version_of};
use crate::task::{PoolName, WorkerId};
use crate::telemetry::Telemetry;

/// Workers that are named for each other version.
const NAMED: usize = 3;

/// After the registry or the document could not be read.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Workers are those of the registry. Routers are not in it: which version one has is in `weir describe` \
of it, and as a number in its weir_settings_version. What a process read and refused is in its log, and in \
weir_settings_rejected_total.

Examples:
  weir settings status
  weir settings status --pool parallel --watch"
)]
pub(super) struct Args {
    /// The pool; without it, the one that [router] names.
    #[arg(long)]
    pool: Option<PoolName>,
    /// Goes on until the document is applied on all workers: a line for each step.
    #[arg(long)]
    watch: bool,
}

pub(super) async fn run(args: Args, store: Arc<dyn Store>, config: &Config) -> anyhow::Result<ExitCode> {
    if config.registry.url.is_none() {
        bail!(
            "registry.url: name the Redis that the workers announce themselves in, such as \"redis://127.0.0.1:6379\""
        );
    }
    let pool = args.pool.unwrap_or_else(|| config.router.pool.clone());
    let registry = registry::open(&config.registry, &pool, &Telemetry::new()?)?;
    let mut fleet = Fleet::read(&*registry).await?;
    let (mut said, mut signals) = (Vec::new(), Signals::listen()?);
    loop {
        let document = Document::read(&*store).await?;
        let lines = [document.line(&*store), document.applied(&pool, &fleet.workers)];
        for (index, line) in lines.iter().enumerate() {
            if said.get(index) != Some(line) {
                print(&printable(line))?;
            }
        }
        said = lines.into();
        if !args.watch || document.is_everywhere(&fleet.workers) {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::select! {
            () = signals.next() => return Ok(ExitCode::FAILURE),
            () = fleet.follow(&*registry) => {}
        }
    }
}

/// The workers of the pool, and where their changes go on.
struct Fleet {
    workers: BTreeMap<WorkerId, Presence>,
    cursor: Cursor,
}

impl Fleet {
    async fn read(registry: &dyn Registry) -> Result<Self, RegistryError> {
        let snapshot = registry.snapshot().await?;
        let workers = snapshot.workers.into_iter().map(|presence| (presence.worker.clone(), presence)).collect();
        Ok(Fleet { workers, cursor: snapshot.cursor })
    }

    /// Takes in what happens next; while the registry is away, what was known stays.
    async fn follow(&mut self, registry: &dyn Registry) {
        match registry.changes(&self.cursor).await {
            Ok(news) => {
                for change in news.changes {
                    match change {
                        Change::Present(presence) => drop(self.workers.insert(presence.worker.clone(), presence)),
                        Change::Gone(worker, incarnation) => {
                            if self.workers.get(&worker).is_some_and(|known| known.incarnation == incarnation) {
                                self.workers.remove(&worker);
                            }
                        }
                    }
                }
                self.cursor = news.cursor;
            }
            Err(RegistryError::Lagged) => match Self::read(registry).await {
                Ok(fleet) => *self = fleet,
                Err(_) => tokio::time::sleep(PAUSE).await,
            },
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// What there is to be applied.
struct Document {
    version: Option<String>,
    revisions: Vec<Revision>,
}

impl Document {
    async fn read(store: &dyn Store) -> anyhow::Result<Self> {
        let version = document(store).await?.map(|document| version_of(&document));
        Ok(Document { version, revisions: store.history().await? })
    }

    fn line(&self, store: &dyn Store) -> String {
        let Some(version) = &self.version else { return format!("{}: no document", store.name()) };
        let said = match self.revision(version) {
            Some(revision) => {
                format!(
                    "by {} at {}: {}",
                    revision.edit.who,
                    humantime::format_rfc3339_seconds(revision.at),
                    revision.edit.why
                )
            }
            None => "set without weir".into(),
        };
        format!("{}: {}, {said}", store.name(), self.name(version))
    }

    fn revision(&self, version: &str) -> Option<&Revision> {
        self.revisions.iter().rev().find(|revision| revision.version() == version)
    }

    /// `v41 (3b1c…)`, or what is known of it.
    fn name(&self, version: &str) -> String {
        match self.revision(version) {
            Some(revision) => format!("v{} ({version})", revision.number),
            None => version.to_owned(),
        }
    }

    fn is_everywhere(&self, workers: &BTreeMap<WorkerId, Presence>) -> bool {
        !workers.is_empty() && workers.values().all(|worker| Some(&worker.settings_version) == self.version.as_ref())
    }

    /// `pool parallel: applied on 97 of 100 (3 on v41: worker-3, worker-7, worker-9)`.
    fn applied(&self, pool: &PoolName, workers: &BTreeMap<WorkerId, Presence>) -> String {
        let mut others: BTreeMap<&str, Vec<&WorkerId>> = BTreeMap::new();
        for presence in workers.values().filter(|worker| Some(&worker.settings_version) != self.version.as_ref()) {
            others.entry(&presence.settings_version).or_default().push(&presence.worker);
        }
        let behind: usize = others.values().map(Vec::len).sum();
        let named = others.iter().map(|(version, workers)| {
            let more = if workers.len() > NAMED { ", …" } else { "" };
            let ids: Vec<_> = workers.iter().take(NAMED).map(ToString::to_string).collect();
            let version =
                self.revision(version).map_or((*version).to_owned(), |revision| format!("v{}", revision.number));
            format!("{} on {version}: {}{more}", workers.len(), ids.join(", "))
        });
        let named: Vec<_> = named.collect();
        let named = if named.is_empty() { String::new() } else { format!(" ({})", named.join("; ")) };
        match workers.len() {
            0 => format!("pool {pool}: no workers"),
            all => format!("pool {pool}: applied on {} of {all}{named}", all - behind),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::registry::{Incarnation, State};
    use crate::settings::store::Edit;

    fn presence(worker: &str, version: &str) -> (WorkerId, Presence) {
        let worker: WorkerId = worker.parse().expect("a worker id");
        let presence = Presence {
            worker: worker.clone(),
            address: "http://127.0.0.1:1".into(),
            incarnation: Incarnation::mint(),
            pool: PoolName::default(),
            target: 1,
            in_flight: 0,
            reserved: 0,
            state: State::Open,
            integrations: vec![],
            full: vec![],
            broken: vec![],
            half_open: Vec::new(),
            settings_version: version.into(),
        };
        (worker, presence)
    }

    #[test]
    fn who_is_behind_is_counted_and_named_by_the_revision_that_they_run() {
        let revision = |number: u64, text: &str| Revision {
            number,
            at: SystemTime::UNIX_EPOCH,
            edit: Edit { document: text.into(), who: "me".into(), why: "a test".into() },
        };
        let (old, new) = (version_of(b"old"), version_of(b"new"));
        let document =
            Document { version: Some(new.clone()), revisions: vec![revision(41, "old"), revision(42, "new")] };
        let mut workers: BTreeMap<_, _> = (0..6).map(|n| presence(&format!("new-{n}"), &new)).collect();
        let pool = PoolName::default();
        assert_eq!(document.applied(&pool, &workers), "pool default: applied on 6 of 6");
        assert!(document.is_everywhere(&workers));
        workers.extend((0..4).map(|n| presence(&format!("old-{n}"), &old)));
        workers.extend([presence("young", "start")]);
        assert_eq!(
            document.applied(&pool, &workers),
            "pool default: applied on 6 of 11 (4 on v41: old-0, old-1, old-2, …; 1 on start: young)"
        );
        assert!(!document.is_everywhere(&workers) && !document.is_everywhere(&BTreeMap::new()));
        assert_eq!(document.applied(&pool, &BTreeMap::new()), "pool default: no workers");
    }
}
