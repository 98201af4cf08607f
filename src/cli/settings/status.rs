//! `weir settings status`: the document, and on how many workers it is applied.
//!
//! A worker says in its presence which document it runs, and what of the last one it rejected. The document is applied where
//! the one is this document and the other is nothing: that a worker has read it does not make it so.

mod arrived;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::super::table::printable;
use super::super::{Signals, print, remark};
use crate::config::Config;
use crate::registry::{self, Change, Cursor, Presence, Registry, RegistryError};
use crate::settings::store::Store;
use crate::task::{PoolName, WorkerId};
use crate::telemetry::Telemetry;
use arrived::{Arrived, Document};

/// After the registry or the document could not be read.
const PAUSE: Duration = Duration::from_secs(1);

/// Exit codes.
const REJECTED: u8 = 3;
const BEHIND: u8 = 4;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "The document counts as applied on a worker that has read it and rejects nothing of it. Who rejects a value keeps \
its last good one; why is in `weir describe` of the worker, and in its log. Workers are those of the registry. Routers are \
not in it, and not counted: `weir describe` of one shows its version and what it rejects, and weir_settings_version of \
routers and workers is the version as a number.

Exit codes: 0, it is applied on all workers, or there is no document; 3, workers reject it or values of it; 4, not all \
workers have read it yet, or there are none. With --watch it ends when all have read it: with 0 or 3.

With --json, each line is an object: source, document (version; revision, at, who and why where weir wrote it; null without \
one), pool, workers, applied, and lists of the others: rejecting (worker, address, version of what it runs, keys, more) and \
behind (worker, version, revision). routers is null: they are not counted.

Examples:
  weir settings status
  weir settings status --pool parallel --watch
  weir settings status --json | jq .rejecting"
)]
pub(super) struct Args {
    /// The pool; without it, the one that [router] names.
    #[arg(long)]
    pool: Option<PoolName>,
    /// Goes on until all workers have read the document: a line for each step.
    #[arg(long)]
    watch: bool,
    /// Prints JSON, a line for each step.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: Args, store: Arc<dyn Store>, config: &Config) -> anyhow::Result<ExitCode> {
    let mut said = Said::default();
    let document = Document::read(&*store).await?;
    if !args.json {
        // What the source says does not need the registry.
        said.say([document.line()])?;
    }
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
    let (mut awaited, mut unread) = (None, None);
    loop {
        let document = match Document::read(&*store).await {
            Err(error) if args.watch => {
                let why = format!("{error:#}; trying again");
                if unread.as_ref() != Some(&why) {
                    remark(format_args!("weir: {}", printable(&why)));
                    unread = Some(why);
                }
                tokio::select! {
                    () = signals.next() => return Ok(ExitCode::FAILURE),
                    () = tokio::time::sleep(PAUSE) => continue,
                }
            }
            document => document?,
        };
        unread = None;
        let arrived = Arrived::of(&document, &pool, fleet.workers.values());
        said.say(if args.json { vec![arrived.json().to_string()] } else { arrived.lines() })?;
        if !args.watch || arrived.is_read_by_all() {
            return Ok(exit_code(&arrived));
        }
        // At once, for what is waited for may never come; and again where it is something else.
        let waits_for = Some((arrived.document.version.clone(), arrived.workers() == 0));
        if waits_for != awaited {
            remark(format_args!("weir: {}", printable(&arrived.awaited())));
            awaited = waits_for;
        }
        tokio::select! {
            () = signals.next() => return Ok(ExitCode::FAILURE),
            () = fleet.follow(&*registry) => {}
        }
    }
}

fn exit_code(arrived: &Arrived<'_>) -> ExitCode {
    match (&arrived.document.version, arrived.rejecting.is_empty()) {
        (None, _) => ExitCode::SUCCESS,
        (Some(_), false) => ExitCode::from(REJECTED),
        (Some(_), true) if arrived.is_read_by_all() => ExitCode::SUCCESS,
        (Some(_), true) => ExitCode::from(BEHIND),
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
