//! `weir settings rollback`: an earlier document, put back as a new change.
//!
//! Workers may refuse what it says of N as a jump from what they have now, so it is judged as one of `set` is.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};

use super::super::{print, remark};
use super::{asked, find, reason, replaceable, who};
use crate::config::Config;
use crate::settings::flagd::Document;
use crate::settings::store::{Edit, Revision, Store};
use crate::settings::{self, Context, Settings, flagd, jump, kept, mark};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without a revision, the document before the last change is put back, or before the raise that made it; where the \
document is gone or broken, the one of the last change.

Examples:
  weir settings rollback --why 'p99 of the bank rose'
  weir settings rollback 41 --why 'the last good one'
  weir settings rollback --kept /var/lib/weir-worker/settings-worker-1.json --why 'the file was broken by hand'"
)]
pub(super) struct Args {
    /// The revision whose document to put back.
    revision: Option<u64>,
    /// Puts back the document that a worker keeps in its state_dir; where it keeps values alone, they become one, for all
    /// workers.
    #[arg(long, value_name = "FILE", conflicts_with = "revision")]
    kept: Option<PathBuf>,
    /// Lets max_parallelism be more than settings.max_jump times what it is.
    #[arg(long)]
    allow_jump: bool,
    /// The reason, for the history.
    #[arg(long, value_name = "TEXT")]
    why: String,
}

pub(super) async fn run(args: Args, store: &dyn Store, config: &Config) -> anyhow::Result<ExitCode> {
    let (why, start) = (reason(args.why)?, config.settings.start());
    let current = replaceable(store).await?;
    let mut of_another = None;
    let (document, of, why) = match args.kept {
        Some(path) => {
            let kept = kept::read(&path).map_err(anyhow::Error::msg)?;
            of_another = Some(kept.source.clone()).filter(|source| *source != store.name());
            let (document, what) = document_of(kept);
            (document, format!("the {what} of {}", path.display()), why)
        }
        None => {
            let revisions = store.history().await?;
            let to = earlier(args.revision, current.as_deref(), &revisions, &store.name(), &start)?;
            let number = to.number;
            (to.edit.document.clone(), format!("the document of v{number}"), format!("{why} (back to v{number})"))
        }
    };
    let judged = jump::without_past_change(&document);
    let judged = if args.allow_jump { judged.and_then(|document| jump::allowed(&document)) } else { judged };
    let judged = judged.map_err(anyhow::Error::msg)?;
    let asked = asked::ask(None, config).await;
    let workers = asked.as_deref().unwrap_or_default();
    let is_there = |document: &str| current.as_deref() == Some(document.as_bytes());
    if let Some(there) = current.as_deref().filter(|_| is_there(&judged) || (!args.allow_jump && is_there(&document))) {
        asked::refuse_rejected(there, None, workers)?;
        return print(&format!("nothing changes: {of} is what is there"));
    }
    let document = judged;
    // From one that nobody takes, nobody has a value.
    let before = current.as_deref().filter(|document| examine(document).is_ok());
    asked::refuse_jump(before, &document, workers, config)?;
    let compared =
        |max_jump| before.map_or(Ok(()), |before| jump::compare(before, document.as_bytes(), &start, max_jump));
    if asked::is_partial(workers, current.as_deref(), config) {
        compared(config.settings.max_jump).map_err(anyhow::Error::msg)?;
    }
    let is_raise = compared(1.0).is_err();
    let mut remarks = asked::values_refused(&document, &start, workers);
    remarks.extend(asked::jump_still(current.as_deref(), document.as_bytes(), workers));
    remarks.extend(of_another.map(|source| format!("it was kept of {source}, and is in {} now", store.name())));
    let number = store.write(current.as_deref(), &Edit { document, who: who(), why }).await?;
    print(&format!("v{number}: {of}"))?;
    remarks.iter().for_each(|text| remark(format_args!("weir: {text}")));
    match asked {
        Ok(workers) if is_raise && workers.is_empty() => asked::not_known("no worker of any pool is in the registry"),
        Err(reason) if is_raise => asked::not_known(&reason),
        _ => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// The document that a worker keeps, and what it is.
fn document_of(kept: kept::Last) -> (String, String) {
    let kept::Last { version, document, values, .. } = kept;
    let what = if document.is_some() { format!("document {version}") } else { "values".into() };
    let values: Vec<_> = values.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
    (document.unwrap_or_else(|| flagd::document(&values)), what)
}

fn examine(document: &[u8]) -> Result<(), String> {
    Document::read(document).map(drop)
}

/// What somebody has set by hand is in the history, too: of that, nobody is led back to what workers do not take.
fn examine_whole(revision: &Revision, start: &Settings) -> Result<(), String> {
    revision.is_document()?;
    let document = Document::read(revision.edit.document.as_bytes())?;
    let (_, refused) = settings::examine(&document, start, &Context::default());
    let refused = refused.into_iter().next().filter(|_| revision.is_found());
    refused.map_or(Ok(()), |it| Err(format!("it has values that workers refuse: {it}")))
}

/// The revision that is meant.
fn earlier<'a>(
    revision: Option<u64>,
    current: Option<&[u8]>,
    revisions: &'a [Revision],
    source: &str,
    start: &Settings,
) -> anyhow::Result<&'a Revision> {
    let mut good = revisions.iter().rev().filter(|revision| examine_whole(revision, start).is_ok());
    match revision {
        Some(number) => {
            let to = find(revisions, number)?;
            if let Err(reason) = to.is_document().and_then(|()| examine(to.edit.document.as_bytes())) {
                bail!("nobody would take the document of v{number}: {reason}");
            }
            if let Err(reason) = examine_whole(to, start) {
                bail!("the document of v{number}, which was set by hand, is not put back: {reason}");
            }
            Ok(to)
        }
        None if current.is_none_or(|document| examine(document).is_err()) => good.next().with_context(|| {
            format!("{source} is gone or broken, and its history is empty; --kept takes a worker's last good values")
        }),
        // The one before the last change, or before the raise that made it; that of the last change, where somebody has set the
        // document by hand since.
        None => {
            let is_other = |revision: &&Revision| current != Some(revision.edit.document.as_bytes());
            let is_step = |revision: &Revision| mark::marked(revision.edit.document.as_bytes(), jump::KEY).is_some();
            let mut before = good.filter(is_other).peekable();
            let nearest = before.peek().copied();
            let before = before.find(|revision| !is_step(revision)).or(nearest);
            before.context("the history has nothing before the last change")
        }
    }
}
