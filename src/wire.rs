//! The gRPC contract in Rust: the generated types, and the one mapping between them and [`crate::task`].
//!
//! Only the edges (the services and the client) use this module. What comes in is checked here, once; what is wrong
//! becomes a [`TaskError`] that names the field.

pub mod callers;
pub mod error;
pub mod metadata;
pub mod operations;
pub mod profiles;
pub mod server;
pub mod stream;
pub mod trace;

use std::time::Duration;

use tokio::time::Instant;

use crate::task::{Failure, FailureCode, Json, Outcome, Priority, Remedy, RunId, Task, Tenant, Timings, WorkerId};
pub use error::{Reason, Retry, Started, TaskError};
pub use operations::Start;

/// The code generated from `proto/weir/v1`.
#[expect(missing_docs, clippy::all, clippy::allow_attributes, reason = "generated; the .proto files document it")]
pub mod proto {
    tonic::include_proto!("weir.v1");
}

/// The compiled `.proto` files, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/weir.v1.descriptors.bin"));

/// The largest gRPC message that either side takes.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// The longest JSON input of a task.
pub const MAX_INPUT_BYTES: usize = 1 << 20;

/// The longest JSON output of a task: with the rest of its outcome it fits into a message.
pub const MAX_OUTPUT_BYTES: usize = 3 << 20;

/// How long tasks may take.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    /// For tasks that do not say.
    pub default: Duration,
    /// For tasks that ask for more.
    pub max: Duration,
}

impl Timeouts {
    /// When a task that arrived at `arrival` must be over: the smallest of its own timeout, the maximum, and the call's
    /// less the margin that the answer needs.
    fn deadline(&self, arrival: Instant, own: Option<Duration>, call: Option<Duration>) -> Instant {
        let own = own.unwrap_or(self.default).min(self.max);
        arrival + call.map_or(own, |call| less_margin(call).min(own))
    }
}

/// What a callee gets of the time that its caller has: less a tenth, at most 50 ms, so that the callee answers first.
pub fn less_margin(timeout: Duration) -> Duration {
    timeout - (timeout / 10).min(Duration::from_millis(50))
}

/// Checks a task that came in at `arrival` through a call with the given `grpc-timeout`.
pub fn task_in(
    task: proto::Task,
    timeouts: Timeouts,
    arrival: Instant,
    call_timeout: Option<Duration>,
) -> Result<Task, TaskError> {
    let own_timeout = task.timeout.map(duration_in).transpose()?;
    let priority = match task.priority() {
        proto::Priority::Interactive => Priority::Interactive,
        proto::Priority::Batch | proto::Priority::Unspecified => Priority::Batch,
    };
    if proto::Priority::try_from(task.priority).is_err() {
        return Err(TaskError::invalid(format!(
            "priority {} is not known: use 1 (interactive) or 2 (batch)",
            task.priority
        )));
    }
    let tenant = match task.tenant.as_str() {
        "" => Tenant::default(),
        tenant => tenant.parse().map_err(TaskError::invalid)?,
    };
    if task.input.len() > MAX_INPUT_BYTES {
        let (size, max) = (task.input.len(), MAX_INPUT_BYTES);
        return Err(TaskError::invalid(format!("input is {size} bytes long: at most {max} are taken")));
    }
    let task = Task {
        id: task.id.parse().map_err(TaskError::invalid)?,
        integration: task.integration.parse().map_err(TaskError::invalid)?,
        tenant,
        priority,
        input: Json::parse(task.input).map_err(|error| TaskError::invalid(format!("input is not JSON: {error}")))?,
        deadline: timeouts.deadline(arrival, own_timeout, call_timeout),
    };
    if task.deadline <= arrival {
        return Err(TaskError::deadline_too_short("the task's timeout is zero: give it time to run"));
    }
    Ok(task)
}

/// The message for a task that has `remaining` left.
pub fn task_out(task: &Task, remaining: Duration) -> proto::Task {
    proto::Task {
        id: task.id.to_string(),
        integration: task.integration.to_string(),
        tenant: task.tenant.to_string(),
        priority: match task.priority {
            Priority::Interactive => proto::Priority::Interactive,
            Priority::Batch => proto::Priority::Batch,
        }
        .into(),
        input: task.input.as_str().to_owned(),
        timeout: Some(duration_out(remaining)),
    }
}

