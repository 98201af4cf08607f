//! `weir settings`: changes the live values of workers and routers, and shows whether a change has arrived.
//!
//! A change is a whole new document, written only where the one that it was made from is still there, and kept in the
//! history with who and why. So two people at a time cannot undo each other's changes unseen.

mod asked;
mod help;
mod lost;
mod raise;
mod rollback;
mod set;
mod status;
mod unserved;

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow, bail};
use clap::Subcommand;
use serde_json::Value;

use super::table::{Table, duration, printable};
use super::{block_on, print};
use crate::config::Config;
use crate::lifecycle::Lifecycle;
use crate::settings::Source;
use crate::settings::edit::{self, Difference};
use crate::settings::launchdarkly::CHANGED_THERE;
use crate::settings::store::{self, Edit, ReadError, Reading, Revision, Store};

/// How long reads and writes of a file may take to end after an error.
const STOP_WITHIN: Duration = Duration::from_secs(1);

/// What puts back a good document where there is a bad one.
const BACK: &str = "\"weir settings rollback\"";

const EXAMPLES: &str = "Examples:
  weir settings set max_parallelism=40 --pool parallel --share 5% --why 'a first step'
  weir settings status --pool parallel --watch
  weir settings set 'pools={\"single\": 95, \"parallel\": 5}' --why 'a canary'";

/// Flags of `weir settings`.
#[derive(Debug, clap::Args)]
#[command(after_help = help::with_settings(EXAMPLES))]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Changes settings: for all, for the workers of a pool, or for a share of the workers.
    Set(set::Args),
    /// Shows on how many workers the document is applied.
    Status(status::Args),
    /// Shows the last changes: when, who, why.
    History(HistoryArgs),
    /// Shows what a change changed.
    Diff(DiffArgs),
    /// Puts an earlier document back, as a new change.
    Rollback(rollback::Args),
    /// Turns N up step by step, on a share of the workers first, and takes back what is worse.
    Raise(raise::Args),
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  weir settings history")]
struct HistoryArgs {
    /// Prints one JSON object per change and line, with the document.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "With one revision, it is compared with the document that is there; with none, the last change is shown.

Examples:
  weir settings diff
  weir settings diff 41
  weir settings diff 38 41"
)]
struct DiffArgs {
    /// A revision of the history.
    before: Option<u64>,
    /// A later one.
    after: Option<u64>,
}

pub(super) fn run(args: Args, config: Config) -> anyhow::Result<ExitCode> {
    if config.settings.source == Source::LaunchDarkly && !matches!(args.command, Command::Status(_)) {
        bail!(CHANGED_THERE);
    }
    block_on(async {
        let lifecycle = Lifecycle::new();
        let Some(store) = store::open(&config.settings, &lifecycle)? else {
            bail!(
                "no document is configured: name a file (settings.file), or the registry's Redis (settings.source = \
                 \"redis\"), in weir.toml or as WEIR_SETTINGS__FILE"
            );
        };
        let ended = match args.command {
            Command::Set(args) => set::run(args, &*store, &config).await,
            Command::Status(args) => status::run(args, store, &config).await,
            Command::History(args) => history(&args, &*store).await,
            Command::Diff(args) => diff(&args, &*store).await,
            Command::Rollback(args) => rollback::run(args, &*store, &config).await,
            Command::Raise(args) => raise::run(args, store, &config).await,
        };
        // What does not end is a read of a file, which ends with the process.
        let _ = lifecycle.stop(STOP_WITHIN).await;
        ended
    })
}

