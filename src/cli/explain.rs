//! `weir explain`: where one task is and what holds it, or why it was refused.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;

use super::table::{duration, printable};
use super::{block_on, print};
use crate::client::operations::Operations;
use crate::task::TaskId;
use crate::wire::proto::Explanation;

/// Flags of `weir explain`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A router knows the tasks that it has under way, and those that it refused in the last ten minutes. \
A worker knows those that run. The keys of --json are the fields of Explanation in proto/weir/v1/operations.proto.

Exits with 0 when the task is under way, and with 1 when it was refused or is not known.

Examples:
  weir explain pull-4711
  weir explain pull-4711 --at 10.0.0.7:7401
  weir explain pull-4711 --json | jq .held_by"
)]
pub(super) struct Args {
    /// The id of the task.
    #[arg(value_name = "TASK-ID")]
    task: TaskId,
    /// The gRPC address of a router or worker: HOST:PORT or http://HOST:PORT.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7400")]
    at: String,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let explanation = block_on(async { Ok(Operations::new(&args.at)?.explain(&args.task).await?) })?;
    if args.json {
        print(&serde_json::to_string(&explanation).context("cannot write the explanation as JSON")?)?;
    } else {
        print(text(&explanation).trim_end())?;
    }
    let is_under_way = !["refused", "unknown"].contains(&explanation.state.as_str());
    Ok(if is_under_way { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// For people.
fn text(it: &Explanation) -> String {
    let mut text = String::new();
    // Writing into a string cannot fail.
    let _ = writeln!(text, "task {}: {}", it.task_id, printable(&it.state));
    let mut pair = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = writeln!(text, "  {key:<12}  {}", printable(&value));
        }
    };
    let given = |value: &str| Some(value.to_owned()).filter(|value| !value.is_empty());
    pair("why", given(&it.why));
    pair("held by", given(&it.held_by));
    pair("task", given(&it.integration).map(|name| format!("{} {name} for tenant {}", it.priority, it.tenant)));
    pair("pool", given(&it.pool));
    pair("refused", it.refused_seconds_ago.map(|ago| format!("{} ago", duration(ago))));
    pair("arrived", it.age_seconds.map(|age| format!("{} ago", duration(age))));
    pair("time left", it.remaining_seconds.map(duration));
    let worker = it.worker.as_ref().map(|worker| match it.called_seconds_ago {
        Some(ago) => format!("{worker}, called {} ago", duration(ago)),
        None => worker.clone(),
    });
    pair("worker", worker);
    pair("attempts", it.attempts.map(|attempts| attempts.to_string()));
    pair("last refusal", it.last_refusal.clone());
    let ahead = it.ahead.zip(it.own_ahead).zip(it.waiting);
    let interactive = it.interactive_ahead.filter(|ahead| *ahead > 0);
    let interactive = interactive.map(|ahead| format!("; and {ahead} interactive ones")).unwrap_or_default();
    let position = |((ahead, own), waiting): ((u32, u32), u32)| {
        format!(
            "at most {ahead} of {waiting} {} tasks that wait come first, {own} of them its tenant's{interactive}",
            it.priority
        )
    };
    pair("position", ahead.map(position));
    pair("estimate", it.estimated_wait_seconds.map(|wait| format!("about {} more", duration(wait))));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_applies_is_printed_and_nothing_that_steers_a_terminal() {
        let explanation = Explanation {
            task_id: "t1".into(),
            state: "waiting".into(),
            why: "the worker is \u{1b}[2Jfull".into(),
            held_by: "slots".into(),
            waiting: Some(9),
            ahead: Some(4),
            own_ahead: Some(1),
            pool: "parallel".into(),
            priority: "batch".into(),
            interactive_ahead: Some(3),
            ..Explanation::default()
        };
        assert_eq!(
            text(&explanation),
            "task t1: waiting\n  why           the worker is ?[2Jfull\n  held by       slots\n  pool          parallel\n  \
             position      at most 4 of 9 batch tasks that wait come first, 1 of them its tenant's; and 3 interactive ones\n"
        );
    }
}