/// The message for an outcome.
pub fn outcome_out(outcome: &Outcome) -> proto::Outcome {
    let result = match &outcome.result {
        Ok(output) => proto::outcome::Result::Output(output.as_str().to_owned()),
        Err(failure) => proto::outcome::Result::Failure(proto::Failure {
            code: failure_code_out(failure.code).into(),
            message: failure.message.clone(),
            remedy: remedy_out(failure.remedy).into(),
            reason: failure.reason.clone().map(String::from).unwrap_or_default(),
        }),
    };
    proto::Outcome {
        task_id: outcome.task.to_string(),
        run_id: outcome.run.to_string(),
        result: Some(result),
        worker: outcome.worker.to_string(),
        attempt: outcome.attempt,
        timings: Some(proto::Timings {
            queued: Some(duration_out(outcome.timings.queued)),
            ran: Some(duration_out(outcome.timings.ran)),
        }),
    }
}

/// Reads an outcome; the error says which field a foreign server got wrong.
pub fn outcome_in(outcome: proto::Outcome) -> Result<Outcome, String> {
    let result = match outcome.result.ok_or("an outcome has neither output nor failure")? {
        proto::outcome::Result::Output(text) => {
            Ok(Json::parse(text).map_err(|error| format!("an outcome's output is not JSON: {error}"))?)
        }
        proto::outcome::Result::Failure(failure) => Err(Failure {
            code: failure_code_in(failure.code()).ok_or(format!("failure code {} is not known", failure.code))?,
            remedy: remedy_in(failure.remedy()),
            reason: match failure.reason.as_str() {
                "" => None,
                reason => Some(reason.parse().map_err(|error| format!("{error}"))?),
            },
            message: failure.message,
        }),
    };
    let timings = outcome.timings.unwrap_or_default();
    let duration = |field: Option<prost_types::Duration>| field.and_then(|it| duration_in(it).ok()).unwrap_or_default();
    Ok(Outcome {
        task: outcome.task_id.parse().map_err(|error| format!("{error}"))?,
        run: RunId(outcome.run_id.parse().map_err(|error| format!("run id {:?}: {error}", outcome.run_id))?),
        result,
        worker: outcome.worker.parse::<WorkerId>().map_err(|error| error.to_string())?,
        attempt: outcome.attempt,
        timings: Timings { queued: duration(timings.queued), ran: duration(timings.ran) },
    })
}

fn failure_code_out(code: FailureCode) -> proto::FailureCode {
    match code {
        FailureCode::Integration => proto::FailureCode::Integration,
        FailureCode::Panic => proto::FailureCode::Panic,
        FailureCode::Deadline => proto::FailureCode::Deadline,
        FailureCode::Cancelled => proto::FailureCode::Cancelled,
        FailureCode::OutputTooLarge => proto::FailureCode::OutputTooLarge,
    }
}

fn failure_code_in(code: proto::FailureCode) -> Option<FailureCode> {
    FailureCode::ALL.into_iter().find(|known| failure_code_out(*known) == code)
}

fn remedy_out(remedy: Remedy) -> proto::Remedy {
    match remedy {
        Remedy::None => proto::Remedy::None,
        Remedy::Retry => proto::Remedy::Retry,
        Remedy::UserAction => proto::Remedy::UserAction,
    }
}

/// What a newer server knows and this client does not is nothing that it could act on.
fn remedy_in(remedy: proto::Remedy) -> Remedy {
    Remedy::ALL.into_iter().find(|known| remedy_out(*known) == remedy).unwrap_or(Remedy::None)
}

