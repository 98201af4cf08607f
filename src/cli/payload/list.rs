//! `weir payload list`: what is stored, newest first.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use jiff::Timestamp;
use serde::Serialize;

use super::super::table::{Table, counted, printable};
use super::super::{block_on, print, remark};
use super::moment::{Moment, shown};
use super::open;
use crate::config::Config;
use crate::payload::search::{Found, Query, Results, Search};
use crate::payload::{Key, Store};
use crate::task::{FailureCode, IntegrationName, RunId, TaskId};

/// How far the clocks of workers may be ahead of this one.
const CLOCK_SKEW: Duration = Duration::from_secs(60 * 60);

/// The outcome that stands for each but `ok`.
const FAILED: &str = "failed";

/// Flags of `weir payload list`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The time is the start of the run. Each row's key is what `weir payload get` takes. When there may be more, \
--after with the last key continues; what is stored meanwhile changes no later page, for it is newer.

It looks at the last hour first, then at the two before it, then four, until it has a page. Each span costs a list request for \
each of 16 shards (of one, with --task), and one more for each 1,000 payloads in it; where flags leave out most of \
them, those are skipped, and it is about one request per shard and hour. What waits in a worker's spool is not listed.

With --json, each line is an object: key, started, integration, outcome, task, run, bytes.

Examples:
  weir payload list --integration bank --outcome failed
  weir payload list --since 7days --task t-1
  weir payload list --since 2026-11-22T16:00:00Z --until 2026-11-22T17:30:00Z
  weir payload list --outcome deadline --json | jq -r .key"
)]
pub(super) struct Args {
    /// Of this integration.
    #[arg(long, value_name = "NAME")]
    integration: Option<IntegrationName>,
    /// With this outcome: ok, integration_error, panic, deadline, cancelled, output_too_large, or failed for all but ok.
    #[arg(long, value_name = "OUTCOME", value_parser = Outcomes::parse)]
    outcome: Option<Outcomes>,
    /// Of this task, each of its runs.
    #[arg(long, value_name = "ID")]
    task: Option<TaskId>,
    /// Of runs that started so long ago at the most ("2h"), or at that time or later (RFC 3339).
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = Moment::parse)]
    since: Moment,
    /// Of runs that started longer ago, or before that time.
    #[arg(long, value_name = "TIME", value_parser = Moment::parse)]
    until: Option<Moment>,
    /// The most to list.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Goes on after the last key of the page before.
    #[arg(long, value_name = "KEY")]
    after: Option<String>,
    /// Prints one JSON object per payload and line.
    #[arg(long)]
    json: bool,
}

/// What `--outcome` stands for, as labels of outcomes.
#[derive(Debug, Clone)]
struct Outcomes(BTreeSet<&'static str>);

impl Outcomes {
    fn parse(text: &str) -> Result<Self, String> {
        let failures = FailureCode::ALL.map(FailureCode::as_str);
        let known = || ["ok"].into_iter().chain(failures);
        if text == FAILED {
            return Ok(Outcomes(failures.into()));
        }
        let one = known().find(|label| *label == text).map(|label| Outcomes([label].into()));
        one.ok_or_else(|| format!("use {}, or {FAILED} for all but ok", known().collect::<Vec<_>>().join(", ")))
    }
}

pub(super) fn run(args: &Args, config: &Config) -> anyhow::Result<ExitCode> {
    let (query, prefix) = (query(args, config, Timestamp::now())?, config.payloads.prefix.as_str());
    let (results, place) = block_on(async {
        let store = open(&config.payloads).await?;
        let results = find(&*store, prefix, query.clone()).await?;
        Ok((results, store.location(prefix)))
    })?;
    let text = if args.json { as_lines(&results.payloads)? } else { as_table(&results.payloads) };
    if !results.payloads.is_empty() {
        print(&text)?;
    }
    say(&results, &query, args.until.is_some(), &place);
    Ok(ExitCode::SUCCESS)
}

fn query(args: &Args, config: &Config, now: Timestamp) -> anyhow::Result<Query> {
    let since = args.since.at(now);
    let until = match args.until {
        Some(until) => until.at(now),
        None => latest(now),
    };
    if since >= until {
        let until = args.until.map_or_else(|| "now".to_owned(), |_| format!("--until, {}", shown(until)));
        bail!("--since, {}, is not before {until}", shown(since));
    }
    let after = args.after.as_deref().map(|key| Key::parse(&config.payloads.prefix, key));
    Ok(Query {
        integration: args.integration.clone(),
        outcomes: args.outcome.clone().map(|Outcomes(labels)| labels).unwrap_or_default(),
        task: args.task.clone(),
        since,
        until,
        after: after.transpose().context("--after")?,
        limit: args.limit as usize,
    })
}

/// A time after that of every payload.
pub(super) fn latest(now: Timestamp) -> Timestamp {
    now.checked_add(CLOCK_SKEW).unwrap_or(Timestamp::MAX)
}

/// Searches, and shows on a terminal how far it is.
pub(super) async fn find(store: &dyn Store, prefix: &str, query: Query) -> anyhow::Result<Results> {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
        bar.set_style(style);
    }
    let mut search = Search::new(store, prefix, query);
    while search.step().await? {
        let requests = counted(search.requests(), "request");
        bar.set_message(format!("looked back to {}, {requests}", shown(search.looked_back_to())));
        bar.tick();
    }
    bar.finish_and_clear();
    Ok(search.finish())
}

