//! `SubmitMany`, the same for both roles: read a task, run it beside the others, answer in the order in which they end.

use futures_util::stream::{self, Stream, StreamExt};
use tonic::{Code, Status, Streaming};
use tracing::{Instrument, Span};

use super::{TaskError, proto};

/// Answers each task of a stream with what `submit` returns, at most `at_once` of them under way.
///
/// A task that is refused is a reply; only a broken stream ends the stream. Each task is handled in the span that this is
/// called in: the call's, which has ended before its stream.
pub fn reply_to_each<S, F>(
    tasks: Streaming<proto::Task>,
    at_once: usize,
    submit: S,
) -> impl Stream<Item = Result<proto::Reply, Status>>
where
    S: FnMut(proto::Task) -> F + Clone,
    F: Future<Output = Result<proto::Outcome, TaskError>>,
{
    let call = Span::current();
    until_broken(tasks)
        .map(move |task| {
            let mut submit = submit.clone();
            let answer = async move {
                let task = task?;
                let task_id = task.id.clone();
                let result = match submit(task).await {
                    Ok(outcome) => proto::reply::Result::Outcome(outcome),
                    Err(error) => proto::reply::Result::Error(rpc_status(&error)),
                };
                Ok(proto::Reply { task_id, result: Some(result) })
            };
            answer.instrument(call.clone())
        })
        .buffer_unordered(at_once)
}

/// The tasks of a stream up to the first error, and that error.
fn until_broken(tasks: Streaming<proto::Task>) -> impl Stream<Item = Result<proto::Task, Status>> {
    stream::unfold(Some(tasks), |tasks| async {
        let mut tasks = tasks?;
        match tasks.message().await {
            Ok(task) => task.map(|task| (Ok(task), Some(tasks))),
            // The caller reset the stream: nobody is left to tell.
            Err(status) if status.code() == Code::Cancelled => None,
            Err(status) => Some((Err(status), None)),
        }
    })
}

/// The error as a message, as `Submit` would have carried it in its trailers.
fn rpc_status(error: &TaskError) -> tonic_types::Status {
    let status = error.to_status();
    // tonic keeps exactly this message, encoded, as the details of a status with rich errors.
    prost::Message::decode(status.details()).unwrap_or_else(|_| tonic_types::Status {
        code: status.code() as i32,
        message: status.message().to_owned(),
        details: Vec::new(),
    })
}

/// A reply's error as the status that `Submit` would have returned: the inverse of what the server does.
pub fn status_of(error: tonic_types::Status) -> Status {
    let details = prost::Message::encode_to_vec(&error);
    Status::with_details(Code::from(error.code), error.message, details.into())
}