/// The protocol's durations may be negative and need not be in normal form; a timeout must be both. The conversion that
/// comes with the type overflows on extreme values.
fn duration_in(duration: prost_types::Duration) -> Result<Duration, TaskError> {
    const NANOS_PER_SECOND: u32 = 1_000_000_000;
    let prost_types::Duration { seconds, nanos } = duration;
    match (u64::try_from(seconds), u32::try_from(nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < NANOS_PER_SECOND => Ok(Duration::new(seconds, nanos)),
        (Ok(_), _) if seconds > 0 || nanos >= 0 => Err(TaskError::invalid(format!(
            "timeout of {seconds} s and {nanos} ns is no duration: nanos are 0 to 999999999"
        ))),
        _ => Err(TaskError::deadline_too_short(format!(
            "timeout of {seconds} s and {nanos} ns is not a positive duration: give the task time to run"
        ))),
    }
}

/// Durations beyond the protocol's 10,000 years cannot come up: every timeout has a maximum.
fn duration_out(duration: Duration) -> prost_types::Duration {
    duration.try_into().unwrap_or(prost_types::Duration { seconds: i64::MAX, nanos: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUTS: Timeouts = Timeouts { default: Duration::from_secs(60), max: Duration::from_secs(600) };

    fn message() -> proto::Task {
        proto::Task { id: "t1".into(), integration: "bank".into(), input: "{}".into(), ..Default::default() }
    }

    fn refusal(task: proto::Task) -> TaskError {
        task_in(task, TIMEOUTS, Instant::now(), None).expect_err("it is invalid")
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let arrival = Instant::now();
        let task = task_in(message(), TIMEOUTS, arrival, None).expect("valid");
        assert_eq!(task.tenant.as_str(), "default");
        assert_eq!(task.priority, Priority::Batch);
        assert_eq!(task.deadline - arrival, TIMEOUTS.default);
    }

    #[test]
    fn the_smallest_timeout_counts() {
        let arrival = Instant::now();
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let deadline = |own, call| {
            let task = proto::Task { timeout: own, ..message() };
            task_in(task, TIMEOUTS, arrival, call).expect("valid").deadline - arrival
        };
        assert_eq!(deadline(seconds(7), None), Duration::from_secs(7));
        assert_eq!(deadline(seconds(7), Some(Duration::from_secs(3))), Duration::from_millis(2950));
        assert_eq!(deadline(seconds(7000), None), TIMEOUTS.max);
    }

    #[test]
    fn each_bad_field_is_named() {
        let cases = [
            (proto::Task { id: "../x".into(), ..message() }, "task id \"../x\""),
            (proto::Task { id: String::new(), ..message() }, "task id \"\""),
            (proto::Task { integration: "No".into(), ..message() }, "integration \"No\""),
            (proto::Task { tenant: "a b".into(), ..message() }, "tenant \"a b\""),
            (proto::Task { priority: 9, ..message() }, "priority 9"),
            (proto::Task { input: "{".into(), ..message() }, "input is not JSON"),
            (proto::Task { input: " ".repeat(MAX_INPUT_BYTES + 1), ..message() }, "at most 1048576"),
        ];
        for (task, expected) in cases {
            let error = refusal(task);
            assert_eq!((error.reason, error.started), (Reason::InvalidTask, Started::No));
            assert!(error.message.contains(expected), "{}", error.message);
        }
        let of_timeout = |(seconds, nanos)| {
            let timeout = Some(prost_types::Duration { seconds, nanos });
            refusal(proto::Task { timeout, ..message() }).reason
        };
        for timeout in [(-1, 0), (0, 0), (0, -1), (i64::MIN, i32::MIN)] {
            assert_eq!(of_timeout(timeout), Reason::DeadlineTooShort);
        }
        for timeout in [(0, 1_000_000_000), (5, -5), (i64::MAX, i32::MAX)] {
            assert_eq!(of_timeout(timeout), Reason::InvalidTask);
        }
    }

    #[test]
    fn outcomes_survive_the_wire() {
        for result in [
            Ok(Json::of(&[1, 2]).expect("json")),
            Err(Failure::new(FailureCode::Deadline, "late", Remedy::Retry)),
            Err(Failure {
                reason: Some("consent_expired".parse().expect("a reason")),
                ..Failure::new(FailureCode::Integration, "log in again", Remedy::UserAction)
            }),
        ] {
            let outcome = Outcome {
                task: "t1".parse().expect("id"),
                run: RunId::mint(),
                result,
                worker: "w1".parse().expect("id"),
                attempt: 2,
                timings: Timings { queued: Duration::from_millis(3), ran: Duration::from_secs(1) },
            };
            let back = outcome_in(outcome_out(&outcome)).expect("valid");
            assert_eq!(format!("{outcome:?}"), format!("{back:?}"));
        }
    }
}
