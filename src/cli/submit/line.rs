//! What a line of tasks says, and what a line of outcomes looks like.

use std::time::Duration;

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::json;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::client::{Submission, SubmitError};
use crate::task::{Failure, IntegrationName, Json, Outcome, Priority, TaskId, Tenant};
use crate::wire::Reason;

/// What stands for what a line leaves out.
pub(super) struct Defaults {
    pub(super) integration: Option<IntegrationName>,
    pub(super) priority: Priority,
    pub(super) timeout: Duration,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: Option<TaskId>,
    integration: Option<IntegrationName>,
    tenant: Option<Tenant>,
    priority: Option<Priority>,
    #[serde(default, with = "humantime_serde")]
    timeout: Option<Duration>,
    input: Option<Box<RawValue>>,
}

/// Reads one line.
pub(super) fn parse(line: &str, defaults: &Defaults) -> Result<Submission, String> {
    let line: Line = serde_json::from_str(line).map_err(|error| format!("not a task: {error}"))?;
    let integration = line.integration.or_else(|| defaults.integration.clone());
    let input = line.input.map_or("null".to_owned(), |raw| raw.get().to_owned());
    Ok(Submission {
        id: line.id.map_or_else(generated_id, Ok)?,
        integration: integration.ok_or("\"integration\" is missing: name it in the line or with --integration")?,
        tenant: line.tenant.unwrap_or_default(),
        priority: line.priority.unwrap_or(defaults.priority),
        input: Json::parse(input).map_err(|error| format!("input is not JSON: {error}"))?,
        timeout: line.timeout.unwrap_or(defaults.timeout),
    })
}

fn generated_id() -> Result<TaskId, String> {
    Uuid::now_v7().to_string().parse().map_err(|error| format!("{error}"))
}

/// What came of a line, and the line's number, from 1.
pub(super) struct Numbered {
    pub(super) line: usize,
    pub(super) answer: Answer,
}

/// What came of a line.
pub(super) enum Answer {
    Outcome { outcome: Outcome, took: Duration },
    Error { task: TaskId, error: SubmitError },
    Unreadable { reason: String },
}

/// The line to print. An output goes into it as the text that it is: there is JSON that no tree can hold.
impl Serialize for Numbered {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut line = serializer.serialize_map(None)?;
        line.serialize_entry("line", &self.line)?;
        match &self.answer {
            Answer::Outcome { outcome, took } => {
                line.serialize_entry("task_id", &outcome.task)?;
                line.serialize_entry("ok", &outcome.result.is_ok())?;
                line.serialize_entry("run_id", &outcome.run.to_string())?;
                line.serialize_entry("worker", &outcome.worker)?;
                line.serialize_entry("attempt", &outcome.attempt)?;
                line.serialize_entry("queued_seconds", &outcome.timings.queued.as_secs_f64())?;
                line.serialize_entry("ran_seconds", &outcome.timings.ran.as_secs_f64())?;
                line.serialize_entry("took_seconds", &took.as_secs_f64())?;
                match &outcome.result {
                    Ok(output) => line.serialize_entry("output", output)?,
                    Err(failure) => {
                        let Failure { code, message, remedy, reason } = failure;
                        let mut failure = json!({"code": code.as_str(), "message": message, "remedy": remedy});
                        if let Some(reason) = reason {
                            failure["reason"] = reason.as_str().into();
                        }
                        line.serialize_entry("failure", &failure)?;
                    }
                }
            }
            Answer::Error { task, error } => {
                line.serialize_entry("task_id", task)?;
                line.serialize_entry("ok", &false)?;
                let (reason, started) = (error.reason(), error.started().as_str());
                let error = json!({"reason": reason, "started": started, "message": error.message()});
                line.serialize_entry("error", &error)?;
            }
            Answer::Unreadable { reason } => {
                line.serialize_entry("ok", &false)?;
                let invalid = Reason::InvalidTask.as_str();
                line.serialize_entry("error", &json!({"reason": invalid, "started": "no", "message": reason}))?;
            }
        }
        line.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults() -> Defaults {
        Defaults { integration: None, priority: Priority::Batch, timeout: Duration::from_secs(60) }
    }

    #[test]
    fn a_line_is_read_with_the_defaults_for_what_it_leaves_out() {
        let line = r#"{"integration":"bank","input":{"a": 1.50},"priority":"interactive","timeout":"5s"}"#;
        let submission = parse(line, &defaults()).expect("a task");
        assert_eq!(submission.input.as_str(), r#"{"a": 1.50}"#);
        assert_eq!((submission.priority, submission.timeout), (Priority::Interactive, Duration::from_secs(5)));
        assert_eq!(submission.tenant.as_str(), "default");
    }

    #[test]
    fn an_output_is_printed_as_it_came_whatever_it_is() {
        let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
        for output in ["1e400", "12345678901234567890123.0", r#""\ud800""#, &deep] {
            let outcome = Outcome {
                task: "t".parse().expect("an id"),
                run: crate::task::RunId::mint(),
                result: Ok(Json::parse(output.into()).expect("JSON")),
                worker: "w".parse().expect("an id"),
                attempt: 1,
                timings: Default::default(),
            };
            let answer = Numbered { line: 1, answer: Answer::Outcome { outcome, took: Duration::ZERO } };
            let line = serde_json::to_string(&answer).expect("it can be written");
            assert!(line.ends_with(&format!("\"output\":{output}}}")), "{line:.200}");
        }
    }

    #[test]
    fn each_mistake_is_named() {
        for (line, expected) in [
            ("{", "not a task"),
            ("{}", "--integration"),
            (r#"{"integration":"bank","inptu":{}}"#, "inptu"),
            (r#"{"integration":"bank","id":"a b"}"#, "task id"),
            (r#"{"integration":"bank","priority":"high"}"#, "interactive"),
            (r#"{"integration":"bank","timeout":"soon"}"#, "soon"),
        ] {
            let error = parse(line, &defaults()).expect_err(line);
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
