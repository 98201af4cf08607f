//! `weir payload get`: one payload, for people, for programs, or for a browser's developer tools.

mod indent;

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::ArgGroup;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::output::Output;
use super::super::{block_on, remark};
use super::moment::{Moment, shown};
use super::{list, load, open};
use crate::config::{Config, ConfigError};
use crate::payload::search::Query;
use crate::task::TaskId;
use indent::indented;

/// Flags of `weir payload get`.
#[derive(Debug, clap::Args)]
#[command(group = ArgGroup::new("payload").required(true).args(["which", "task"]))]
#[command(after_help = "Files appear whole or not at all, readable for you alone.

Examples:
  weir payload get payloads/7/2026/11/22/17/bank/ok/t1.0192….json.zlib.b64
  weir payload get --task t1 | jq .outcome
  weir payload get ./t1.0192….json.zlib.b64 --har t1.har
  aws s3 cp s3://weir/payloads/7/…b64 - | weir payload get - --raw")]
pub(super) struct Args {
    /// A file, as it was stored, spooled or written by --output, - for standard input, or else a key in the configured store, or
    /// s3://BUCKET/KEY.
    #[arg(value_name = "KEY|FILE")]
    which: Option<String>,
    /// The newest payload of this task.
    #[arg(long, value_name = "ID")]
    task: Option<TaskId>,
    /// How far back to look for it: so long ("2h"), or to that time (RFC 3339).
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = Moment::parse, requires = "task")]
    since: Moment,
    /// Writes it to a file instead; - for standard output.
    #[arg(long, short, value_name = "FILE")]
    output: Option<Output>,
    /// Writes the HTTP exchanges alone, as HAR 1.2: a browser's developer tools open it. - for standard output.
    #[arg(long, value_name = "FILE")]
    har: Option<Output>,
    /// Writes the text as it was stored, instead of indented.
    #[arg(long)]
    raw: bool,
    /// Replaces files that exist.
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: &Args, config: impl Fn() -> Result<Config, ConfigError>) -> anyhow::Result<ExitCode> {
    if let (Some(output), Some(har)) = (&args.output, &args.har)
        && output.is(har)
    {
        bail!("--output and --har are both {output}: name another file for one of them");
    }
    let json = match (&args.which, &args.task) {
        (Some(which), _) => load(which, config)?.json,
        (None, Some(task)) => load(&newest(task, args.since, &config()?)?, config)?.json,
        (None, None) => bail!("name a key or a file, or --task"),
    };
    let shaped = |json: &str| if args.raw { json.to_owned() } else { indented(json) };
    if let Some(output) = &args.har {
        output.write(&shaped(har(&json)?), args.force)?;
    }
    match &args.output {
        Some(output) => output.write(&shaped(&json), args.force)?,
        None if args.har.is_none() => Output::Standard.write(&shaped(&json), args.force)?,
        None => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// The key of the task's newest payload, which it also says.
fn newest(task: &TaskId, since: Moment, config: &Config) -> anyhow::Result<String> {
    let now = Timestamp::now();
    let query = Query {
        integration: None,
        outcomes: BTreeSet::new(),
        task: Some(task.clone()),
        since: since.at(now),
        until: list::latest(now),
        after: None,
        limit: 1,
    };
    let since = query.since;
    let results = block_on(async {
        let store = open(&config.payloads).await?;
        list::find(&*store, &config.payloads.prefix, query).await
    })?;
    let none = || format!("no payload of task {task} since {}; --since reaches further back", shown(since));
    let found = results.payloads.into_iter().next().with_context(none)?;
    remark(format_args!("weir: {}", found.name));
    Ok(found.name)
}

/// The transcript: a HAR document.
fn har(json: &str) -> anyhow::Result<&str> {
    #[derive(Deserialize)]
    struct Document<'j> {
        #[serde(borrow)]
        transcript: Option<&'j RawValue>,
    }
    let document: Document<'_> = serde_json::from_str(json).context("the payload has no transcript")?;
    document.transcript.map(RawValue::get).context("the payload has no transcript: it is null")
}
