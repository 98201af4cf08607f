//! `weir settings status`: the document, and on how many workers it is applied.
//!
//! Which document a worker runs is in its presence. It says what the worker has read, not that each value was good there:
//! what it refused is in its log and metrics.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::super::table::printable;
use super::super::{Signals, print};
use super::document;
use crate::config::Config;
use crate::registry::{self, Change, Cursor, Presence, Registry, RegistryError};
use crate::settings::START_VERSION;
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
    let mut said = Said::default();
    // What the source says does not need the registry.
    said.say([Document::read(&*store).await?.line(&*store)])?;
    if config.registry.url.is_none() {
        bail!(
            "registry.url is not set: which document workers run they say in their registry; name its Redis, such as \
             \"redis://127.0.0.1:6379\""
        );
    }
    let pool = args.pool.unwrap_or_else(|| config.router.pool.clone());
    let registry = registry::open(&config.registry, &pool, &Telemetry::new()?)?;
    let mut fleet = Fleet::read(&*registry).await.context("which document workers run is not known")?;
    let mut signals = Signals::listen()?;
    loop {
        let document = Document::read(&*store).await?;
        let lines = [document.line(&*store), document.applied(&pool, &fleet.workers)];
        said.say(lines.into_iter().chain(document.advice(&fleet.workers)))?;
        if !args.watch || document.is_everywhere(&fleet.workers) {
            return Ok(ExitCode::SUCCESS);
        }
        tokio::select! {
            () = signals.next() => return Ok(ExitCode::FAILURE),
            () = fleet.follow(&*registry) => {}
        }
    }
}

/// The lines that were printed last; one that is as it was is not printed again.
#[derive(Default)]
struct Said(Vec<String>);

impl Said {
    fn say(&mut self, lines: impl IntoIterator<Item = String>) -> anyhow::Result<()> {
        let lines: Vec<_> = lines.into_iter().collect();
        for (index, line) in lines.iter().enumerate() {
            if self.0.get(index) != Some(line) {
                print(&printable(line))?;
            }
        }
        self.0 = lines;
        Ok(())
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

    /// What to do where workers run a document that is gone.
    fn advice(&self, workers: &BTreeMap<WorkerId, Presence>) -> Option<String> {
        let runs_one = |worker: &Presence| worker.settings_version != START_VERSION;
        let is_lost = self.version.is_none() && workers.values().any(runs_one);
        is_lost.then(|| {
            "the document is gone, and workers go on with what they have, after a new start, too: put it back with \
             \"weir settings rollback\", or, if its history is gone as well, with --kept and the file that one of them keeps \
             (settings-ID.json in its worker.state_dir)"
                .to_owned()
        })
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
        let all = workers.len();
        let named = others.iter().map(|(version, workers)| {
            let more = if workers.len() > NAMED { ", …" } else { "" };
            let ids: Vec<_> = workers.iter().take(NAMED).map(ToString::to_string).collect();
            let version =
                self.revision(version).map_or((*version).to_owned(), |revision| format!("v{}", revision.number));
            format!("{} on {version}: {}{more}", workers.len(), ids.join(", "))
        });
        let named: Vec<_> = named.collect();
        let named = if named.is_empty() { String::new() } else { format!(" ({})", named.join("; ")) };
        match (all, &self.version) {
            (0, _) => format!("pool {pool}: no workers"),
            (_, Some(_)) => format!("pool {pool}: applied on {} of {all}{named}", all - behind),
            (_, None) => format!("pool {pool}: nothing to apply on {all}{named}"),
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
        assert_eq!(document.advice(&workers), None);
    }

    #[test]
    fn a_document_that_is_gone_is_no_document_that_was_never_there() {
        let gone = Document { version: None, revisions: Vec::new() };
        let (pool, mut workers) = (PoolName::default(), BTreeMap::from([presence("young", "start")]));
        assert_eq!(gone.applied(&pool, &workers), "pool default: nothing to apply on 1 (1 on start: young)");
        assert_eq!(gone.advice(&workers), None);
        workers.extend([presence("old", "3b1c")]);
        let applied = gone.applied(&pool, &workers);
        assert_eq!(applied, "pool default: nothing to apply on 2 (1 on 3b1c: old; 1 on start: young)");
        let advice = gone.advice(&workers).expect("one runs what is gone");
        assert!(advice.contains("weir settings rollback"), "{advice}");
    }
}