async fn history(args: &HistoryArgs, store: &dyn Store) -> anyhow::Result<ExitCode> {
    let revisions = store.history().await?;
    if args.json {
        for revision in revisions.iter().rev() {
            let Edit { document, who, why } = &revision.edit;
            let at = humantime::format_rfc3339_millis(revision.at).to_string();
            let line = serde_json::json!({"revision": revision.number, "at": at, "who": who, "why": why,
                "version": revision.version(), "document": document});
            print(&line.to_string())?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if revisions.is_empty() {
        return print("no change has been made with weir");
    }
    let mut table = Table::new(&["revision", "ago#", "who", "version", "why"]);
    for revision in revisions.iter().rev() {
        let Edit { who, why, .. } = &revision.edit;
        table.row([format!("v{}", revision.number), ago(revision.at), who.clone(), revision.version(), why.clone()]);
    }
    print(&table.lines().join("\n"))
}

async fn diff(args: &DiffArgs, store: &dyn Store) -> anyhow::Result<ExitCode> {
    let revisions = store.history().await?;
    let (before, after) = match (args.before, args.after) {
        (Some(before), Some(after)) => {
            (Compared::of(find(&revisions, before)?), Compared::of(find(&revisions, after)?))
        }
        (Some(before), None) => {
            let there = document(store).await?.context("there is no document")?;
            (Compared::of(find(&revisions, before)?), Compared { name: store.name(), document: there })
        }
        (None, _) => match revisions.as_slice() {
            [.., before, after] => (Compared::of(before), Compared::of(after)),
            _ => bail!("the history has no two changes to compare"),
        },
    };
    let differences = edit::differences(&before.read()?, &after.read()?);
    if differences.is_empty() {
        return print("no difference");
    }
    let shown =
        |sign: char, value: Option<Value>| value.map(|value| format!("  {sign} {}", printable(&value.to_string())));
    let lines = differences.into_iter().flat_map(|Difference { key, before, after }| {
        [Some(printable(&key)), shown('-', before), shown('+', after)].into_iter().flatten()
    });
    print(&lines.collect::<Vec<_>>().join("\n"))
}

/// The document; none where nobody has put one there.
async fn document(store: &dyn Store) -> anyhow::Result<Option<Vec<u8>>> {
    found(store.read().await, store)
}

/// The same for whoever replaces it, good or not: of one that is too large, its beginning.
async fn replaceable(store: &dyn Store) -> anyhow::Result<Option<Vec<u8>>> {
    match store.read().await {
        Err(ReadError::TooLarge(document)) => Ok(Some(document.beginning)),
        reading => found(reading, store),
    }
}

fn found(reading: Reading, store: &dyn Store) -> anyhow::Result<Option<Vec<u8>>> {
    match reading {
        Ok(document) => Ok(Some(document)),
        Err(ReadError::Missing) => Ok(None),
        Err(ReadError::TooLarge(document)) => {
            bail!(
                "{}: the document {document}; make it smaller, or put the last good one back with {BACK}",
                store.name()
            )
        }
        Err(error) => Err(anyhow::Error::from(error).context(store.name())),
    }
}

fn find(revisions: &[Revision], number: u64) -> anyhow::Result<&Revision> {
    let found = revisions.iter().find(|revision| revision.number == number);
    found.with_context(|| match (revisions.first(), revisions.last()) {
        (Some(first), Some(last)) => {
            format!("the history has no revision {number}, only {} to {}", first.number, last.number)
        }
        _ => "no change has been made with weir".into(),
    })
}

/// One of two documents that are compared.
struct Compared {
    name: String,
    document: Vec<u8>,
}

impl Compared {
    fn of(revision: &Revision) -> Self {
        Compared { name: format!("v{}", revision.number), document: revision.edit.document.clone().into_bytes() }
    }

    fn read(&self) -> anyhow::Result<serde_json::Map<String, Value>> {
        edit::read(&self.document).map_err(|reason| anyhow!("{}: {reason}", self.name))
    }
}

fn reason(why: String) -> anyhow::Result<String> {
    if why.trim().is_empty() {
        bail!("--why is empty: say what the change is for");
    }
    Ok(why)
}

/// Who is at the keyboard, as far as the system knows.
fn who() -> String {
    let user = ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    let user = user.unwrap_or_else(|| format!("user {}", rustix::process::getuid().as_raw()));
    format!("{user}@{}", rustix::system::uname().nodename().to_string_lossy())
}

fn ago(at: SystemTime) -> String {
    duration(SystemTime::now().duration_since(at).unwrap_or_default().as_secs_f64())
}