/// One line of `--json`.
#[derive(Serialize)]
struct Line<'f> {
    key: &'f str,
    started: String,
    integration: &'f IntegrationName,
    outcome: &'f str,
    task: &'f TaskId,
    run: String,
    bytes: u64,
}

fn as_lines(payloads: &[Found]) -> anyhow::Result<String> {
    let line = |Found { key, name, bytes }: &Found| {
        let RunId(run) = key.run;
        serde_json::to_string(&Line {
            key: name,
            started: format!("{:.3}", key.started()),
            integration: &key.integration,
            outcome: &key.outcome,
            task: &key.task,
            run: run.to_string(),
            bytes: *bytes,
        })
    };
    Ok(payloads.iter().map(line).collect::<Result<Vec<_>, _>>()?.join("\n"))
}

fn as_table(payloads: &[Found]) -> String {
    let mut table = Table::new(&["STARTED", "INTEGRATION", "OUTCOME", "TASK", "SIZE#", "KEY"]);
    for Found { key, name, bytes } in payloads {
        table.row([
            shown(key.started()),
            key.integration.to_string(),
            key.outcome.clone(),
            key.task.to_string(),
            HumanBytes(*bytes).to_string(),
            name.clone(),
        ]);
    }
    table.lines().join("\n")
}

/// What programs need not read. `is_bounded` says that somebody chose where the time ends.
fn say(results: &Results, query: &Query, is_bounded: bool, place: &str) {
    if let Some(example) = &results.foreign_example {
        let (foreign, example) = (counted(results.foreign, "object"), printable(example));
        let one = if results.foreign == 1 { "" } else { "such as " };
        remark(format_args!("weir: {foreign} met on the way, no payload and not listed: {one}{example}"));
    }
    match results.payloads.last() {
        Some(last) if results.may_have_more => {
            remark(format_args!("weir: older ones follow with --after {}", last.name))
        }
        Some(_) => {}
        None => {
            let (since, place) = (shown(query.since), printable(place));
            let older = if query.after.is_some() { "older" } else { "such" };
            let until = if is_bounded { format!(" until {}", shown(query.until)) } else { String::new() };
            remark(format_args!(
                "weir: no {older} payload since {since}{until} in {place}; --since reaches further back"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_is_a_label_or_all_that_failed() {
        let labels = |text| Outcomes::parse(text).map(|Outcomes(labels)| labels.into_iter().collect::<Vec<_>>());
        assert_eq!(labels("ok"), Ok(vec!["ok"]));
        assert_eq!(labels("failed").expect("known").len(), FailureCode::ALL.len());
        assert!(!labels("failed").expect("known").contains(&"ok"));
        let error = labels("error").expect_err("unknown");
        assert!(error.starts_with("use ok, integration_error, ") && error.ends_with("or failed for all but ok"));
    }
}
